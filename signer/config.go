package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
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
	about = "signer stores pictures in Azure Blob Storage and signs links to them, for the frontend on the loopback interface.\n" + service.AboutTraces
)

type config struct {
	AccountURL string `env:"AZURE_STORAGE_ACCOUNT_URL,required" help:"the storage account, such as https://ACCOUNT.blob.core.windows.net"`
	Container  string `env:"STORAGE_CONTAINER" envDefault:"cats" help:"container of the pictures; it must exist"`
	BlobName   string `env:"BLOB_NAME" envDefault:"cat" help:"the picture of a user is the blob USER/BLOB_NAME"`

	Credential               string `env:"CREDENTIAL" envDefault:"workload-identity" help:"workload-identity, or default for DefaultAzureCredential (a person logged in with az)"`
	ClientID                 string `env:"AZURE_CLIENT_ID" quoted:"later" help:"client ID of the identity, a GUID; the workload identity webhook sets it"`
	TenantID                 string `env:"AZURE_TENANT_ID" quoted:"later" help:"tenant of the identity, a GUID or a domain; the webhook sets it"`
	TokenFile                string `env:"AZURE_FEDERATED_TOKEN_FILE" quoted:"later" help:"file of the federated token; the webhook sets it"`
	AuthorityHost            string `env:"AZURE_AUTHORITY_HOST" quoted:"later" help:"the Entra ID endpoint, https; the webhook sets it"`
	DisableInstanceDiscovery bool   `env:"DISABLE_INSTANCE_DISCOVERY" envDefault:"false" help:"true for private clouds, which Entra ID's public metadata does not list"`

	LinkTTL    time.Duration `env:"LINK_TTL" envDefault:"1h" help:"how long a link lives unless the caller asks otherwise"`
	LinkMaxTTL time.Duration `env:"LINK_MAX_TTL" envDefault:"24h" help:"the longest life that a caller can ask for, at most 72h"`
	LinkBase   string        `env:"LINK_BASE_URL" help:"public base of the links, such as a CDN in front of the account, instead of AZURE_STORAGE_ACCOUNT_URL"`

	MaxDirect picture.Size `env:"MAX_DIRECT_SIZE" envDefault:"0" help:"largest picture that clients may send straight to storage by a signed URL to write with, such as 5GiB, at most 16GiB; 0 for none. Browsers need a CORS rule of the account for that"`

	APIAddress   string        `env:"API_ADDRESS" envDefault:"127.0.0.1:8081" help:"where the frontend reaches the signer; loopback only"`
	OpsAddress   string        `env:"OPS_ADDRESS" envDefault:":8091" help:"where /metrics, /livez and /readyz are"`
	ExistenceTTL time.Duration `env:"EXISTENCE_TTL" envDefault:"5s" help:"how long a picture is known to be there before storage is asked again; 0s to ask for each link"`

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
	accountForm   = regexp.MustCompile(`^[a-z0-9]{3,24}$`)
)

// parse reads the settings and returns all their validation errors, joined. An identity that cannot be used is not among
// them: the signer starts without it, is not ready, and logs why, so that "signer doctor" can run in its container. If a
// setting cannot be read, parse validates none; the other settings are in config nevertheless.
func parse(environ []string) (config, error) {
	var c config
	err := service.Parse(&c, environ)
	c.AccountURL = strings.TrimSuffix(c.AccountURL, "/")
	c.LinkBase = strings.TrimSuffix(c.LinkBase, "/")
	if err != nil {
		return c, err
	}
	return c, errors.Join(c.Rules.Validate(), c.Limits.Validate(), c.Settings.Validate(),
		c.storageFaults(), c.credentialFault(), c.linkFaults(), c.apiFaults(), c.callerFaults(), c.PerClient.Validate())
}

func (c config) identityOptions(transport policy.Transporter) identity.Options {
	return identity.Options{
		Fault:                    c.identityFaults(),
		Kind:                     c.Credential,
		ClientID:                 c.ClientID,
		TenantID:                 c.TenantID,
		TokenFile:                c.TokenFile,
		AuthorityHost:            c.AuthorityHost,
		DisableInstanceDiscovery: c.DisableInstanceDiscovery,
		Transport:                transport,
	}
}

func (c config) storageOptions(transport policy.Transporter, credential blobstore.Credential) blobstore.Options {
	return blobstore.Options{
		AccountURL: c.AccountURL,
		Container:  c.Container,
		BlobName:   c.BlobName,
		LinkBase:   c.LinkBase,
		LinkTTL:    c.LinkTTL,
		LinkMaxTTL: c.LinkMaxTTL,
		MaxDirect:  int64(c.MaxDirect),
		Limits:     c.Limits,
		KnownTTL:   c.ExistenceTTL,
		Credential: credential,
		Transport:  transport,
	}
}

func (c config) storageFaults() error {
	var faults []error
	u, err := url.Parse(c.AccountURL)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.User != nil:
		faults = append(faults, fmt.Errorf("AZURE_STORAGE_ACCOUNT_URL is %q: want https://ACCOUNT.blob.core.windows.net, without a path", c.AccountURL))
	case net.ParseIP(u.Hostname()) != nil || !accountForm.MatchString(strings.Split(u.Hostname(), ".")[0]):
		faults = append(faults, fmt.Errorf("AZURE_STORAGE_ACCOUNT_URL is %q: the first label of the host must be the name of the account; for a custom domain set LINK_BASE_URL instead", c.AccountURL))
	}
	if !containerForm.MatchString(c.Container) {
		faults = append(faults, fmt.Errorf("STORAGE_CONTAINER is %q: want 3 to 63 of a-z, 0-9 and single hyphens", c.Container))
	}
	if c.MaxSize > blobstore.MaxPicture {
		faults = append(faults, fmt.Errorf("MAX_PICTURE_SIZE is %v: it can be at most %v; clients upload larger pictures directly to storage, see MAX_DIRECT_SIZE",
			c.MaxSize, picture.Size(blobstore.MaxPicture)))
	}
	if _, err := signerapi.ParseUser(c.BlobName); err != nil { // the same rules make a safe path segment
		faults = append(faults, fmt.Errorf("BLOB_NAME is %q: want one path segment", c.BlobName))
	}
	return errors.Join(faults...)
}

func (c config) credentialFault() error {
	if c.Credential != identity.WorkloadIdentity && c.Credential != identity.Default {
		return fmt.Errorf("CREDENTIAL is %q: want %s or %s", c.Credential, identity.WorkloadIdentity, identity.Default)
	}
	return nil
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
		{"AZURE_CLIENT_ID", c.ClientID, clientForm, "a GUID", fixID + "client-id of the ServiceAccount"},
		{"AZURE_TENANT_ID", c.TenantID, tenantForm, "a GUID or a domain", fixID + "tenant-id of the ServiceAccount"},
		{"AZURE_FEDERATED_TOKEN_FILE", c.TokenFile, regexp.MustCompile(``), "", fixByWebhook},
		{"AZURE_AUTHORITY_HOST", c.AuthorityHost, authorityForm, "an https:// URL", fixByWebhook},
	} {
		switch {
		case v.value == "" && v.form != authorityForm && c.Credential == identity.WorkloadIdentity:
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
	var faults []error
	if c.LinkTTL < blobstore.MinLinkTTL || c.LinkTTL > c.LinkMaxTTL || c.LinkMaxTTL > blobstore.MaxLinkTTL {
		faults = append(faults, fmt.Errorf("LINK_TTL is %v and LINK_MAX_TTL is %v: want %v ≤ LINK_TTL ≤ LINK_MAX_TTL ≤ %v",
			c.LinkTTL, c.LinkMaxTTL, blobstore.MinLinkTTL, blobstore.MaxLinkTTL))
	}
	if c.MaxDirect < 0 || c.MaxDirect > blobstore.MaxDirect {
		faults = append(faults, fmt.Errorf("MAX_DIRECT_SIZE is %v: want 0 to %v", c.MaxDirect, picture.Size(blobstore.MaxDirect)))
	}
	if c.LinkBase != "" {
		u, err := url.Parse(c.LinkBase)
		if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
			faults = append(faults, fmt.Errorf("LINK_BASE_URL is %q: want a URL such as https://pictures.example.com", c.LinkBase))
		}
	}
	return errors.Join(faults...)
}

func (c config) callerFaults() error {
	switch {
	case c.On() && c.Audience == "":
		return errors.New("OIDC_AUDIENCE is not set: with OIDC_ISSUER it says whom tokens must be for, or one for any other service of that issuer would do")
	case c.On() && c.Anonymous:
		return errors.New("OIDC_ISSUER and ANONYMOUS_ACCESS=true are both set: remove ANONYMOUS_ACCESS to authenticate clients, or OIDC_ISSUER to turn authentication off")
	case !c.On() && c.Audience != "":
		return errors.New("OIDC_ISSUER is not set, and OIDC_AUDIENCE is: set both, or neither and ANONYMOUS_ACCESS=true")
	case !c.On() && !c.Anonymous:
		return errors.New("authentication is not configured: set OIDC_ISSUER and OIDC_AUDIENCE to require bearer tokens, " +
			"or ANONYMOUS_ACCESS=true to let every client store, read, replace and delete every picture")
	}
	return nil
}

func (c config) callerOptions(client *http.Client) callers.Options {
	return callers.Options{Rules: c.Rules, PerClient: c.PerClient, Audience: c.Audience, Claim: c.UserClaim, Client: client}
}

func (c config) apiFaults() error {
	var faults []error
	host, _, err := net.SplitHostPort(c.APIAddress)
	ip, ipErr := netip.ParseAddr(host)
	if err != nil || (host != "localhost" && (ipErr != nil || !ip.IsLoopback())) {
		faults = append(faults, fmt.Errorf("API_ADDRESS is %q: want a loopback address such as 127.0.0.1:8081; whoever reaches this port can use the identity", c.APIAddress))
	}
	if c.ExistenceTTL < 0 {
		faults = append(faults, errors.New("EXISTENCE_TTL must not be negative"))
	}
	return errors.Join(faults...)
}
