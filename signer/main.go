// Command signer is the private container of the pod, the only one with the workload identity. It stores pictures in Blob Storage
// and signs URLs of them for the frontend, over the loopback interface only.
package main

import (
	"context"
	"io"
	"net/http"
	"net/netip"
	"os"
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
	"cats.example/signer/internal/storage"
)

func main() {
	os.Exit(httpserver.Main(httpserver.Program{
		Name: name, About: about, Settings: &settings{}, Run: run,
		Command: doctorCommand,
	}))
}

// settleTime is how long after its start the signer lets requests wait for the first token and key. The frontend continues to
// send requests while the signer restarts.
const settleTime = 5 * time.Second

const maxWaiters = 8 // concurrent requests that wait for the issuer's keys

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// waitUntilReady returns h with requests delayed until ready returns nil, or until the time limit.
func waitUntilReady(h http.Handler, ready func(context.Context) error, limit time.Time) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for time.Now().Before(limit) && ready(r.Context()) != nil && r.Context().Err() == nil {
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
	traces, err := telemetry.NewTraces(ctx, name, environ, log)
	if err != nil {
		return err
	}
	var spans tracing.Provider
	if traces != nil {
		spans = azotel.NewTracingProvider(traces, nil)
	}
	transport := storage.NewTransport()
	pools := ratelimit.NewPools(name, cfg.ClientShare, reg)
	svc, err := newService(cfg, transport, spans, pools, log, reg)
	if err != nil {
		return err
	}
	callers := auth.New(auth.Options{Settings: cfg.Callers, Waiters: pools.New("unverified tokens", maxWaiters), Client: transport}, log, reg)
	var signer signerapi.Signer = svc
	if cfg.Callers.AuthenticationOn() {
		signer = callers.Guard(svc)
	}
	cfg.Callers.LogWarning(log)

	// The frontend enforces the minimum upload rate of clients. It can hold back parts of chunked bodies and of forms.
	limits := cfg.Settings
	limits.StallTimeout *= 3
	requests := httpserver.NewMiddleware(httpserver.MiddlewareOptions{
		Name: name, Settings: limits, Log: log, Registry: reg, Uploads: svc.slots, Traces: traces,
		WriteError: func(w http.ResponseWriter, _ *http.Request, err error) { signerapi.WriteError(w, err) },
	})
	return httpserver.Server{
		Settings:       cfg.Settings,
		Log:            log,
		Registry:       reg,
		Traces:         traces,
		Name:           "api",
		Address:        cfg.ListenAddress,
		Connections:    pools.New("connections", 4*cfg.MaxUploads), // as many as the frontend has requests in progress
		TrustedProxies: loopback,                                   // the frontend has many clients
		Handler:        newHandler(cfg, signer, requests),
		OpsAddress:     cfg.OpsAddress,
		Ready:          signer.Ready,
		Background: func(ctx context.Context) error {
			g, ctx := errgroup.WithContext(ctx)
			g.Go(func() error { svc.Run(ctx); return nil })
			if cfg.Callers.AuthenticationOn() {
				g.Go(func() error { return callers.Run(ctx) })
			}
			return g.Wait()
		},
	}.Run(ctx)
}

// newHandler returns the handler of the local API.
func newHandler(cfg settings, signer signerapi.Signer, requests *httpserver.Middleware) http.Handler {
	limit := time.Now().Add(settleTime)
	wrap := func(route string, probe bool, h http.Handler) http.Handler {
		// A DNS name in the Host header means DNS rebinding: the frontend connects to an IP address.
		h = httpserver.RequireHost(httpserver.LocalHost, h)
		if probe {
			return h
		}
		return requests.Route(route, waitUntilReady(h, signer.Ready, limit))
	}
	return signerapi.NewHandler(signer, signerapi.HandlerOptions{
		AuthenticationOff: !cfg.Callers.AuthenticationOn(), SharedSettings: config.Shared(cfg), LogError: httpserver.SetError, Wrap: wrap,
	})
}
