package main

import (
	"context"
	"errors"
	"fmt"
	"io"
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

// run starts everything, prints how to use it and shows the logs until ctx is done. Then it stops everything. It returns an error if a
// process ends earlier.
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
		return nil // stopped during the start
	}
	return err
}

type local struct {
	cfg     settings
	environ []string
	root    string // root of the checkout
	bin     string // folder of the programs
	dir     string // folder of logs and state
	began   time.Time

	mu        sync.Mutex // protects out and following
	out       io.Writer
	following bool

	stack      *stack.Stack // nil with a real account
	system     *stack.System
	prometheus *stack.Process // nil if it is not started
}

func (l *local) run(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Join(l.dir, "logs"), 0o700); err != nil {
		return fmt.Errorf("creating the folder of the logs: %w", err)
	}
	unlock, err := stack.Lock(filepath.Join(l.dir, "lock"))
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return errors.New("already running in this checkout: stop it first (Ctrl-C in its terminal)")
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
		l.startPrometheus(ctx)
		l.ready()
		err = l.wait(ctx)
	}
	return errors.Join(err, l.stop())
}

// prepare installs Azurite and builds the programs.
func (l *local) prepare(ctx context.Context) error {
	if l.cfg.AccountURL == "" {
		if err := stack.CheckNode(ctx); err != nil {
			return err
		}
		if !stack.Installed(l.root) {
			if err := l.step(ctx, "installing Azurite (npm ci; a minute or two, once)", func() error {
				return stack.Install(ctx, l.root, filepath.Join(l.dir, "logs", "npm.log"))
			}); err != nil {
				return err
			}
		}
	}
	what := "building signer, frontend and cats"
	if _, err := os.Stat(filepath.Join(l.bin, "signer")); err != nil {
		what += " (a minute or two, once)"
	}
	return l.step(ctx, what, func() error {
		return stack.Build(ctx, l.root, l.bin, versionFlags()...)
	})
}

// versionFlags returns the build flags that set the version of this program, so that programs that make has built are up to date.
func versionFlags() []string {
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
		Follow:          l.line,
	}
	frontendSettings, err := settingsOf(ctx, opts.Frontend)
	if err != nil {
		return err
	}
	signerSettings, err := settingsOf(ctx, opts.Signer)
	if err != nil {
		return err
	}
	opts.FrontendEnv = frontendEnv(l.environ, frontendSettings)
	opts.SignerEnv = l.cfg.signerEnv(l.environ, signerSettings)
	if l.cfg.AccountURL != "" {
		return l.step(ctx, "starting signer and frontend with "+l.cfg.AccountURL, func() (err error) {
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

// startPrometheus starts Prometheus if it is installed. The stack works without it.
func (l *local) startPrometheus(ctx context.Context) {
	if l.cfg.PrometheusPort == 0 {
		return
	}
	if _, err := exec.LookPath("prometheus"); err != nil {
		l.printf("Prometheus is not in PATH (Debian: apt-get install prometheus); continuing without it\n")
		return
	}
	if err := free(ctx, l.cfg.PrometheusPort); err != nil {
		l.printf("Prometheus cannot start: port %d %v; continuing without it (set PROMETHEUS_PORT to another port, or 0 for none)\n", l.cfg.PrometheusPort, err)
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
			l.printf("Prometheus cannot start: %v; continuing without it\n", err)
		}
		return
	}
	go func() {
		<-l.prometheus.Done()
		l.line("local", "Prometheus has ended; see .local/logs/prometheus.log")
	}()
}

// wait shows the logs until ctx is done or a process ends, which is an error.
func (l *local) wait(ctx context.Context) error {
	processes := []*stack.Process{l.system.Frontend, l.system.Signer}
	if l.stack != nil {
		processes = append(processes, l.stack.Storage.Process)
	}
	ended := make(chan *stack.Process, len(processes))
	for _, p := range processes {
		go func() {
			<-p.Done()
			ended <- p
		}()
	}
	select {
	case <-ctx.Done():
		l.printf("\n")
		return nil
	case p := <-ended:
		return p.Ended()
	}
}

// secondSignal is the time within which several signals count as one. make passes on a signal that the process group also gets.
const secondSignal = time.Second

// stop stops everything, within 10 s for each process. A second signal kills the processes that still run.
func (l *local) stop() error {
	l.mu.Lock()
	l.following = false
	l.mu.Unlock()
	ctx, kill := context.WithCancel(context.Background())
	defer kill()
	again := make(chan os.Signal, 1)
	time.AfterFunc(secondSignal, func() { signal.Notify(again, stopSignals...) })
	go func() {
		<-again
		kill()
	}()
	return l.step(ctx, "stopping (Ctrl-C again kills)", func() error {
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
