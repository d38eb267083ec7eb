package identity

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"os"
	"regexp"
	"strings"

	"cats.example/shared/config"
)

// Values of CREDENTIAL.
const (
	WorkloadIdentity = "workload-identity"
	Default          = "default"
)

// Settings are the settings of the identity. The token file is read for each exchange, because the kubelet rotates it.
type Settings struct {
	Credential               string `env:"CREDENTIAL" envDefault:"workload-identity" help:"workload-identity, or default for DefaultAzureCredential (for example az login)"`
	ClientID                 string `env:"AZURE_CLIENT_ID" quoted:"later" help:"client ID of the identity, a GUID; the workload identity webhook sets it"`
	TenantID                 string `env:"AZURE_TENANT_ID" quoted:"later" help:"tenant of the identity, a GUID or a domain; the webhook sets it"`
	TokenFile                string `env:"AZURE_FEDERATED_TOKEN_FILE" quoted:"later" help:"path of the federated token's file; the webhook sets it"`
	AuthorityHost            string `env:"AZURE_AUTHORITY_HOST" quoted:"later" help:"URL of Entra ID, https; the webhook sets it"`
	DisableInstanceDiscovery bool   `env:"DISABLE_INSTANCE_DISCOVERY" envDefault:"false" help:"true for private clouds, which are not in Entra ID's public metadata"`
}

// Forms of the settings. A tenant has an ID and domains.
var (
	clientForm    = regexp.MustCompile(`^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$`)
	tenantForm    = regexp.MustCompile(clientForm.String() + `|^[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)+$`)
	authorityForm = regexp.MustCompile(`^https://`)
	anyForm       = regexp.MustCompile(``)
)

const (
	zeroID       = "00000000-0000-0000-0000-000000000000" // a placeholder in documentation
	fixID        = "correct it in k8s/overlays/aks/settings.env, without quotes, and apply the overlay again; it is the annotation azure.workload.identity/"
	fixByWebhook = "the workload identity webhook sets this variable; remove your own value"
	fixMissing   = "the workload identity webhook sets them in pods with the label azure.workload.identity/use=true whose ServiceAccount has the annotation " +
		"azure.workload.identity/client-id, which is AZURE_CLIENT_ID in k8s/overlays/aks/settings.env; with az login on a workstation, set CREDENTIAL=default"
)

// Validate returns an error for each setting that makes token exchanges fail, joined. Each names its variable and, after "; fix: ", what
// to do.
func (s Settings) Validate() error {
	var faults []error
	var missing []string
	for _, v := range []struct {
		name, value string
		form        *regexp.Regexp
		want, fix   string
	}{
		{"AZURE_CLIENT_ID", s.ClientID, clientForm, "a GUID", fixID + "client-id of the ServiceAccount"},
		{"AZURE_TENANT_ID", s.TenantID, tenantForm, "a GUID or a domain", fixID + "tenant-id of the ServiceAccount"},
		{"AZURE_FEDERATED_TOKEN_FILE", s.TokenFile, anyForm, "", fixByWebhook},
		{"AZURE_AUTHORITY_HOST", s.AuthorityHost, authorityForm, "an https:// URL", fixByWebhook},
	} {
		switch {
		case v.value == "" && v.form != authorityForm && s.Credential != Default:
			missing = append(missing, v.name)
		case v.value == "":
		case v.value == zeroID:
			faults = append(faults, fmt.Errorf("%s is %s, which is a placeholder; fix: %s", v.name, v.value, v.fix))
		case config.IsQuoted(v.value):
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

// audiences has the audience of federated tokens in national clouds, by the host of Entra ID.
// Source: https://learn.microsoft.com/entra/workload-id/workload-identity-federation-config-app-trust-managed-identity
var audiences = map[string]string{
	"login.microsoftonline.us":         publicAudience + "USGov",
	"login.partner.microsoftonline.cn": publicAudience + "China",
	"login.chinacloudapi.cn":           publicAudience + "China",
}

const publicAudience = "api://AzureADTokenExchange"

// Audience returns the audience of federated tokens in the cloud of AuthorityHost.
func (s Settings) Audience() string {
	u, err := url.Parse(s.AuthorityHost)
	if err != nil {
		return publicAudience
	}
	return cmp.Or(audiences[strings.ToLower(u.Hostname())], publicAudience)
}

// FederatedToken returns the content of the token file.
func (s Settings) FederatedToken() (string, error) {
	token, err := os.ReadFile(s.TokenFile)
	if err == nil && len(bytes.TrimSpace(token)) == 0 {
		err = fmt.Errorf("%s is empty", s.TokenFile)
	}
	if err != nil {
		err = fmt.Errorf("reading AZURE_FEDERATED_TOKEN_FILE: %w; fix: mount the token's volume in this container, readable for its user", err)
	}
	return string(token), err
}
