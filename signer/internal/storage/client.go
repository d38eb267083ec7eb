// Package storage makes calls to Azure Blob Storage for the other packages of the signer: with retries, time limits, a circuit
// breaker, metrics and spans. It translates the responses of storage into the errors of the API.
package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/tracing"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/service"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sony/gobreaker/v2"

	"cats.example/shared/apierror"
	"cats.example/shared/config"
	"cats.example/shared/signerapi"
	"cats.example/signer/internal/identity"
)

// Settings name the storage account, the container and the blobs of the pictures.
type Settings struct {
	AccountURL string `env:"AZURE_STORAGE_ACCOUNT_URL,required" help:"the storage account, such as https://ACCOUNT.blob.core.windows.net"`
	Container  string `env:"STORAGE_CONTAINER" envDefault:"cats" help:"blob container of the pictures; it must exist"`
	BlobName   string `env:"BLOB_NAME" envDefault:"cat" help:"the picture of a user is the blob USER/BLOB_NAME"`
}

var (
	containerForm = regexp.MustCompile(`^[a-z0-9](-?[a-z0-9]){2,62}$`)
	// Labels after the account's name begin with a letter, so an IP address does not match.
	accountForm = regexp.MustCompile(`^https://[a-z0-9]{3,24}(\.[A-Za-z][A-Za-z0-9-]*)*(:[0-9]+)?$`)
)

// Validate returns the validation errors of the settings, joined.
func (s Settings) Validate() error {
	_, nameErr := signerapi.ParseUser(s.BlobName) // the same rules make a safe path segment
	return errors.Join(
		config.Require(accountForm.MatchString(s.AccountURL),
			"AZURE_STORAGE_ACCOUNT_URL is %q: want https://ACCOUNT.blob.core.windows.net, without a path; the first label of the host must be the name of the account; for a custom domain set LINK_BASE_URL instead", s.AccountURL),
		config.Require(containerForm.MatchString(s.Container),
			"STORAGE_CONTAINER is %q: want 3 to 63 of a-z, 0-9 and single hyphens", s.Container),
		config.Require(nameErr == nil, "BLOB_NAME is %q: want one path segment", s.BlobName),
	)
}

// PictureBlob returns the name of the blob that holds the picture of user. A user name holds no slash, no backslash and no dot
// segment, so the blob name has exactly two segments.
func (s Settings) PictureBlob(user signerapi.User) string { return user.String() + "/" + s.BlobName }

// SmallBody is the largest request body in bytes that is sent without waiting for 100 Continue.
const SmallBody = 64 << 10

// Credential is what the client needs of the identity.
type Credential interface {
	azcore.TokenCredential
	// Renew fetches the token again, because storage rejected it.
	Renew()
}

// Options are the settings, which the caller has validated, and what the client works with.
type Options struct {
	Settings
	Credential Credential
	Transport  policy.Transporter
	Tracing    tracing.Provider     // the zero one for no spans
	Retry      *policy.RetryOptions // in place of the retries of each operation; nil for those
}

// Client makes calls to one container of a storage account. It is safe for concurrent use.
type Client struct {
	Options
	account   *service.Client
	container *container.Client
	breaker   *gobreaker.CircuitBreaker[struct{}]
	metrics   *metrics
	tracer    tracing.Tracer
}

// New returns a client. It makes no call.
func New(opts Options, log *slog.Logger, reg prometheus.Registerer) (*Client, error) {
	m := newMetrics(reg)
	c := &Client{
		Options: opts, metrics: m, breaker: newBreaker(log, m.breakerOpen),
		tracer: opts.Tracing.NewTracer("cats.example/signer/internal/storage", ""),
	}
	// azcore's own policy adds the token. The one that azblob adds for a credential follows the challenge of a 401, and shares
	// the result between requests without a lock (1.8.3).
	bearer := runtime.NewBearerTokenPolicy(opts.Credential, []string{identity.Scope}, nil)
	var err error
	c.account, err = service.NewClientWithNoCredential(opts.AccountURL, &service.ClientOptions{
		ClientOptions: policy.ClientOptions{
			Transport:        opts.Transport,
			PerRetryPolicies: []policy.Policy{bearer, attempts{m}},
			Telemetry:        policy.TelemetryOptions{ApplicationID: "cats-api"},
		},
		// Storage can then reject a stream, or close a stale connection, before the first byte is read.
		ExpectContinueBehavior: service.ExpectContinueOptions{Mode: service.ExpectContinueModeOn, ContentLengthThreshold: SmallBody + 1},
	})
	if err != nil {
		return nil, fmt.Errorf("making a client of %s: %w", opts.AccountURL, err)
	}
	c.container = c.account.NewContainerClient(opts.Container)
	return c, nil
}

// AccountClient returns the SDK's client of the account. Use it within [Client.Call] only, like the other SDK clients.
func (c *Client) AccountClient() *service.Client { return c.account }

// ContainerClient returns the SDK's client of the container.
func (c *Client) ContainerClient() *container.Client { return c.container }

// BlobClient returns the SDK's client of the blob name.
func (c *Client) BlobClient(name string) *blockblob.Client {
	return c.container.NewBlockBlobClient(name)
}

// Head returns the properties and the metadata of the blob name.
func (c *Client) Head(ctx context.Context, name string) (info signerapi.Info, metadata map[string]*string, err error) {
	err = c.Call(ctx, &Operation{Name: OpHead}, func(ctx context.Context) error {
		p, err := c.BlobClient(name).GetProperties(ctx, nil)
		info = signerapi.Info{ETag: string(Value(p.ETag)), ContentType: Value(p.ContentType), Size: Value(p.ContentLength), MD5: p.ContentMD5}
		metadata = p.Metadata
		return err
	})
	return info, metadata, err
}

// Delete deletes the blob name with its snapshots. Without them, storage would reject the deletion of a blob that has some.
func (c *Client) Delete(ctx context.Context, op *Operation, name string, preconditions signerapi.Preconditions) error {
	return c.Call(ctx, op, func(ctx context.Context) error {
		_, err := c.BlobClient(name).Delete(ctx, &blob.DeleteOptions{
			DeleteSnapshots:  new(blob.DeleteSnapshotsOptionTypeInclude),
			AccessConditions: AccessConditions(preconditions),
		})
		return err
	})
}

// Probe makes one call, without a token, by calling f with an SDK client of the blob with that signed URL. It returns the Date
// header of the response, "" if there is none, also with an error. The errors are those of Call.
func (c *Client) Probe(ctx context.Context, url signerapi.SignedURL, f func(context.Context, *blob.Client) error) (date string, err error) {
	client, err := blob.NewClientWithNoCredential(string(url), &blob.ClientOptions{ClientOptions: policy.ClientOptions{
		Transport: c.Transport, PerRetryPolicies: []policy.Policy{attempts{c.metrics}},
	}})
	if err != nil {
		return "", err
	}
	op := &Operation{Name: OpProbe}
	err = c.Call(ctx, op, func(ctx context.Context) error { return f(ctx, client) })
	return op.Header("Date"), err
}

// AccessConditions returns the SDK's form of preconditions.
func AccessConditions(p signerapi.Preconditions) *blob.AccessConditions {
	etag := func(condition string) *azcore.ETag {
		if condition == "" {
			return nil
		}
		return new(azcore.ETag(condition))
	}
	return &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfMatch: etag(p.IfMatch), IfNoneMatch: etag(p.IfNoneMatch)}}
}

// Value returns what p points to, or the zero value if p is nil.
func Value[T any](p *T) T {
	if p == nil {
		return *new(T)
	}
	return *p
}

// Call makes one call to storage by calling f with a context for the SDK. It returns an error of the API: an [apierror.Error],
// which wraps a [*ResponseError] if storage rejected the call, or the error of the client's body.
//
// While the circuit breaker is open, Call returns ErrStorageUnavailable without calling f. The breaker does not concern the
// operations of the user delegation key, which run in the background.
func (c *Client) Call(ctx context.Context, op *Operation, f func(context.Context) error) error {
	if op.Name == OpKey || op.Name == OpProbe {
		return c.call(ctx, op, f)
	}
	_, err := c.breaker.Execute(func() (struct{}, error) { return struct{}{}, c.call(ctx, op, f) })
	if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
		err = apierror.ErrStorageUnavailable.Wrap(ErrBreakerOpen)
	}
	return err
}

// call is Call without the circuit breaker.
func (c *Client) call(ctx context.Context, op *Operation, f func(context.Context) error) (err error) {
	timeout, retry := op.limits()
	if c.Retry != nil {
		retry = *c.Retry
	}
	var stop context.CancelFunc
	if op.Body != nil {
		retry.TryTimeout, retry.ShouldRetry = 0, op.Body.retry
		ctx, stop = op.Body.watch(ctx)
	} else {
		ctx, stop = context.WithTimeout(ctx, timeout)
	}
	defer stop()
	// azblob starts no span itself (1.8.3), and azcore makes none of the attempts without one.
	ctx = context.WithValue(policy.WithRetryOptions(ctx, retry), operationKey{}, op)
	ctx, end := runtime.StartSpan(ctx, op.Name, c.tracer, nil)
	defer func() {
		if code := op.Header("X-Ms-Error-Code"); err != nil && code != "" {
			c.tracer.SpanFromContext(ctx).SetAttributes(tracing.Attribute{Key: "error.type", Value: code})
		}
		end(err)
	}()
	err = f(ctx)
	switch {
	case err == nil && op.Body != nil && !op.Body.whole:
		op.Uncertain = true
		return apierror.ErrStorageUnavailable.Wrap(fmt.Errorf("%s: storage answered before it had received the body", op.Name))
	case err == nil:
		return nil
	case op.Body != nil && op.Body.err != nil:
		return op.Body.err
	}
	err = translate(ctx, op, c.BlobName, err)
	if r, ok := errors.AsType[*ResponseError](err); ok && r.Status == http.StatusUnauthorized && op.Name != OpProbe {
		c.Credential.Renew()
	}
	if errors.Is(err, apierror.ErrConflict) {
		c.metrics.conflicts.Inc()
	}
	return err
}

// Available returns an error while the circuit breaker is open. While it is half open, Available looks for the blob name, which
// closes the breaker if storage responds. Otherwise a large upload could be the one call that a half-open breaker allows, and
// keep other clients out until it is stored.
func (c *Client) Available(ctx context.Context, name string) error {
	if c.breaker.State() == gobreaker.StateClosed {
		return nil
	}
	_, _, err := c.Head(ctx, name)
	if !errors.Is(err, apierror.ErrStorageUnavailable) {
		return nil
	}
	return err
}

const (
	failuresToOpen = 10              // consecutive failed calls that open the circuit breaker
	openTime       = 5 * time.Second // how long it stays open; then it allows one call, whose success closes it
)

// ErrBreakerOpen is the reason for ErrStorageUnavailable while the circuit breaker is open.
var ErrBreakerOpen = errors.New("the storage circuit breaker is open")

// notCounted are errors of clients, and throttling: storage then tells clients itself when to retry.
var notCounted = []*apierror.Error{apierror.ErrIncomplete, apierror.ErrStalled, apierror.ErrDigestMismatch, apierror.ErrThrottled}

// newBreaker returns the circuit breaker of storage. A call fails if its error is ErrStorageUnavailable.
func newBreaker(log *slog.Logger, open prometheus.Gauge) *gobreaker.CircuitBreaker[struct{}] {
	return gobreaker.NewCircuitBreaker[struct{}](gobreaker.Settings{
		Timeout:      openTime,
		ReadyToTrip:  func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= failuresToOpen },
		IsSuccessful: func(err error) bool { return !errors.Is(err, apierror.ErrStorageUnavailable) },
		IsExcluded: func(err error) bool {
			return slices.ContainsFunc(notCounted, func(e *apierror.Error) bool { return errors.Is(err, e) })
		},
		OnStateChange: func(_ string, _, to gobreaker.State) {
			open.Set(0)
			switch to {
			case gobreaker.StateOpen:
				open.Set(1)
				log.Warn("storage circuit breaker opened", "duration", openTime.String())
			case gobreaker.StateClosed:
				log.Info("storage circuit breaker closed")
			}
		},
	})
}

// NewTransport returns the HTTP client for Azure. It has a timeout for each phase of a request. Three settings are deliberate:
//
//   - HTTP/1.1 only, which net/http chooses because of DialContext: over HTTP/2, a connection can read the buffer of a canceled
//     upload (azure-sdk-for-go issue 21555).
//   - No redirects: they would send the token to another host.
//   - Names under .localhost are loopback (RFC 6761 section 6.3); Go's resolver asks DNS for them.
func NewTransport() *http.Client {
	dialer := &net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}
	return &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment,
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				if host, port, err := net.SplitHostPort(address); err == nil && strings.HasSuffix(host, ".localhost") {
					address = net.JoinHostPort("127.0.0.1", port)
				}
				return dialer.DialContext(ctx, network, address)
			},
			TLSHandshakeTimeout:   5 * time.Second,
			ResponseHeaderTimeout: 30 * time.Second,
			ExpectContinueTimeout: time.Second,
			MaxIdleConns:          256,
			MaxIdleConnsPerHost:   128, // as many as there are concurrent lookups
			IdleConnTimeout:       90 * time.Second,
			DisableCompression:    true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
