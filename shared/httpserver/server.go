// Package httpserver runs the two programs: command line, listeners, limits, timeouts, request logs and metrics, and the drain.
package httpserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"cats.example/shared/ratelimit"
	"cats.example/shared/telemetry"
)

// Limits of both listeners.
const (
	headerTimeout  = 10 * time.Second
	idleTimeout    = 30 * time.Second
	opsTimeout     = 30 * time.Second // for a response of the ops listener
	maxHeaderBytes = 16 << 10
	// proxyIdleTimeout is the idle timeout behind proxies, which keep connections for later requests. It is longer than theirs,
	// for example 60 s of nginx. Otherwise a proxy can send a request on a connection that is being closed.
	proxyIdleTimeout = 90 * time.Second

	// keptConnections, times MAX_UPLOADS, is the number of connections above which each response closes its connection. So idle
	// connections do not block new ones. Each takes about 17 KiB of memory.
	keptConnections = 2
)

// Server is the configuration of the HTTP server of a process: one work listener, and one ops listener for probes and metrics.
type Server struct {
	Settings Settings
	Log      *slog.Logger
	Registry *prometheus.Registry
	Traces   *telemetry.Traces // nil if traces are off

	Name       string // of the work listener, in the log
	Address    string // of the work listener
	Handler    http.Handler
	OpsAddress string // of /metrics, /livez and /readyz

	Connections    *ratelimit.Pool // slots of the connections to the work listener
	TrustedProxies []netip.Prefix  // their connections serve many clients, and so have no share of the slots

	// Ready returns nil if the process can serve requests, or the reason why it cannot. Each call of /readyz calls it.
	Ready func(context.Context) error
	// Background runs until its context is done, which happens after the last request. An error stops the server. It may be nil.
	Background func(context.Context) error
}

// Run opens both listeners and serves requests until ctx is done. Then it stops in this order: /readyz fails, DRAIN_DELAY
// passes, the work listener is closed, requests in progress end within DRAIN_TIMEOUT, the background work and the ops listener
// are stopped, and the last spans are exported.
//
// Run returns nil after a clean stop. It returns an error if a listener cannot be opened, if a listener or the background work
// fails, or if requests were cut off. The export of spans may take the rest of DRAIN_TIMEOUT, but at least 1 and at most 5
// seconds.
func (s Server) Run(ctx context.Context) error {
	work, err := s.listen(ctx, s.Name, s.Address)
	if err != nil {
		return err
	}
	defer work.Close()
	ops, err := s.listen(ctx, "ops", s.OpsAddress)
	if err != nil {
		return err
	}
	defer ops.Close()
	return s.serve(ctx, work, ops)
}

func (s Server) listen(ctx context.Context, name, address string) (net.Listener, error) {
	l, err := (&net.ListenConfig{Control: socketOptions}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("opening the %s listener: %w", name, err)
	}
	s.Log.Info("listening", "listener", name, "address", l.Addr().String())
	return l, nil
}

// serve is Run after the listeners were opened.
func (s Server) serve(ctx context.Context, work, ops net.Listener) error {
	var draining atomic.Bool
	workServer, opsServer := s.workServer(&draining), s.opsServer(&draining)
	// The background work outlives ctx: requests in progress need it.
	background, stopBackground := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBackground()
	g, failed := errgroup.WithContext(background)
	g.Go(func() error { return serve(workServer, s.limited(work)) })
	g.Go(func() error { return serve(opsServer, ops) })
	if s.Background != nil {
		g.Go(func() error { return s.Background(background) })
	}

	var cut error
	end := time.Now().Add(telemetry.FlushTimeout)
	select {
	case <-failed.Done():
	case <-ctx.Done():
		s.Log.Info("draining", "delay", s.Settings.DrainDelay.String(), "timeout", s.Settings.DrainTimeout.String())
		draining.Store(true)
		select {
		case <-time.After(s.Settings.DrainDelay):
		case <-failed.Done():
		}
		end = time.Now().Add(s.Settings.DrainTimeout)
		limit, cancel := context.WithDeadline(background, end)
		defer cancel()
		if cut = workServer.Shutdown(limit); cut != nil {
			cut = fmt.Errorf("draining for %v: requests were cut off: %w", s.Settings.DrainTimeout, cut)
		}
	}
	stopBackground()
	_ = workServer.Close()
	_ = opsServer.Close()
	err := errors.Join(g.Wait(), cut)
	s.Traces.Close(min(max(time.Until(end), time.Second), telemetry.FlushTimeout))
	if err == nil {
		s.Log.Info("stopped")
	}
	return err
}

func serve(srv *http.Server, l net.Listener) error {
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving %s: %w", l.Addr(), err)
	}
	return nil
}

func (s Server) newServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ConnContext:       withConn,
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug), // caused by clients

		DisableGeneralOptionsHandler: true, // otherwise net/http answers OPTIONS * without the handler
	}
}

// workServer returns the server of the work listener. It has no WriteTimeout: the middleware sets a deadline for each response.
func (s Server) workServer(draining *atomic.Bool) *http.Server {
	srv := s.newServer(trackHeaders(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// SetKeepAlivesEnabled would close idle connections at once, while requests arrive on them.
		if draining.Load() || s.Connections.Taken() > keptConnections*s.Settings.MaxUploads {
			w.Header().Set("Connection", "close")
		}
		s.Handler.ServeHTTP(w, r)
	})))
	if len(s.TrustedProxies) > 0 {
		srv.IdleTimeout = proxyIdleTimeout
	}
	return srv
}

// opsServer returns the server of the ops listener.
func (s Server) opsServer(draining *atomic.Bool) *http.Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.Registry, promhttp.HandlerOpts{
		Registry: s.Registry,
		ErrorLog: slog.NewLogLogger(s.Log.Handler(), slog.LevelError),
		// Only OpenMetrics has exemplars. It is off without traces, because it names buckets differently: "1.0" instead of "1".
		EnableOpenMetrics: s.Traces != nil,
	}))
	probe := func(check func(context.Context) error) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if err := check(r.Context()); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			_, _ = io.WriteString(w, "ok\n")
		}
	}
	mux.HandleFunc("GET /livez", probe(func(context.Context) error { return nil }))
	mux.HandleFunc("GET /readyz", probe(func(ctx context.Context) error {
		if draining.Load() {
			return errors.New("draining")
		}
		return s.Ready(ctx)
	}))
	if s.Settings.PprofEnabled {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	}
	srv := s.newServer(RequireHost(s.Settings.HostAllowed, mux))
	srv.WriteTimeout = opsTimeout
	return srv
}
