package main

import (
	"context"
	"encoding/json"
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

	vegeta "github.com/tsenart/vegeta/v12/lib"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"cats.example/local/stand"
)

// The memory that each container may have in k8s/base, and how much of it the Go
// runtime is told to keep to, as the containers do themselves by their cgroup's
// limit, which these processes have not.
const (
	frontendLimit = 40 << 20
	signerLimit   = 60 << 20
	memoryRatio   = 0.7
)

// on says what stands for storage.
type on bool

const (
	onSink    on = true
	onAzurite on = false
)

// start starts a system, with env besides its defaults in both.
func (b *bench) start(ctx context.Context, storage on, env map[string]string) (*stand.System, error) {
	b.systems++
	both := func(limit float64) map[string]string {
		all := map[string]string{
			"GOMEMLIMIT": fmt.Sprint(int(memoryRatio * limit)), "MAX_PICTURE_SIZE": "64MiB", "PROFILE": "true",
			"RATE_LIMIT": "0", "UPLOADS_PER_CLIENT": "0", // all load comes from one address
		}
		maps.Copy(all, env)
		return all
	}
	opts := stand.SystemOptions{
		Container: fmt.Sprintf("bench-%d", b.systems),
		Frontend:  filepath.Join(b.dir, "bin", "frontend"), Signer: filepath.Join(b.dir, "bin", "signer"),
		FrontendEnv: both(frontendLimit), SignerEnv: both(signerLimit),
	}
	if storage == onSink {
		u, err := url.Parse(b.stand.Storage.URL)
		if err != nil {
			return nil, err
		}
		_, port, _ := net.SplitHostPort(b.sink.address)
		u.Host = u.Hostname() + ":" + port
		opts.StorageURL = u.String()
	}
	return b.stand.StartSystem(ctx, opts)
}

// end stops a system. What goes wrong with that does not change what was measured.
func end(ctx context.Context, sys *stand.System) {
	if err := sys.Close(ctx); err != nil {
		progress("stopping: %v", err)
	}
}

func pids(sys *stand.System) []int { return []int{sys.Frontend.Pid(), sys.Signer.Pid()} }

// cpuOf returns what sys used while f ran.
func cpuOf(sys *stand.System, f func() error) (time.Duration, error) {
	before, err := usageOf(pids(sys)...)
	if err != nil {
		return 0, err
	}
	if err := f(); err != nil {
		return 0, err
	}
	after, err := usageOf(pids(sys)...)
	return after.cpu - before.cpu, err
}

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

// straightly runs azblob alone on the storage of sys.
func (b *bench) straightly(ctx context.Context, sys *stand.System, args ...string) (load, error) {
	cmd := exec.CommandContext(ctx, b.straight, append(args, "-duration", b.duration.String())...) //nolint:gosec // a program that was built here
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

// calls returns how often the sink was called, by kind.
func (b *bench) calls(ctx context.Context) (map[string]int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+b.sink.address+"/calls", nil)
	if err != nil {
		return nil, err
	}
	resp, err := b.stand.Client().Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var calls map[string]int64
	return calls, json.NewDecoder(resp.Body).Decode(&calls)
}

// callsDuring returns how often the sink was called by others while f ran, in all.
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
		if after[kind] -= n; after[kind] == 0 {
			delete(after, kind)
		}
	}
	return after, err
}

// put uploads body, by PUT or as a form, and fails on an error.
func put(ctx context.Context, base, user, contentType string, body []byte) error {
	target := upload(base, user, contentType, body)
	req, err := target.Request()
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req.WithContext(ctx))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("PUT of %s: %s %s", user, resp.Status, said)
	}
	return err
}

// upload is a target: by PUT, or by POST when contentType is a form's.
func upload(base, user, contentType string, body []byte) vegeta.Target {
	method := http.MethodPost
	if contentType == "image/png" {
		method = http.MethodPut
	}
	return vegeta.Target{Method: method, URL: base + "/cat/" + user, Body: body, Header: http.Header{"Content-Type": {contentType}}}
}

// users returns a target for each of n users, which f makes of their names.
func users(n int, f func(user string) vegeta.Target) (targets []vegeta.Target) {
	for i := range n {
		targets = append(targets, f(fmt.Sprintf("user-%d", i)))
	}
	return targets
}

// profile keeps profiles of both processes while f runs, when they are wanted.
func (b *bench) profile(ctx context.Context, sys *stand.System, name string, f func() error) error {
	if b.profiles == "" {
		return f()
	}
	if err := os.MkdirAll(b.profiles, 0o750); err != nil {
		return err
	}
	var fetching sync.WaitGroup
	errs := make([]error, 4)
	for i, ops := range []string{sys.FrontendOps, sys.SignerOps} {
		who := []string{"frontend", "signer"}[i]
		fetching.Go(func() {
			seconds := max(int(b.duration.Seconds())-1, 1)
			errs[i] = fetch(ctx, fmt.Sprintf("%s/debug/pprof/profile?seconds=%d", ops, seconds), filepath.Join(b.profiles, name+"-"+who+".cpu"))
			errs[2+i] = fetch(ctx, ops+"/debug/pprof/heap", filepath.Join(b.profiles, name+"-"+who+".heap"))
		})
	}
	err := f()
	fetching.Wait()
	for _, e := range errs {
		if err == nil {
			err = e
		}
	}
	return err
}

func fetch(ctx context.Context, from, to string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", from, resp.Status)
	}
	f, err := os.Create(to) //nolint:gosec // the person's own folder
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, resp.Body); err != nil {
		return err
	}
	return f.Close()
}

// profileOnce profiles the first of several rounds.
func (b *bench) profileOnce(ctx context.Context, round int, sys *stand.System, name string, f func() error) error {
	if round > 0 {
		return f()
	}
	return b.profile(ctx, sys, name, f)
}

// storageCalls returns how many round trips to storage the signer counts.
func storageCalls(ctx context.Context, ops string) (n float64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, ops+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return 0, err
	}
	for _, m := range families["cats_signer_storage_requests_total"].GetMetric() {
		n += m.GetCounter().GetValue()
	}
	return n, nil
}
