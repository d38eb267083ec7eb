package local

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// buildEnv makes the result of a build independent of its folder, so that bin/local finds the programs of localBinaries up to date.
var buildEnv = append(os.Environ(), "GOFLAGS=-trimpath -buildvcs=false", "GOWORK=off")

// localBinaries returns a folder with bin/local and the programs that it builds.
var localBinaries = sync.OnceValues(func() (string, error) {
	dir := harness.Root("bin", "e2e-local")
	for _, program := range []string{"local", "signer", "frontend", "cats"} {
		build := exec.Command("go", "-C", harness.Root(program), "build", "-o", filepath.Join(dir, program), ".")
		build.Env = buildEnv
		if out, err := build.CombinedOutput(); err != nil {
			return "", fmt.Errorf("building %s: %w\n%s", program, err, out)
		}
	}
	return dir, nil
})

// localStack is bin/local as make run starts it, with a state and ports of its own.
type localStack struct {
	dir                                                         string // of the checkout
	frontend, frontendOps, signer, signerOps, front, prometheus string // HOST:PORT
	process                                                     *os.Process
	ready, ended                                                chan struct{}
	err                                                         error // of the process; read after ended

	mu     sync.Mutex
	output []string
}

// startLocal starts bin/local with more variables. It reads the output up to the line that contains last, and then closes its end
// of the pipe; "" for all.
func startLocal(t *testing.T, last string, more ...string) *localStack {
	t.Helper()
	harness.NeedStack(t)
	bin, err := localBinaries()
	if err != nil {
		t.Fatal(err)
	}
	root, err := stack.FindRoot()
	if err != nil {
		t.Fatal(err)
	}
	l := &localStack{dir: t.TempDir(), ready: make(chan struct{}), ended: make(chan struct{})}
	for _, name := range []string{"cats", "frontend", "k8s", "local", "shared", "signer"} {
		if err := os.Symlink(filepath.Join(root, name), filepath.Join(l.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(bin, filepath.Join(l.dir, "bin")); err != nil {
		t.Fatal(err)
	}
	//lint:ignore noctx the test stops it by a signal
	cmd := exec.Command("bin/local")
	cmd.Dir, cmd.Env = l.dir, slices.Clone(buildEnv)
	for variable, address := range map[string]*string{
		"FRONTEND_PORT": &l.frontend, "FRONTEND_OPS_PORT": &l.frontendOps, "SIGNER_PORT": &l.signer, "SIGNER_OPS_PORT": &l.signerOps,
		"STORAGE_PORT": &l.front, "PROMETHEUS_PORT": &l.prometheus,
	} {
		port := freePort(t)
		*address = net.JoinHostPort("127.0.0.1", port)
		cmd.Env = append(cmd.Env, variable+"="+port)
	}
	cmd.Env = append(cmd.Env, more...)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	l.process = cmd.Process
	read := make(chan struct{})
	go func() {
		defer close(read)
		l.read(r, last)
	}()
	go func() {
		l.err = cmd.Wait()
		select {
		case <-read: // all of its output
		case <-time.After(5 * time.Second): // a process that it has left behind holds the pipe
		}
		close(l.ended)
	}()
	t.Cleanup(func() {
		select {
		case <-l.ended:
		default:
			_ = cmd.Process.Signal(syscall.SIGTERM)
			if err := l.ends(t); err != nil {
				t.Errorf("stopping: %v\n%s", err, l.text())
			}
		}
	})
	return l
}

// freePort returns a port below those that the kernel gives to connections.
func freePort(t *testing.T) string {
	t.Helper()
	for {
		port := strconv.Itoa(10_000 + rand.IntN(20_000))
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:"+port)
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
		return port
	}
}

func (l *localStack) read(r *os.File, last string) {
	defer r.Close()
	for lines := bufio.NewScanner(r); lines.Scan(); {
		l.mu.Lock()
		l.output = append(l.output, lines.Text())
		l.mu.Unlock()
		if strings.HasPrefix(lines.Text(), "The logs follow") {
			close(l.ready)
		}
		if last != "" && strings.Contains(lines.Text(), last) {
			return
		}
	}
}

func (l *localStack) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.output, "\n")
}

// waitReady waits until the stack has started. It builds the programs first.
func (l *localStack) waitReady(t *testing.T) {
	t.Helper()
	select {
	case <-l.ready:
	case <-l.ended:
		t.Fatalf("it ended at the start: %v\n%s", l.err, l.text())
	case <-time.After(3 * time.Minute):
		t.Fatalf("it has not started\n%s", l.text())
	}
}

// ends waits until the process has ended and returns its error.
func (l *localStack) ends(t *testing.T) error {
	t.Helper()
	select {
	case <-l.ended:
	case <-time.After(time.Minute):
		_ = l.process.Kill()
		t.Fatalf("it does not end\n%s", l.text())
	}
	return l.err
}

// left returns the processes that run in the stack's state folder.
func (l *localStack) left(t *testing.T) []string {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, link := range links {
		if dir, err := os.Readlink(link); err == nil && strings.HasPrefix(dir, l.dir) {
			left = append(left, link)
		}
	}
	return left
}

func TestLocalStopsWhenItsOutputIsClosed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, last string }{
		{"at the first line", "building"},
		{"while it starts", "starting Azurite"},
		{"amid the logs", "The logs follow"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := startLocal(t, c.last, "PROMETHEUS_PORT=0")
			// The stack notices at its next line. It may have started before the output is closed: then requests make lines.
			go func() {
				for {
					select {
					case <-l.ended:
						return
					case <-time.After(100 * time.Millisecond):
						_, _ = harness.Try(context.WithoutCancel(t.Context()), http.MethodGet, "http://"+l.frontend+"/cat/nobody", "", nil)
					}
				}
			}()
			if err := l.ends(t); err != nil {
				t.Errorf("it ended with %v\n%s", err, l.text())
			}
			if left := l.left(t); len(left) > 0 {
				t.Errorf("processes are left: %q", left)
			}
		})
	}
}

func TestLocalTrustsAPrivateIssuer(t *testing.T) {
	t.Parallel()
	p := harness.StartProvider(t, "0") // with the certificate of the suite, which is not the one of bin/local
	dir := t.TempDir()
	own, err := os.ReadFile(harness.Stack(t).CA.File)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), own, 0o600); err != nil {
		t.Fatal(err)
	}
	issuer := []string{"OIDC_ISSUER=" + p.Issuer, "OIDC_AUDIENCE=" + harness.Audience, "PROMETHEUS_PORT=0"}
	for _, c := range []struct {
		trust string
		says  string // where it must not start
	}{
		{"SSL_CERT_FILE=" + harness.Stack(t).CA.File, ""},
		{"SSL_CERT_DIR=/nowhere:" + dir, ""},
		{"SSL_CERT_FILE=" + filepath.Join(dir, "nothing.pem"), "SSL_CERT_FILE: open " + dir},
		{"SSL_CERT_FILE=" + harness.Stack(t).CA.KeyFile, "SSL_CERT_FILE: " + harness.Stack(t).CA.KeyFile + " contains no certificate"},
	} {
		t.Run(c.trust, func(t *testing.T) {
			t.Parallel()
			l := startLocal(t, "", slices.Concat(issuer, []string{c.trust})...)
			if c.says != "" {
				if err := l.ends(t); err == nil || !strings.Contains(l.text(), c.says) {
					t.Errorf("it ended with %v, %s; want %q", err, l.text(), c.says)
				}
				return
			}
			l.waitReady(t)
			url := "http://" + l.frontend + "/cat/mia"
			harness.SendAs(t, p.Token(t, "mia", harness.Audience), http.MethodPut, url, harness.Cat).Want(t, 200)
			harness.SendAs(t, "", http.MethodPut, url, harness.Cat).Want(t, 401)
			harness.SendAs(t, p.Token(t, "mia", harness.Audience), http.MethodGet, url+"/picture", nil).Want(t, 307) // storage is trusted as well
		})
	}
}

func TestLocalStartsAndStopsEverything(t *testing.T) {
	t.Parallel()
	l := startLocal(t, "")
	l.waitReady(t)
	url := "http://" + l.frontend + "/cat/Davyd"
	harness.Do(t, "PUT", url, "", harness.Cat).Want(t, 200)
	signed := harness.Do(t, "GET", url+"/picture", "", nil).Want(t, 307).Header.Get("Location")
	if got := harness.Do(t, "GET", signed, "", nil).Want(t, 200).Body; !bytes.Equal(got, harness.Cat) {
		t.Errorf("downloaded %d bytes; want the picture", len(got))
	}
	if strings.Contains(l.text(), "http://"+l.prometheus+"/targets") {
		l.scraped(t)
	} else if os.Getenv("CI") != "" {
		t.Error("Prometheus has not started; it is Debian's package prometheus")
	}
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} { // make and the terminal send several at once
		_ = l.process.Signal(s)
	}
	if err := l.ends(t); err != nil || !strings.Contains(l.text(), "stopping") {
		t.Errorf("it ended with %v\n%s", err, l.text())
	}
	if left := l.left(t); len(left) > 0 {
		t.Errorf("processes are left: %q", left)
	}
}

// scraped waits until Prometheus has scraped both containers, and checks that it has the rules.
func (l *localStack) scraped(t *testing.T) {
	t.Helper()
	var rules, targets struct {
		Data struct {
			Groups        []any
			ActiveTargets []struct {
				Labels            map[string]string
				Health, LastError string
			}
		}
	}
	get := func(path string, v any) {
		t.Helper()
		if err := json.Unmarshal(harness.Do(t, "GET", "http://"+l.prometheus+path, "", nil).Want(t, 200).Body, v); err != nil {
			t.Fatal(err)
		}
	}
	if get("/api/v1/rules", &rules); len(rules.Data.Groups) != 2 {
		t.Errorf("%d groups of rules; want 2", len(rules.Data.Groups))
	}
	harness.Eventually(t, func() error {
		get("/api/v1/targets", &targets)
		up := map[string]bool{}
		for _, target := range targets.Data.ActiveTargets {
			up[target.Labels["namespace"]+"/"+target.Labels["container"]] = target.Health == "up"
		}
		if !up["cats-api/frontend"] || !up["cats-api/signer"] {
			return fmt.Errorf("targets: %+v", targets.Data.ActiveTargets)
		}
		return nil
	})
}

func TestLocalEndsWhenAProcessDies(t *testing.T) {
	t.Parallel()
	l := startLocal(t, "", "PROMETHEUS_PORT=0")
	l.waitReady(t)
	for _, link := range l.left(t) {
		if exe, err := os.Readlink(filepath.Join(filepath.Dir(link), "exe")); err == nil && filepath.Base(exe) == "signer" {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link)))
			if err != nil {
				t.Fatal(err)
			}
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	if err := l.ends(t); err == nil || !strings.Contains(l.text(), "signer ended: signal: killed") {
		t.Errorf("it ended with %v\n%s", err, l.text())
	}
	if left := l.left(t); len(left) > 0 {
		t.Errorf("processes are left: %q", left)
	}
}
