// Package blobstore stores, links and deletes the pictures of users in Blob Storage.
package blobstore

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/sync/semaphore"

	"cats.example/shared/apierror"
	"cats.example/shared/config"
	"cats.example/shared/picture"
	"cats.example/shared/ratelimit"
	"cats.example/shared/signerapi"
	"cats.example/shared/telemetry"
	"cats.example/signer/internal/signing"
	"cats.example/signer/internal/storage"
)

// Settings are the settings of the store.
type Settings struct {
	ExistenceCacheTTL time.Duration `env:"EXISTENCE_CACHE_TTL" envDefault:"5s" help:"how long the signer remembers that a picture exists; 0s turns this cache off"`
}

// Validate returns the validation error of the settings.
func (s Settings) Validate() error {
	return config.Require(s.ExistenceCacheTTL >= 0, "EXISTENCE_CACHE_TTL must not be negative")
}

// Options are the settings, which the caller has validated, and what the store works with.
type Options struct {
	Settings
	Limits  picture.Limits
	Storage *storage.Client
	Keys    *signing.Keys
	Uploads *ratelimit.Pool // counted by authenticated caller
	Chunked *ratelimit.Pool // chunked uploads that hold a buffer or wait for one; counted by client where authentication is off
}

// Store stores pictures. Its methods are those of [signerapi.Signer]. It is safe for concurrent use.
type Store struct {
	Options
	buffers *buffers
	damaged prometheus.Counter
	log     *slog.Logger

	// The existence cache remembers the properties of pictures that exist, and nothing about pictures that do not.
	mu       sync.Mutex
	pictures *simplelru.LRU[signerapi.User, *cached]
	lookups  *semaphore.Weighted
}

const (
	maxCached  = 8192 // pictures; each takes some 2 KiB with a link
	maxLookups = 256  // at once: the frontend makes 128 calls, and the lookups of clients that have disconnected go on
)

// New returns a store. It makes no call.
func New(opts Options, log *slog.Logger, reg prometheus.Registerer) *Store {
	pictures, _ := simplelru.NewLRU[signerapi.User, *cached](maxCached, nil) // fails only for a size below 1
	s := &Store{
		Options: opts, buffers: newBuffers(), log: log, pictures: pictures, lookups: semaphore.NewWeighted(maxLookups),
		damaged: telemetry.NewCounter(reg, "cats_signer_uploads_damaged_total", "Uploads that storage stored damaged, by its CRC64."),
	}
	promauto.With(reg).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "cats_signer_upload_buffers_in_use", Help: "Buffers in use, of 5, for uploads of unknown size.",
	}, func() float64 { return float64(s.buffers.taken.Load()) })
	return s
}

// Link implements [signerapi.Signer].
func (s *Store) Link(ctx context.Context, user signerapi.User, opts signerapi.LinkOptions) (signerapi.Link, error) {
	p, err := s.look(ctx, user)
	if err != nil {
		return signerapi.Link{}, err
	}
	link, err := s.Keys.Link(s.Storage.PictureBlob(user), p.info.ContentType, opts, p.link.Load())
	if err != nil {
		return signerapi.Link{}, err
	}
	if opts.Download == "" {
		p.link.Store(link)
	}
	return signerapi.Link{Info: p.info, URL: link.URL, ExpiresAt: link.ExpiresAt}, nil
}

// cached is a picture, or a lookup in progress. The fields info, err and until are set before found is closed.
type cached struct {
	found chan struct{}
	info  signerapi.Info
	err   error
	until time.Time                    // the end of its use for new requests; zero during the lookup
	link  atomic.Pointer[signing.Link] // the last one that shows the picture
}

// look returns the picture of user, which may be cached.
func (s *Store) look(ctx context.Context, user signerapi.User) (*cached, error) {
	p, err := s.lookup(ctx, user)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.found:
		return p, p.err
	case <-ctx.Done():
		return nil, apierror.ErrIncomplete.Wrap(context.Cause(ctx))
	}
}

// lookup returns the cached picture of user, or a lookup. Concurrent requests share a lookup, so it does not end with ctx.
func (s *Store) lookup(ctx context.Context, user signerapi.User) (*cached, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last, ok := s.pictures.Get(user)
	if ok && (last.until.IsZero() || last.err == nil && time.Now().Before(last.until)) {
		return last, nil
	}
	if !s.lookups.TryAcquire(1) {
		return nil, apierror.ErrOverloaded.Wrap(fmt.Errorf("%d lookups are in progress", maxLookups))
	}
	p := &cached{found: make(chan struct{})}
	if ok {
		p.link.Store(last.link.Load())
	}
	s.pictures.Add(user, p)
	go func() {
		defer s.lookups.Release(1)
		info, _, err := s.Storage.Head(context.WithoutCancel(ctx), s.Storage.PictureBlob(user))
		s.mu.Lock()
		p.info, p.err, p.until = info, err, time.Now().Add(s.ExistenceCacheTTL)
		s.mu.Unlock()
		close(p.found)
	}()
	return p, nil
}

// forget removes the picture of user from the cache. Call it before and after a change of the picture. A lookup in progress is not
// shared with later requests.
func (s *Store) forget(user signerapi.User) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pictures.Remove(user)
}
