package main

import (
	"context"
	"io"
	"net/http"
	"net/netip"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/tracing"
	"github.com/Azure/azure-sdk-for-go/sdk/tracing/azotel"
	"golang.org/x/sync/errgroup"

	"cats.example/shared/config"
	"cats.example/shared/httpserver"
	"cats.example/shared/ratelimit"
	"cats.example/shared/signerapi"
	"cats.example/shared/telemetry"
	"cats.example/signer/internal/auth"
	"cats.example/signer/internal/blobstore"
	"cats.example/signer/internal/identity"
)

// settleTime is how long after its start the signer lets requests wait for its
// first token and key. They may be there before them: the frontend goes on sending
// while the signer restarts.
const settleTime = 5 * time.Second

const (
	maxCommits = 16 // of direct uploads at once; each takes some 100 KiB of memory
	maxChunked = 16 // uploads that hold a buffer or wait for one at once
	maxWaiters = 8  // requests that wait for the issuer's keys at once
)

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// settled returns h, which gets no request before ready returns nil or the time
// until has come.
func settled(h http.Handler, ready func(context.Context) error, until time.Time) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for time.Now().Before(until) && ready(r.Context()) != nil && r.Context().Err() == nil {
			time.Sleep(20 * time.Millisecond)
		}
		h.ServeHTTP(w, r)
	})
}

// run serves the signer until ctx is done.
func run(ctx context.Context, environ []string, stderr io.Writer) error {
	cfg, err := parse(environ)
	if err != nil {
		return err
	}
	log := telemetry.NewLogger(stderr, cfg.LogLevel, name)
	reg := telemetry.NewRegistry(name)
	transport := blobstore.NewTransport()
	traces, err := telemetry.NewTraces(ctx, name, environ, log)
	if err != nil {
		return err
	}
	var spans tracing.Provider
	if traces != nil {
		spans = azotel.NewTracingProvider(traces, nil)
	}

	tokens := identity.New(identity.Options{Settings: cfg.Identity, Transport: transport, Tracing: spans}, log, reg)
	pools := ratelimit.NewPools(name, cfg.ClientShare, reg)
	slots := blobstore.Slots{
		// An upload that has ended at the frontend can still be in progress here.
		Uploads: pools.New("uploads", cfg.MaxUploads*3/2), Commits: pools.New("commits", maxCommits), Chunked: pools.New("chunked uploads", maxChunked),
	}
	store, err := blobstore.New(blobstore.Options{
		Settings: cfg.Storage, Limits: cfg.Limits, Credential: tokens, Transport: transport, Tracing: spans, Slots: slots,
	}, log, reg)
	if err != nil {
		return err
	}
	known := auth.New(auth.Options{Settings: cfg.Callers, Waiters: pools.New("unverified tokens", maxWaiters), Client: transport}, log, reg)
	var signer signerapi.Signer = store
	if cfg.Callers.AuthenticationOn() {
		signer = known.Guard(store)
	}
	cfg.Callers.LogWarning(log)

	// The frontend enforces the minimum upload rate of the public. It can hold back parts of chunked bodies and of forms.
	settings := cfg.Settings
	settings.StallTimeout *= 3
	requests := httpserver.NewMiddleware(httpserver.MiddlewareOptions{
		Name: name, Settings: settings, Log: log, Registry: reg, Uploads: slots.Uploads, Traces: traces,
		WriteError: func(w http.ResponseWriter, _ *http.Request, err error) { signerapi.WriteError(w, err) },
	})
	until := time.Now().Add(settleTime)
	wrap := func(route string, probe bool, h http.Handler) http.Handler {
		// A DNS name in the Host header is a page that uses DNS rebinding: the frontend connects to an IP address.
		h = httpserver.RequireHost(httpserver.LocalHost, h)
		if probe {
			return h
		}
		return requests.Route(route, settled(h, signer.Ready, until))
	}
	calls := signerapi.NewHandler(signer, signerapi.HandlerOptions{
		AuthenticationOff: !cfg.Callers.AuthenticationOn(), SharedSettings: config.Shared(cfg), LogError: httpserver.SetError, Wrap: wrap,
	})

	return httpserver.Server{
		Settings:       cfg.Settings,
		Log:            log,
		Registry:       reg,
		Traces:         traces,
		Name:           "api",
		Address:        cfg.APIAddress,
		Connections:    pools.New("connections", 4*cfg.MaxUploads), // as many as the frontend has requests in progress
		TrustedProxies: loopback,                                   // the frontend has many clients
		Handler:        calls,
		OpsAddress:     cfg.OpsAddress,
		Ready:          signer.Ready,
		Background: func(ctx context.Context) error {
			g, ctx := errgroup.WithContext(ctx)
			g.Go(func() error { return tokens.Run(ctx) })
			g.Go(func() error { return store.Run(ctx, tokens.First()) })
			if cfg.Callers.AuthenticationOn() {
				g.Go(func() error { return known.Run(ctx) })
			}
			return g.Wait()
		},
	}.Run(ctx)
}
