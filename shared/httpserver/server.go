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

// Limits of every listener.
const (
	headerTimeout  = 10 * time.Second
	idleTimeout    = 30 * time.Second
	opsTimeout     = 30 * time.Second // for a response of the ops listener
	maxHeaderBytes = 16 << 10
	// behindProxies is the idle timeout where proxies keep connections for later requests. It is longer than theirs: nginx has
	// 60 s. Otherwise a proxy can send a request into a connection that is being closed.
	behindProxies = 90 * time.Second

	// keptConnections, times MAX_UPLOADS, is the number of open connections above which each response ends its connection. So idle
	// ones do not keep clients waiting, and leave memory to uploads: each costs about 17 KiB.
	keptConnections = 2
)

// Server is what a process serves.
type Server struct {
	Settings Settings
	Log      *slog.Logger
	Registry *prometheus.Registry
	Traces   *telemetry.Traces // nil for none

	Name       string // the work listener's name in the log
	Address    string // of the work listener
	Handler    http.Handler
	OpsAddress string // of /metrics, /livez and /readyz
	// Connections are the slots for connections to the work listener, and TrustedProxies the addresses whose connections serve many
	// clients: they have no share.
	Connections    *ratelimit.Pool
	TrustedProxies []netip.Prefix

	// Ready says why the process should get no requests now; nil means that it
	// should. It is asked at each probe and must be cheap.
	Ready func(context.Context) error
	// Background runs until its context is done, which is after the last request.
	// An error stops the service. It may be nil.
	Background func(context.Context) error
}

// Run listens on both addresses before it serves either, serves until ctx is
// done, and then stops in order: not ready, DrainDelay, no new connections,
// requests under way for at most DrainTimeout, background work, ops listener.
// It returns nil after a clean stop, and an error when something could not
// start, broke, or was cut off by DrainTimeout. Before it returns, it sends the last
// spans for at most what is left of DrainTimeout, but at least 1 s and at most 5 s.
func (s Server) Run(ctx context.Context) error {
	plain, err := s.listen(ctx, s.Name, s.Address)
	if err != nil {
		return err
	}
	work := s.limited(plain)
	defer work.Close()
	ops, err := s.listen(ctx, "ops", s.OpsAddress)
	if err != nil {
		return err
	}
	defer ops.Close()

	var draining atomic.Bool
	workServer := s.server(headersEnd(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if draining.Load() || s.Connections.Taken() > keptConnections*s.Settings.MaxUploads {
			// The server's own way to end keep-alive would close idle connections at once, while requests arrive on them.
			w.Header().Set("Connection", "close")
		}
		s.Handler.ServeHTTP(w, r)
	})))
	opsServer := s.server(RequireHost(s.Settings.HostAllowed, s.opsHandler(&draining)))
	if len(s.TrustedProxies) > 0 {
		workServer.IdleTimeout = behindProxies
	}
	opsServer.WriteTimeout = opsTimeout // responses of the work server have deadlines of their own, behind bodies of any length

	// Background work outlives ctx: requests that are being drained need it.
	bg, stopBackground := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBackground()
	g, broken := errgroup.WithContext(bg)
	g.Go(func() error { return serve(workServer, work) })
	g.Go(func() error { return serve(opsServer, ops) })
	if s.Background != nil {
		g.Go(func() error { return s.Background(bg) })
	}

	var cut error
	end := time.Now().Add(telemetry.FlushTimeout)
	select {
	case <-broken.Done():
	case <-ctx.Done():
		s.Log.Info("draining", "delay", s.Settings.DrainDelay.String(), "timeout", s.Settings.DrainTimeout.String())
		draining.Store(true)
		select {
		case <-time.After(s.Settings.DrainDelay):
		case <-broken.Done():
		}
		end = time.Now().Add(s.Settings.DrainTimeout)
		limit, cancel := context.WithDeadline(bg, end)
		defer cancel()
		if cut = workServer.Shutdown(limit); cut != nil {
			cut = fmt.Errorf("draining for %v: requests were cut off: %w", s.Settings.DrainTimeout, cut)
		}
	}
	stopBackground()
	_ = workServer.Close()
	_ = opsServer.Close()
	err = errors.Join(g.Wait(), cut)
	s.Traces.Close(min(max(time.Until(end), time.Second), telemetry.FlushTimeout))
	if err == nil {
		s.Log.Info("stopped")
	}
	return err
}

func (s Server) listen(ctx context.Context, name, address string) (net.Listener, error) {
	l, err := (&net.ListenConfig{Control: socketOptions}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("opening the %s listener: %w", name, err)
	}
	s.Log.Info("listening", "listener", name, "address", l.Addr().String())
	return l, nil
}

func (s Server) server(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ConnContext:       withConn,
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug), // what strangers send is not news

		DisableGeneralOptionsHandler: true, // or "OPTIONS *" is answered past the handler, unseen
	}
}

func serve(srv *http.Server, l net.Listener) error {
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving %s: %w", l.Addr(), err)
	}
	return nil
}

func (s Server) opsHandler(draining *atomic.Bool) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.Registry, promhttp.HandlerOpts{
		Registry: s.Registry,
		ErrorLog: slog.NewLogLogger(s.Log.Handler(), slog.LevelError),
		// Exemplars are in no other format. Without them, nothing changes for who
		// scrapes: in this one, the bucket "1" is called "1.0".
		EnableOpenMetrics: s.Traces != nil,
	}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "ok\n")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		err := errors.New("draining")
		if !draining.Load() {
			err = s.Ready(r.Context())
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
	if s.Settings.PprofEnabled {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	}
	return mux
}
