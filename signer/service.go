package main

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/tracing"
	"github.com/prometheus/client_golang/prometheus"

	"cats.example/shared/ratelimit"
	"cats.example/shared/signerapi"
	"cats.example/signer/internal/blobstore"
	"cats.example/signer/internal/directupload"
	"cats.example/signer/internal/identity"
	"cats.example/signer/internal/signing"
	"cats.example/signer/internal/storage"
)

const (
	maxCommits = 16 // concurrent commits of direct uploads; each takes some 100 KiB of memory
	maxChunked = 16 // concurrent uploads that hold a buffer or wait for one
)

// service is the [signerapi.Signer] that the signer serves.
type service struct {
	*blobstore.Store      // Put, Link, Delete
	*directupload.Uploads // StartUpload, CommitUpload
	tokens                *identity.Tokens
	keys                  *signing.Keys
	about                 signerapi.About
	slots                 *ratelimit.Pool // of uploads
}

var _ signerapi.Signer = service{}

func newService(cfg settings, transport *http.Client, spans tracing.Provider, pools *ratelimit.Pools, log *slog.Logger, reg prometheus.Registerer) (service, error) {
	tokens := identity.New(identity.Options{Settings: cfg.Identity, Transport: transport, Tracing: spans}, log, reg)
	client, err := storage.New(storage.Options{Settings: cfg.Storage, Credential: tokens, Transport: transport, Tracing: spans}, log, reg)
	if err != nil {
		return service{}, err
	}
	keys := signing.New(cfg.Signing, client, cfg.DirectUpload.URLTTL(), log, reg)
	slots := pools.New("uploads", cfg.MaxUploads*3/2) // an upload that has ended at the frontend can still be in progress here
	store := blobstore.New(blobstore.Options{
		Settings: cfg.Pictures, Limits: cfg.Limits, Storage: client, Keys: keys, Uploads: slots, Chunked: pools.New("chunked uploads", maxChunked),
	}, log, reg)
	uploads := directupload.New(directupload.Options{
		Settings: cfg.DirectUpload, Limits: cfg.Limits, Storage: client, Keys: keys, Store: store, Commits: pools.New("commits", maxCommits),
	}, log, reg)
	base, err := url.Parse(keys.BaseURL())
	if err != nil {
		return service{}, err
	}
	about := signerapi.About{
		MaxDirectUploadSize: int64(cfg.DirectUpload.MaxDirectUploadSize),
		LinkTTL:             int64(cfg.Signing.LinkTTL / time.Second),
		LinkMaxTTL:          int64(cfg.Signing.LinkMaxTTL / time.Second),
		LinkOrigin:          base.Scheme + "://" + base.Host,
	}
	return service{store, uploads, tokens, keys, about, slots}, nil
}

// About implements [signerapi.Signer].
func (s service) About(context.Context) (signerapi.About, error) { return s.about, nil }

// Ready implements [signerapi.Signer].
func (s service) Ready(ctx context.Context) error { return s.keys.Ready(ctx) }

// Run keeps the token and the user delegation key fresh, and deletes expired uploads, until ctx is done.
func (s service) Run(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { _ = s.tokens.Run(ctx) }) // it returns nil
	select {
	case <-ctx.Done():
	case <-s.tokens.First():
		running.Go(func() { s.keys.Run(ctx) })
		running.Go(func() { s.Uploads.Run(ctx) })
	}
}
