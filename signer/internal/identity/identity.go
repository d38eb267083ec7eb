// Package identity fetches and renews the access token of the workload identity in the background.
//
// No request waits for a token exchange. A failed exchange is logged with what to fix.
package identity

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/tracing"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"cats.example/shared/apierror"
	"cats.example/shared/telemetry"
	"cats.example/signer/internal/refresh"
)

// Scope is the OAuth scope of Blob Storage.
const Scope = "https://storage.azure.com/.default"

const fetchTimeout = 30 * time.Second // for one token exchange, retries included

// Options configure [Tokens]. With invalid settings each exchange fails with their validation errors.
type Options struct {
	Settings
	Transport policy.Transporter
	Tracing   tracing.Provider // the zero value traces nothing
}

// Tokens is an [azcore.TokenCredential] whose GetToken never waits. It returns the token that [Tokens.Run] renews. It is safe for
// concurrent use.
type Tokens struct {
	fetch func(context.Context) (azcore.AccessToken, error) // the error is one line and says what to fix
	log   *slog.Logger
	first chan struct{} // closed after the first successful exchange
	once  sync.Once     // closes first
	renew chan struct{}

	acquired *prometheus.CounterVec
	worked   prometheus.Gauge

	mu    sync.Mutex
	token azcore.AccessToken
	err   error // an apierror.Error: why there is no valid token
}

// New returns Tokens. It fetches nothing before Run or Fetch.
func New(opts Options, log *slog.Logger, reg prometheus.Registerer) *Tokens {
	return &Tokens{
		fetch: func(ctx context.Context) (azcore.AccessToken, error) {
			// A new credential each time: the SDK's keeps an assertion for up to ten minutes after it has read the file.
			cred, err := opts.credential()
			if err != nil {
				return azcore.AccessToken{}, err
			}
			token, err := cred.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{Scope}})
			return token, explain(err, opts.Audience())
		},
		log:      log,
		first:    make(chan struct{}),
		renew:    make(chan struct{}, 1),
		acquired: telemetry.NewCounterVec(reg, "cats_signer_token_requests_total", "Token exchanges by outcome.", "outcome", "ok", "error"),
		worked: promauto.With(reg).NewGauge(prometheus.GaugeOpts{
			Name: "cats_signer_token_last_success_timestamp_seconds", Help: "Unix time of the last successful token exchange; 0 if there was none.",
		}),
		err: apierror.ErrSignerUnavailable.Wrap(errors.New("the first token is being fetched")),
	}
}

func (o Options) credential() (azcore.TokenCredential, error) {
	if err := o.Validate(); err != nil {
		return nil, errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	client := azcore.ClientOptions{
		Cloud:           cloud.Configuration{ActiveDirectoryAuthorityHost: o.AuthorityHost}, // empty is the public cloud
		Transport:       o.Transport,
		TracingProvider: o.Tracing,
		Retry:           policy.RetryOptions{MaxRetries: 1, TryTimeout: 10 * time.Second, RetryDelay: 500 * time.Millisecond},
	}
	if o.Credential == Default {
		return azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{
			ClientOptions:            client,
			TenantID:                 o.TenantID,
			DisableInstanceDiscovery: o.DisableInstanceDiscovery,
		})
	}
	// The SDK's own message about an unreadable file is long and hides the cause.
	if _, err := o.FederatedToken(); err != nil {
		return nil, err
	}
	return azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{
		ClientOptions:            client,
		ClientID:                 o.ClientID,
		TenantID:                 o.TenantID,
		TokenFilePath:            o.TokenFile,
		DisableInstanceDiscovery: o.DisableInstanceDiscovery,
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
func (t *Tokens) First() <-chan struct{} { return t.first }

// Renew requests an early renewal, because storage rejected the token. It does not wait.
func (t *Tokens) Renew() {
	select {
	case t.renew <- struct{}{}:
	default:
	}
}

// Run fetches a token and renews it until ctx is done, and then returns nil. It renews before half of the token's lifetime is over.
// After a failure it retries with growing delays, and the current token stays in use.
func (t *Tokens) Run(ctx context.Context) error {
	refresh.Keep(ctx, t.log, "token exchange failed", t.renew, func(ctx context.Context) (time.Duration, error) {
		token, err := t.Fetch(ctx)
		if err != nil {
			return 0, err
		}
		select {
		case <-t.renew: // storage rejected the previous token meanwhile
		default:
		}
		wait := refresh.BeforeHalf(time.Until(token.ExpiresOn))
		t.log.Info("token obtained", "expires_at", token.ExpiresOn.UTC(), "renew_in", wait.String())
		return wait, nil
	})
	return nil
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
	t.once.Do(func() { close(t.first) })
	return token, nil
}
