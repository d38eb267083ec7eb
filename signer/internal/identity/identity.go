// Package identity keeps a token of the workload's identity at hand: it is
// fetched and renewed in the background, so that no request ever waits for the
// token exchange, and a failing one is told with what to fix.
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

// Scope is what Blob Storage takes tokens for.
const Scope = "https://storage.azure.com/.default"

const fetchTimeout = 30 * time.Second // one token exchange, its retries included

// Options are the settings and what the identity works with. With settings that are not valid, each exchange fails.
type Options struct {
	Settings
	Transport policy.Transporter
	Tracing   tracing.Provider // the zero one for no spans
}

// Tokens is an [azcore.TokenCredential] whose GetToken never waits: it returns
// the token that [Tokens.Run] keeps fresh, or an error when there is none.
type Tokens struct {
	fetch func(context.Context) (azcore.AccessToken, error) // an error of one line, with what to fix
	log   *slog.Logger
	first chan struct{} // closed once there has been a token
	once  sync.Once     // closes first
	renew chan struct{}

	acquired *prometheus.CounterVec
	worked   prometheus.Gauge

	mu    sync.Mutex
	token azcore.AccessToken
	err   error // why there is no valid token, a apierror.Error
}

// New returns Tokens that fetch as opts say. Nothing is fetched before Run.
func New(opts Options, log *slog.Logger, reg prometheus.Registerer) *Tokens {
	return &Tokens{
		fetch: func(ctx context.Context) (azcore.AccessToken, error) {
			// A new credential each time: the SDK's own would go on using an assertion
			// that it has read up to ten minutes ago.
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
			Name: "cats_signer_token_last_success_timestamp_seconds", Help: "When a token was last obtained, in Unix time; 0 for never.",
		}),
		err: apierror.ErrSignerUnavailable.Wrap(errors.New("the first token is being fetched")),
	}
}

func (o Options) credential() (azcore.TokenCredential, error) {
	if err := o.Validate(); err != nil {
		return nil, errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	client := azcore.ClientOptions{
		Cloud:           cloud.Configuration{ActiveDirectoryAuthorityHost: o.AuthorityHost}, // the public cloud if it is empty
		Transport:       o.Transport,
		TracingProvider: o.Tracing,
		Retry:           policy.RetryOptions{MaxRetries: 1, TryTimeout: 10 * time.Second, RetryDelay: 500 * time.Millisecond},
	}
	if o.Kind == Default {
		return azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{
			ClientOptions:            client,
			TenantID:                 o.TenantID,
			DisableInstanceDiscovery: o.DisableInstanceDiscovery,
		})
	}
	// The SDK hides why it could not read the file behind a long message.
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

// GetToken returns the current token. The error is ErrIdentityUnavailable, or ErrSignerUnavailable until the first exchange has
// ended.
func (t *Tokens) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Now().Before(t.token.ExpiresOn) {
		return t.token, nil
	}
	return azcore.AccessToken{}, t.err
}

// First is closed once there has been a token.
func (t *Tokens) First() <-chan struct{} { return t.first }

// Renew has the token fetched anew soon, because storage refused it.
func (t *Tokens) Renew() {
	select {
	case t.renew <- struct{}{}:
	default:
	}
}

// Run fetches a token and keeps it fresh until ctx is done; then it returns nil.
// It renews well before the end and, where that fails, tries again, ever more
// slowly, while the token at hand goes on being used.
func (t *Tokens) Run(ctx context.Context) error {
	refresh.Keep(ctx, t.log, "no token", t.renew, func(ctx context.Context) (time.Duration, error) {
		token, err := t.Fetch(ctx)
		if err != nil {
			return 0, err
		}
		select {
		case <-t.renew: // storage refused the previous token again
		default:
		}
		wait := refresh.BeforeHalf(time.Until(token.ExpiresOn))
		t.log.Info("token obtained", "expires_at", token.ExpiresOn.UTC(), "renew_in", wait.String())
		return wait, nil
	})
	return nil
}

// Fetch gets a token once, has GetToken return it, and returns it. Run does so
// by itself. The error is one line, with what to fix.
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
