package cats

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// shell runs the command cats, each test in a folder of its own.
type shell struct {
	t   *testing.T
	dir string
	env []string
}

func newShell(t *testing.T, server string, env ...string) *shell {
	t.Helper()
	dir := t.TempDir()
	return &shell{t, dir, append([]string{
		"GORACE=atexit_sleep_ms=0", "CATS_SERVER=" + server, "HOME=" + dir, "XDG_CACHE_HOME=" + filepath.Join(dir, "cache"), "PATH=" + harness.BinDir(t) + ":" + os.Getenv("PATH"),
	}, env...)}
}

func (s *shell) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(s.t.Context(), filepath.Join(harness.BinDir(s.t), "cats"), args...)
	cmd.Dir, cmd.Env = s.dir, s.env
	return cmd
}

// printed is what a command has printed.
type printed struct {
	code        int
	out, stderr string
}

// with runs a command to its end.
func (s *shell) with(stdin io.Reader, args ...string) printed {
	s.t.Helper()
	cmd := s.command(args...)
	cmd.Stdin = stdin
	return s.runs(cmd, nil, nil)
}

// runs runs a command to its end, and sends it a signal once ready is closed.
func (s *shell) runs(cmd *exec.Cmd, by os.Signal, ready <-chan struct{}) printed {
	s.t.Helper()
	var out, stderr strings.Builder
	cmd.Stderr, cmd.WaitDelay = &stderr, time.Second
	if cmd.Stdout == nil {
		cmd.Stdout = &out
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // its exit code is looked at
		close(ended)
	}()
	select {
	case <-ready:
		_ = cmd.Process.Signal(by) // gone, which the exit code tells
		<-ended
	case <-ended:
	}
	got := printed{cmd.ProcessState.ExitCode(), out.String(), stderr.String()}
	if strings.Contains(got.stderr, "sig=") || strings.Contains(got.stderr, "DATA RACE") {
		s.t.Errorf("%q says %s", cmd.Args, got.stderr)
	}
	return got
}

func (s *shell) cats(args ...string) printed { s.t.Helper(); return s.with(nil, args...) }

// want checks the exit code, and that stderr has these parts.
func (g printed) want(t *testing.T, code int, parts ...string) printed {
	t.Helper()
	if g.code != code || code > 0 && strings.Count(g.stderr, "\n") != 1 {
		t.Fatalf("exit code %d, %q; want %d, and one line where it is not 0", g.code, g.stderr, code)
	}
	for _, p := range parts {
		if !strings.Contains(g.stderr, p) {
			t.Errorf("%q does not say %q", g.stderr, p)
		}
	}
	return g
}

// keys returns the fields of the one JSON object on stdout.
func (g printed) keys(t *testing.T) []string {
	t.Helper()
	var fields map[string]any
	if err := json.Unmarshal([]byte(g.out), &fields); err != nil || strings.Count(g.out, "\n") != 1 {
		t.Fatalf("%q: %v", g.out, err)
	}
	return slices.Sorted(maps.Keys(fields))
}

func (s *shell) write(name string, content []byte) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), content, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *shell) holds(name string, content []byte) {
	s.t.Helper()
	if got, err := os.ReadFile(filepath.Join(s.dir, name)); err != nil || !bytes.Equal(got, content) {
		s.t.Errorf("%s has %d bytes, others than the %d that it should; %v", name, len(got), len(content), err)
	}
}

// files are those in the folder, and what is kept of uploads.
func (s *shell) files() []string {
	s.t.Helper()
	here, err := filepath.Glob(filepath.Join(s.dir, "*.*"))
	if err != nil {
		s.t.Fatal(err)
	}
	hidden, err := filepath.Glob(filepath.Join(s.dir, ".*"))
	if err != nil {
		s.t.Fatal(err)
	}
	var names []string
	for _, f := range append(here, hidden...) {
		names = append(names, filepath.Base(f))
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (s *shell) kept() []string {
	s.t.Helper()
	found, err := filepath.Glob(filepath.Join(s.dir, "cache", "cats", "*"))
	if err != nil {
		s.t.Fatal(err)
	}
	return found
}

func TestTheCommandStoresFetchesLinksAndDeletes(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	s := newShell(t, sys.URL)
	s.write("cat.png", harness.Cat)
	s.cats("put", "Мурчик 2", "cat.png").want(t, 0)
	if !bytes.Equal(harness.Served(t, sys, url.PathEscape("Мурчик 2")), harness.Cat) {
		t.Error("another picture is stored")
	}
	s.cats("get", "Мурчик 2").want(t, 0)
	s.holds("Мурчик 2.png", harness.Cat)

	other := append(bytes.Clone(harness.Cat), "another one"...)
	if got := s.with(bytes.NewReader(other), "put", "mia", "-", "--quiet").want(t, 0); got.out+got.stderr != "" {
		t.Errorf("--quiet: %q, %q", got.out, got.stderr)
	}
	if got := s.cats("get", "mia", "-").want(t, 0); got.out != string(other) || got.stderr != "" {
		t.Errorf("%d bytes on stdout, %q", len(got.out), got.stderr)
	}
	file, err := os.Open(filepath.Join(s.dir, "cat.png"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	s.with(file, "put", "tom", "-").want(t, 0)
	if !bytes.Equal(harness.Served(t, sys, "tom"), harness.Cat) {
		t.Error("of stdin that is a file, another picture is stored")
	}

	// No file is replaced, or left behind, unless somebody asks for it.
	s.write("mia.png", []byte("mine"))
	s.cats("get", "mia").want(t, 6, "mia.png", "--force")
	s.cats("get", "mia", "mia.png").want(t, 6, "mia.png")
	s.holds("mia.png", []byte("mine"))
	s.cats("get", "mia", "--force").want(t, 0)
	s.holds("mia.png", other)
	s.cats("get", "nobody").want(t, 3)
	s.cats("get", "mia", "/dev/null").want(t, 0)
	if diff := cmp.Diff([]string{"cat.png", "mia.png", "Мурчик 2.png"}, s.files()); diff != "" {
		t.Error(diff)
	}

	link := s.cats("url", "mia", "--ttl", "10m", "--download", "x.png").want(t, 0).out
	if got := harness.Do(t, "GET", strings.TrimSpace(link), "", nil).Want(t, 200); !bytes.Equal(got.Body, other) || !strings.Contains(got.Header.Get("Content-Disposition"), "x.png") {
		t.Errorf("the link serves %d bytes, %v", len(got.Body), got.Header)
	}

	picture := []string{"content_md5", "content_type", "etag", "owner", "size"}
	for _, c := range []struct {
		args []string
		code int
		keys []string
	}{
		{[]string{"put", "mia", "cat.png"}, 0, picture},
		{[]string{"get", "mia", "copy.png"}, 0, slices.Sorted(slices.Values(append([]string{"file"}, picture...)))},
		{[]string{"url", "mia"}, 0, slices.Sorted(slices.Values(append([]string{"expires_at", "picture_url"}, picture...)))},
		{[]string{"rm", "mia"}, 0, []string{"deleted", "owner"}},
		{[]string{"rm", "mia"}, 3, []string{"code", "detail", "request_id", "status", "title", "type"}},
		{[]string{"get", "mia", "cat.png"}, 6, []string{"code", "detail", "title", "type"}},
		{[]string{"put", "mia"}, 2, []string{"code", "detail", "title", "type"}},
		{[]string{"mew"}, 2, []string{"code", "detail", "title", "type"}},
	} {
		if diff := cmp.Diff(c.keys, s.cats(append(c.args, "--json")...).want(t, c.code).keys(t)); diff != "" {
			t.Errorf("%q: %s", c.args, diff)
		}
	}
	s.holds("copy.png", harness.Cat)
	if got := s.cats("--version").want(t, 0); !strings.HasPrefix(got.out, "cats, version") {
		t.Errorf("--version says %q", got.out)
	}
}

func TestTheExitCodesAreThoseOfHelpAndOfTheReadme(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	s := newShell(t, sys.URL, "CATS_TOKEN=secret-token")
	s.write("cat.png", harness.Cat)
	s.write("text", []byte("no picture"))
	s.write("large.png", append(bytes.Clone(harness.Cat), make([]byte, 33<<20)...))
	s.cats("put", "mia", "cat.png").want(t, 0)
	etag := harness.Do(t, "GET", sys.URL+"/cat/mia", "", nil).Header.Get("ETag")
	closed := httptest.NewServer(nil)
	closed.Close()
	provoked := map[int]bool{0: true}
	for _, c := range []struct {
		args  []string
		code  int
		parts []string
	}{
		{[]string{"put", "mia", "nothing.png"}, 1, []string{"nothing.png"}},
		{[]string{"url", "mia", "--server", harness.Stack(t).FrontURL}, 1, []string{"not as a cats-api does", "--server"}},
		{[]string{"mew"}, 2, []string{"--help"}},
		{[]string{"put", "mia"}, 2, nil},
		{[]string{"put", "mia", "cat.png", "--mew"}, 2, nil},
		{[]string{"put", "mia", "cat.png", "--create", "--if-match", etag}, 2, nil},
		{[]string{"put", "mia", "cat.png", "--if-match", ""}, 2, nil}, // of a variable that nothing has filled
		{[]string{"rm", "mia", "--if-match="}, 2, nil},
		{[]string{"get", "mia", ""}, 2, nil},
		{[]string{"url", "mia", "--server", "localhost"}, 2, []string{"--server"}},
		{[]string{"url", ""}, 2, nil},
		{[]string{"url", "nobody"}, 3, []string{"Cat not found", "(request "}},
		{[]string{"rm", "nobody"}, 3, nil},
		{[]string{"put", "mia", "text"}, 4, []string{"(request "}},
		{[]string{"put", "a/b", "cat.png"}, 4, nil},
		{[]string{"url", ".."}, 4, []string{"user name"}},
		{[]string{"put", "mia", "large.png"}, 4, []string{"33554432"}},
		{[]string{"url", "mia", "--ttl", "forever"}, 4, []string{"ttl"}},
		{[]string{"put", "mia", "cat.png", "--create"}, 6, nil},
		{[]string{"put", "mia", "cat.png", "--if-match", `"0x1"`}, 6, nil},
		{[]string{"rm", "mia", "--if-match", "0x1"}, 6, nil}, // as a shell leaves it
		{[]string{"url", "mia", "--retries", "0", "--server", closed.URL}, 7, []string{"is it running? make run"}},
	} {
		got := s.cats(c.args...).want(t, c.code, c.parts...)
		provoked[c.code] = true
		if strings.Contains(got.out+got.stderr, "secret-token") {
			t.Errorf("%q: the token is in %q, %q", c.args, got.out, got.stderr)
		}
	}
	if !bytes.Equal(harness.Served(t, sys, "mia"), harness.Cat) {
		t.Error("the picture was changed")
	}
	s.cats("put", "tom", "cat.png", "--create").want(t, 0)
	s.cats("put", "mia", "cat.png", "--if-match", strings.Trim(etag, `"`)).want(t, 0)

	p := harness.StartProvider(t, "0")
	known := harness.Start(t, harness.WithAuthentication(p.Issuer, nil))
	mia := newShell(t, known.URL, "CATS_TOKEN="+p.Token(t, "mia", harness.Audience))
	mia.write("cat.png", harness.Cat)
	mia.write("token", []byte(p.Token(t, "tom", harness.Audience)+"\n"))
	mia.cats("put", "mia", "cat.png").want(t, 0)
	mia.cats("get", "mia").want(t, 0)
	mia.cats("url", "tom").want(t, 5)
	mia.cats("put", "tom", "cat.png", "--token-file", "token").want(t, 0) // it goes before the variable
	newShell(t, known.URL).cats("url", "mia").want(t, 5, "CATS_TOKEN")
	provoked[5] = true

	help, _, _ := strings.Cut(s.cats("--help").want(t, 0).out, "Usage:")
	table := harness.TableRows(harness.DocSection(t, "docs/cats.md", "## Exit codes"))
	for code := range 8 {
		if !provoked[code] {
			t.Errorf("the exit code %d was not provoked", code)
		}
		if !strings.Contains(help, fmt.Sprintf("\n  %d  ", code)) || len(table) != 8 || !strings.HasPrefix(table[code], fmt.Sprintf("| %d | ", code)) {
			t.Errorf("the exit code %d is not in the help, or not in docs/cats.md", code)
		}
	}
}

func TestTheCommandTriesAgainOnlyWhereThatIsSafe(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	later := func(code, after string) harness.Fault {
		return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("Retry-After", after)
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintf(w, `{"title":"x","status":503,"detail":"not now","code":%q}`, code)
		}
	}
	for _, c := range []struct {
		what   string
		args   []string
		faults []harness.Fault
		code   int
		asked  int
		took   time.Duration
	}{
		{"it asks to wait", []string{"url", "mia"}, []harness.Fault{later("overloaded", "1")}, 0, 2, time.Second},
		{"it asks to wait for long", []string{"url", "mia"}, []harness.Fault{later("overloaded", "3600")}, 7, 1, 0},
		{"it goes on for long", []string{"url", "mia", "--retries", "1"}, []harness.Fault{harness.Abort, harness.Abort, harness.Abort}, 7, 2, 0},
		{"an answer is lost", []string{"put", "mia", "cat.png"}, []harness.Fault{harness.Drop}, 0, 2, 0},
		{"the answer to a creation is lost", []string{"put", "new", "cat.png", "--create"}, []harness.Fault{harness.Drop}, 0, 3, 0}, // and a look
		{"a creation finds another's", []string{"put", "mia", "other.png", "--create"}, []harness.Fault{harness.Abort}, 6, 3, 0},
		{"a deletion is refused before it is done", []string{"rm", "mia"}, []harness.Fault{later("overloaded", "0")}, 0, 2, 0},
		{"a deletion has no answer", []string{"rm", "mia"}, []harness.Fault{harness.Drop}, 7, 1, 0},
		{"stdin was read", []string{"put", "mia", "-"}, []harness.Fault{harness.Drop}, 7, 1, 0},
	} {
		t.Run(c.what, func(t *testing.T) {
			harness.Put(t, sys, "mia", harness.Cat)
			var asked atomic.Int64
			s := newShell(t, harness.FaultProxy(t, sys.URL, harness.InTurn(&asked, c.faults, func(r *http.Request) bool { return r.URL.Path == "/about" })))
			s.write("cat.png", harness.Cat)
			s.write("other.png", append(bytes.Clone(harness.Cat), 1))
			began := time.Now()
			if got := s.with(bytes.NewReader(harness.Cat), append(c.args, "--quiet")...).want(t, c.code); int(asked.Load()) != c.asked || time.Since(began) < c.took {
				t.Errorf("asked %d times in %v; want %d, %v; %q", asked.Load(), time.Since(began), c.asked, c.took, got.stderr)
			}
		})
	}
}

// A link that breaks off, or serves other bytes than are stored.
func TestWhatTheCommandFetchesIsWhatIsStored(t *testing.T) {
	t.Parallel()
	harness.NeedStack(t)
	var mu sync.Mutex
	var ranges []string
	damage := false
	links := harness.FaultProxy(t, harness.Stack(t).FrontURL, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		mu.Lock()
		defer mu.Unlock()
		ranges = append(ranges, r.Header.Get("Range"))
		if len(ranges) > 1 && !damage {
			healthy.ServeHTTP(w, r)
			return
		}
		got := httptest.NewRecorder()
		healthy.ServeHTTP(got, r)
		body := got.Body.Bytes()
		maps.Copy(w.Header(), got.Header())
		w.WriteHeader(got.Code)
		if damage {
			body[len(body)/2] ^= 1
			_, _ = w.Write(body)
			return
		}
		_, _ = w.Write(body[:len(body)/2])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	sys := harness.Start(t, stack.SystemOptions{SignerEnv: map[string]string{"LINK_BASE_URL": links}})
	harness.Put(t, sys, "mia", harness.Cat)
	s := newShell(t, sys.URL)
	if got := s.cats("get", "mia", "-", "--quiet").want(t, 0); got.out != string(harness.Cat) {
		t.Errorf("%d bytes on stdout", len(got.out))
	}
	mu.Lock()
	if diff := cmp.Diff([]string{"", fmt.Sprintf("bytes=%d-", len(harness.Cat)/2)}, ranges); diff != "" {
		t.Error(diff)
	}
	damage = true
	mu.Unlock()
	s.cats("get", "mia").want(t, 1, "not the picture")
	if left := s.files(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}
