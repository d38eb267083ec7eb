// Go's multipart reader uses 25 bytes of memory for each byte of a short line in a part header, so it accepts only 64 lines.
//go:debug multipartmaxheaders=64

// Command frontend is the public container of the pod. It serves the public HTTP API and forwards requests to the signer over
// the loopback interface. It has no credential, links no Azure code, and does not start where it could obtain a token.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"cats.example/frontend/internal/web"
	"cats.example/shared/apierror"
	"cats.example/shared/config"
	"cats.example/shared/httpserver"
	"cats.example/shared/ratelimit"
	"cats.example/shared/signerapi"
	"cats.example/shared/telemetry"
)

const (
	name  = "frontend"
	about = "frontend serves the public API and the web page. It forwards requests to the signer.\n" + telemetry.TracesHelp
)

type settings struct {
	ListenAddress string `env:"LISTEN_ADDRESS" envDefault:":8080" help:"address of the public API"`
	OpsAddress    string `env:"OPS_ADDRESS" envDefault:":8090" help:"address of /metrics, /livez and /readyz"`
	SignerURL     string `env:"SIGNER_URL" envDefault:"http://127.0.0.1:8081" help:"URL of the signer's local API"`

	web.Options
	httpserver.Settings
}

func main() {
	os.Exit(httpserver.Main(httpserver.Program{Name: name, About: about, Settings: &settings{}, Run: run}))
}

// parse reads the settings and returns all validation errors, joined.
func parse(environ []string) (settings, error) {
	var c settings
	if err := config.Parse(&c, environ); err != nil {
		return c, err
	}
	signer, err := url.Parse(c.SignerURL) // the signer rejects other Host headers with 421
	return c, errors.Join(c.Options.Validate(), c.Settings.Validate(), config.Require(err != nil || httpserver.LocalHost(signer.Host),
		"SIGNER_URL is %q: want http://HOST:PORT with an IP address or localhost as HOST", c.SignerURL))
}

// run serves the public API until ctx is done. It checks for credentials before it reports invalid settings.
func run(ctx context.Context, environ []string, stderr io.Writer) error {
	cfg, err := parse(environ)
	search := func() []string {
		own := []string{cfg.ListenAddress, cfg.OpsAddress, cfg.SignerURL}
		return findEndpoints(context.WithoutCancel(ctx), endpointAddresses(environ, own, "/proc"), endpointTimeout)
	}
	if err := cmp.Or(checkNoCredentials(environ, tokenFiles, search()), err); err != nil {
		return err
	}
	log := telemetry.NewLogger(stderr, cfg.LogLevel, name)
	cfg.LogWarning(log)
	if len(cfg.AllowedHosts) == 0 {
		log.Info("requests for any host name are accepted", "fix", "set ALLOWED_HOSTS to the public names of this service")
	}
	traces, err := telemetry.NewTraces(ctx, name, environ, log)
	if err != nil {
		return err
	}
	signer, err := signerapi.NewClient(cfg.SignerURL, signerapi.ClientOptions{Header: httpserver.Propagate, Transport: traces.Transport})
	if err != nil {
		return err
	}
	reg := telemetry.NewRegistry(name)
	pools := ratelimit.NewPools(name, cfg.ClientShare, reg)
	slots := web.Slots{
		Requests: pools.New("requests", 4*cfg.MaxUploads), Uploads: pools.New("uploads", cfg.MaxUploads), Commits: pools.New("commits", max(1, cfg.MaxUploads/2)),
	}
	requests := httpserver.NewMiddleware(httpserver.MiddlewareOptions{
		Name: name, Settings: cfg.Settings, Log: log, Registry: reg, Uploads: slots.Uploads, Traces: traces, Public: true, WriteError: web.WriteError,
	})
	return httpserver.Server{
		Settings: cfg.Settings, Log: log, Registry: reg, Traces: traces,
		Name: "public", Address: cfg.ListenAddress, OpsAddress: cfg.OpsAddress,
		Handler:     web.New(cfg.Options, web.Dependencies{Signer: signer, Requests: requests, Slots: slots, HostAllowed: cfg.HostAllowed, Log: log, Registry: reg}),
		Connections: pools.New("connections", 8*cfg.MaxUploads), TrustedProxies: cfg.TrustedProxies,
		Ready: (&readiness{signer: signer, settings: config.Shared(cfg), search: search, log: log}).check,
	}.Run(ctx)
}

const searchInterval = 5 * time.Second // between two searches for token endpoints

// readiness decides whether the frontend is ready. It is safe for concurrent use.
type readiness struct {
	signer   signerapi.Signer
	settings map[string]string // the shared settings, values by name
	search   func() []string   // returns the addresses of token endpoints
	log      *slog.Logger

	mu        sync.Mutex
	next      time.Time // time of the next search
	endpoints []string
	differing map[string]string // shared settings, with the signer's values, or with the frontend's if the signer has none
}

// check returns nil if no token endpoint answers, and the signer is ready and has the same shared settings.
func (r *readiness) check(ctx context.Context) error {
	if err := r.checkEndpoints(); err != nil {
		return err
	}
	about, err := r.signer.About(ctx)
	if err != nil {
		return err
	}
	if err := r.checkSettings(about.SharedSettings); err != nil {
		return apierror.ErrMisconfigured.Wrap(err)
	}
	return r.signer.Ready(ctx)
}

// checkEndpoints logs the addresses of token endpoints when they change.
func (r *readiness) checkEndpoints() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); !now.Before(r.next) {
		found := r.search()
		if len(found) > 0 && !slices.Equal(found, r.endpoints) {
			r.log.Error("token endpoint found on the loopback interface", "addresses", found, "fix", credentialsFix)
		}
		r.endpoints, r.next = found, now.Add(searchInterval)
	}
	if len(r.endpoints) > 0 {
		return fmt.Errorf("a token endpoint answers at %s: the frontend must not reach one; the log has the fix", strings.Join(r.endpoints, ", "))
	}
	return nil
}

// checkSettings logs the settings that differ whenever their set or one of the signer's values changes.
func (r *readiness) checkSettings(signer map[string]string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	differing := maps.Clone(r.settings)
	maps.Copy(differing, signer)
	maps.DeleteFunc(differing, func(name, _ string) bool { return r.settings[name] == signer[name] })
	names := slices.Sorted(maps.Keys(differing))
	if !maps.Equal(differing, r.differing) {
		for _, name := range names {
			r.log.Error("shared setting differs between the containers", "setting", name, "frontend", r.settings[name], "signer", signer[name])
		}
	}
	r.differing = differing
	if len(names) > 0 {
		return errors.New("shared settings of the containers differ: " + strings.Join(names, ", ") + "; the log has the values")
	}
	return nil
}
