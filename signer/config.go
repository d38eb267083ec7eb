package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"cats.example/shared/access"
	"cats.example/shared/limit"
	"cats.example/shared/picture"
	"cats.example/shared/service"
	"cats.example/shared/signerapi"
	"cats.example/signer/internal/blobstore"
	"cats.example/signer/internal/callers"
	"cats.example/signer/internal/identity"
)

const (
	name  = "signer"
	about = "signer stores pictures in Azure Blob Storage and signs links to them, for the frontend on the loopback interface.\n" + service.AboutTraces +
		"\n\nCommand doctor: checks settings, token, exchange, key, put, link, copy, callers and clock, and says what to do about what does not work"
)

type config struct {
	Storage  blobstore.Settings
	Identity identity.Settings

	APIAddress string `env:"API_ADDRESS" envDefault:"127.0.0.1:8081" help:"where the frontend reaches the signer; loopback only"`
	OpsAddress string `env:"OPS_ADDRESS" envDefault:":8091" help:"where /metrics, /livez and /readyz are"`

	access.Rules
	Anonymous bool   `env:"ANONYMOUS_ACCESS" envDefault:"false" help:"true turns authentication off: every client can store, read, replace and delete every picture. The signer does not start unless this or OIDC_ISSUER is set"`
	Audience  string `env:"OIDC_AUDIENCE" help:"with OIDC_ISSUER, whom a token must be for, as it has it in aud: at Entra ID the client id of the API's registration"`
	UserClaim string `env:"OIDC_USER_CLAIM" envDefault:"sub" help:"with OIDC_ISSUER, the claim that is the name of the caller's own picture, such as oid at Entra ID; it must be one that callers cannot choose"`

	limit.PerClient

	picture.Limits
	service.Settings
}

var (
	containerForm = regexp.MustCompile(`^[a-z0-9](-?[a-z0-9]){2,62}$`)
	// Labels after the name of the account begin with a letter: an IP address is no such host.
	accountForm = regexp.MustCompile(`^https://[a-z0-9]{3,24}(\.[A-Za-z][A-Za-z0-9-]*)*(:[0-9]+)?$`)
)

// parse reads the settings and returns all their validation errors, joined. An identity that cannot be used is not among
// them: the signer starts without it, is not ready, and logs why, so that "signer doctor" can run in its container. If a
// setting cannot be read, parse validates none; the other settings are in config nevertheless.
func parse(environ []string) (config, error) {
	var c config
	err := service.Parse(&c, environ)
	c.Storage.AccountURL = strings.TrimSuffix(c.Storage.AccountURL, "/")
	c.Storage.LinkBase = strings.TrimSuffix(c.Storage.LinkBase, "/")
	if err != nil {
		return c, err
	}
	return c, errors.Join(c.Rules.Validate(), c.Limits.Validate(), c.Settings.Validate(),
		c.storageFaults(), c.credentialFault(), c.linkFaults(), c.apiFaults(), c.callerFaults(), c.PerClient.Validate())
}

func (c config) identityOptions(transport policy.Transporter) identity.Options {
	return identity.Options{Settings: c.Identity, Fault: c.identityFaults(), Transport: transport}
}

func (c config) storageOptions(transport policy.Transporter, credential blobstore.Credential) blobstore.Options {
	return blobstore.Options{Settings: c.Storage, Limits: c.Limits, Credential: credential, Transport: transport}
}

func (c config) storageFaults() error {
	_, nameErr := signerapi.ParseUser(c.Storage.BlobName) // the same rules make a safe path segment
	return errors.Join(
		service.Require(accountForm.MatchString(c.Storage.AccountURL),
			"AZURE_STORAGE_ACCOUNT_URL is %q: want https://ACCOUNT.blob.core.windows.net, without a path; the first label of the host must be the name of the account; for a custom domain set LINK_BASE_URL instead", c.Storage.AccountURL),
		service.Require(containerForm.MatchString(c.Storage.Container),
			"STORAGE_CONTAINER is %q: want 3 to 63 of a-z, 0-9 and single hyphens", c.Storage.Container),
		service.Require(c.MaxSize <= blobstore.MaxPicture,
			"MAX_PICTURE_SIZE is %v: it can be at most %v; clients upload larger pictures directly to storage, see MAX_DIRECT_SIZE",
			c.MaxSize, picture.Size(blobstore.MaxPicture)),
		service.Require(nameErr == nil, "BLOB_NAME is %q: want one path segment", c.Storage.BlobName),
	)
}

func (c config) credentialFault() error {
	return service.Require(c.Identity.Kind == identity.WorkloadIdentity || c.Identity.Kind == identity.Default,
		"CREDENTIAL is %q: want %s or %s", c.Identity.Kind, identity.WorkloadIdentity, identity.Default)
}

// What identity settings look like. A tenant is named by its ID or by one of its domains.
var (
	clientForm    = regexp.MustCompile(`^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$`)
	tenantForm    = regexp.MustCompile(clientForm.String() + `|^[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)+$`)
	authorityForm = regexp.MustCompile(`^https://`)
)

const (
	zeroID       = "00000000-0000-0000-0000-000000000000" // the placeholder of documents
	fixID        = "correct it in k8s/overlays/aks/settings.env, without quotes, and apply the overlay again; it is the annotation azure.workload.identity/"
	fixByWebhook = "the workload identity webhook sets this variable; remove your own value"
	fixMissing   = "the workload identity webhook sets them in pods with the label azure.workload.identity/use=true whose ServiceAccount has the annotation " +
		"azure.workload.identity/client-id, which is AZURE_CLIENT_ID in k8s/overlays/aks/settings.env; with az login on a workstation, set CREDENTIAL=default"
)

// identityFaults returns an error for each setting with which no token can be requested, joined. Each names its variable and,
// after "; fix: ", what to do.
func (c config) identityFaults() error {
	var faults []error
	var missing []string
	for _, v := range []struct {
		name, value string
		form        *regexp.Regexp
		want, fix   string
	}{
		{"AZURE_CLIENT_ID", c.Identity.ClientID, clientForm, "a GUID", fixID + "client-id of the ServiceAccount"},
		{"AZURE_TENANT_ID", c.Identity.TenantID, tenantForm, "a GUID or a domain", fixID + "tenant-id of the ServiceAccount"},
		{"AZURE_FEDERATED_TOKEN_FILE", c.Identity.TokenFile, regexp.MustCompile(``), "", fixByWebhook},
		{"AZURE_AUTHORITY_HOST", c.Identity.AuthorityHost, authorityForm, "an https:// URL", fixByWebhook},
	} {
		switch {
		case v.value == "" && v.form != authorityForm && c.Identity.Kind == identity.WorkloadIdentity:
			missing = append(missing, v.name)
		case v.value == "":
		case v.value == zeroID:
			faults = append(faults, fmt.Errorf("%s is %s, which is a placeholder; fix: %s", v.name, v.value, v.fix))
		case service.Quoted(v.value):
			faults = append(faults, fmt.Errorf("%s is %s, in quotes, which are part of the value; fix: remove the quotes; %s", v.name, v.value, v.fix))
		case !v.form.MatchString(v.value):
			faults = append(faults, fmt.Errorf("%s is %q: want %s; fix: %s", v.name, v.value, v.want, v.fix))
		}
	}
	if len(missing) > 0 {
		faults = append(faults, fmt.Errorf("%s not set; fix: %s", strings.Join(missing, ", "), fixMissing))
	}
	return errors.Join(faults...)
}

func (c config) linkFaults() error {
	base, err := url.Parse(c.Storage.LinkBase)
	isBase := err == nil && (base.Scheme == "https" || base.Scheme == "http") && base.Host != "" &&
		base.RawQuery == "" && base.Fragment == "" && base.User == nil
	return errors.Join(
		service.Require(slices.IsSorted([]time.Duration{blobstore.MinLinkTTL, c.Storage.LinkTTL, c.Storage.LinkMaxTTL, blobstore.MaxLinkTTL}),
			"LINK_TTL is %v and LINK_MAX_TTL is %v: want %v ≤ LINK_TTL ≤ LINK_MAX_TTL ≤ %v",
			c.Storage.LinkTTL, c.Storage.LinkMaxTTL, blobstore.MinLinkTTL, blobstore.MaxLinkTTL),
		service.Require(0 <= c.Storage.MaxDirect && c.Storage.MaxDirect <= blobstore.MaxDirect,
			"MAX_DIRECT_SIZE is %v: want 0 to %v", c.Storage.MaxDirect, picture.Size(blobstore.MaxDirect)),
		service.Require(c.Storage.LinkBase == "" || isBase, "LINK_BASE_URL is %q: want a URL such as https://pictures.example.com", c.Storage.LinkBase),
	)
}

func (c config) callerFaults() error {
	return errors.Join(
		service.Require(!c.On() || c.Audience != "",
			"OIDC_AUDIENCE is not set: with OIDC_ISSUER it says whom tokens must be for, or one for any other service of that issuer would do"),
		service.Require(!c.On() || !c.Anonymous,
			"OIDC_ISSUER and ANONYMOUS_ACCESS=true are both set: remove ANONYMOUS_ACCESS to authenticate clients, or OIDC_ISSUER to turn authentication off"),
		service.Require(c.On() || c.Audience == "", "OIDC_ISSUER is not set, and OIDC_AUDIENCE is: set both, or neither and ANONYMOUS_ACCESS=true"),
		service.Require(c.On() || c.Audience != "" || c.Anonymous,
			"authentication is not configured: set OIDC_ISSUER and OIDC_AUDIENCE to require bearer tokens, or ANONYMOUS_ACCESS=true to let every client store, read, replace and delete every picture"),
	)
}

func (c config) callerOptions(client *http.Client) callers.Options {
	return callers.Options{Rules: c.Rules, PerClient: c.PerClient, Audience: c.Audience, Claim: c.UserClaim, Client: client}
}

func (c config) apiFaults() error {
	host, _, err := net.SplitHostPort(c.APIAddress)
	ip, _ := netip.ParseAddr(host) // the zero address is no loopback address
	return errors.Join(
		service.Require(err == nil && (host == "localhost" || ip.IsLoopback()),
			"API_ADDRESS is %q: want a loopback address such as 127.0.0.1:8081; whoever reaches this port can use the identity", c.APIAddress),
		service.Require(c.Storage.KnownTTL >= 0, "EXISTENCE_TTL must not be negative"),
	)
}
