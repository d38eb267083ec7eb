package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cats.example/local/stack"
)

// binDir has the real signer and frontend, once a test has asked for them.
var binDir string

var builds = sync.OnceValues(func() (root string, err error) {
	if root, err = stack.FindRoot(); err != nil {
		return "", err
	}
	return root, stack.Build(context.Background(), root, binDir)
})

func TestMain(m *testing.M) {
	var err error
	if binDir, err = os.MkdirTemp("", "cats-local-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(binDir)
	os.Exit(code)
}

// build builds the real signer and frontend and returns the checkout and where they are.
func build(t *testing.T) (root, bin string) {
	t.Helper()
	root, err := builds()
	if err != nil {
		t.Fatal(err)
	}
	return root, binDir
}

func TestEverySettingOfBothIsPassedOnOrMadeHere(t *testing.T) {
	_, bin := build(t)
	made := map[string][]string{
		"frontend": {"LISTEN_ADDRESS", "OPS_ADDRESS", "SIGNER_URL"},
		"signer": {
			"LISTEN_ADDRESS", "OPS_ADDRESS", "STORAGE_CONTAINER", "LINK_BASE_URL", "CREDENTIAL", "DISABLE_INSTANCE_DISCOVERY",
			"AZURE_STORAGE_ACCOUNT_URL", "AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_AUTHORITY_HOST",
		},
	}
	setting := regexp.MustCompile(`(?m)^  ([A-Z][A-Z0-9_]+)`)
	for name, want := range map[string][]string{
		"frontend": slices.Concat(passedToBoth, passedToFrontend),
		"signer":   slices.Concat(passedToBoth, passedToSigner),
	} {
		help, err := exec.CommandContext(t.Context(), filepath.Join(bin, name), "--help").Output()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, m := range setting.FindAllSubmatch(help, -1) {
			if s := string(m[1]); !slices.Contains(made[name], s) {
				got = append(got, s)
			}
		}
		slices.Sort(got)
		if diff := cmp.Diff(slices.Sorted(slices.Values(want)), got); diff != "" {
			t.Errorf("settings of %s passed on (-) and had (+):\n%s", name, diff)
		}
	}
}

func TestFrontendGetsNoCredential(t *testing.T) {
	environ := []string{"AZURE_CLIENT_SECRET=mew", "HOME=/home/mia", "LOG_LEVEL=debug", "LINK_TTL=10m", "SSL_CERT_FILE=", "OTEL_SDK_DISABLED=true"}
	if diff := cmp.Diff(map[string]string{"LOG_LEVEL": "debug", "OTEL_SDK_DISABLED": "true"}, frontendEnv(environ)); diff != "" {
		t.Errorf("frontend (-want +got):\n%s", diff)
	}
	local := settings{}
	if diff := cmp.Diff(map[string]string{"LOG_LEVEL": "debug", "LINK_TTL": "10m", "MAX_DIRECT_UPLOAD_SIZE": "5GiB", "OTEL_SDK_DISABLED": "true"}, local.signerEnv(environ)); diff != "" {
		t.Errorf("signer on the emulator (-want +got):\n%s", diff)
	}
	realAccount := settings{AccountURL: "https://davydscats.blob.core.windows.net"}
	want := map[string]string{
		"LOG_LEVEL": "debug", "LINK_TTL": "10m", "HOME": "/home/mia", "AZURE_CLIENT_SECRET": "mew", "CREDENTIAL": "default", "OTEL_SDK_DISABLED": "true",
	}
	if diff := cmp.Diff(want, realAccount.signerEnv(environ)); diff != "" {
		t.Errorf("signer on a real account (-want +got):\n%s", diff)
	}
}

func listen(t *testing.T, port int) net.Listener {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:"+strconv.Itoa(port))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// freePorts returns settings whose ports nobody listens on. They are below those that
// the kernel gives to connections, of which other tests make thousands meanwhile.
func freePorts(t *testing.T) settings {
	t.Helper()
	var ports [6]int
	for i := range ports {
		for ports[i] == 0 {
			port := 10_000 + rand.IntN(20_000)
			l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:"+strconv.Itoa(port))
			if errors.Is(err, syscall.EADDRINUSE) {
				continue
			} else if err != nil {
				t.Fatal(err)
			}
			defer l.Close() // all at once, so that no two are the same
			ports[i] = port
		}
	}
	return settings{
		FrontendPort: ports[0], FrontendOpsPort: ports[1], SignerPort: ports[2], SignerOpsPort: ports[3],
		StoragePort: ports[4], PrometheusPort: ports[5], Container: "cats",
	}
}

func TestTakenPortNamesTheVariable(t *testing.T) {
	cfg := freePorts(t)
	if err := cfg.checkPorts(t.Context()); err != nil {
		t.Fatal(err)
	}
	taken := listen(t, cfg.SignerOpsPort)
	defer taken.Close()
	cfg.FrontendOpsPort = cfg.FrontendPort
	err := cfg.checkPorts(t.Context())
	if err == nil {
		t.Fatal("no error")
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], "FRONTEND_PORT and FRONTEND_OPS_PORT") || !strings.Contains(lines[1], "SIGNER_OPS_PORT=") {
		t.Errorf("got %q", lines)
	}
}

func TestArguments(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), []string{"--help"}, nil, &out); err != nil || !strings.Contains(out.String(), "SIGNER_OPS_PORT") {
		t.Errorf("--help: %v\n%s", err, out.String())
	}
	if err := run(t.Context(), []string{"--fast"}, nil, &out); err == nil {
		t.Error("--fast was taken")
	}
	if err := run(t.Context(), nil, []string{"SIGNER_PORT=mew"}, &out); err == nil || !strings.Contains(err.Error(), "SignerPort") && !strings.Contains(err.Error(), "SIGNER_PORT") {
		t.Errorf("SIGNER_PORT=mew: %v", err)
	}
	t.Chdir(t.TempDir())
	if err := run(t.Context(), nil, nil, &out); err == nil || !strings.Contains(err.Error(), "checkout") {
		t.Errorf("elsewhere: %v", err)
	}
}

// started is a local that runs in the background.
type started struct {
	*local
	lines *bufio.Scanner
	ended chan error
}

// start runs the real thing on free ports and returns when it is ready.
func start(t *testing.T, ctx context.Context) started { //nolint:revive // t first, as in testing's own
	t.Helper()
	if err := stack.CheckNode(ctx); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	root, bin := build(t)
	r, w := io.Pipe()
	s := started{
		local: &local{cfg: freePorts(t), root: root, bin: bin, dir: t.TempDir(), out: w, began: time.Now()},
		lines: bufio.NewScanner(r),
		ended: make(chan error, 1),
	}
	go func() {
		s.ended <- s.run(ctx)
		_ = w.Close()
	}()
	for s.lines.Scan() {
		if strings.HasPrefix(s.lines.Text(), "ready") {
			go io.Copy(io.Discard, r) //nolint:errcheck // ends with the writer
			return s
		}
	}
	t.Fatal(<-s.ended)
	return s
}

// call returns the body of an answer that must be 200.
func call(t *testing.T, method, url string, body []byte) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %s, %v", method, url, resp.Status, err)
	}
	return b
}

func TestRunsEverythingAndLeavesNothing(t *testing.T) {
	ctx, stop := signal.NotifyContext(t.Context(), stopSignals...)
	defer stop()
	s := start(t, ctx)
	url := "http://localhost:" + strconv.Itoa(s.cfg.FrontendPort) + "/cat/Davyd"
	cat, err := os.ReadFile(filepath.Join(s.root, "e2e", "testdata", "cat.png"))
	if err != nil {
		t.Fatal(err)
	}
	call(t, http.MethodPut, url, cat)
	// By way of the redirect, through the front.
	if got := call(t, http.MethodGet, url+"/picture", nil); !bytes.Equal(got, cat) {
		t.Errorf("got %d bytes, want the cat", len(got))
	}
	t.Run("Prometheus", func(t *testing.T) { watches(t, s) })
	// As with a signal to the process group under make: they are one.
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		if err := syscall.Kill(os.Getpid(), sig); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	if err := <-s.ended; err != nil {
		t.Error(err)
	}
	processes := []*stack.Process{s.system.Frontend, s.system.Signer, s.stack.Storage.Process}
	if s.prometheus != nil {
		processes = append(processes, s.prometheus)
	}
	for _, p := range processes {
		select {
		case <-p.Done():
		default:
			t.Errorf("process %d is left", p.Pid())
		}
	}
	if err := errors.Join(s.cfg.checkPorts(t.Context()), free(t.Context(), s.cfg.PrometheusPort)); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// watches checks that Prometheus scrapes both and has the rules.
func watches(t *testing.T, s started) {
	if s.prometheus == nil {
		if os.Getenv("CI") != "" {
			t.Fatal("prometheus did not start, or is missing: it is Debian's package of that name")
		}
		t.Skip("prometheus is missing: it is Debian's package of that name")
	}
	base := "http://127.0.0.1:" + strconv.Itoa(s.cfg.PrometheusPort)
	var rules, targets struct {
		Data struct {
			Groups        []any
			ActiveTargets []struct {
				Labels            map[string]string
				Health, LastError string
			}
		}
	}
	if err := json.Unmarshal(call(t, http.MethodGet, base+"/api/v1/rules", nil), &rules); err != nil || len(rules.Data.Groups) != 2 {
		t.Errorf("%d groups of rules, %v", len(rules.Data.Groups), err)
	}
	up := map[string]string{}
	for deadline := time.Now().Add(20 * time.Second); len(up) < 2 && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err := json.Unmarshal(call(t, http.MethodGet, base+"/api/v1/targets", nil), &targets); err != nil {
			t.Fatal(err)
		}
		for _, target := range targets.Data.ActiveTargets {
			if target.Health == "up" {
				up[target.Labels["container"]] = target.Labels["namespace"]
			}
		}
	}
	if diff := cmp.Diff(map[string]string{"frontend": "cats-api", "signer": "cats-api"}, up); diff != "" {
		t.Errorf("up (-want +got):\n%s\n%+v", diff, targets.Data.ActiveTargets)
	}
}

func TestWithoutItsPortPrometheusIsLeftOut(t *testing.T) {
	if _, err := exec.LookPath("prometheus"); err != nil && os.Getenv("CI") == "" {
		t.Skip("prometheus is missing: it is Debian's package of that name")
	}
	taken := listen(t, 0)
	defer taken.Close()
	var out bytes.Buffer
	l := &local{out: &out, cfg: settings{PrometheusPort: taken.Addr().(*net.TCPAddr).Port}}
	l.watch(t.Context())
	if lines := strings.Count(out.String(), "\n"); lines != 1 || !strings.Contains(out.String(), "is taken; going on without (PROMETHEUS_PORT") || l.prometheus != nil {
		t.Errorf("said %q", out.String())
	}
	out.Reset()
	t.Setenv("PATH", t.TempDir())
	l.watch(t.Context())
	if lines := strings.Count(out.String(), "\n"); lines != 1 || !strings.Contains(out.String(), "going on without") || l.prometheus != nil {
		t.Errorf("said %q", out.String())
	}
	out.Reset()
	(&local{out: &out}).watch(t.Context())
	if out.Len() > 0 {
		t.Errorf("with port 0 it says %q", out.String())
	}
}

func TestDeathOfAProcessEndsItAll(t *testing.T) {
	s := start(t, t.Context())
	s.system.Signer.Kill()
	if err := <-s.ended; err == nil || !strings.Contains(err.Error(), "signer ended: signal: killed") {
		t.Errorf("got %v, want which ended, and how", err)
	}
	<-s.system.Frontend.Done()
	<-s.stack.Storage.Process.Done()
}
