package service

import (
	"cmp"
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
	"github.com/prometheus/client_golang/prometheus/collectors"
	versioncollector "github.com/prometheus/client_golang/prometheus/collectors/version"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/version"
	"golang.org/x/sync/errgroup"

	"cats.example/shared/pool"
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

	memoryRatio = 0.6 // of the container's memory limit, for the Go runtime

	// The heaps are so small that the garbage collector would run hundreds of times
	// a second. The memory limit bounds what it may leave.
	gcPercent = 400
)

// Program is one of the two processes, as [Main] runs it.
type Program struct {
	Name     string // also the prefix of its metrics, after "cats_"
	About    string // what --help says first
	Settings any    // pointer to a zero settings struct, for --help
	// Run runs it until ctx is done and returns nil after a clean stop.
	Run func(ctx context.Context, environ []string, stderr io.Writer) error
	// Command is what it can do instead, when the first argument names it.
	Command Command
}

// Command is something else that a program's binary does, and then ends.
type Command struct {
	Name string
	Help string // what the command's own --help says
	// Run does it and returns the exit code. ctx is done on SIGTERM and Interrupt.
	Run func(ctx context.Context, environ []string, stdout io.Writer) int
}

// Main runs p with the process's own arguments and environment until SIGTERM or
// Interrupt, and returns the exit code: 0 after a clean stop, 1 after an error,
// each logged on a line of its own after the line of [LogVersion], 2 on arguments it does not know, and what a
// command returns. A second signal ends the process at once.
func Main(p Program) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	context.AfterFunc(ctx, stop)
	if args := strings.Join(os.Args[1:], " "); args != "" {
		return p.arguments(ctx, args, os.Environ(), os.Stdout, os.Stderr)
	}
	log := NewLogger(os.Stderr, slog.LevelInfo, p.Name)
	LogVersion(log)
	limitMemory(log)
	err := p.Run(ctx, os.Environ(), os.Stderr)
	if err == nil {
		return 0
	}
	for fault := range strings.SplitSeq(err.Error(), "\n") {
		log.Error("stopped", "error", fault)
	}
	return 1
}

// NewLogger returns the logger of a process, which writes each line to w at once, as JSON.
func NewLogger(w io.Writer, level slog.Level, name string) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level})).With("service", name)
}

// LogVersion writes the first line of a process's log: its version and the revision of its source.
func LogVersion(log *slog.Logger) {
	log.Info("starting", "version", cmp.Or(version.Version, "dev"), "revision", version.GetRevision())
}

// limitMemory has the Go runtime keep within the container's limit, whose other
// part is for what the runtime does not count: the binary's pages, and what the
// kernel holds for connections. GOMEMLIMIT goes before it.
func limitMemory(log *slog.Logger) {
	limit, err := memlimit.Set(memlimit.WithRatio(memoryRatio))
	if err != nil && !errors.Is(err, memlimit.ErrNoCgroup) && !errors.Is(err, memlimit.ErrCgroupsNotSupported) {
		log.Warn("the container's memory limit cannot be read; set GOMEMLIMIT to 60 % of it", "error", err.Error())
	}
	if limit < math.MaxInt64 {
		log.Info("memory limit", "go_memory_limit_bytes", limit)
		if os.Getenv("GOGC") == "" {
			debug.SetGCPercent(gcPercent)
		}
	}
}

// arguments does what args say, which are not empty, and returns the exit code.
func (p Program) arguments(ctx context.Context, args string, environ []string, stdout, stderr io.Writer) int {
	switch command := p.Command; args {
	case "--help", "-h":
		_ = Help(stdout, p.About, p.Settings)
	case "--version":
		fmt.Fprintln(stdout, version.Print("cats-api "+p.Name))
	case command.Name:
		return command.Run(ctx, environ, stdout)
	case command.Name + " --help", command.Name + " -h":
		fmt.Fprintln(stdout, command.Help)
	default:
		fmt.Fprintf(stderr, "%s: unknown arguments %q; try --help\n", p.Name, args)
		return 2
	}
	return 0
}

// NewRegistry returns a registry of its own that holds the Go runtime's, the
// process's and the build's metrics.
func NewRegistry(name string) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		versioncollector.NewCollector("cats_"+name),
	)
	return reg
}

// Service is what a process serves.
type Service struct {
	Settings Settings
	Log      *slog.Logger
	Registry *prometheus.Registry
	Traces   *Traces // nil for none

	Name       string // the work listener's name in the log
	Address    string // of the work listener
	Handler    http.Handler
	OpsAddress string // of /metrics, /livez and /readyz
	// Connections are the slots for connections to the work listener, and Proxies the addresses whose connections serve many
	// clients: they have no share.
	Connections *pool.Pool
	Proxies     []netip.Prefix

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
func (s Service) Run(ctx context.Context) error {
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
	if len(s.Proxies) > 0 {
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
	end := time.Now().Add(flushTimeout)
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
	s.Traces.close(min(max(time.Until(end), time.Second), flushTimeout))
	if err == nil {
		s.Log.Info("stopped")
	}
	return err
}

func (s Service) listen(ctx context.Context, name, address string) (net.Listener, error) {
	l, err := (&net.ListenConfig{Control: socketOptions}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("opening the %s listener: %w", name, err)
	}
	s.Log.Info("listening", "listener", name, "address", l.Addr().String())
	return l, nil
}

func (s Service) server(h http.Handler) *http.Server {
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

func (s Service) opsHandler(draining *atomic.Bool) http.Handler {
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
	if s.Settings.Profile {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	}
	return mux
}
