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

// The memory limits of the containers in k8s/base, and the share of them that the containers set as GOMEMLIMIT. The
// benchmark sets GOMEMLIMIT too, but does not enforce the limits.
const (
	frontendLimit = 60 * mib
	signerLimit   = 60 * mib
	memoryRatio   = 0.6
)

// backend is the storage of a system.
type backend bool

const (
	onSink    backend = true
	onAzurite backend = false
)

// start starts a system in st. Both processes get env in addition to their defaults.
func (b *bench) start(ctx context.Context, st *stack.Stack, storage backend, env map[string]string) (*stack.System, error) {
	b.systems++
	both := func(limit float64) map[string]string {
		all := map[string]string{
			"GOMEMLIMIT": fmt.Sprint(int(memoryRatio * limit)), "PPROF_ENABLED": "true",
			"RATE_LIMIT": "0", // all requests come from a few addresses
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

// startOnAzurite starts a system and its own Azurite, which it pins to its own core; see isolate. stop stops Azurite.
func (b *bench) startOnAzurite(ctx context.Context, env map[string]string) (sys *stack.System, stop func(), err error) {
	st, err := stack.New(ctx, stack.Options{Root: b.root, Dir: filepath.Join(b.dir, fmt.Sprint("azurite-", b.systems))})
	if err != nil {
		return nil, nil, err
	}
	unpin := func() {}
	stop = func() {
		unpin()
		if err := st.Close(context.WithoutCancel(ctx)); err != nil {
			progress("stopping: %v", err)
		}
	}
	if unpin, err = isolate(st.Storage.Process.Pid()); err == nil {
		sys, err = b.start(ctx, st, onAzurite, env)
	}
	if err != nil {
		stop()
		return nil, nil, err
	}
	return sys, stop, nil
}

// end stops a system. It only reports an error, because the results are complete.
func end(ctx context.Context, sys *stack.System) {
	if err := sys.Close(context.WithoutCancel(ctx)); err != nil {
		progress("stopping: %v", err)
	}
}

func pids(sys *stack.System) []int { return []int{sys.Frontend.Pid(), sys.Signer.Pid()} }

// build builds one program of the checkout and returns the path of its binary.
func (b *bench) build(ctx context.Context, pkg string) (string, error) {
	out := filepath.Join(b.dir, filepath.Base(pkg))
	cmd := exec.CommandContext(ctx, "go", "build", "-o", out, pkg)
	cmd.Dir = b.root
	if output, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", pkg, err, output)
	}
	return out, nil
}

// azblobLoad returns a side's run that loads the storage of sys with azblob alone.
func (b *bench) azblobLoad(sys *stack.System, args ...string) func(context.Context, time.Duration) (load, error) {
	return func(ctx context.Context, turn time.Duration) (load, error) {
		cmd := exec.CommandContext(ctx, b.azblob, append(args, "-duration", turn.String())...)
		cmd.Env = sys.Signer.Environ()
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return load{}, fmt.Errorf("azblob yardstick: %w", err)
		}
		var result struct{ N, Seconds float64 }
		err = json.Unmarshal(out, &result)
		return load{n: int(result.N), seconds: result.Seconds}, err
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

// checkUnlimited returns an error if a process of sys has a Go memory limit.
func (b *bench) checkUnlimited(ctx context.Context, sys *stack.System) error {
	for _, ops := range []string{sys.FrontendOps, sys.SignerOps} {
		if err := b.fetch(ctx, ops+"/metrics", func(body io.Reader) error {
			metrics, err := io.ReadAll(body)
			if err == nil && !bytes.Contains(metrics, []byte("\ngo_gc_gomemlimit_bytes 9.223372036854776e+18\n")) {
				err = errors.New("a process has a Go memory limit")
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

// profile saves a CPU profile of each process over duration and then a heap profile, if -profiles is set. wait waits for them.
func (b *bench) profile(ctx context.Context, sys *stack.System, name string, duration time.Duration) (wait func() error) {
	if b.profiles == "" {
		return func() error { return nil }
	}
	var fetching sync.WaitGroup
	var errs [2]error
	for i, ops := range []string{sys.FrontendOps, sys.SignerOps} {
		file := filepath.Join(b.profiles, name+[]string{"-frontend", "-signer"}[i])
		fetching.Go(func() {
			for _, p := range []struct{ path, ending string }{{fmt.Sprintf("profile?seconds=%.0f", duration.Seconds()), ".cpu"}, {"heap", ".heap"}} {
				errs[i] = errors.Join(errs[i], b.fetch(ctx, ops+"/debug/pprof/"+p.path, func(body io.Reader) error {
					data, err := io.ReadAll(body)
					return errors.Join(err, os.MkdirAll(b.profiles, 0o750), os.WriteFile(file+p.ending, data, 0o600))
				}))
			}
		})
	}
	return func() error {
		fetching.Wait()
		return errors.Join(errs[:]...)
	}
}
