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
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/service"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"cats.example/shared/apierror"
	"cats.example/shared/config"
	"cats.example/shared/signerapi"
	"cats.example/shared/telemetry"
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
	LinkTTL     time.Duration `env:"LINK_TTL" envDefault:"1h" help:"lifetime of a signed URL if the client requests none"`
	LinkMaxTTL  time.Duration `env:"LINK_MAX_TTL" envDefault:"24h" help:"longest lifetime that a client can request, at most 72h"`
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

// New returns Keys without a key. It makes no call. The caller has validated settings. uploadTTL is the lifetime of upload URLs,
// 0 if there are none.
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
	k.compareClock(op.Date())
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

// BaseURL returns the base of links and upload URLs.
func (k *Keys) BaseURL() string { return k.base }

// Ready returns nil if the key can sign a URL of the default lifetime. It makes no call to Azure.
func (k *Keys) Ready(ctx context.Context) error {
	_, err := k.covering(time.Now().Add(k.LinkTTL))
	if err == nil {
		return nil
	}
	return cmp.Or(k.storage.CheckToken(ctx), err) // without a token there is no key
}

// Link is a signed URL with which a client reads a picture.
type Link struct {
	URL       signerapi.SignedURL
	ExpiresAt time.Time
	inputs    linkInputs
}

// linkInputs determine the URL of a Link that shows the picture.
type linkInputs struct {
	key               *delegationKey
	start, end        time.Time
	name, contentType string
}

// Link returns a link to the blob name, a picture of contentType, with lifetime ttl. Browsers save the picture under the name
// download, or show it if that is empty. Link returns last if the new link would have the same URL; last may be nil.
func (k *Keys) Link(name, contentType, download string, ttl time.Duration, last *Link) (*Link, error) {
	start, end := window(time.Now(), ttl)
	key, err := k.covering(end)
	if err != nil {
		return nil, err
	}
	link, inputs := last, linkInputs{key, start, end, name, contentType}
	if download != "" || last == nil || last.inputs != inputs {
		url, err := key.sign(k.base, k.storage.Container, name, readOnly(start, end, contentType, k.storage.BlobName, download))
		if err != nil {
			return nil, err
		}
		link = &Link{url, end, inputs}
	}
	if download != "" {
		k.metrics.downloads.Inc()
	} else {
		k.metrics.views.Inc()
	}
	k.requestProbe(name)
	return link, nil
}

// requestProbe asks for a probe with blob soon. It does not block.
func (k *Keys) requestProbe(blob string) {
	select {
	case k.linked <- blob:
	default: // another probe is due
	}
}

// ReadURL returns a signed URL at base that reads the blob name for ttl. base is the account's URL or LinkBaseURL.
func (k *Keys) ReadURL(base, name string, ttl time.Duration) (signerapi.SignedURL, error) {
	start, end := window(time.Now(), ttl)
	key, err := k.covering(end)
	if err != nil {
		return "", err
	}
	return key.sign(base, k.storage.Container, name, readOnly(start, end, "", k.storage.BlobName, ""))
}

// UploadURL returns a signed URL that writes the blob name, as permissions allow, until end.
func (k *Keys) UploadURL(name string, permissions sas.BlobPermissions, end time.Time) (signerapi.SignedURL, error) {
	key, err := k.covering(end)
	if err != nil {
		return "", err
	}
	start := time.Now().UTC().Truncate(time.Second).Add(-ToleratedSkew)
	url, err := key.sign(k.base, k.storage.Container, name, sas.BlobSignatureValues{StartTime: start, ExpiryTime: end, Permissions: permissions.String()})
	if err == nil {
		k.metrics.uploads.Inc()
	}
	return url, err
}

// ClockAhead returns how far this machine's clock is ahead of storage's. It needs no token: storage may reject the request, and
// its response has a date nevertheless.
func (k *Keys) ClockAhead(ctx context.Context) (time.Duration, error) {
	url := signerapi.SignedURL(k.storage.AccountURL + "/" + k.storage.Container)
	date, err := k.storage.Probe(ctx, url, func(ctx context.Context, client *blob.Client) error {
		_, err := client.GetProperties(ctx, nil)
		return err
	})
	if date == "" {
		return 0, err
	}
	return clockAhead(date)
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

// maxClockSkew is the largest difference between two clocks that count as equal.
const maxClockSkew = time.Minute

// ClockError returns an error if this machine's clock is more than a minute ahead of storage's, or, with a negative ahead, more
// than a minute behind it. The error tells the consequence.
func ClockError(ahead time.Duration) error {
	switch rounded := ahead.Round(time.Second); {
	case ahead > maxClockSkew:
		return fmt.Errorf("this clock is %v ahead of storage's; from %v on storage rejects new links as not valid yet; fix: time synchronization on this node", rounded, ToleratedSkew)
	case ahead < -maxClockSkew:
		return fmt.Errorf("this clock is %v behind storage's; links expire that much too early, short ones at once; fix: time synchronization on this node", -rounded)
	}
	return nil
}

// clockAhead returns how far this machine's clock is ahead of date, the Date header of a response that just arrived.
func clockAhead(date string) (time.Duration, error) {
	theirs, err := http.ParseTime(date)
	return time.Since(theirs.Add(time.Second / 2)), err // the header has whole seconds, rounded down
}

// compareClock compares this machine's clock with date, the Date header of a response that just arrived. It logs when the clock
// becomes wrong or right, and corrects nothing: the times of a signed URL would depend on a header that arrived minutes ago, and
// a wrong clock breaks other things, too.
func (k *Keys) compareClock(date string) {
	ahead, err := clockAhead(date)
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

// Outcomes of a probe, as labels of metrics.
const (
	probeOK           = "ok"
	probeRejected     = "rejected"     // because of the key
	probeInconclusive = "inconclusive" // no answer, or an answer about something other than the key
)

type metrics struct {
	views, downloads, uploads prometheus.Counter
	keyExpiry                 prometheus.Gauge
	keyRequests               *prometheus.CounterVec
	probes                    *prometheus.CounterVec
	clockSkew                 prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	const p = "cats_signer_"
	auto := promauto.With(reg)
	signed := telemetry.NewCounterVec(reg, p+"signed_urls_total",
		"Signed URLs by kind: view shows the picture, download saves it under a name, upload is for a direct upload.", "kind", "view", "download", "upload")
	return &metrics{
		views: signed.WithLabelValues("view"), downloads: signed.WithLabelValues("download"), uploads: signed.WithLabelValues("upload"),
		keyExpiry: auto.NewGauge(prometheus.GaugeOpts{
			Name: p + "user_delegation_key_expiry_timestamp_seconds", Help: "Expiry of the current user delegation key, in Unix time; 0 if there is none.",
		}),
		keyRequests: telemetry.NewCounterVec(reg, p+"user_delegation_key_requests_total", "Requests for a user delegation key by outcome.", "outcome", "ok", "error"),
		probes: telemetry.NewCounterVec(reg, p+"key_probes_total",
			"Probes of signed URLs by outcome: rejected because of the key, or inconclusive.", "outcome", probeOK, probeRejected, probeInconclusive),
		clockSkew: auto.NewGauge(prometheus.GaugeOpts{
			Name: p + "clock_skew_seconds", Help: "How far the clock was ahead of storage's at the last comparison; negative if it was behind.",
		}),
	}
}
