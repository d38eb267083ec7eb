// Package blobstore is the signer's [signerapi.Signer]: it keeps pictures in one
// container of Azure Blob Storage and signs links to them with a user delegation
// key. It is the only code that makes blob names, and the only one that signs.
package blobstore

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/service"
	"github.com/prometheus/client_golang/prometheus"

	"cats.example/shared/picture"
	"cats.example/shared/signerapi"
	"cats.example/signer/internal/identity"
)

// How long storage may take, retries included.
const (
	lookTimeout  = 10 * time.Second // one HEAD or DELETE
	writeTimeout = 60 * time.Second // one Put Blob, block or commit
)

// Credential is what the store needs of the identity.
type Credential interface {
	azcore.TokenCredential
	// Renew has the token fetched anew because storage refused it.
	Renew()
}

// Options say where the pictures are and what may be asked. They have been
// checked: New only refuses what cannot be made into clients.
type Options struct {
	AccountURL string // https://ACCOUNT.blob.…, without a path
	Container  string
	BlobName   string // last segment of the blob's name
	LinkBase   string // public base of the links; "" for AccountURL
	LinkTTL    time.Duration
	LinkMaxTTL time.Duration
	Limits     picture.Limits
	Buffers    int           // uploads at once
	BufferWait time.Duration // how long another waits for one of them
	Credential Credential
	Transport  policy.Transporter
}

// Store is a [signerapi.Signer] over Blob Storage.
type Store struct {
	opts      Options
	log       *slog.Logger
	container *container.Client
	buffers   *buffers
	key       *delegation
	metrics   *metrics
	now       func() time.Time
}

var _ signerapi.Signer = (*Store)(nil)

// New returns a store. It calls nobody before Run.
func New(opts Options, log *slog.Logger, reg prometheus.Registerer) (*Store, error) {
	if opts.LinkBase == "" {
		opts.LinkBase = opts.AccountURL
	}
	m := newMetrics(reg)
	// The token goes in by azcore's own policy. The one that azblob adds for a
	// credential follows the challenge in a 401, and shares what it learned there
	// between requests without a lock (1.8.3).
	bearer := runtime.NewBearerTokenPolicy(opts.Credential, []string{identity.Scope}, nil)
	client := policy.ClientOptions{
		Transport:        opts.Transport,
		PerRetryPolicies: []policy.Policy{bearer, m},
		Telemetry:        policy.TelemetryOptions{ApplicationID: "cats-api"},
		Retry: policy.RetryOptions{
			MaxRetries:    3,
			TryTimeout:    30 * time.Second, // the SDK sets none of its own
			RetryDelay:    200 * time.Millisecond,
			MaxRetryDelay: 2 * time.Second,
		},
	}
	account, err := service.NewClientWithNoCredential(opts.AccountURL, &service.ClientOptions{ClientOptions: client})
	if err != nil {
		return nil, fmt.Errorf("making a client of %s: %w", opts.AccountURL, err)
	}
	s := &Store{
		opts:      opts,
		log:       log,
		container: account.NewContainerClient(opts.Container),
		buffers:   newBuffers(opts.Buffers, opts.BufferWait),
		metrics:   m,
		now:       time.Now,
	}
	s.key = &delegation{account: account, renew: opts.Credential.Renew, lifetime: keyLifetime(opts.LinkMaxTTL), log: log, metrics: m, now: s.now}
	m.watch(reg, s.buffers)
	return s, nil
}

// blobName is the only place that makes one. A User holds no slash, no backslash
// and no dot segment, so the name has exactly two segments.
func (s *Store) blobName(user signerapi.User) string {
	return user.String() + "/" + s.opts.BlobName
}

// Put implements [signerapi.Signer]. A picture that fits in a buffer goes up as
// one atomic Put Blob; a larger one as blocks that are committed together, after
// the body has come to a clean end.
func (s *Store) Put(ctx context.Context, user signerapi.User, body io.Reader, size int64) (signerapi.Info, error) {
	if err := s.opts.Limits.CheckSize(size); err != nil {
		return signerapi.Info{}, err // before a byte of it is asked for
	}
	buf, err := s.buffers.take(ctx)
	if err != nil {
		return signerapi.Info{}, err
	}
	defer s.buffers.give(buf)
	contentType, whole, err := s.opts.Limits.Open(body, size)
	if err != nil {
		return signerapi.Info{}, err
	}
	n, err := fill(whole, buf)
	up := upload{store: s, user: user, client: s.container.NewBlockBlobClient(s.blobName(user)), contentType: contentType}
	switch {
	case err == io.EOF: //nolint:errorlint // a wrapped io.EOF is a broken body, not its end
		return up.small(ctx, buf[:n])
	case err != nil:
		return signerapi.Info{}, err
	}
	return up.large(ctx, buf, whole)
}

// Link implements [signerapi.Signer].
func (s *Store) Link(ctx context.Context, user signerapi.User, opts signerapi.LinkOptions) (signerapi.Link, error) {
	ttl := opts.TTL
	if ttl == 0 {
		ttl = s.opts.LinkTTL
	}
	if ttl < MinLinkTTL || ttl > s.opts.LinkMaxTTL {
		return signerapi.Link{}, signerapi.ErrInvalidArgument.With(
			fmt.Sprintf("ttl: a link lives at least %v and at most %v", MinLinkTTL, s.opts.LinkMaxTTL))
	}
	if err := signerapi.CheckDownloadName(opts.Download); err != nil {
		return signerapi.Link{}, err
	}
	info, err := s.look(ctx, user)
	if err != nil {
		return signerapi.Link{}, err
	}
	return s.sign(user, info, ttl, opts.Download)
}

// look asks storage for the picture of user.
func (s *Store) look(ctx context.Context, user signerapi.User) (signerapi.Info, error) {
	ctx, cancel := context.WithTimeout(withOp(ctx, opHead), lookTimeout)
	defer cancel()
	p, err := s.container.NewBlobClient(s.blobName(user)).GetProperties(ctx, nil)
	if err != nil {
		return signerapi.Info{}, s.storageError(ctx, "looking for the picture", err)
	}
	return signerapi.Info{ETag: etag(p.ETag), ContentType: value(p.ContentType), Size: value(p.ContentLength)}, nil
}

// Delete implements [signerapi.Signer].
func (s *Store) Delete(ctx context.Context, user signerapi.User) error {
	ctx, cancel := context.WithTimeout(withOp(ctx, opDelete), lookTimeout)
	defer cancel()
	_, err := s.container.NewBlobClient(s.blobName(user)).Delete(ctx, &blob.DeleteOptions{
		DeleteSnapshots: to.Ptr(blob.DeleteSnapshotsOptionTypeInclude), // or a blob with snapshots stays
	})
	if err != nil {
		return s.storageError(ctx, "deleting the picture", err)
	}
	return nil
}

// Ready implements [signerapi.Signer]: a key is at hand that covers a link of
// the default lifetime.
func (s *Store) Ready(context.Context) error {
	_, err := s.key.covering(s.now().Add(s.opts.LinkTTL))
	return err
}

// Run keeps the user delegation key fresh until ctx is done; then it returns
// nil. It begins once authenticated is closed. It returns an error when storage
// says that the container does not exist, which waiting cannot mend.
func (s *Store) Run(ctx context.Context, authenticated <-chan struct{}) error {
	select {
	case <-ctx.Done():
		return nil
	case <-authenticated:
	}
	return s.key.run(ctx, s.checkContainer)
}

// checkContainer returns errNoContainer when storage says that it is not there.
func (s *Store) checkContainer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(withOp(ctx, opContainer), lookTimeout)
	defer cancel()
	_, err := s.container.GetProperties(ctx, nil)
	if err == nil {
		return nil
	}
	if isNoContainer(err) {
		account, _ := url.Parse(s.opts.AccountURL)
		return fmt.Errorf("%w: %q in %s; create it (az storage container create --auth-mode login --account-name … --name %s) or set STORAGE_CONTAINER",
			errNoContainer, s.opts.Container, account.Host, s.opts.Container)
	}
	return s.storageError(ctx, "looking for the container", err)
}

func etag(e *azcore.ETag) string { return string(value(e)) }

func value[T any](p *T) T {
	if p == nil {
		return *new(T)
	}
	return *p
}

// upload is one Put on its way.
type upload struct {
	store       *Store
	user        signerapi.User
	client      *blockblob.Client
	contentType string
}
