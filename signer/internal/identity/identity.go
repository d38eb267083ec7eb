// Package identity fetches and renews the access token of the workload identity in the background.
//
// No request waits for a token exchange. A failed exchange is logged with what to fix.
package identity

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/tracing"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/prometheus/client_golang/prometheus"

	"cats.example/shared/apierror"
	"cats.example/shared/config"
	"cats.example/shared/telemetry"
	"cats.example/signer/internal/refresh"
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

// Forms of IDs. A tenant has an ID and domains.
var (
	clientForm = regexp.MustCompile(`^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$`)
	tenantForm = regexp.MustCompile(clientForm.String() + `|^[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)+$`)
)

const (
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
		required    bool
		form        *regexp.Regexp
		want, fix   string
	}{
		{"AZURE_CLIENT_ID", s.ClientID, true, clientForm, "a GUID", fixID + "client-id of the ServiceAccount"},
		{"AZURE_TENANT_ID", s.TenantID, true, tenantForm, "a GUID or a domain", fixID + "tenant-id of the ServiceAccount"},
		{"AZURE_FEDERATED_TOKEN_FILE", s.TokenFile, true, regexp.MustCompile("."), "a path", fixByWebhook},
		{"AZURE_AUTHORITY_HOST", s.AuthorityHost, false, regexp.MustCompile("^https://"), "an https:// URL", fixByWebhook},
	} {
		switch {
		case v.value == "" && v.required && s.Credential != Default:
			missing = append(missing, v.name)
		case config.IsQuoted(v.value):
			faults = append(faults, fmt.Errorf("%s is %s, in quotes, which are part of the value; fix: remove the quotes; %s", v.name, v.value, v.fix))
		case v.value != "" && !v.form.MatchString(v.value):
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

// Scope is the OAuth scope of Blob Storage.
const Scope = "https://storage.azure.com/.default"

const fetchTimeout = 30 * time.Second // for one token exchange, retries included

// Tokens is an [azcore.TokenCredential] whose GetToken never waits. It returns the token that [Tokens.Run] renews. It is safe for
// concurrent use.
type Tokens struct {
	fetch    func(context.Context) (azcore.AccessToken, error) // the error is one line and says what to fix
	log      *slog.Logger
	first    context.Context // done after the first successful exchange
	received context.CancelFunc
	renew    chan struct{}

	acquired *prometheus.CounterVec
	worked   prometheus.Gauge

	mu    sync.Mutex
	token azcore.AccessToken
	err   error // an apierror.Error: why there is no valid token
}

// New returns Tokens. It fetches nothing before Run or Fetch. With invalid settings each exchange fails with their validation
// errors. The zero spans trace nothing.
func New(settings Settings, transport policy.Transporter, spans tracing.Provider, log *slog.Logger, reg prometheus.Registerer) *Tokens {
	t := &Tokens{
		fetch: func(ctx context.Context) (azcore.AccessToken, error) {
			// A new credential each time: the SDK's keeps an assertion for up to ten minutes after it has read the file.
			cred, err := settings.credential(transport, spans)
			if err != nil {
				return azcore.AccessToken{}, err
			}
			token, err := cred.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{Scope}})
			return token, explain(err, settings.Audience())
		},
		log:      log,
		renew:    make(chan struct{}, 1),
		acquired: telemetry.NewCounterVec(reg, "cats_signer_token_requests_total", "Token exchanges by outcome.", "outcome", "ok", "error"),
		worked: telemetry.NewGauge(reg, "cats_signer_token_last_success_timestamp_seconds",
			"Unix time of the last successful token exchange; 0 if there was none."),
		err: apierror.ErrSignerUnavailable.Wrap(errors.New("the first token is being fetched")),
	}
	t.first, t.received = context.WithCancel(context.Background())
	return t
}

func (s Settings) credential(transport policy.Transporter, spans tracing.Provider) (azcore.TokenCredential, error) {
	if err := s.Validate(); err != nil {
		return nil, errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	client := azcore.ClientOptions{
		Cloud:           cloud.Configuration{ActiveDirectoryAuthorityHost: s.AuthorityHost}, // empty is the public cloud
		Transport:       transport,
		TracingProvider: spans,
		Retry:           policy.RetryOptions{MaxRetries: 1, TryTimeout: 10 * time.Second, RetryDelay: 500 * time.Millisecond},
	}
	if s.Credential == Default {
		return azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{
			ClientOptions:            client,
			TenantID:                 s.TenantID,
			DisableInstanceDiscovery: s.DisableInstanceDiscovery,
		})
	}
	// The SDK's own message about an unreadable file is long and hides the cause.
	if _, err := s.FederatedToken(); err != nil {
		return nil, err
	}
	return azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{
		ClientOptions:            client,
		ClientID:                 s.ClientID,
		TenantID:                 s.TenantID,
		TokenFilePath:            s.TokenFile,
		DisableInstanceDiscovery: s.DisableInstanceDiscovery,
		EnableAzureProxy:         true, // AKS identity bindings
	})
}

// GetToken returns the current token. The error is ErrIdentityUnavailable, or ErrSignerUnavailable until the first exchange has ended.
func (t *Tokens) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Now().Before(t.token.ExpiresOn) {
		return t.token, nil
	}
	return azcore.AccessToken{}, t.err
}

// First returns a channel that is closed after the first successful exchange.
func (t *Tokens) First() <-chan struct{} { return t.first.Done() }

// Renew requests an early renewal, because storage rejected the token. It does not wait.
func (t *Tokens) Renew() {
	select {
	case t.renew <- struct{}{}:
	default:
	}
}

// Run fetches a token and renews it until ctx is done. It renews before half of the token's lifetime is over.
// After a failure it retries with growing delays, and the current token stays in use.
func (t *Tokens) Run(ctx context.Context) {
	refresh.Keep(ctx, t.log, "token exchange failed", t.renew, func(ctx context.Context) (time.Duration, error) {
		token, err := t.Fetch(ctx)
		if err != nil {
			return 0, err
		}
		wait := refresh.BeforeHalf(time.Until(token.ExpiresOn))
		t.log.Info("token obtained", "expires_at", token.ExpiresOn.UTC(), "renew_in", wait.String())
		return wait, nil
	})
}

// Fetch exchanges the federated token once and returns the access token, which GetToken returns from then on. The error is one line
// and says what to fix.
func (t *Tokens) Fetch(ctx context.Context) (azcore.AccessToken, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	token, err := t.fetch(ctx)

	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		t.acquired.WithLabelValues("error").Inc()
		t.err = apierror.ErrIdentityUnavailable.Wrap(err)
		return azcore.AccessToken{}, err
	}
	t.acquired.WithLabelValues("ok").Inc()
	t.worked.SetToCurrentTime()
	t.token = token
	t.err = apierror.ErrIdentityUnavailable.Wrap(errors.New("the token has expired and was not renewed"))
	t.received()
	return token, nil
}

// aadsts matches code and sentence in an error response of Entra ID.
var aadsts = regexp.MustCompile(`AADSTS(\d+): ?([^"\\\r\n]*)`)

// fixes has the advice for the error codes of wrong configurations; %s is the audience of the cloud.
// Source: https://learn.microsoft.com/entra/identity-platform/reference-error-codes
var fixes = map[string]string{
	"70021":   federated,
	"700211":  federated + "; the issuer must be the cluster's own: az aks show --query oidcIssuerProfile.issuerUrl",
	"700212":  federated + "; the audience of both should be %s, as AZURE_AUTHORITY_HOST says, and must be the same",
	"700213":  federated + "; the subject must be system:serviceaccount:NAMESPACE:SERVICEACCOUNT of this pod",
	"7002138": federated + "; the comparison is case-sensitive",
	"700024":  "the federated token is expired or not valid yet: check that the kubelet renews it, and the clocks",
	"700027":  "Entra ID does not know the key that signed the federated token: the cluster has rotated its keys moments ago, or the issuer is that of another cluster",
	"700016":  "AZURE_CLIENT_ID names no application in AZURE_TENANT_ID: check the ServiceAccount's annotation azure.workload.identity/client-id",
	"90002":   "AZURE_TENANT_ID names no tenant at AZURE_AUTHORITY_HOST",
	"50027":   "AZURE_FEDERATED_TOKEN_FILE does not hold a service-account token",
	"7000218": "AZURE_FEDERATED_TOKEN_FILE does not hold a service-account token",
	"700082":  "the login has expired: az login",
}

const federated = "compare issuer, subject and audience of the identity's federated credential with the pod's; a new one takes minutes to take effect"

// explain returns the error of a token exchange as one line: the error of Entra ID and, after "; fix: ", what to do. The SDK's text
// contains the whole response. audience is the one that the cloud expects.
func explain(err error, audience string) error {
	if err == nil {
		return nil
	}
	m := aadsts.FindStringSubmatch(err.Error())
	if m == nil {
		return fmt.Errorf("%.400s", strings.Join(strings.Fields(err.Error()), " "))
	}
	text := fmt.Sprintf("AADSTS%s: %s", m[1], strings.TrimSpace(m[2]))
	if fix := fixes[m[1]]; fix != "" {
		text += "; fix: " + strings.ReplaceAll(fix, "%s", audience)
	}
	return errors.New(text)
}
