package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"cats.example/local/stack"
	"cats.example/shared/config"
	"github.com/prometheus/common/version"
)

// run starts everything, says how to use it, and follows the logs until ctx is
// done, which ends all that it started. A process that ends before is an error.
func run(ctx context.Context, args, environ []string, out io.Writer) error {
	switch {
	case len(args) == 1 && (args[0] == "--help" || args[0] == "-h"):
		return config.Help(out, about, &settings{})
	case len(args) == 1 && args[0] == "--version":
		_, err := fmt.Fprintln(out, version.Print("cats-api local"))
		return err
	case len(args) > 0:
		return fmt.Errorf("unknown arguments %q; try --help", args)
	}
	cfg, err := parse(environ)
	if err != nil {
		return err
	}
	root, err := stack.FindRoot()
	if err != nil {
		return err
	}
	l := &local{
		cfg: cfg, environ: environ, out: out, began: time.Now(),
		root: root, bin: filepath.Join(root, "bin"), dir: filepath.Join(root, ".local"),
	}
	err = l.run(ctx)
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil // stopped while it was starting
	}
	return err
}

type local struct {
	cfg     settings
	environ []string
	root    string // of the checkout
	bin     string // for the binaries
	dir     string // of the state
	began   time.Time

	mu        sync.Mutex // of out and following
	out       io.Writer
	following bool

	stack      *stack.Stack // nil on a real account
	system     *stack.System
	prometheus *stack.Process // nil where there is none
}

func (l *local) run(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Join(l.dir, "logs"), 0o700); err != nil {
		return fmt.Errorf("making the folder of the state: %w", err)
	}
	unlock, err := stack.Lock(filepath.Join(l.dir, "lock"))
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return errors.New("it is running in this checkout already; stop that one first")
	}
	if err != nil {
		return fmt.Errorf("taking the lock: %w", err)
	}
	defer unlock()
	if err := l.cfg.checkPorts(ctx); err != nil {
		return err
	}
	if err := l.prepare(ctx); err != nil {
		return err
	}
	err = l.start(ctx)
	if err == nil {
		l.watch(ctx)
		l.ready()
		err = l.follow(ctx)
	}
	return errors.Join(err, l.stop())
}

// prepare installs and builds what is missing.
func (l *local) prepare(ctx context.Context) error {
	if l.cfg.AccountURL == "" {
		if err := stack.CheckNode(ctx); err != nil {
			return err
		}
		if !stack.Installed(l.root) {
			if err := l.step(ctx, "installing Azurite with npm ci", func() error {
				return stack.Install(ctx, l.root, filepath.Join(l.dir, "logs", "npm.log"))
			}); err != nil {
				return err
			}
		}
	}
	return l.step(ctx, "building signer, frontend and cats", func() error {
		return stack.Build(ctx, l.root, l.bin, stamp()...)
	})
}

// stamp is the flags that give a build the version that this one has, so that
// what make has built already is up to date.
func stamp() []string {
	if version.Version == "" {
		return nil
	}
	const path = "github.com/prometheus/common/version"
	return []string{"-ldflags", fmt.Sprintf("-X %s.Version=%s -X %s.Revision=%s", path, version.Version, path, version.Revision)}
}

func (l *local) start(ctx context.Context) error {
	opts := stack.SystemOptions{
		Dir:             l.dir,
		Container:       l.cfg.Container,
		Frontend:        filepath.Join(l.bin, "frontend"),
		Signer:          filepath.Join(l.bin, "signer"),
		FrontendPort:    l.cfg.FrontendPort,
		FrontendOpsPort: l.cfg.FrontendOpsPort,
		SignerPort:      l.cfg.SignerPort,
		SignerOpsPort:   l.cfg.SignerOpsPort,
		FrontendEnv:     frontendEnv(l.environ),
		SignerEnv:       l.cfg.signerEnv(l.environ),
		Follow:          l.line,
	}
	if l.cfg.AccountURL != "" {
		return l.step(ctx, "starting signer and frontend on "+l.cfg.AccountURL, func() (err error) {
			l.system, err = stack.StartReal(ctx, opts)
			return err
		})
	}
	if err := l.step(ctx, "starting Azurite", func() (err error) {
		l.stack, err = stack.New(ctx, stack.Options{Root: l.root, Dir: l.dir, FrontPort: l.cfg.StoragePort})
		return err
	}); err != nil {
		return err
	}
	return l.step(ctx, "starting signer and frontend", func() (err error) {
		l.system, err = l.stack.StartSystem(ctx, opts)
		return err
	})
}

// watch starts Prometheus, where that is possible; it is not needed for anything else.
func (l *local) watch(ctx context.Context) {
	if l.cfg.PrometheusPort == 0 {
		return
	}
	if _, err := exec.LookPath("prometheus"); err != nil {
		l.printf("no Prometheus: there is none in PATH (Debian's package of that name has it); going on without\n")
		return
	}
	if err := free(ctx, l.cfg.PrometheusPort); err != nil {
		l.printf("no Prometheus: port %d %v; going on without (PROMETHEUS_PORT is for another, 0 for none)\n", l.cfg.PrometheusPort, err)
		return
	}
	if err := l.step(ctx, "starting Prometheus", func() (err error) {
		l.prometheus, err = stack.StartPrometheus(ctx, stack.PrometheusOptions{
			Root: l.root, Dir: l.dir, Port: l.cfg.PrometheusPort, Interval: 5 * time.Second,
			Frontend: l.system.Frontend.Address("ops"), Signer: l.system.Signer.Address("ops"),
		})
		return err
	}); err != nil {
		if ctx.Err() == nil {
			l.printf("no Prometheus: %v; going on without\n", err)
		}
		return
	}
	go func() {
		<-l.prometheus.Done()
		l.line("local", "Prometheus has ended; .local/logs/prometheus.log may say why")
	}()
}

// sameEnd is within what time several signals are one: the terminal's or the
// process group's own, and the one that make passes on.
const sameEnd = time.Second

// stop ends everything, in at most 10 s a process; another signal, later than
// sameEnd, ends the waiting.
func (l *local) stop() error {
	l.mu.Lock()
	l.following = false
	l.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	again := make(chan os.Signal, 1)
	defer signal.Stop(again)
	listen := time.AfterFunc(sameEnd, func() { signal.Notify(again, stopSignals...) })
	defer listen.Stop()
	go func() {
		select {
		case <-again:
			cancel()
		case <-ctx.Done():
		}
	}()
	return l.step(ctx, "stopping", func() error {
		var errs []error
		if l.prometheus != nil {
			errs = append(errs, l.prometheus.Stop(ctx))
		}
		if l.system != nil {
			errs = append(errs, l.system.Close(ctx))
		}
		if l.stack != nil {
			errs = append(errs, l.stack.Close(ctx))
		}
		return errors.Join(errs...)
	})
}

// step says what is being done, while it is and how long it took.
func (l *local) step(ctx context.Context, what string, do func() error) error {
	began := time.Now()
	l.printf("%s …", what)
	done := make(chan struct{})
	var waiting sync.WaitGroup
	waiting.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(5 * time.Second):
				l.printf(" %d s …", int(time.Since(began).Seconds()))
			}
		}
	})
	err := do()
	close(done)
	waiting.Wait()
	switch {
	case err != nil && ctx.Err() != nil:
		l.printf(" interrupted\n")
		return err
	case err != nil:
		l.printf(" failed\n")
		return err
	}
	l.printf(" %.1f s\n", time.Since(began).Seconds())
	return nil
}

// follow shows the logs until ctx is done, or a process ends.
func (l *local) follow(ctx context.Context) error {
	var azurite <-chan struct{}
	if l.stack != nil {
		azurite = l.stack.Storage.Process.Done()
	}
	var ended *stack.Process
	select {
	case <-ctx.Done():
		l.printf("\n")
		return nil
	case <-l.system.Frontend.Done():
		ended = l.system.Frontend
	case <-l.system.Signer.Done():
		ended = l.system.Signer
	case <-azurite:
		ended = l.stack.Storage.Process
	}
	return ended.Ended()
}

// line shows a line of a log, once everything runs.
func (l *local) line(name, line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.following {
		_, _ = fmt.Fprintf(l.out, "%-8s | %s\n", name, line) // whoever read it may have gone
	}
}

func (l *local) printf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = fmt.Fprintf(l.out, format, args...) // whoever read it may have gone
}

// ready says what runs where and what to try, and has the logs shown from here on.
func (l *local) ready() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.following = true
	public := fmt.Sprintf("localhost:%d", l.cfg.FrontendPort)
	fmt.Fprintf(l.out, "\nready, after %.1f s\n\n", time.Since(l.began).Seconds())
	fmt.Fprintf(l.out, "  page             http://%s/\n", public)
	fmt.Fprintf(l.out, "  public API       http://%s, described at http://%[1]s/docs\n", public)
	fmt.Fprintf(l.out, "  metrics, health  http://localhost:%d (frontend), http://localhost:%d (signer): /metrics /livez /readyz\n", l.cfg.FrontendOpsPort, l.cfg.SignerOpsPort)
	fmt.Fprintf(l.out, "  signer           %s, for the frontend alone\n", l.system.SignerAPI)
	if l.stack != nil {
		fmt.Fprintf(l.out, "  storage          %s for signed URLs, or %s with a token and --cacert .local/ca.pem; in memory, gone at the end\n", l.stack.FrontURL, l.stack.Storage.URL)
	} else {
		fmt.Fprintf(l.out, "  storage          %s\n", l.cfg.AccountURL)
	}
	if l.prometheus != nil {
		base := "http://" + l.prometheus.Address("web")
		fmt.Fprintf(l.out, "  Prometheus       %s (targets: /targets, alerts: /alerts), such as\n", base)
		for _, query := range []string{
			"sum by (route, method, code) (rate(cats_frontend_http_requests_total[1m]))",
			"histogram_quantile(0.99, sum by (le, op) (rate(cats_signer_storage_request_duration_seconds_bucket[1m])))",
		} {
			fmt.Fprintf(l.out, "                   %s/graph?g0.tab=0&g0.range_input=15m&g0.expr=%s\n", base, url.QueryEscape(query))
		}
		fmt.Fprintf(l.out, "  Grafana          Dashboards, New, Import: k8s/components/monitoring/dashboard.json, with %s as its data source\n", base)
	}
	fmt.Fprintf(l.out, "  logs             .local/logs\n\nTry, in another shell:\n\n")
	for _, try := range []struct{ command, comment string }{
		{"curl -s -F 'file=@e2e/testdata/cat.png' " + public + "/cat/Davyd", "store a picture"},
		{"curl -s " + public + "/cat/Davyd", "get a signed link to it"},
		{"curl -s -L " + public + "/cat/Davyd/picture -o copy.png", "fetch it by such a link; browsers can too"},
		{"curl -s -X DELETE " + public + "/cat/Davyd", "delete it"},
		{"CATS_SERVER=http://" + public + " bin/cats put Davyd e2e/testdata/cat.png", "the command for all this"},
		{fmt.Sprintf("curl -s localhost:%d/readyz localhost:%d/readyz", l.cfg.FrontendOpsPort, l.cfg.SignerOpsPort), "is it ready"},
		{fmt.Sprintf("curl -s localhost:%d/metrics | grep ^cats_", l.cfg.SignerOpsPort), "what it counted"},
	} {
		fmt.Fprintf(l.out, "  %-68s # %s\n", try.command, try.comment)
	}
	fmt.Fprintf(l.out, "\nThe logs follow; Ctrl-C stops everything.\n\n")
}
