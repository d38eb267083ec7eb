// Command signer is the private container of the pod, the only one with the workload identity. It stores pictures in Blob Storage
// and signs URLs of them for the frontend, over the loopback interface only.
package main

import (
	"cmp"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/tracing"
	"github.com/Azure/azure-sdk-for-go/sdk/tracing/azotel"
	"github.com/prometheus/client_golang/prometheus"

	"cats.example/shared/config"
	"cats.example/shared/httpserver"
	"cats.example/shared/ratelimit"
	"cats.example/shared/signerapi"
	"cats.example/shared/telemetry"
	"cats.example/signer/internal/auth"
	"cats.example/signer/internal/blobstore"
	"cats.example/signer/internal/directupload"
	"cats.example/signer/internal/doctor"
	"cats.example/signer/internal/identity"
	"cats.example/signer/internal/signing"
	"cats.example/signer/internal/storage"
)

func main() {
	os.Exit(httpserver.Main(httpserver.Program{
		Name: name, About: about, Settings: &settings{}, Run: run, Command: doctorCommand,
	}))
}

var doctorCommand = httpserver.Command{
	Name: "doctor",
	Help: `signer doctor checks, with the signer's own environment, what the signer needs: the
settings, the federated token, its exchange for an access token, the user delegation key,
a put, a signed URL and the deletion of a test picture, with MAX_DIRECT_UPLOAD_SIZE a copy
of it, with OIDC_ISSUER the issuer of callers' tokens, and the clock. It listens on no port,
so it can run beside the signer, in the container of a pod:

  kubectl -n cats-api exec POD -c signer -- /signer doctor

During a rollout, check a new pod: k8s/doctor.sh chooses the newest. The report begins
with the pod, its version, client ID and tenant.

Each check is a line that begins with ok, warn, fail or skip; the lines below it tell what
to do. The doctor takes about a minute at most. The exit code is 0 if all checks passed,
otherwise 1. The report never contains a token or the signature of a URL.`,
	Run: runDoctor,
}

func runDoctor(ctx context.Context, environ []string, stdout io.Writer) int {
	// The doctor must delete its test picture even if its terminal or pipe is closed.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGHUP)
	defer stop()
	signal.Ignore(syscall.SIGPIPE)
	if doctor.Run(ctx, doctorOptions(environ), stdout) {
		return 0
	}
	return 1
}

// settleTime is how long after its start the signer lets requests wait for the first token and key. The frontend continues to
// send requests while the signer restarts.
const settleTime = 5 * time.Second

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

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
	pools := ratelimit.NewPools(name, cfg.ClientShare, reg)
	svc, err := newService(cfg, spans, pools, log, reg)
	if err != nil {
		return err
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
		Settings: cfg.Settings, Log: log, Registry: reg, Traces: traces,
		Name: "api", Address: cfg.ListenAddress, OpsAddress: cfg.OpsAddress, Handler: newHandler(cfg, svc, requests), Ready: svc.Ready,
		Connections:    pools.New("connections", 4*cfg.MaxUploads), // as many as the frontend has requests in progress
		TrustedProxies: loopback,                                   // the frontend has many clients
		Background:     svc.Run,
	}.Run(ctx)
}

// newHandler returns the handler of the local API.
func newHandler(cfg settings, svc service, requests *httpserver.Middleware) http.Handler {
	options := signerapi.HandlerOptions{SharedSettings: config.Shared(cfg), LogError: httpserver.SetError}
	if cfg.Callers.AuthenticationOn() {
		options.Authorize = svc.callers.Authorize
	}
	limit := time.Now().Add(settleTime)
	options.Wrap = func(route string, probe bool, h http.Handler) http.Handler {
		// A DNS name in the Host header means DNS rebinding: the frontend connects to an IP address.
		h = httpserver.RequireHost(httpserver.LocalHost, h)
		if probe {
			return h
		}
		return requests.Route(route, waitUntilReady(h, svc.Ready, limit))
	}
	return signerapi.NewHandler(svc, options)
}

// waitUntilReady returns h with requests delayed until ready returns nil, or until the time limit.
func waitUntilReady(h http.Handler, ready func(context.Context) error, limit time.Time) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for time.Now().Before(limit) && ready(r.Context()) != nil && r.Context().Err() == nil {
			time.Sleep(20 * time.Millisecond)
		}
		h.ServeHTTP(w, r)
	})
}

const (
	maxCommits = 16 // concurrent commits of direct uploads; each takes some 100 KiB of memory
	maxChunked = 16 // concurrent uploads that hold a buffer or wait for one
	maxWaiters = 8  // concurrent requests that wait for the issuer's keys
)

// service is the [signerapi.Signer] that the signer serves.
type service struct {
	*blobstore.Store      // Put, Link, Delete
	*directupload.Uploads // StartUpload, CommitUpload
	tokens                *identity.Tokens
	keys                  *signing.Keys
	callers               *auth.Authenticator
	about                 signerapi.About
	slots                 *ratelimit.Pool // of uploads
}

func newService(cfg settings, spans tracing.Provider, pools *ratelimit.Pools, log *slog.Logger, reg prometheus.Registerer) (service, error) {
	transport := storage.NewTransport()
	tokens := identity.New(cfg.Identity, transport, spans, log, reg)
	client, err := storage.New(storage.Options{Settings: cfg.Storage, Credential: tokens, Transport: transport, Tracing: spans}, log, reg)
	if err != nil {
		return service{}, err
	}
	base, _ := url.Parse(cmp.Or(cfg.Signing.LinkBaseURL, cfg.Storage.AccountURL)) // the settings are valid
	s := service{
		tokens: tokens,
		keys:   signing.New(cfg.Signing, client, directupload.SessionTTL, log, reg),
		slots:  pools.New("uploads", cfg.MaxUploads*3/2), // an upload that has ended at the frontend can still be in progress here
		about: signerapi.About{
			MaxDirectUploadSize: int64(cfg.DirectUpload.MaxDirectUploadSize),
			LinkTTL:             int64(cfg.Signing.LinkTTL / time.Second),
			LinkMaxTTL:          int64(cfg.Signing.LinkMaxTTL / time.Second),
			LinkOrigin:          base.Scheme + "://" + base.Host,
		},
	}
	s.Store = blobstore.New(blobstore.Options{
		Settings: cfg.Pictures, Limits: cfg.Limits, Storage: client, Keys: s.keys, Uploads: s.slots, Chunked: pools.New("chunked uploads", maxChunked),
	}, log, reg)
	s.Uploads = directupload.New(directupload.Options{
		Settings: cfg.DirectUpload, Limits: cfg.Limits, Storage: client, Keys: s.keys, Store: s.Store, Commits: pools.New("commits", maxCommits),
	}, log, reg)
	s.callers = auth.New(cfg.Callers, transport, pools.New("unverified tokens", maxWaiters), log, reg)
	if cfg.Callers.AuthenticationOn() {
		s.about.UserClaim = cfg.Callers.UserClaim
	}
	return s, nil
}

// About implements [signerapi.Signer].
func (s service) About(context.Context) (signerapi.About, error) { return s.about, nil }

// Ready implements [signerapi.Signer].
func (s service) Ready(ctx context.Context) error {
	if err := s.keys.Ready(ctx); err != nil || !s.callers.AuthenticationOn() {
		return err
	}
	return s.callers.Ready()
}

// Run keeps the token, the user delegation key and the issuer's keys fresh, and deletes expired uploads, until ctx is done.
func (s service) Run(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { s.tokens.Run(ctx) })
	if s.callers.AuthenticationOn() {
		running.Go(func() { s.callers.Run(ctx) })
	}
	select {
	case <-ctx.Done():
	case <-s.tokens.First():
		running.Go(func() { s.keys.Run(ctx) })
		running.Go(func() { s.Uploads.Run(ctx) })
	}
}
