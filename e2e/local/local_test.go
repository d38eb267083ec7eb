package local

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cats.example/e2e/harness"
)

// buildEnv makes builds independent of the folder, so that bin/local finds the programs of localBinaries up to date.
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

// localStack is bin/local as make run starts it, with a folder and ports of its own.
type localStack struct {
	dir     string // of the checkout
	port    map[string]string
	process *os.Process
	ended   chan struct{}
	err     error // of the process; read after ended

	mu     sync.Mutex
	output string
}

// startLocal starts bin/local with more variables. It reads the output up to a line with last, "" for all, and closes the pipe.
func startLocal(t *testing.T, last string, more ...string) *localStack {
	t.Helper()
	harness.NeedStack(t)
	bin, err := localBinaries()
	if err != nil {
		t.Fatal(err)
	}
	l := &localStack{dir: t.TempDir(), port: map[string]string{}, ended: make(chan struct{})}
	err = os.Symlink(bin, filepath.Join(l.dir, "bin"))
	for _, name := range []string{"cats", "frontend", "k8s", "local", "shared", "signer"} {
		err = errors.Join(err, os.Symlink(harness.Root(name), filepath.Join(l.dir, name)))
	}
	//lint:ignore noctx the test stops it by a signal
	cmd := exec.Command("bin/local")
	cmd.Dir, cmd.Env = l.dir, slices.Clone(buildEnv)
	for _, name := range []string{"FRONTEND", "FRONTEND_OPS", "SIGNER", "SIGNER_OPS", "STORAGE", "PROMETHEUS"} {
		l.port[name] = harness.FreePort(t)
		cmd.Env = append(cmd.Env, name+"_PORT="+l.port[name])
	}
	cmd.Env = append(cmd.Env, more...)
	r, w, pipeErr := os.Pipe()
	if err := errors.Join(err, pipeErr); err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	l.process = cmd.Process
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer r.Close()
		for lines := bufio.NewScanner(r); lines.Scan(); {
			l.mu.Lock()
			l.output += lines.Text() + "\n"
			l.mu.Unlock()
			if last != "" && strings.Contains(lines.Text(), last) {
				return
			}
		}
	}()
	go func() {
		l.err = cmd.Wait()
		select {
		case <-read:
		case <-time.After(5 * time.Second): // a process that it has left running has the pipe
		}
		close(l.ended)
	}()
	t.Cleanup(func() {
		select {
		case <-l.ended:
		default:
			_ = cmd.Process.Signal(syscall.SIGTERM)
			if err := l.end(t); err != nil {
				t.Errorf("stopping: %v\n%s", err, l.text())
			}
		}
	})
	return l
}

func (l *localStack) address(listener string) string { return "127.0.0.1:" + l.port[listener] }

func (l *localStack) url(path string) string { return "http://" + l.address("FRONTEND") + path }

func (l *localStack) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.output
}

// waitReady waits until the stack has started, including builds.
func (l *localStack) waitReady(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !strings.Contains(l.text(), "The logs follow"); {
		select {
		case <-l.ended:
			t.Fatalf("it ended at the start: %v\n%s", l.err, l.text())
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("it has not started\n%s", l.text())
		}
	}
}

// end waits until the process has ended, and returns its error. It fails the test if the process leaves others running.
func (l *localStack) end(t *testing.T) error {
	t.Helper()
	select {
	case <-l.ended:
	case <-time.After(time.Minute):
		_ = l.process.Kill()
		t.Fatalf("it does not end\n%s", l.text())
	}
	if left := l.processes(t); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	return l.err
}

// processes returns the names and IDs of the processes that run in the stack's folder.
func (l *localStack) processes(t *testing.T) map[string]int {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]int{}
	for _, link := range links {
		if dir, err := os.Readlink(link); err == nil && strings.HasPrefix(dir, l.dir) {
			exe, _ := os.Readlink(filepath.Join(filepath.Dir(link), "exe"))
			found[filepath.Base(exe)], _ = strconv.Atoi(filepath.Base(filepath.Dir(link)))
		}
	}
	return found
}

func TestLocalStopsWhenItsOutputIsClosed(t *testing.T) {
	t.Parallel()
	for _, last := range []string{"building", "starting Azurite", "The logs follow"} {
		t.Run(last, func(t *testing.T) {
			t.Parallel()
			l := startLocal(t, last, "PROMETHEUS_PORT=0")
			go func() { // the stack notices when it prints the next line, such as one of a request
				for ticker := time.NewTicker(100 * time.Millisecond); ; {
					select {
					case <-l.ended:
						return
					case <-ticker.C:
						_, _ = harness.Try(context.WithoutCancel(t.Context()), "GET", l.url("/cat/nobody"), "", nil)
					}
				}
			}()
			if err := l.end(t); err != nil {
				t.Errorf("it ended with %v\n%s", err, l.text())
			}
		})
	}
}

// The provider's certificate is not that of bin/local.
func TestLocalStartsAndStopsEverything(t *testing.T) {
	t.Parallel()
	p, dir := harness.StartProvider(t, "0"), t.TempDir()
	if err := os.Symlink(harness.Stack(t).CA.File, filepath.Join(dir, "ca.crt")); err != nil {
		t.Fatal(err)
	}
	l := startLocal(t, "", "OIDC_ISSUER="+p.Issuer, "OIDC_AUDIENCE="+harness.Audience, "SSL_CERT_DIR=/nowhere:"+dir)
	l.waitReady(t)
	token := p.Token(t, "mia", harness.Audience)
	harness.SendAs(t, "", "PUT", l.url("/cat/mia"), harness.Cat).Want(t, 401)
	harness.SendAs(t, token, "PUT", l.url("/cat/mia"), harness.Cat).Want(t, 200)
	signed := harness.SendAs(t, token, "GET", l.url("/cat/mia/picture"), nil).Want(t, 307).Header.Get("Location")
	if got := harness.Do(t, "GET", signed, "", nil).Want(t, 200).Body; !bytes.Equal(got, harness.Cat) {
		t.Errorf("downloaded %d bytes; want the picture", len(got))
	}
	if strings.Contains(l.text(), "http://"+l.address("PROMETHEUS")+"/targets") {
		l.wantScraped(t)
	} else if os.Getenv("CI") != "" {
		t.Error("Prometheus has not started; it is Debian's package prometheus")
	}
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} { // as make and the terminal do
		_ = l.process.Signal(s)
	}
	if err := l.end(t); err != nil || !strings.Contains(l.text(), "stopping") {
		t.Errorf("it ended with %v\n%s", err, l.text())
	}
}

// wantScraped waits until Prometheus has scraped both containers, and checks that it has the rules.
func (l *localStack) wantScraped(t *testing.T) {
	t.Helper()
	harness.Eventually(t, func() error {
		targets := harness.Do(t, "GET", "http://"+l.address("PROMETHEUS")+"/api/v1/targets", "", nil).Want(t, 200).Body
		for _, container := range []string{"frontend", "signer"} {
			if !regexp.MustCompile(`"container":"` + container + `"[^{}]*"namespace":"cats-api".*?"health":"up"`).Match(targets) {
				return fmt.Errorf("%s has not been scraped: %s", container, targets)
			}
		}
		return nil
	})
	rules, _ := harness.Do(t, "GET", "http://"+l.address("PROMETHEUS")+"/api/v1/rules", "", nil).Field(t, "data").(map[string]any)
	if groups, _ := rules["groups"].([]any); len(groups) != 2 {
		t.Errorf("%d groups of rules; want 2", len(groups))
	}
}

func TestLocalEndsWhenAProcessDies(t *testing.T) {
	t.Parallel()
	l := startLocal(t, "", "PROMETHEUS_PORT=0", "SSL_CERT_FILE="+harness.Stack(t).CA.File)
	l.waitReady(t)
	if err := syscall.Kill(l.processes(t)["signer"], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := l.end(t); err == nil || !strings.Contains(l.text(), "signer ended: signal: killed") {
		t.Errorf("it ended with %v\n%s", err, l.text())
	}
}
