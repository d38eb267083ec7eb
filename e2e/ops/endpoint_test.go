package ops

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"cats.example/e2e/harness"
)

// isolated is the environment variable that tells the test binary that it runs in a network namespace of its own. There, a token
// endpoint on the loopback interface disturbs no other frontend.
const isolated = "CATS_E2E_ISOLATED"

// isolate runs the test in a network namespace and returns true there. If the kernel permits none, it skips the test, or returns true
// in CI.
func isolate(t *testing.T) bool {
	t.Helper()
	if os.Getenv(isolated) != "" {
		return true
	}
	harness.NeedOwnSystem(t)
	unshare := []string{"unshare", "--map-root-user", "--net"}
	if exec.CommandContext(t.Context(), unshare[0], append(unshare[1:], "true")...).Run() != nil {
		unshare = []string{"sudo", "-n", "--preserve-env=" + isolated + "," + harness.BinariesVariable, "unshare", "--net"}
	}
	lo := exec.CommandContext(t.Context(), unshare[0], append(unshare[1:], "ip", "link", "set", "lo", "up")...)
	if out, err := lo.CombinedOutput(); err != nil {
		if os.Getenv("CI") == "" {
			t.Skipf("needs a network namespace of its own, with unshare (util-linux) and ip (iproute2): %v %s", err, out)
		}
		t.Logf("without a network namespace, and without the ports that other tests need: %v %s", err, out)
		return true
	}
	cmd := exec.CommandContext(t.Context(), unshare[0], append(unshare[1:], "sh", "-c", `ip link set lo up && exec "$@"`, "sh",
		os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")...)
	cmd.Env = append(os.Environ(), isolated+"=1", harness.BinariesVariable+"="+harness.BinDir(t))
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("in the namespace: %v\n%s", err, out)
	}
	return false
}

// listenAt serves h at address until the returned function is called.
func listenAt(t *testing.T, address string, h http.HandlerFunc) (stop func()) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }()
	return func() { _ = server.Close() }
}

const inPod = "KUBERNETES_SERVICE_HOST=10.0.0.1"

func TestFrontendRejectsTokenEndpoints(t *testing.T) {
	t.Parallel()
	if !isolate(t) {
		return
	}
	listeners := slices.Clip([]string{"LISTEN_ADDRESS=127.0.0.1:0", "OPS_ADDRESS=127.0.0.1:0"})
	// The proxy of the workload identity webhook 1.6 (pkg/proxy/proxy.go) returns a token to each request with a resource.
	proxy := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server", "azure-workload-identity/proxy/v1.6.0 (linux/amd64) 0a2a128/2026-01-01")
		if r.URL.Query().Get("resource") == "" {
			http.Error(w, "The resource parameter is required.", http.StatusBadRequest)
			return
		}
		t.Error("the frontend requested a token")
		_, _ = io.WriteString(w, `{"access_token":"secret"}`)
	}
	// The Azure Instance Metadata Service rejects requests without the header Metadata.
	metadata := func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"error":"invalid_request","error_description":"Required metadata header not specified"}`)
	}
	for _, c := range []struct {
		endpoint http.HandlerFunc
		address  string
		env      []string
	}{
		{proxy, "127.0.0.1:8000", nil},
		{metadata, "[::1]:8000", nil},
		{proxy, "127.0.0.1:4141", []string{inPod}}, // the annotation proxy-sidecar-port
		{metadata, "[::]:4143", []string{inPod}},
		{proxy, "127.0.0.1:1", []string{inPod, "AZURE_CLIENT_ID=x", "MSI_SECRET=x"}},
	} {
		if os.Getenv(isolated) == "" && !strings.Contains(c.address, ":41") {
			continue
		}
		stop := listenAt(t, c.address, c.endpoint)
		code, _, log := run(t, "frontend", append(listeners, c.env...))
		stop()
		if code != 1 || strings.Count(log, `"ERROR"`) != 1 || strings.Contains(log, "secret") {
			t.Errorf("%s %q: exit code %d\n%s", c.address, c.env, code, log)
		}
		parts := []string{"token endpoint " + strings.Replace(c.address, "[::]", "127.0.0.1", 1), "inject-proxy-sidecar"}
		for _, v := range c.env[min(1, len(c.env)):] {
			parts = append(parts, "variable "+strings.TrimSuffix(v, "=x"))
		}
		wantParts(t, log, parts...)
	}
	const late = "127.0.0.1:4141"
	frontend := program(t, "frontend", append(listeners, inPod, "SIGNER_URL=http://127.0.0.1:1"))
	var text strings.Builder
	log, err := frontend.StderrPipe()
	if err := errors.Join(err, frontend.Start()); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(io.TeeReader(log, &text))
	var address []string
	for address == nil && lines.Scan() {
		address = regexp.MustCompile(`"listener":"ops","address":"([^"]+)"`).FindStringSubmatch(lines.Text())
	}
	if address == nil {
		t.Fatal(lines.Err(), &text)
	}
	wantReadyz := func(part string, want bool) {
		t.Helper()
		harness.Eventually(t, func() error {
			a, err := harness.TryWith(t.Context(), http.DefaultClient, http.MethodGet, "http://"+address[1]+"/readyz", "", nil)
			if err == nil && strings.Contains(string(a.Body), part) != want {
				err = fmt.Errorf("/readyz is %q; want %q in it: %v", a.Body, part, want)
			}
			return err
		})
	}
	wantReadyz("token endpoint", false)
	stop := listenAt(t, late, proxy)
	wantReadyz("token endpoint answers at "+late, true)
	stop()
	wantReadyz("token endpoint", false)
	if err := frontend.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(&text, log)
	if n := strings.Count(text.String(), "token endpoint found on the loopback interface"); n != 1 || frontend.Wait() != nil {
		t.Errorf("%d lines name the token endpoint: %v\n%s", n, frontend.ProcessState, &text)
	}
	wantParts(t, text.String(), late, "inject-proxy-sidecar")
}
