package stack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"
)

// stopTimeout is how long a process may take over SIGTERM when nobody says.
const stopTimeout = 10 * time.Second

// Process is a program that the stack runs: in a process group of its own, with
// an environment made from nothing, its output in [Process.Log]. It can be
// stopped or killed and started again, and then listens where it did before.
type Process struct {
	Log *Log

	name string
	path string
	args []string
	dir  string

	// listeners maps the listeners to wait for on start to the variable that fixes
	// the address of each, "" for none.
	listeners map[string]string
	// listening reads a line of output that announces a listener.
	listening func(line string) (listener, address string, ok bool)

	mu        sync.Mutex
	env       map[string]string
	addresses map[string]string
	run       *processRun // nil before the first start
}

// processRun is one life of a process.
type processRun struct {
	cmd  *exec.Cmd
	done chan struct{} // closed once it is gone
	err  error         // of Wait; read after done
}

// Start starts the process and returns once it listens. It must not be running.
func (p *Process) Start(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.run != nil && !p.run.gone() {
		return fmt.Errorf("starting %s: it is running", p.name)
	}
	mark := p.Log.Mark()
	cmd := exec.Command(p.path, p.args...) //nolint:noctx,gosec // it outlives ctx, which bounds its start; running programs is what this is for
	cmd.Dir = p.dir
	cmd.Env = p.environ()
	cmd.Stdout, cmd.Stderr = p.Log, p.Log
	cmd.SysProcAttr = group()
	cmd.WaitDelay = 5 * time.Second // for output that a grandchild holds open
	run := &processRun{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel's parent of a child is the thread, which must live as long
		// (golang/go issue 27505).
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

// awaitListeners keeps the addresses that run announces, and fixes them for the next.
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

// Address is where the process listens, or listened last, as HOST:PORT:
// "public" and "ops" of the frontend, "api" and "ops" of the signer.
func (p *Process) Address(listener string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.addresses[listener]
}

// SetEnv sets a variable for the next start; "" takes it away.
func (p *Process) SetEnv(name, value string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if value == "" {
		delete(p.env, name)
		return
	}
	p.env[name] = value
}

// Environ returns the environment that it is started with, as "NAME=value" each.
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

// Pid is the process's id, 0 before the first start.
func (p *Process) Pid() int {
	if run := p.current(); run != nil {
		return run.cmd.Process.Pid
	}
	return 0
}

// Done is closed when the process is gone. A process never started is gone.
func (p *Process) Done() <-chan struct{} {
	if run := p.current(); run != nil {
		return run.done
	}
	gone := make(chan struct{})
	close(gone)
	return gone
}

// Wait returns when the process is gone: nil when it ended with code 0, an
// [*exec.ExitError] otherwise. It returns early when ctx is done.
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

// Ended returns how a process that is gone ended, with the last lines of its log.
func (p *Process) Ended() error {
	run := p.current()
	if run == nil || !run.gone() {
		return nil
	}
	return fmt.Errorf("%s ended: %w%s", p.name, run.end(), p.Log.tail(10))
}

// Signal sends a signal to the process and its children. A process that is gone
// gets none.
func (p *Process) Signal(s syscall.Signal) {
	if run := p.current(); run != nil {
		run.signal(s)
	}
}

// Stop sends SIGTERM and returns when the process is gone, as [Process.Wait]
// does. When ctx is done first, or 10 s have passed where ctx has no deadline, it
// is killed, which is an error. Stopping a process that is gone is none.
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

// Kill sends SIGKILL and returns when the process is gone.
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

// end is how it ended, for an error.
func (r *processRun) end() error {
	if r.err != nil {
		return r.err
	}
	return errors.New("exit status 0")
}

func (r *processRun) signal(s syscall.Signal) {
	if !r.gone() {
		_ = syscall.Kill(-r.cmd.Process.Pid, s) // gone in the meantime
	}
}

// listeningJSON reads the line that frontend and signer log for each listener.
func listeningJSON(line string) (listener, address string, ok bool) {
	var event struct{ Msg, Listener, Address string }
	if json.Unmarshal([]byte(line), &event) != nil || event.Msg != "listening" {
		return "", "", false
	}
	return event.Listener, event.Address, true
}
