// Package signing signs URLs of blobs with a user delegation key. It renews the key, probes signed URLs, and compares the clock
// with storage's. It is the only code that signs.
package signing

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/service"
	"github.com/prometheus/client_golang/prometheus"

	"cats.example/shared/apierror"
	"cats.example/shared/config"
	"cats.example/shared/telemetry"
	"cats.example/signer/internal/refresh"
	"cats.example/signer/internal/storage"
)

// Limits of the lifetime of a signed URL.
const (
	// MinLinkTTL is the shortest lifetime that a client can request.
	MinLinkTTL = 5 * time.Second
	// MaxLinkTTL is the largest LINK_MAX_TTL. It is less than half of the 7 days for which a user delegation key is valid at
	// most.
	MaxLinkTTL = 72 * time.Hour
)

// Settings are the settings of signed URLs.
type Settings struct {
	LinkTTL     time.Duration `env:"LINK_TTL" envDefault:"1h" help:"lifetime of a signed URL if the client requests none, at least 5s"`
	LinkMaxTTL  time.Duration `env:"LINK_MAX_TTL" envDefault:"24h" help:"longest lifetime that a client can request, at most 72h; the alert CatsKeyNotRefreshed depends on it"`
	LinkBaseURL string        `env:"LINK_BASE_URL" help:"public base URL of signed URLs, such as a CDN in front of the account, instead of AZURE_STORAGE_ACCOUNT_URL"`
}

// Validate returns the validation errors of the settings, joined.
func (s Settings) Validate() error {
	base, err := url.Parse(s.LinkBaseURL)
	isBase := err == nil && (base.Scheme == "https" || base.Scheme == "http") && base.Host != "" &&
		base.RawQuery == "" && base.Fragment == "" && base.User == nil
	return errors.Join(
		config.Require(slices.IsSorted([]time.Duration{MinLinkTTL, s.LinkTTL, s.LinkMaxTTL, MaxLinkTTL}),
			"LINK_TTL is %v and LINK_MAX_TTL is %v: want %v ≤ LINK_TTL ≤ LINK_MAX_TTL ≤ %v", s.LinkTTL, s.LinkMaxTTL, MinLinkTTL, MaxLinkTTL),
		config.Require(s.LinkBaseURL == "" || isBase, "LINK_BASE_URL is %q: want a URL such as https://pictures.example.com", s.LinkBaseURL),
	)
}

// TTL returns the lifetime of a link for which a client requests the lifetime requested, 0 for the default. It returns
// ErrInvalidArgument if that is outside the limits.
func (s Settings) TTL(requested time.Duration) (time.Duration, error) {
	ttl := cmp.Or(requested, s.LinkTTL)
	if ttl < MinLinkTTL || ttl > s.LinkMaxTTL {
		return 0, apierror.ErrInvalidArgument.WithDetail(fmt.Sprintf("ttl: the lifetime of a signed URL is at least %v and at most %v", MinLinkTTL, s.LinkMaxTTL))
	}
	return ttl, nil
}

// Keys holds the user delegation key and signs URLs with it. Requests only read the key: Run fetches it. It is safe for
// concurrent use.
type Keys struct {
	Settings
	storage  *storage.Client
	base     string        // of links and upload URLs
	lifetime time.Duration // of a key
	log      *slog.Logger
	metrics  *metrics

	key    atomic.Pointer[delegationKey] // nil for none
	reason atomic.Pointer[error]         // why there is no key

	linked   chan string            // the blob of a new link, for the next probe; at most one
	rejected atomic.Pointer[string] // the blob for which storage rejected a signed URL; nil after it has accepted one of a new key

	clockWrong atomic.Bool // at the last comparison
}

// New returns Keys without a key. It makes no call. The caller has validated settings. uploadTTL is the lifetime of upload
// URLs.
func New(settings Settings, client *storage.Client, uploadTTL time.Duration, log *slog.Logger, reg prometheus.Registerer) *Keys {
	k := &Keys{
		Settings: settings, storage: client, base: cmp.Or(settings.LinkBaseURL, client.AccountURL), lifetime: keyLifetime(max(settings.LinkMaxTTL, uploadTTL)),
		log: log, metrics: newMetrics(reg), linked: make(chan string, 1),
	}
	k.reason.Store(&errFetching)
	return k
}

const (
	keyMargin      = time.Hour
	maxKeyLifetime = 7 * 24 * time.Hour // storage allows no more
)

// keyLifetime returns the lifetime of a key. From its renewal at half of that on, it still covers the longest URL.
func keyLifetime(longestURL time.Duration) time.Duration {
	return min(2*longestURL+keyMargin, maxKeyLifetime)
}

func (k *Keys) fetch(ctx context.Context) (*delegationKey, error) {
	now := time.Now().UTC().Truncate(time.Second)
	key := &delegationKey{start: now.Add(-ToleratedSkew), end: now.Add(k.lifetime)}
	op := &storage.Operation{Name: storage.OpKey}
	err := k.storage.Call(ctx, op, func(ctx context.Context) (err error) {
		key.credential, err = k.storage.AccountClient().GetUserDelegationCredential(ctx, service.KeyInfo{
			Start:  new(key.start.Format(sas.TimeFormat)),
			Expiry: new(key.end.Format(sas.TimeFormat)),
		}, nil)
		return err
	})
	k.compareClock(op.Header("Date"))
	if err != nil {
		k.metrics.keyRequests.WithLabelValues("error").Inc()
		return nil, err
	}
	k.metrics.keyRequests.WithLabelValues("ok").Inc()
	return key, nil
}

// Fetch fetches a key once and returns its expiry. It is for Keys without Run.
func (k *Keys) Fetch(ctx context.Context) (expiry time.Time, err error) {
	key, err := k.fetch(ctx)
	if err != nil {
		return time.Time{}, err
	}
	k.set(key)
	return key.end, nil
}

// Ready returns nil if the key can sign a URL of the default lifetime. It makes no call to Azure.
func (k *Keys) Ready(ctx context.Context) error {
	_, err := k.covering(time.Now().Add(k.LinkTTL))
	if err == nil {
		return nil
	}
	_, noToken := k.storage.Credential.GetToken(ctx, policy.TokenRequestOptions{})
	return cmp.Or(noToken, err) // without a token there is no key
}

// errFetching is the reason for no key as long as no request for one and no probe has failed.
var errFetching error = apierror.ErrSignerUnavailable.Wrap(errors.New("the first key is being fetched"))

// set replaces the key. key may be nil; set the reason first.
func (k *Keys) set(key *delegationKey) {
	k.key.Store(key)
	if key == nil {
		k.metrics.keyExpiry.Set(0)
	} else {
		k.metrics.keyExpiry.Set(float64(key.end.Unix()))
	}
}

// covering returns the key if it does not expire before end. Otherwise the error is ErrIdentityUnavailable, or one with status
// 503 if storage did not answer or the first key is still being fetched.
func (k *Keys) covering(end time.Time) (*delegationKey, error) {
	if key := k.key.Load(); key != nil && !end.After(key.end) {
		return key, nil
	}
	reason := *k.reason.Load()
	e := apierror.AsError(reason)
	if e.Status != http.StatusServiceUnavailable {
		e = apierror.ErrIdentityUnavailable
	}
	return nil, e.Wrap(fmt.Errorf("no user delegation key that is valid until %v: %w", end.UTC(), reason))
}

const (
	probeInterval = time.Minute // on average, with jitter
	probeTTL      = time.Hour   // of a signed URL that is probed; no client gets it
)

// errKeyRejected means that storage rejects signed URLs because of their key: it was revoked, or its identity has lost its role.
var errKeyRejected = errors.New("storage rejects a signed URL of the user delegation key")

// Run keeps the key fresh and probes signed URLs until ctx is done.
func (k *Keys) Run(ctx context.Context) {
	dropped := make(chan struct{}, 1) // the key was dropped
	var probing sync.WaitGroup
	defer probing.Wait()
	probing.Go(func() { k.probeLinks(ctx, dropped) })
	refresh.Keep(ctx, k.log, "user delegation key not obtained", dropped, func(ctx context.Context) (time.Duration, error) {
		key, err := k.fetch(ctx)
		if err == nil { // without a container there is no key, so the signer is not ready
			err = k.checkContainer(ctx)
		}
		if err == nil {
			err = k.verify(ctx, key)
		}
		if err != nil {
			k.reason.Store(&err)
			return 0, err
		}
		k.reason.Store(&errFetching)
		k.set(key)
		wait := refresh.BeforeHalf(time.Until(key.end))
		k.log.Info("user delegation key obtained", "expires_at", key.end.UTC(), "renew_in", wait.Round(time.Second).String())
		return wait, nil
	})
}

// checkContainer returns an error if the container does not exist. A role can permit access to blobs without the container's
// properties: that is no error.
func (k *Keys) checkContainer(ctx context.Context) error {
	err := k.storage.Call(ctx, &storage.Operation{Name: storage.OpContainer}, func(ctx context.Context) error {
		_, err := k.storage.ContainerClient().GetProperties(ctx, nil)
		return err
	})
	if errors.Is(err, apierror.ErrIdentityUnavailable) {
		k.log.Warn("container check not permitted; assuming that the container exists", "error", err.Error())
		return nil
	}
	return err
}

// probeLinks probes signed URLs until ctx is done: with the first link, and then about once a minute while clients get links. If
// storage rejects one because of the key, it sends to dropped.
func (k *Keys) probeLinks(ctx context.Context, dropped chan<- struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case blob := <-k.linked:
			key := k.key.Load()
			if key == nil {
				continue
			}
			switch err := k.probe(ctx, key, blob); {
			case errors.Is(err, errKeyRejected):
				k.log.Error("storage rejected the user delegation key; fetching a new one", "error", err.Error())
				select {
				case dropped <- struct{}{}:
				default: // an earlier drop is not handled yet
				}
			case err != nil && ctx.Err() == nil:
				k.log.Warn("probe of a signed URL was inconclusive", "error", err.Error())
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(refresh.Jitter(probeInterval)):
		}
	}
}

// verify probes a new key if the previous one was dropped. Any error means that the new key must not be used.
func (k *Keys) verify(ctx context.Context, key *delegationKey) error {
	blob := k.rejected.Load()
	if blob == nil {
		return nil
	}
	if err := k.probe(ctx, key, *blob); err != nil {
		return err
	}
	k.rejected.CompareAndSwap(blob, nil)
	return nil
}

// probe makes one request with a signed URL of the blob name. It returns nil if storage accepts the URL, whether the blob exists
// or not. It returns errKeyRejected, and drops the current key, if storage rejects the URL because of the key. Other errors are
// inconclusive: no answer, an answer of a proxy, or a rejection of this client's network, which need not be the clients'.
func (k *Keys) probe(ctx context.Context, key *delegationKey, name string) error {
	outcome := "inconclusive"
	defer func() { k.metrics.probes.WithLabelValues(outcome).Inc() }()
	end := time.Now().UTC().Add(probeTTL).Truncate(time.Second)
	if end.After(key.end) {
		end = key.end
	}
	url, err := key.sign(k.storage.AccountURL, k.storage.Container, name, readOnly(key.start, end, "", k.storage.BlobName, ""))
	if err != nil {
		return err
	}
	date, err := k.storage.Probe(ctx, url, func(ctx context.Context, client *blob.Client) error {
		_, err := client.GetProperties(ctx, nil)
		return err
	})
	k.compareClock(date)
	r, answered := errors.AsType[*storage.ResponseError](err)
	switch {
	case err == nil, errors.Is(err, apierror.ErrNotFound), answered && r.Status == http.StatusNotFound:
		outcome = "ok"
		return nil
	case !answered, r.Status != http.StatusForbidden, r.Code == "", r.HasCode(bloberror.AuthorizationFailure, bloberror.AccountIsDisabled):
		return err
	}
	outcome, err = "rejected", fmt.Errorf("%w: %w", errKeyRejected, r)
	k.reason.Store(&err)
	k.rejected.Store(&name)
	k.set(nil) // even if it is not key any more: no URL of the other one was probed
	return err
}

// maxClockSkew is the largest difference between two clocks that count as equal.
const maxClockSkew = time.Minute

// ClockError returns an error if this machine's clock is more than a minute ahead of storage's, or, with a negative ahead, more
// than a minute behind it. The error tells the consequence.
func ClockError(ahead time.Duration) error {
	switch rounded := ahead.Round(time.Second); {
	case ahead > maxClockSkew:
		return fmt.Errorf("this clock is %v ahead of storage's; from %v on storage rejects new signed URLs as not valid yet; fix: time synchronization on this node", rounded, ToleratedSkew)
	case ahead < -maxClockSkew:
		return fmt.Errorf("this clock is %v behind storage's; signed URLs expire that much too early, short ones at once; fix: time synchronization on this node", -rounded)
	}
	return nil
}

// ClockAhead returns how far this machine's clock is ahead of date, the Date header of a response that just arrived.
func ClockAhead(date string) (time.Duration, error) {
	theirs, err := http.ParseTime(date)
	return time.Since(theirs.Add(time.Second / 2)), err // the header has whole seconds, rounded down
}

// compareClock compares this machine's clock with date, the Date header of a response that just arrived. It logs when the clock
// becomes wrong or right, and corrects nothing: the times of a signed URL would depend on a header that arrived minutes ago, and
// a wrong clock breaks other things, too.
func (k *Keys) compareClock(date string) {
	ahead, err := ClockAhead(date)
	if err != nil {
		return
	}
	k.metrics.clockSkew.Set(ahead.Seconds())
	fault := ClockError(ahead)
	switch wasWrong := k.clockWrong.Swap(fault != nil); {
	case fault != nil && !wasWrong:
		k.log.Warn("clock differs from storage's", "error", fault.Error())
	case fault == nil && wasWrong:
		k.log.Info("clock agrees with storage's again")
	}
}

type metrics struct {
	signed, keyRequests, probes *prometheus.CounterVec
	keyExpiry, clockSkew        prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	const p = "cats_signer_"
	return &metrics{
		signed: telemetry.NewCounterVec(reg, p+"signed_urls_total",
			"Signed URLs by kind: view shows the picture, download saves it under a name, upload is for a direct upload.", "kind", "view", "download", "upload"),
		keyExpiry: telemetry.NewGauge(reg, p+"user_delegation_key_expiry_timestamp_seconds",
			"Expiry of the current user delegation key, in Unix time; 0 if there is none."),
		keyRequests: telemetry.NewCounterVec(reg, p+"user_delegation_key_requests_total", "Requests for a user delegation key by outcome.", "outcome", "ok", "error"),
		probes: telemetry.NewCounterVec(reg, p+"key_probes_total",
			"Probes of signed URLs by outcome: rejected because of the key, or inconclusive.", "outcome", "ok", "rejected", "inconclusive"),
		clockSkew: telemetry.NewGauge(reg, p+"clock_skew_seconds", "How far the clock was ahead of storage's at the last comparison; negative if it was behind."),
	}
}
