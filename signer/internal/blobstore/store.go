// Package blobstore stores, links and deletes the pictures of users in Blob Storage.
package blobstore

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"cats.example/shared/apierror"
	"cats.example/shared/config"
	"cats.example/shared/picture"
	"cats.example/shared/ratelimit"
	"cats.example/shared/signerapi"
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
	opts    Options
	storage *storage.Client
	cache   *existenceCache
	buffers *buffers
	metrics *metrics
	log     *slog.Logger
}

// New returns a store. It makes no call.
func New(opts Options, log *slog.Logger, reg prometheus.Registerer) *Store {
	b := newBuffers()
	s := &Store{opts: opts, storage: opts.Storage, buffers: b, metrics: newMetrics(reg, b), log: log}
	s.cache = newExistenceCache(opts.ExistenceCacheTTL, s.look)
	return s
}

// look returns the properties of the picture of user.
func (s *Store) look(ctx context.Context, user signerapi.User) (signerapi.Info, error) {
	info, _, err := s.storage.Head(ctx, s.storage.PictureBlob(user))
	return info, err
}

// checkPreconditions returns ErrPreconditionFailed if the preconditions fail for the picture of user now.
func (s *Store) checkPreconditions(ctx context.Context, user signerapi.User, preconditions signerapi.Preconditions) error {
	info, err := s.look(ctx, user)
	if err != nil && !errors.Is(err, apierror.ErrNotFound) {
		return err
	}
	return preconditions.Evaluate(info.ETag)
}

// available returns an error while the circuit breaker is open.
func (s *Store) available(ctx context.Context, user signerapi.User) error {
	return s.storage.Available(ctx, func(ctx context.Context) error {
		_, err := s.look(ctx, user)
		return err
	})
}

// Link implements [signerapi.Signer].
func (s *Store) Link(ctx context.Context, user signerapi.User, opts signerapi.LinkOptions) (signerapi.Link, error) {
	ttl, err := s.opts.Keys.TTL(opts.TTL)
	if err != nil {
		return signerapi.Link{}, err
	}
	if err := signerapi.ValidateDownloadName(opts.Download); err != nil {
		return signerapi.Link{}, err
	}
	found, err := s.cache.get(ctx, user)
	if err != nil {
		return signerapi.Link{}, err
	}
	link, err := s.opts.Keys.Link(s.storage.PictureBlob(user), found.info.ContentType, opts.Download, ttl, found.link.Load())
	if err != nil {
		return signerapi.Link{}, err
	}
	if opts.Download == "" {
		found.link.Store(link)
	}
	return signerapi.Link{Info: found.info, URL: link.URL, ExpiresAt: link.ExpiresAt}, nil
}

type metrics struct{ damaged prometheus.Counter }

func newMetrics(reg prometheus.Registerer, b *buffers) *metrics {
	auto := promauto.With(reg)
	auto.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "cats_signer_upload_buffers_in_use", Help: "Buffers in use, of 5, for uploads of unknown size.",
	}, func() float64 { return float64(b.taken()) })
	return &metrics{damaged: auto.NewCounter(prometheus.CounterOpts{
		Name: "cats_signer_uploads_damaged_total", Help: "Uploads that storage stored damaged, by its CRC64.",
	})}
}
