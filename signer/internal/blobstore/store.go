// Package blobstore is the signer's [signerapi.Signer]: it keeps pictures in one
// container of Azure Blob Storage and signs links to them with a user delegation
// key. It is the only code that makes blob names, and the only one that signs.
package blobstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/tracing"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/service"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sony/gobreaker/v2"

	"cats.example/shared/apierror"
	"cats.example/shared/picture"
	"cats.example/shared/ratelimit"
	"cats.example/shared/signerapi"
	"cats.example/shared/watchdog"
	"cats.example/signer/internal/identity"
)

// Credential is what the store needs of the identity.
type Credential interface {
	azcore.TokenCredential
	// Renew has the token fetched anew because storage refused it.
	Renew()
}

// Settings are the settings of storage and of signed URLs.
type Settings struct {
	AccountURL string `env:"AZURE_STORAGE_ACCOUNT_URL,required" help:"the storage account, such as https://ACCOUNT.blob.core.windows.net"`
	Container  string `env:"STORAGE_CONTAINER" envDefault:"cats" help:"container of the pictures; it must exist"`
	BlobName   string `env:"BLOB_NAME" envDefault:"cat" help:"the picture of a user is the blob USER/BLOB_NAME"`

	LinkTTL     time.Duration `env:"LINK_TTL" envDefault:"1h" help:"how long a link lives unless the caller asks otherwise"`
	LinkMaxTTL  time.Duration `env:"LINK_MAX_TTL" envDefault:"24h" help:"the longest life that a caller can ask for, at most 72h"`
	LinkBaseURL string        `env:"LINK_BASE_URL" help:"public base of the links, such as a CDN in front of the account, instead of AZURE_STORAGE_ACCOUNT_URL"`

	MaxDirectUploadSize picture.Size `env:"MAX_DIRECT_UPLOAD_SIZE" envDefault:"0" help:"largest picture that clients may send straight to storage by a signed URL to write with, such as 5GiB, at most 16GiB; 0 for none. Browsers need a CORS rule of the account for that"`

	ExistenceCacheTTL time.Duration `env:"EXISTENCE_CACHE_TTL" envDefault:"5s" help:"how long a picture is known to be there before storage is asked again; 0s to ask for each link"`
}

// Options are the settings, which the caller has validated, and what the store works with.
type Options struct {
	Settings
	Limits     picture.Limits
	Credential Credential
	Transport  policy.Transporter
	Tracing    tracing.Provider // the zero one for no spans
	Slots      Slots
}

// Slots are the pools of the store. Uploads and commits are counted by authenticated caller. Chunked, of chunked uploads that
// hold a buffer or wait for one, is counted by client where authentication is off.
type Slots struct{ Uploads, Commits, Chunked *ratelimit.Pool }

// Store is a [signerapi.Signer] over Blob Storage.
type Store struct {
	opts       Options
	log        *slog.Logger
	tracer     tracing.Tracer
	account    *service.Client
	container  *container.Client
	buffers    *buffers
	accept     time.Duration // in which storage must accept a byte of a stream; watchdog.Timeout
	committing sync.Map      // names of what is being committed
	known      *known
	circuit    *gobreaker.TwoStepCircuitBreaker[struct{}]
	key        delegation
	clockWrong atomic.Bool // when it was last compared
	metrics    *metrics
	retries    int32 // of a call, after its first try; -1 for none
	now        func() time.Time
}

var _ signerapi.Signer = (*Store)(nil)

// New returns a store. It calls nobody before Run.
func New(opts Options, log *slog.Logger, reg prometheus.Registerer) (*Store, error) {
	opts.LinkBaseURL = cmp.Or(opts.LinkBaseURL, opts.AccountURL)
	pool := newBuffers()
	s := &Store{
		opts:    opts,
		log:     log,
		tracer:  opts.Tracing.NewTracer("cats.example/signer/internal/blobstore", ""),
		buffers: pool,
		accept:  watchdog.Timeout,
		metrics: newMetrics(reg, pool),
		key:     delegation{given: make(chan signerapi.User, 1)},
		retries: maxRetries,
		now:     time.Now,
	}
	// The token goes in by azcore's own policy. The one that azblob adds for a
	// credential follows the challenge in a 401, and shares what it learned there
	// between requests without a lock (1.8.3).
	bearer := runtime.NewBearerTokenPolicy(opts.Credential, []string{identity.Scope}, nil)
	var err error
	s.account, err = service.NewClientWithNoCredential(opts.AccountURL, &service.ClientOptions{
		ClientOptions: policy.ClientOptions{
			Transport:        opts.Transport,
			PerRetryPolicies: []policy.Policy{bearer, tries{s}},
			Telemetry:        policy.TelemetryOptions{ApplicationID: "cats-api"},
			Retry:            retries(maxRetries, lookTry),
		},
		// Storage can then refuse a stream, or close a stale connection, before the first byte of it was read.
		ExpectContinueBehavior: service.ExpectContinueOptions{Mode: service.ExpectContinueModeOn, ContentLengthThreshold: smallBytes + 1},
	})
	if err != nil {
		return nil, fmt.Errorf("making a client of %s: %w", opts.AccountURL, err)
	}
	s.container = s.account.NewContainerClient(opts.Container)
	s.known = newKnown(opts.ExistenceCacheTTL, func() time.Time { return s.now() }, s.look)
	s.circuit = s.newCircuit()
	s.key.lastErr.Store(&errFetching)
	return s, nil
}

// blobName is the only place that makes one. A User holds no slash, no backslash
// and no dot segment, so the name has exactly two segments.
func (s *Store) blobName(user signerapi.User) string {
	return user.String() + "/" + s.opts.BlobName
}

// hold returns ErrPreconditionFailed when storage says that the conditions do not
// hold for the picture of user now.
func (s *Store) hold(ctx context.Context, user signerapi.User, conditions signerapi.Preconditions) error {
	info, err := s.look(ctx, user)
	if err != nil && !errors.Is(err, apierror.ErrNotFound) {
		return err
	}
	return conditions.Evaluate(info.ETag)
}

// Link implements [signerapi.Signer].
func (s *Store) Link(ctx context.Context, user signerapi.User, opts signerapi.LinkOptions) (signerapi.Link, error) {
	ttl := cmp.Or(opts.TTL, s.opts.LinkTTL)
	if ttl < MinLinkTTL || ttl > s.opts.LinkMaxTTL {
		return signerapi.Link{}, apierror.ErrInvalidArgument.WithDetail(
			fmt.Sprintf("ttl: a link lives at least %v and at most %v", MinLinkTTL, s.opts.LinkMaxTTL))
	}
	if err := signerapi.ValidateDownloadName(opts.Download); err != nil {
		return signerapi.Link{}, err
	}
	there, err := s.known.of(ctx, user)
	if err != nil {
		return signerapi.Link{}, err
	}
	return s.link(user, there, ttl, opts.Download)
}

// look asks storage for the picture of user.
func (s *Store) look(ctx context.Context, user signerapi.User) (signerapi.Info, error) {
	info, _, err := s.head(ctx, s.container.NewBlobClient(s.blobName(user)))
	return info, err
}

func (s *Store) head(ctx context.Context, client *blob.Client) (info signerapi.Info, metadata map[string]*string, err error) {
	err = s.call(ctx, &operation{name: opHead}, "looking for the picture", func(ctx context.Context) error {
		p, err := client.GetProperties(ctx, nil)
		info = signerapi.Info{ETag: etag(p.ETag), ContentType: value(p.ContentType), Size: value(p.ContentLength), MD5: p.ContentMD5}
		metadata = p.Metadata
		return err
	})
	return info, metadata, err
}

// Delete implements [signerapi.Signer].
func (s *Store) Delete(ctx context.Context, user signerapi.User, conditions signerapi.Preconditions) error {
	s.known.forget(user)
	defer s.known.forget(user)
	op := &operation{name: opDelete}
	err := s.call(ctx, op, "deleting the picture", func(ctx context.Context) error {
		_, err := s.container.NewBlobClient(s.blobName(user)).Delete(ctx, deleteOptions(conditions))
		return err
	})
	switch {
	case err == nil || op.unclear == 0:
		return err
	case errors.Is(err, apierror.ErrNotFound): // an earlier try or another client has deleted it
		return nil
	}
	return unknownOutcome(err, apierror.MayBeDeleted, "deletion")
}

// Ready implements [signerapi.Signer]. It returns nil if the user delegation key can sign a URL of the default lifetime.
func (s *Store) Ready(ctx context.Context) error {
	_, err := s.keyCovering(s.now().Add(s.opts.LinkTTL))
	if _, cause := s.opts.Credential.GetToken(ctx, policy.TokenRequestOptions{}); err != nil && cause != nil {
		return cause // no token is why there is no key
	}
	return err
}

// Run keeps the user delegation key fresh, tries its links, and removes uploads that
// were abandoned, until ctx is done; then it returns nil. It begins once authenticated
// is closed.
func (s *Store) Run(ctx context.Context, authenticated <-chan struct{}) error {
	select {
	case <-ctx.Done():
		return nil
	case <-authenticated:
	}
	var running sync.WaitGroup
	running.Go(func() { s.keepKey(ctx) })
	if s.opts.MaxDirectUploadSize > 0 {
		running.Go(func() { s.sweep(ctx) })
	}
	running.Wait()
	return nil
}

// checkContainer returns an error if the container does not exist.
func (s *Store) checkContainer(ctx context.Context) error {
	return s.call(ctx, &operation{name: opContainer}, "looking for the container", func(ctx context.Context) error {
		_, err := s.container.GetProperties(ctx, nil)
		return err
	})
}
