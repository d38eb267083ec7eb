package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"cats.example/local/stack"
)

// The memory limits of the containers in k8s/base, and the share of them that the
// containers set as GOMEMLIMIT. The processes here have no such limit.
const (
	frontendLimit = 60 * mib
	signerLimit   = 60 * mib
	memoryRatio   = 0.6
)

// on is the kind of storage of a system.
type on bool

const (
	onSink    on = true
	onAzurite on = false
)

// start starts a system in st, with env besides its defaults in both processes.
func (b *bench) start(ctx context.Context, st *stack.Stack, storage on, env map[string]string) (*stack.System, error) {
	b.systems++
	both := func(limit float64) map[string]string {
		all := map[string]string{
			"GOMEMLIMIT": fmt.Sprint(int(memoryRatio * limit)), "PPROF_ENABLED": "true",
			"RATE_LIMIT": "0", // a few addresses send all requests
		}
		maps.Copy(all, env)
		return all
	}
	opts := stack.SystemOptions{
		Container: fmt.Sprintf("bench-%d", b.systems),
		Frontend:  filepath.Join(b.dir, "bin", "frontend"), Signer: filepath.Join(b.dir, "bin", "signer"),
		FrontendEnv: both(frontendLimit), SignerEnv: both(signerLimit),
	}
	if storage == onSink {
		u, err := url.Parse(st.Storage.URL)
		if err != nil {
			return nil, err
		}
		_, port, _ := net.SplitHostPort(b.sink.address)
		u.Host = u.Hostname() + ":" + port
		opts.StorageURL = u.String()
	}
	return st.StartSystem(ctx, opts)
}

// startOnAzurite starts a system on an Azurite of its own that has a core of its
// own; see apart.
func (b *bench) startOnAzurite(ctx context.Context, env map[string]string) (sys *stack.System, stop func(), err error) {
	st, err := stack.New(ctx, stack.Options{Root: b.root, Dir: filepath.Join(b.dir, fmt.Sprint("azurite-", b.systems))})
	if err != nil {
		return nil, nil, err
	}
	back := func() {}
	stop = func() {
		back()
		if err := st.Close(context.WithoutCancel(ctx)); err != nil {
			progress("stopping: %v", err)
		}
	}
	if back, err = apart(st.Storage.Process.Pid()); err == nil {
		sys, err = b.start(ctx, st, onAzurite, env)
	}
	if err != nil {
		stop()
		return nil, nil, err
	}
	return sys, stop, nil
}

// end stops a system. An error does not change the results.
func end(ctx context.Context, sys *stack.System) {
	if err := sys.Close(context.WithoutCancel(ctx)); err != nil {
		progress("stopping: %v", err)
	}
}

func pids(sys *stack.System) []int { return []int{sys.Frontend.Pid(), sys.Signer.Pid()} }

// build builds one program of the checkout into the bench's folder.
func (b *bench) build(ctx context.Context, pkg string) (string, error) {
	out := filepath.Join(b.dir, filepath.Base(pkg))
	cmd := exec.CommandContext(ctx, "go", "build", "-o", out, pkg) //nolint:gosec // our own packages
	cmd.Dir = b.root
	if said, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", pkg, err, said)
	}
	return out, nil
}

// straightly returns a side's run that loads the storage of sys with azblob alone.
func (b *bench) straightly(sys *stack.System, args ...string) func(context.Context, time.Duration) (load, error) {
	return func(ctx context.Context, turn time.Duration) (load, error) {
		cmd := exec.CommandContext(ctx, b.straight, append(args, "-duration", turn.String())...) //nolint:gosec // a program that was built here
		cmd.Env = sys.Signer.Environ()
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return load{}, fmt.Errorf("azblob alone: %w", err)
		}
		var said struct{ N, Seconds float64 }
		if err := json.Unmarshal(out, &said); err != nil {
			return load{}, err
		}
		return load{n: int(said.N), seconds: said.Seconds}, nil
	}
}

// calls returns the number of requests to the sink, by kind.
func (b *bench) calls(ctx context.Context) (calls map[string]int64, err error) {
	err = b.fetch(ctx, "https://"+b.sink.address+"/calls", func(body io.Reader) error { return json.NewDecoder(body).Decode(&calls) })
	return calls, err
}

// callsDuring returns the number of requests to the sink while f ran, by kind.
func (b *bench) callsDuring(ctx context.Context, f func() error) (map[string]int64, error) {
	before, err := b.calls(ctx)
	if err != nil {
		return nil, err
	}
	if err := f(); err != nil {
		return nil, err
	}
	after, err := b.calls(ctx)
	for kind, n := range before {
		after[kind] -= n
	}
	return after, err
}

// unlimited returns an error unless neither process of sys has a memory limit.
func (b *bench) unlimited(ctx context.Context, sys *stack.System) error {
	for _, ops := range []string{sys.FrontendOps, sys.SignerOps} {
		if err := b.fetch(ctx, ops+"/metrics", func(body io.Reader) error {
			metrics, err := io.ReadAll(body)
			if err == nil && !bytes.Contains(metrics, []byte("\ngo_gc_gomemlimit_bytes 9.223372036854776e+18\n")) {
				err = errors.New("a process has a memory limit")
			}
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// fetch passes the body of the response at url to read.
func (b *bench) fetch(ctx context.Context, url string, read func(io.Reader) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := b.stack.Client().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return read(resp.Body)
}

// profile keeps CPU profiles of both processes over the given time, and heap
// profiles after it, if -profiles is set. wait returns when they are there.
func (b *bench) profile(ctx context.Context, sys *stack.System, name string, during time.Duration) (wait func() error) {
	if b.profiles == "" {
		return func() error { return nil }
	}
	var fetching sync.WaitGroup
	var errs [2]error
	for i, ops := range []string{sys.FrontendOps, sys.SignerOps} {
		file := filepath.Join(b.profiles, name+[]string{"-frontend", "-signer"}[i])
		fetching.Go(func() {
			for _, p := range []struct{ path, ending string }{{fmt.Sprintf("profile?seconds=%.0f", during.Seconds()), ".cpu"}, {"heap", ".heap"}} {
				errs[i] = errors.Join(errs[i], b.fetch(ctx, ops+"/debug/pprof/"+p.path, func(body io.Reader) error {
					kept, err := io.ReadAll(body)
					return errors.Join(err, os.MkdirAll(b.profiles, 0o750), os.WriteFile(file+p.ending, kept, 0o600))
				}))
			}
		})
	}
	return func() error {
		fetching.Wait()
		return errors.Join(errs[:]...)
	}
}
