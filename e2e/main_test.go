// Package e2e proves the system from outside: the real binaries as processes,
// real Azurite, a real token exchange.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"cats.example/local/stack"
)

var (
	st        *stack.Stack  // nil where there is no Node.js, see needStand
	elsewhere *stack.System // one that runs already, see public; nil for systems of the tests' own
	binDir    string
	cat       []byte // a real picture
)

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

// testMain starts what all tests share, and returns the exit code.
func testMain(m *testing.M) int {
	if dir := os.Getenv(rotating); dir != "" {
		return rotate(dir)
	}
	if binDir = os.Getenv(isolated); binDir != "" {
		return m.Run()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "cats-e2e-")
	if err != nil {
		return fatal(err)
	}
	defer os.RemoveAll(dir)
	root, err := stack.FindRoot()
	if err != nil {
		return fatal(err)
	}
	if cat, err = os.ReadFile(filepath.Join(root, "e2e", "testdata", "cat.png")); err != nil {
		return fatal(err)
	}
	if url := os.Getenv("CATS_API_URL"); url != "" {
		if elsewhere, err = stack.Elsewhere(url, os.Getenv("CATS_STORAGE_URL"), os.Getenv("CATS_AZURITE_URL"), os.Getenv("CATS_CA_FILE")); err != nil {
			return fatal(err)
		}
		flag.Parse()
		_ = flag.Set("test.parallel", "1") // they all share its one container
		return m.Run()
	}
	binDir = filepath.Join(dir, "bin")
	flags := []string{"-race"}
	if os.Getenv("SOAK") != "" {
		flags = nil // what they hold is measured, and they are as they are in a pod
	}
	if err := stack.Build(ctx, root, binDir, flags...); err != nil {
		return fatal(err)
	}
	if _, err := exec.LookPath("node"); err != nil && os.Getenv("CI") == "" {
		return m.Run() // what needs no stand; the rest says that it is skipped
	}
	if err := stack.Install(ctx, root, filepath.Join(dir, "npm.log")); err != nil {
		return fatal(err)
	}
	if st, err = stack.New(ctx, stack.Options{Root: root, Dir: dir}); err != nil {
		return fatal(err)
	}
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = f.Value.Set("8") // the tests wait more than they work
	}
	code := m.Run()
	endBrowser()
	if err := endFaults(); err != nil {
		code = fatal(err)
	}
	if err := st.Close(context.WithoutCancel(ctx)); err != nil {
		return fatal(err)
	}
	return code
}

func fatal(err error) int {
	fmt.Fprintln(os.Stderr, "e2e:", err)
	return 1
}

var containers atomic.Int64

// own skips a test that needs processes or files of its own when the suite runs
// against a system elsewhere.
func own(t *testing.T) {
	t.Helper()
	if elsewhere != nil {
		t.Skip("looks beyond the public API, which is all that there is of a system elsewhere")
	}
}

// public returns a system that has stored nothing yet, of which the test uses the
// public API, the links, and what is in its container: one of its own, or the one
// at CATS_API_URL: its signed URLs lead to CATS_STORAGE_URL, and CATS_AZURITE_URL is the account at Azurite itself, with the
// certificate in CATS_CA_FILE.
func public(t *testing.T) *stack.System {
	t.Helper()
	if elsewhere == nil {
		return start(t, stack.SystemOptions{})
	}
	if err := elsewhere.Empty(t.Context()); err != nil {
		t.Fatal(err)
	}
	return elsewhere
}

// needStand skips a test of a whole system of its own on a laptop that has no
// Node.js, and where the suite runs against one elsewhere.
func needStand(t *testing.T) {
	t.Helper()
	own(t)
	if st == nil {
		t.Skip("needs Node.js 20 or newer with npm, for Azurite: there is no node in PATH")
	}
}

// start returns a system of the test's own, with a container of its own, that is
// ready unless opts say otherwise. It must stop cleanly when the test ends.
func start(t *testing.T, opts stack.SystemOptions) *stack.System {
	t.Helper()
	needStand(t)
	opts.Container = fmt.Sprintf("e2e-%d", containers.Add(1))
	unlimited := map[string]string{"RATE_LIMIT": "0", "CLIENT_SHARE": "0"} // all tests come from one address
	opts.FrontendEnv = over(unlimited, opts.FrontendEnv)
	unlimited["EXISTENCE_CACHE_TTL"] = "0s" // most tests are about what storage says now
	opts.SignerEnv = over(unlimited, opts.SignerEnv)
	opts.Frontend, opts.Signer = filepath.Join(binDir, "frontend"), filepath.Join(binDir, "signer")
	sys, err := st.StartSystem(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sys.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("stopping: %v", err)
		}
	})
	return sys
}

// over returns defaults with what env has over them.
func over(defaults, env map[string]string) map[string]string {
	all := maps.Clone(defaults)
	maps.Copy(all, env)
	return all
}

// answer is what came back for a request, read whole.
type answer struct {
	*http.Response
	body []byte
}

// field returns one field of a JSON answer, nil when it is not there.
func (a answer) field(t *testing.T, name string) any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(a.body, &m); err != nil {
		t.Fatalf("%s %s: %d %q is not JSON: %v", a.Request.Method, a.Request.URL.Path, a.StatusCode, a.body, err)
	}
	return m[name]
}

// client follows no redirects and trusts the stand's CA.
func client() *http.Client {
	if elsewhere != nil {
		return elsewhere.Client()
	}
	return st.Client()
}

// try sends one request on a connection of its own, which it closes; the body may be nil. Above two times MAX_UPLOADS open
// connections, the frontend ends those that a test wants to keep.
func try(ctx context.Context, method, url, contentType string, body io.Reader) (answer, error) {
	c := client()
	defer c.CloseIdleConnections()
	return tryWith(ctx, c, method, url, contentType, body)
}

// tryWith is try by a client of the test's own.
func tryWith(ctx context.Context, c *http.Client, method, url, contentType string, body io.Reader) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return answer{}, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := c.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp, b}, err
}

// do is try that must get an answer.
func do(t *testing.T, method, url, contentType string, body []byte) answer {
	t.Helper()
	a, err := try(t.Context(), method, url, contentType, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// want checks the status of an answer.
func (a answer) want(t *testing.T, status int) answer {
	t.Helper()
	if a.StatusCode != status {
		t.Fatalf("%s %s: %d %s; want %d", a.Request.Method, a.Request.URL.Path, a.StatusCode, a.body, status)
	}
	return a
}

// put stores content as the picture of user, through the public API.
func put(t *testing.T, sys *stack.System, user string, content []byte) {
	t.Helper()
	do(t, http.MethodPut, sys.URL+"/cat/"+user, "", content).want(t, http.StatusOK)
}

// served returns the picture of user as a browser would get it.
func served(t *testing.T, sys *stack.System, user string) []byte {
	t.Helper()
	url, _ := do(t, http.MethodGet, sys.URL+"/cat/"+user, "", nil).want(t, http.StatusOK).field(t, "picture_url").(string)
	return do(t, http.MethodGet, url, "", nil).want(t, http.StatusOK).body
}
