package ops

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cats.example/e2e/harness"
)

// isolated is the environment variable that tells the test binary that it runs in a network namespace of its own. A token
// endpoint on port 8000 there disturbs no other frontend.
const isolated = "CATS_E2E_ISOLATED"

var unisolated sync.Mutex

// isolate runs the test in a network namespace of its own, and reports whether the caller is to go on: it is in the namespace
// already, or the kernel permits none and CI is set.
func isolate(t *testing.T) bool {
	t.Helper()
	if os.Getenv(isolated) != "" {
		return true
	}
	harness.NeedOwnSystem(t)
	for _, program := range []string{"unshare", "ip"} {
		if _, err := exec.LookPath(program); err != nil && os.Getenv("CI") != "" {
			t.Fatal(err)
		} else if err != nil {
			t.Skipf("needs unshare (util-linux) and ip (iproute2): %v", err)
		}
	}
	unshare := []string{"unshare", "--map-root-user", "--net"}
	if err := exec.CommandContext(t.Context(), unshare[0], append(unshare[1:], "true")...).Run(); err != nil {
		unshare = []string{"sudo", "-n", "--preserve-env=" + isolated + "," + harness.BinariesVariable, "unshare", "--net"} // where only root may
	}
	if out, err := exec.CommandContext(t.Context(), unshare[0], append(unshare[1:], "ip", "link", "set", "lo", "up")...).CombinedOutput(); err != nil {
		if os.Getenv("CI") == "" { // in a pod, the frontend asks each program on the loopback interface
			t.Skipf("needs a network namespace of its own, which this machine does not permit: %v %s", err, out)
		}
		t.Logf("without a network namespace, and without the ports that other tests need: %v %s", err, out)
		unisolated.Lock() // or the tests find each other's endpoints
		t.Cleanup(unisolated.Unlock)
		return true
	}
	cmd := exec.CommandContext(t.Context(), unshare[0], append(unshare[1:], "sh", "-c", `ip link set lo up && exec "$@"`, "sh",
		os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")...)
	cmd.Env = append(os.Environ(), isolated+"=1", harness.BinariesVariable+"="+harness.BinDir(t))
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("in the namespace: %v\n%s", err, out)
	}
	return false
}

// lone is a frontend without a signer.
type lone struct {
	cmd  *exec.Cmd
	log  string // file
	done chan struct{}
}

func startLone(t *testing.T, env ...string) *lone {
	t.Helper()
	//lint:ignore noctx the cleanup ends it
	f := &lone{exec.Command(filepath.Join(harness.BinDir(t), "frontend")), filepath.Join(t.TempDir(), "log"), make(chan struct{})}
	log, err := os.Create(f.log)
	if err != nil {
		t.Fatal(err)
	}
	f.cmd.Env = append([]string{"LISTEN_ADDRESS=127.0.0.1:0", "OPS_ADDRESS=127.0.0.1:0", "SIGNER_URL=http://127.0.0.1:1"}, env...)
	f.cmd.Stderr = log
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = f.cmd.Wait() // its exit code is looked at
		_ = log.Close()
		close(f.done)
	}()
	t.Cleanup(func() {
		_ = f.cmd.Process.Signal(syscall.SIGKILL) // it may have ended
		<-f.done
	})
	return f
}

func (f *lone) text(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(f.log)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// ends waits until the frontend has ended.
func (f *lone) ends(t *testing.T) {
	t.Helper()
	harness.Eventually(t, func() error {
		select {
		case <-f.done:
			return nil
		default:
			return errors.New("it does not end: " + f.text(t))
		}
	})
}

var opsListener = regexp.MustCompile(`"listener":"ops","address":"([^"]+)"`)

// ops returns the URL of the ops listener, once there is one.
func (f *lone) ops(t *testing.T) (base string) {
	t.Helper()
	harness.Eventually(t, func() error {
		select {
		case <-f.done:
			t.Fatalf("it ended: %s", f.text(t))
		default:
		}
		address := opsListener.FindStringSubmatch(f.text(t))
		if address == nil {
			return errors.New("it does not listen yet: " + f.text(t))
		}
		base = "http://" + address[1]
		return nil
	})
	return base
}

// readyz waits until what the frontend says has part, or has not.
func (f *lone) readyz(t *testing.T, part string, has bool) {
	t.Helper()
	base := f.ops(t)
	harness.Eventually(t, func() error {
		a, err := harness.TryWith(t.Context(), http.DefaultClient, http.MethodGet, base+"/readyz", "", nil)
		if err == nil && strings.Contains(string(a.Body), part) != has {
			err = fmt.Errorf("/readyz says %q; want %q in it: %v", a.Body, part, has)
		}
		return err
	})
}

// listenAt serves h at address until the returned function is called.
func listenAt(t *testing.T, address string, h http.Handler) (stop func()) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }() // until it is closed
	return func() { _ = server.Close() }
}

// azwiProxy answers as the proxy of the workload identity webhook 1.6 does (pkg/proxy/proxy.go): a token for each request
// with a resource, whatever its headers are.
func azwiProxy(t *testing.T) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/metadata/identity/oauth2/token", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server", "azure-workload-identity/proxy/v1.6.0 (linux/amd64) 0a2a128/2026-01-01")
		if r.URL.Query().Get("resource") == "" {
			http.Error(w, "The resource parameter is required.", http.StatusBadRequest)
			return
		}
		t.Error("the frontend asked for a token")
		_, _ = io.WriteString(w, `{"access_token":"secret"}`)
	})
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { // passed on to the metadata service, which is not there
		http.Error(w, "no route to host", http.StatusInternalServerError)
	})
	return mux
}

// metadataService answers as the Azure Instance Metadata Service does to a request without the header Metadata.
var metadataService = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Server", "IMDS/150.870.65.1854")
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	if r.Header.Get("Metadata") == "" {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"error":"invalid_request","error_description":"Required metadata header not specified"}`)
		return
	}
	_, _ = io.WriteString(w, `{"access_token":"secret"}`)
})

const inPod = "KUBERNETES_SERVICE_HOST=10.0.0.1"

func TestFrontendRejectsTokenEndpointAtStart(t *testing.T) {
	t.Parallel()
	if !isolate(t) {
		return
	}
	for _, c := range []struct {
		endpoint http.Handler
		address  string
		env      []string
	}{
		{azwiProxy(t), "127.0.0.1:8000", nil},
		{azwiProxy(t), "[::1]:8000", nil},
		{metadataService, "127.0.0.1:8000", nil},
		{azwiProxy(t), "127.0.0.1:8000", []string{inPod}},
		{azwiProxy(t), "127.0.0.1:4141", []string{inPod}}, // the annotation proxy-sidecar-port
		{azwiProxy(t), "0.0.0.0:4142", []string{inPod}},
		{metadataService, "[::]:4143", []string{inPod}},
		{azwiProxy(t), "[::1]:65535", []string{inPod}},
		{metadataService, "127.0.0.1:1", []string{inPod, "SIGNER_URL=http://127.0.0.1:8081", "AZURE_CLIENT_ID=x", "MSI_SECRET=x"}},
	} {
		_, port, _ := net.SplitHostPort(c.address)
		if os.Getenv(isolated) == "" && (port == "8000" || port == "1") {
			continue // port 8000 would stop the frontends of other tests, and port 1 is for root
		}
		stop := listenAt(t, c.address, c.endpoint)
		f := startLone(t, c.env...)
		f.ends(t)
		stop()
		lines := strings.Split(strings.TrimSpace(f.text(t)), "\n")
		var last struct{ Level, Error string }
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil {
			t.Fatal(err)
		}
		if f.cmd.ProcessState.ExitCode() != 1 || strings.Count(f.text(t), `"ERROR"`) != 1 || last.Level != "ERROR" ||
			!strings.Contains(last.Error, "token endpoint "+strings.NewReplacer("0.0.0.0", "127.0.0.1", "[::]", "127.0.0.1").Replace(c.address)) || !strings.Contains(last.Error, "inject-proxy-sidecar") || strings.Contains(f.text(t), "secret") {
			t.Errorf("%s %q: exit code %d\n%s", c.address, c.env, f.cmd.ProcessState.ExitCode(), f.text(t))
		}
		if len(c.env) > 2 && (!strings.Contains(last.Error, "variable AZURE_CLIENT_ID, variable MSI_SECRET;") || strings.Count(last.Error, "skip-containers") != 1) {
			t.Errorf("the one line is %q", last.Error)
		}
	}
}

func TestFrontendNoticesLateTokenEndpoint(t *testing.T) {
	t.Parallel()
	if !isolate(t) {
		return
	}
	const address = "127.0.0.1:4141"
	f := startLone(t, inPod)
	f.readyz(t, "token endpoint", false)
	stop := listenAt(t, address, azwiProxy(t))
	f.readyz(t, "token endpoint answers at "+address, true)
	if log := f.text(t); strings.Count(log, "token endpoint found on the loopback interface") != 1 || !strings.Contains(log, address) || !strings.Contains(log, "inject-proxy-sidecar") {
		t.Errorf("logged %s", log)
	}
	stop()
	f.readyz(t, "token endpoint", false)
}

func TestFrontendStartsBesideUnrelatedPrograms(t *testing.T) {
	t.Parallel()
	if !isolate(t) {
		return
	}
	silent := func(address string) (stop func()) {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		return func() { _ = l.Close() } // the kernel accepts connections; no answer comes
	}
	web := func(address string) (stop func()) {
		return listenAt(t, address, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `<!doctype html><title>a program</title> "access_token" "error" "error_description"`)
		}))
	}
	outside := func(address string) (stop func()) { return listenAt(t, address, azwiProxy(t)) }
	for _, c := range []struct {
		what    string
		program func(address string) (stop func())
		address string
		env     []string
	}{
		{"nothing", nil, "", nil},
		{"nothing in a pod", nil, "", []string{inPod}},
		{"a web server", web, "127.0.0.1:8000", nil},
		{"a web server in a pod", web, "127.0.0.1:3000", []string{inPod}},
		{"a silent program", silent, "127.0.0.1:8000", nil},
		{"a silent program in a pod", silent, "[::1]:3000", []string{inPod}},
		{"another 404", func(a string) func() { return listenAt(t, a, http.NotFoundHandler()) }, "127.0.0.1:8000", nil},
		{"an agent's port on a developer's machine", outside, "127.0.0.1:40342", nil}, // Azure Arc
		{"the signer's port", outside, "127.0.0.1:8081", []string{inPod, "SIGNER_URL=http://127.0.0.1:8081"}},
	} {
		t.Run(c.what, func(t *testing.T) {
			if c.program != nil {
				defer c.program(c.address)()
			}
			f := startLone(t, c.env...)
			f.ops(t)
			if strings.Contains(f.text(t), "token endpoint") {
				t.Errorf("logged %s", f.text(t))
			}
			if err := f.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			f.ends(t)
			if code := f.cmd.ProcessState.ExitCode(); code != 0 {
				t.Errorf("exit code %d: %s", code, f.text(t))
			}
		})
	}
}
