package stack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"
)

// stopTimeout limits [Process.Stop] if its context has no deadline.
const stopTimeout = 10 * time.Second

// Process is a program that the stack runs. It has its own process group, inherits no environment variables and writes its output to
// Log. It can be stopped or killed and started again, and then listens on the same addresses. Its methods are safe for concurrent use.
type Process struct {
	Log *Log

	name string
	path string
	args []string
	dir  string

	// listeners are the names of the listeners that Start waits for. The value is the variable that sets the listener's address, or "".
	listeners map[string]string
	// listening parses the line of output that announces a listener.
	listening func(line string) (listener, address string, ok bool)

	mu        sync.Mutex
	env       map[string]string
	addresses map[string]string // HOST:PORT by listener
	run       *processRun       // nil before the first start
}

// processRun is one start of a process.
type processRun struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	err  error         // of cmd.Wait; read it after done
}

// Start starts the process and returns when all its listeners are open. ctx limits the start only. If the process ends or ctx is done
// first, Start kills it and returns an error with the last lines of its log.
func (p *Process) Start(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.run != nil && !p.run.gone() {
		return fmt.Errorf("starting %s: it runs already", p.name)
	}
	mark := p.Log.Mark()
	//lint:ignore noctx the process outlives ctx
	cmd := exec.Command(p.path, p.args...)
	cmd.Dir = p.dir
	cmd.Env = p.environ()
	cmd.Stdout, cmd.Stderr = p.Log, p.Log
	cmd.SysProcAttr = group()
	cmd.WaitDelay = 5 * time.Second // if a grandchild holds the output open
	run := &processRun{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel sends Pdeathsig when the thread that started the child ends (golang/go issue 27505).
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			run.err = cmd.Wait()
			close(run.done)
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("starting %s: %w", p.name, err)
	}
	p.run = run
	if err := p.awaitListeners(ctx, run, mark); err != nil {
		run.signal(syscall.SIGKILL)
		<-run.done
		return fmt.Errorf("starting %s: %w", p.name, err)
	}
	return nil
}

// awaitListeners waits until run has announced all listeners. It stores their addresses and sets them for the next start.
func (p *Process) awaitListeners(ctx context.Context, run *processRun, mark int64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-run.done:
			cancel(fmt.Errorf("it ended: %w", run.end()))
		case <-ctx.Done():
		}
	}()
	missing := maps.Clone(p.listeners)
	for len(missing) > 0 {
		_, err := p.Log.Wait(ctx, mark, func(line string) bool {
			listener, address, ok := p.listening(line)
			if !ok {
				return false
			}
			p.addresses[listener] = address
			if variable := p.listeners[listener]; variable != "" {
				p.env[variable] = address
			}
			delete(missing, listener)
			return len(missing) == 0
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Address returns the current or last address of a listener as HOST:PORT. The frontend has the listeners "public" and "ops", the signer
// "api" and "ops".
func (p *Process) Address(listener string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.addresses[listener]
}

// SetEnv sets an environment variable for the next start; an empty value removes it.
func (p *Process) SetEnv(name, value string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if value == "" {
		delete(p.env, name)
		return
	}
	p.env[name] = value
}

// Environ returns the environment of the next start in the form NAME=value.
func (p *Process) Environ() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.environ()
}

func (p *Process) environ() []string {
	environ := make([]string, 0, len(p.env))
	for _, name := range slices.Sorted(maps.Keys(p.env)) {
		environ = append(environ, name+"="+p.env[name])
	}
	return environ
}

// Pid returns the process ID of the last start, 0 before the first.
func (p *Process) Pid() int {
	if run := p.current(); run != nil {
		return run.cmd.Process.Pid
	}
	return 0
}

// Done returns a channel that is closed when the process has ended or was never started.
func (p *Process) Done() <-chan struct{} {
	if run := p.current(); run != nil {
		return run.done
	}
	gone := make(chan struct{})
	close(gone)
	return gone
}

// Wait waits until the process has ended or ctx is done. It returns nil for exit code 0, otherwise an [*exec.ExitError].
func (p *Process) Wait(ctx context.Context) error {
	run := p.current()
	if run == nil {
		return nil
	}
	select {
	case <-run.done:
		return p.named(run.err)
	case <-ctx.Done():
		return fmt.Errorf("waiting for the end of %s: %w", p.name, context.Cause(ctx))
	}
}

// Ended returns an error with the exit status and the last lines of the log, or nil while the process runs.
func (p *Process) Ended() error {
	run := p.current()
	if run == nil || !run.gone() {
		return nil
	}
	return fmt.Errorf("%s ended: %w%s", p.name, run.end(), p.Log.tail(10))
}

// Signal sends a signal to the process group, unless the process has ended.
func (p *Process) Signal(s syscall.Signal) {
	if run := p.current(); run != nil {
		run.signal(s)
	}
}

// Stop sends SIGTERM and waits as [Process.Wait] does. If the process still runs when ctx is done, Stop kills it and returns an error.
// If ctx has no deadline, Stop waits for at most 10 s. Stop returns nil if the process does not run.
func (p *Process) Stop(ctx context.Context) error {
	run := p.current()
	if run == nil || run.gone() {
		return nil
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, stopTimeout)
		defer cancel()
	}
	run.signal(syscall.SIGTERM)
	select {
	case <-run.done:
		return p.named(run.err)
	case <-ctx.Done():
		run.signal(syscall.SIGKILL)
		<-run.done
		return fmt.Errorf("%s did not stop in time and was killed", p.name)
	}
}

// Kill sends SIGKILL and waits until the process has ended.
func (p *Process) Kill() {
	if run := p.current(); run != nil {
		run.signal(syscall.SIGKILL)
		<-run.done
	}
}

func (p *Process) current() *processRun {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.run
}

func (p *Process) named(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", p.name, err)
}

func (r *processRun) gone() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// end returns the exit status as an error, also for exit code 0.
func (r *processRun) end() error {
	if r.err != nil {
		return r.err
	}
	return errors.New("exit status 0")
}

func (r *processRun) signal(s syscall.Signal) {
	if !r.gone() {
		_ = syscall.Kill(-r.cmd.Process.Pid, s) // fails if the process has just ended
	}
}

// listeningJSON parses the log line of frontend and signer that announces a listener.
func listeningJSON(line string) (listener, address string, ok bool) {
	var event struct{ Msg, Listener, Address string }
	if json.Unmarshal([]byte(line), &event) != nil || event.Msg != "listening" {
		return "", "", false
	}
	return event.Listener, event.Address, true
}

// listeningMatch returns a function that reads the address of listener from the first group of announcement.
func listeningMatch(listener string, announcement *regexp.Regexp) func(line string) (string, string, bool) {
	return func(line string) (string, string, bool) {
		m := announcement.FindStringSubmatch(line)
		if m == nil {
			return "", "", false
		}
		return listener, m[1], true
	}
}
