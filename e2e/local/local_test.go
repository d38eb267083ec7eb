// Package local tests the local stack of make run, and the account that it serves.
package local

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
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
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// buildEnv makes builds independent of the folder and of git, so that bin/local finds the programs of localBinaries up to date.
var buildEnv = append(os.Environ(), "GOFLAGS=-buildvcs=false", "GOWORK=off")

// localBinaries returns a folder with bin/local and the programs that it builds.
var localBinaries = sync.OnceValues(func() (string, error) {
	dir := harness.Root("bin", "e2e-local")
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	for _, program := range []string{"local", "signer", "frontend", "cats"} {
		build := exec.CommandContext(ctx, "go", "-C", harness.Root(program), "build", "-o", filepath.Join(dir, program), ".")
		build.Env, build.WaitDelay = buildEnv, time.Second
		if out, err := build.CombinedOutput(); err != nil {
			return "", fmt.Errorf("building %s: %w\n%s", program, err, out)
		}
	}
	return dir, nil
})

// localStack is bin/local as make run starts it, with a folder and ports of its own.
type localStack struct {
	*exec.Cmd
	port  map[string]string
	ended chan struct{}
	err   error // of the process; read after ended

	mu     sync.Mutex
	output string
}

// newLocal returns a stack that is not started, with more variables.
func newLocal(t *testing.T, more ...string) *localStack {
	t.Helper()
	harness.NeedStack(t)
	bin, err := localBinaries()
	if err != nil {
		t.Fatal(err)
	}
	//lint:ignore noctx the test stops it by a signal
	l := &localStack{Cmd: exec.Command("bin/local"), port: map[string]string{}, ended: make(chan struct{})}
	l.Dir, l.Env = t.TempDir(), slices.Clone(buildEnv)
	err = os.Symlink(bin, filepath.Join(l.Dir, "bin"))
	for _, name := range []string{"cats", "frontend", "k8s", "local", "shared", "signer"} {
		err = errors.Join(err, os.Symlink(harness.Root(name), filepath.Join(l.Dir, name)))
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"FRONTEND", "FRONTEND_OPS", "SIGNER", "SIGNER_OPS", "STORAGE", "PROMETHEUS"} {
		l.port[name] = harness.FreePort(t)
		l.Env = append(l.Env, name+"_PORT="+l.port[name])
	}
	l.Env = append(l.Env, more...)
	return l
}

// start starts the stack. It reads the output up to a line with last, "" for all, and closes the pipe.
func (l *localStack) start(t *testing.T, last string) *localStack {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	l.Stdout, l.Stderr = w, w
	if err := l.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
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
		l.err = l.Wait()
		select {
		case <-read:
		case <-time.After(5 * time.Second): // a process that it has left running has the pipe
		}
		close(l.ended)
	}()
	t.Cleanup(func() {
		_ = l.Process.Signal(syscall.SIGTERM)
		_ = l.end(t)
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
		_ = l.Process.Kill()
		t.Fatalf("it does not end\n%s", l.text())
	}
	harness.Eventually(t, func() error { // the kernel ends them if bin/local is killed
		if left := l.processes(t); len(left) > 0 {
			return fmt.Errorf("processes are left: %v", left)
		}
		return nil
	})
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
		if dir, err := os.Readlink(link); err == nil && strings.HasPrefix(dir, l.Dir) {
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
			l := newLocal(t, "PROMETHEUS_PORT=0").start(t, last)
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
	l := newLocal(t, "OIDC_ISSUER="+p.Issuer, "OIDC_AUDIENCE="+harness.Audience, "SSL_CERT_DIR=/nowhere:"+dir,
		"AZURE_CLIENT_SECRET=mew") // with which the frontend would not start
	l.start(t, "").waitReady(t)
	token := p.Token(t, "mia", harness.Audience)
	picture := harness.Random(16<<20, 1) // more than the buffers of a connection
	harness.SendAs(t, "", "PUT", l.url("/cat/mia"), picture).Want(t, 401)
	harness.SendAs(t, token, "PUT", l.url("/cat/mia"), picture).Want(t, 200)
	signed := harness.SendAs(t, token, "GET", l.url("/cat/mia/picture"), nil).Want(t, 307).Header.Get("Location")
	for range 5 { // aborted; the kernel sends SIGPIPE for a write to a connection that the client has closed
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, signed, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := harness.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close() // unread
	}
	if got := harness.Do(t, "GET", signed, "", nil).Want(t, 200).Body; !bytes.Equal(got, picture) {
		t.Errorf("downloaded %d bytes; want the picture", len(got))
	}
	if strings.Contains(l.text(), "http://"+l.address("PROMETHEUS")+"/targets") {
		l.wantScraped(t)
	} else if os.Getenv("CI") != "" {
		t.Error("Prometheus has not started; it is Debian's package prometheus")
	}
	for _, name := range []string{"frontend", "signer"} {
		harness.WantNoFaults(t, filepath.Join(l.Dir, ".local", "logs", name+".log"), t.Errorf)
	}
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} { // as make and the terminal do
		_ = l.Process.Signal(s)
	}
	if err := l.end(t); err != nil || !strings.Contains(l.text(), "stopping") {
		t.Errorf("it ended with %v\n%s", err, l.text())
	}
}

// wantScraped waits until Prometheus has scraped both containers and has loaded the rules.
func (l *localStack) wantScraped(t *testing.T) {
	t.Helper()
	api := "http://" + l.address("PROMETHEUS") + "/api/v1/"
	harness.Eventually(t, func() error {
		up := harness.Do(t, "GET", api+`query?query=count(up{namespace="cats-api",container=~"frontend|signer"}==1)`, "", nil).Want(t, 200).Body
		rules := harness.Do(t, "GET", api+"rules", "", nil).Want(t, 200).Body
		if !bytes.Contains(up, []byte(`,"2"]`)) || !bytes.Contains(rules, []byte(`"name":"cats-api-alerts"`)) {
			return fmt.Errorf("scraped: %s; rules: %.300s", up, rules)
		}
		return nil
	})
}

func TestLocalEndsWhenAProcessDies(t *testing.T) {
	t.Parallel()
	for program, says := range map[string]string{
		"signer": "signer ended: signal: killed",
		"local":  "", // all others end with it
	} {
		t.Run(program, func(t *testing.T) {
			t.Parallel()
			l := newLocal(t, "PROMETHEUS_PORT=0", "SSL_CERT_FILE="+harness.Stack(t).CA.File).start(t, "")
			l.waitReady(t)
			if err := syscall.Kill(l.processes(t)[program], syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if err := l.end(t); err == nil || !strings.Contains(l.text(), says) {
				t.Errorf("it ended with %v\n%s", err, l.text())
			}
		})
	}
}

func TestLocalReportsAFailedStart(t *testing.T) {
	t.Parallel()
	for says, env := range map[string]string{`LINK_TTL is "soon"`: "LINK_TTL=soon", "signer.log: no space left on device": ""} {
		t.Run(says, func(t *testing.T) {
			t.Parallel()
			l := newLocal(t, "PROMETHEUS_PORT=0", env)
			logs := filepath.Join(l.Dir, ".local", "logs")
			err := os.MkdirAll(logs, 0o700)
			if env == "" {
				err = errors.Join(err, os.Symlink("/dev/full", filepath.Join(logs, "signer.log")))
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := l.start(t, "").end(t); err == nil || !strings.Contains(strings.ReplaceAll(l.text(), `\"`, `"`), says) {
				t.Errorf("it ended with %v\n%s", err, l.text())
			}
		})
	}
}
