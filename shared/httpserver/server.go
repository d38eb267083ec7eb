// Package httpserver runs the two programs: command line, listeners, limits, timeouts, request logs and metrics, and the drain.
package httpserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/version"
	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"cats.example/shared/config"
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
	// Background runs until its context is done, which happens after the last request. It may be nil.
	Background func(context.Context)
}

// Run opens both listeners and serves requests until ctx is done. Then it stops in this order: /readyz fails, DRAIN_DELAY
// passes, the work listener is closed, requests in progress end within DRAIN_TIMEOUT, the background work and the ops listener
// are stopped, and the last spans are exported.
//
// Run returns nil after a clean stop. It returns an error if a listener cannot be opened, if a listener fails, or
// if requests were cut off. The export of spans may take five seconds more.
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
	limited := &listener{
		Listener: netutil.LimitListener(work, s.Connections.Total()), // more connections wait in the queue of the kernel
		slots:    s.Connections, proxies: s.TrustedProxies, log: s.Log, noFiles: rate.Sometimes{Interval: 10 * time.Second},
	}
	g.Go(func() error { return serve(workServer, limited) })
	g.Go(func() error { return serve(opsServer, ops) })
	if s.Background != nil {
		g.Go(func() error {
			s.Background(background)
			return nil
		})
	}

	var cut error
	select {
	case <-failed.Done():
	case <-ctx.Done():
		s.Log.Info("draining", "delay", s.Settings.DrainDelay.String(), "timeout", s.Settings.DrainTimeout.String())
		draining.Store(true)
		select {
		case <-time.After(s.Settings.DrainDelay):
		case <-failed.Done():
		}
		limit, cancel := context.WithTimeout(background, s.Settings.DrainTimeout)
		defer cancel()
		if cut = workServer.Shutdown(limit); cut != nil {
			cut = fmt.Errorf("draining for %v: requests were cut off: %w", s.Settings.DrainTimeout, cut)
		}
	}
	stopBackground()
	_ = workServer.Close()
	_ = opsServer.Close()
	err := errors.Join(g.Wait(), cut)
	s.Traces.Close()
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
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
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
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
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
	srv := s.newServer(RequireHost(s.Settings.HostAllowed, mux))
	srv.WriteTimeout = opsTimeout
	return srv
}

const (
	// memoryRatio is the part of the container's memory limit that the Go runtime may use. It does not count the pages of the
	// binary, and what the kernel needs for connections.
	memoryRatio = 0.6

	// gcPercent is for heaps so small that the garbage collector would run hundreds of times a second. The memory limit bounds
	// the garbage.
	gcPercent = 400
)

// Program is one of the two programs; see [Main].
type Program struct {
	Name     string // also the prefix of its metrics, after "cats_"
	About    string // the beginning of --help
	Settings any    // pointer to a zero settings struct, for --help
	// Run runs the program until ctx is done. It returns nil after a clean stop.
	Run func(ctx context.Context, environ []string, stderr io.Writer) error
	// Command is what the program can do instead. The zero value is no command.
	Command Command
}

// Command is a subcommand of a program.
type Command struct {
	Name string
	Help string // the output of NAME --help
	// Run runs the command and returns the exit code. ctx is done after SIGTERM and Interrupt.
	Run func(ctx context.Context, environ []string, stdout io.Writer) int
}

// Main runs p with the arguments and the environment of the process until SIGTERM or Interrupt, and returns the exit code: 0
// after a clean stop, 1 after an error, 2 for unknown arguments, or that of the command. Each validation error has a log line of
// its own. A second signal ends the process at once.
func Main(p Program) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	context.AfterFunc(ctx, stop)
	switch args, command := strings.Join(os.Args[1:], " "), p.Command; args {
	case "":
		return p.serve(ctx)
	case "--help", "-h":
		_ = config.Help(os.Stdout, p.About, p.Settings)
	case "--version":
		fmt.Println(version.Print("cats-api " + p.Name))
	case command.Name:
		return command.Run(ctx, os.Environ(), os.Stdout)
	case command.Name + " --help", command.Name + " -h":
		fmt.Println(command.Help)
	default:
		fmt.Fprintf(os.Stderr, "%s: unknown arguments %q; try --help\n", p.Name, args)
		return 2
	}
	return 0
}

// serve runs p and returns the exit code.
func (p Program) serve(ctx context.Context) int {
	log := telemetry.NewLogger(os.Stderr, slog.LevelInfo, p.Name)
	telemetry.LogVersion(log)
	limitMemory(log)
	err := p.Run(ctx, os.Environ(), os.Stderr)
	if err == nil {
		return 0
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		log.Error("stopped", "error", line)
	}
	return 1
}

// limitMemory sets the memory limit of the Go runtime from that of the container, unless GOMEMLIMIT is set.
func limitMemory(log *slog.Logger) {
	limit, err := memlimit.Set(memlimit.WithRatio(memoryRatio))
	if err != nil && !errors.Is(err, memlimit.ErrNoCgroup) && !errors.Is(err, memlimit.ErrCgroupsNotSupported) {
		log.Warn("reading the container's memory limit failed", "error", err.Error(), "fix", "set GOMEMLIMIT to 60 % of it")
	}
	if limit < math.MaxInt64 {
		log.Info("memory limit", "go_memory_limit_bytes", limit)
		if os.Getenv("GOGC") == "" {
			debug.SetGCPercent(gcPercent)
		}
	}
}
