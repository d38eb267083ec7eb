package cats

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"unicode/utf8"

	"github.com/creack/pty"
	"github.com/google/go-cmp/cmp"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// recorder is a server that keeps the method, host and Authorization of each request.
type recorder struct {
	*httptest.Server
	mu   sync.Mutex
	seen []string
}

func newRecorder(t *testing.T, answer http.HandlerFunc) *recorder {
	t.Helper()
	r := &recorder{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		r.seen = append(r.seen, strings.TrimSpace(req.Method+" "+req.Host+" "+req.Header.Get("Authorization")))
		r.mu.Unlock()
		if answer != nil {
			answer(w, req)
		}
	}))
	t.Cleanup(r.Close)
	return r
}

// requests returns what was seen since the last call.
func (r *recorder) requests() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := r.seen
	r.seen = nil
	return seen
}

// hostileText can control a terminal: as bytes, and as escapes of JSON. JSON allows all of it in a string.
const hostileText = "\x7f\u0080\u009b2J\u202egnp.\u2066\u200f\u2028\xff\xc2" + `\u001b]0;x\u0007\u009b31m\r\n\u0000\u202d`

// harmless fails the test if text holds what can control a terminal, beyond the newline at the ends of lines.
func harmless(t *testing.T, what, text string) {
	t.Helper()
	if !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool {
		return r < ' ' && r != '\n' || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 || r == 0x200f || r == 0x2028
	}) {
		t.Errorf("%s: the terminal gets %q", what, text)
	}
}

func TestCatsEscapesTextOfTheServer(t *testing.T) {
	t.Parallel()
	harness.NeedOwnSystem(t)
	document := func(status int, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Retry-After", "\u009b1")
			w.WriteHeader(status)
			fmt.Fprint(w, strings.ReplaceAll(text, "BAD", hostileText))
		}
	}
	picture := `{"owner":{"name":"BAD"},` + "\r\n\t" + `"picture_url":"https://a.example/\u009b31m\u202e` + "\u009b\u202e" + `?x=BAD",` +
		`"etag":"BAD","content_type":"image/pngBAD","size":3,"BAD":"BAD"}`
	picture = strings.Replace(picture, "?x=BAD", "?x=\u0085\u2029", 1) // others are in no URL
	stored := strings.Replace(picture, `"picture_url":"https`, `"other":"https`, 1)
	problem := `{"type":"about:blank","title":"BAD","status":404,"detail":"no BAD","code":"BAD","request_id":"BAD"}`
	statusLine := func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprintf(conn, "HTTP/1.1 418 a\x1b[31m\x7f\u009b\xff\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
	}
	noHTTP := func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprintf(conn, "\x1b[31m\x7f\u009b\xff\r\n\r\n")
	}
	for _, c := range []struct {
		what   string
		answer http.HandlerFunc
		args   []string
		code   int
	}{
		{"a link", document(200, picture), []string{"url", "mia"}, 0},
		{"a stored picture", document(200, stored), []string{"put", "mia", "-"}, 0},
		{"a deletion", document(404, problem), []string{"rm", "mia"}, 3},
		{"a lookup", document(404, problem), []string{"url", "mia"}, 3},
		{"a rejected upload", document(422, problem), []string{"put", "mia", "-"}, 4},
		{"an outage", document(503, problem), []string{"url", "mia", "--retries", "1"}, 7},
		{"no document", document(500, "BAD"), []string{"url", "mia"}, 1},
		{"a document of another kind", document(200, `{"owner":"BAD","size":"BAD"}`), []string{"url", "mia"}, 1},
		{"a foreign scheme", document(200, `{"picture_url":"x-y.z:BAD"}`), []string{"url", "mia"}, 1},
		{"a status line", statusLine, []string{"url", "mia"}, 1},
		{"no HTTP", noHTTP, []string{"url", "mia", "--retries", "0"}, 7},
	} {
		s := newShell(t, newRecorder(t, c.answer).URL)
		for _, form := range []string{"--quiet=false", "--json"} {
			got := s.with(bytes.NewReader(harness.Cat), append(c.args, form)...)
			harmless(t, c.what+" "+form, got.out+got.stderr)
			if got.code != c.code || got.out == "" && (form == "--json" || c.code == 0) {
				t.Errorf("%s %s: exit code %d, %q, %q; want %d", c.what, form, got.code, got.out, got.stderr, c.code)
			}
			if form == "--json" {
				got.keys(t)
			}
		}
	}

	// The escaped document means the same.
	got := newShell(t, newRecorder(t, document(404, problem)).URL).cats("url", "mia", "--json").want(t, 3)
	var before, after map[string]any
	if json.Unmarshal([]byte(strings.ReplaceAll(problem, "BAD", hostileText)), &before) != nil || json.Unmarshal([]byte(got.out), &after) != nil {
		t.Fatalf("%q is not JSON", got.out)
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Error(diff)
	}
}

// Storage is as hostile as the service: it answers through its own status line, code and request ID.
func TestCatsEscapesTextOfStorage(t *testing.T) {
	t.Parallel()
	harness.NeedOwnSystem(t)
	for _, body := range []string{"<Error><Code>a\u009b31m\u202e&#x7f;&#x85;</Code></Error>", "\x1b[2J", ""} {
		storage := newRecorder(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Ms-Request-Id", "\u009b\u202e\xff")
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, body)
		})
		service := newRecorder(t, func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"picture_url":"%s/x","etag":"1","content_type":"image/png","size":1}`, storage.URL)
		})
		s := newShell(t, service.URL)
		for _, form := range []string{"--quiet=false", "--json"} {
			got := s.cats("get", "mia", form).want(t, 3, "storage answers 404")
			harmless(t, body+" "+form, got.out+got.stderr)
		}
	}
}

func TestCatsWritesNoPictureToATerminal(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	harness.Put(t, sys, "mia", harness.Cat)
	s := newShell(t, sys.URL)
	for _, to := range []string{"-", "/dev/stdout", "/dev/tty"} {
		master, terminal, err := pty.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer master.Close()
		if to == "/dev/tty" {
			to = terminal.Name()
		}
		cmd := s.command("get", "mia", to)
		cmd.Stdout = terminal
		shown := make(chan int)
		go func() {
			n, _ := io.Copy(io.Discard, master) // its end is an error on Linux
			shown <- int(n)
		}()
		got := s.runs(cmd, nil, nil)
		_ = terminal.Close()
		if n := <-shown; n > 0 {
			t.Errorf("get to %s: the terminal gets %d bytes", to, n)
		}
		got.want(t, 2, "terminal")
	}
}

func TestCatsRejectsPictureURLsOfOtherSchemes(t *testing.T) {
	t.Parallel()
	harness.NeedOwnSystem(t)
	foreign := newRecorder(t, nil)
	at := strings.TrimPrefix(foreign.URL, "http://")
	for link, part := range map[string]string{
		"javascript:alert(1)": `"javascript"`, "file:///etc/passwd": `"file"`, "data:text/html,secret": `"data"`, "ftp://" + at + "/x": `"ftp"`,
		"gopher://" + at: `"gopher"`, "//" + at + "/x": `""`, "/x": `""`, "": `""`,
		"http://user:secret@" + at: "user name", "https://user@" + at + "/x": "user name", `http://a\u001b[31m`: "no URL",
	} {
		s := newShell(t, newRecorder(t, func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"owner":{"name":"mia"},"picture_url":"%s","etag":"1","content_type":"image/png","size":1}`, link)
		}).URL)
		for _, args := range [][]string{{"url", "mia"}, {"get", "mia"}, {"get", "mia", "-"}, {"put", "mia", "-"}} {
			if args[0] == "put" && link == "" {
				continue // as it is of a real upload
			}
			s.with(bytes.NewReader(harness.Cat), args...).want(t, 1, part)
			if args[len(args)-1] == "-" && args[0] == "get" {
				continue
			}
			got := s.with(bytes.NewReader(harness.Cat), append(args, "--json")...).want(t, 1, part)
			if got.keys(t); link != "" && link != "/x" && strings.Contains(got.out+got.stderr, link) {
				t.Errorf("%q with %q: %q, %q", args, link, got.out, got.stderr)
			}
		}
		if left := s.files(); len(left) > 0 {
			t.Errorf("%q: left %q", link, left)
		}
	}
	if seen := foreign.requests(); len(seen) > 0 {
		t.Errorf("fetched: %q", seen)
	}

	// encoding/json reads the last key of any case, other programs read the exact one.
	for _, keys := range []string{
		`"picture_url":"javascript:alert(1)","PICTURE_URL":"https://a.example/x"`,
		`"Picture_Url":"javascript:alert(1)","picture_url":"https://a.example/x"`,
		`"picture_url":"javascript:alert(1)","picture_url":"https://a.example/x"`,
	} {
		s := newShell(t, newRecorder(t, func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"owner":{"name":"mia"},%s,"etag":"1","content_type":"image/png","size":12345678901234567}`, keys)
		}).URL)
		for _, args := range [][]string{{"url", "mia", "--json"}, {"put", "mia", "-", "--json"}} {
			got := s.with(bytes.NewReader(harness.Cat), args...).want(t, 0)
			if strings.Contains(got.out, "javascript") || !strings.Contains(got.out, `"picture_url":"https://a.example/x"`) || !strings.Contains(got.out, `"size":12345678901234567`) {
				t.Errorf("%s: %q prints %s", keys, args, got.out)
			}
		}
	}
}

func TestCatsSendsPicturesToStorageOnly(t *testing.T) {
	t.Parallel()
	harness.NeedOwnSystem(t)
	type answers struct {
		upload, origin string
		blocks         int // size of a block
		redirect       int // status of storage
	}
	var now atomic.Pointer[answers]
	foreign := newRecorder(t, nil)
	storage := newRecorder(t, func(w http.ResponseWriter, r *http.Request) {
		if status := now.Load().redirect; status > 0 {
			http.Redirect(w, r, foreign.URL, status)
		}
	})
	service := newRecorder(t, func(w http.ResponseWriter, r *http.Request) {
		is := now.Load()
		switch {
		case r.URL.Path == "/about":
			fmt.Fprintf(w, `{"max_picture_size":1,"max_direct_size":1000000,"storage_origin":%q}`, is.origin)
		case strings.HasSuffix(r.URL.Path, "/upload"):
			fmt.Fprintf(w, `{"id":"a","upload_url":%q,"expires_at":"2100-01-01T00:00:00Z","block_size":%d}`, is.upload, is.blocks)
		default:
			fmt.Fprint(w, `{"owner":{"name":"mia"},"etag":"1","content_type":"image/png","size":1}`)
		}
	})
	s := newShell(t, service.URL)
	s.write("cat.png", harness.Cat)
	at := strings.TrimPrefix(storage.URL, "http://")
	_, port, _ := strings.Cut(at, ":")
	for _, c := range []answers{
		{upload: foreign.URL + "/x?sig=1", origin: storage.URL},
		{upload: "https://" + at + "/x?sig=1", origin: storage.URL},
		{upload: "http://localhost:" + port + "/x?sig=1", origin: storage.URL},
		{upload: "http://127.0.0.1/x?sig=1", origin: storage.URL},
		{upload: "http://" + at + "@" + strings.TrimPrefix(foreign.URL, "http://") + "/x?sig=1", origin: storage.URL},
		{upload: "http://secret@" + at + "/x?sig=1", origin: storage.URL},
		{upload: "file:///x?sig=1", origin: storage.URL},
		{upload: "", origin: storage.URL},
		{upload: storage.URL + "/x?sig=1", origin: foreign.URL},
		{upload: storage.URL + "/x?sig=1", origin: ""},
	} {
		now.Store(&c)
		for _, form := range []string{"--quiet=false", "--json"} {
			got := s.cats("put", "mia", "cat.png", form).want(t, 1)
			if !strings.Contains(got.stderr, "upload_url") && !strings.Contains(got.stderr, "storage_origin") || strings.Contains(got.out+got.stderr, "secret") {
				t.Errorf("%v %s: %q, %q", c, form, got.out, got.stderr)
			}
		}
	}
	if seen := append(storage.requests(), foreign.requests()...); len(seen) > 0 || len(s.kept()) > 0 {
		t.Errorf("sent: %q; kept: %q", seen, s.kept())
	}

	here := answers{upload: storage.URL + "/x?sig=1", origin: storage.URL}
	for _, status := range []int{301, 302, 303, 307, 308} {
		redirecting := here
		redirecting.redirect = status
		now.Store(&redirecting)
		s.cats("put", "mia", "cat.png").want(t, 1, fmt.Sprintf("storage answers %d", status))
	}
	if seen := foreign.requests(); len(seen) > 0 {
		t.Errorf("sent after a redirect: %q", seen)
	}
	now.Store(&here)
	s.cats("put", "mia", "cat.png").want(t, 0)

	// An upload URL that an earlier command remembered is at another origin now.
	now.Store(&answers{upload: here.upload, origin: here.origin, blocks: len(harness.Cat) / 2, redirect: 307})
	s.cats("put", "mia", "cat.png").want(t, 1, "goes on from there")
	if len(s.kept()) != 1 {
		t.Fatalf("kept: %q", s.kept())
	}
	storage.requests()
	foreign.requests()
	now.Store(&answers{upload: foreign.URL + "/x?sig=1", origin: foreign.URL, blocks: len(harness.Cat) / 2})
	s.cats("put", "mia", "cat.png").want(t, 0)
	if old, now := storage.requests(), foreign.requests(); len(old) > 0 || len(now) < 3 {
		t.Errorf("the storage of before got %q, the one of now %q", old, now)
	}
}

func TestCatsSendsNoTokenInTheClear(t *testing.T) {
	t.Parallel()
	harness.NeedOwnSystem(t)
	const link = `{"picture_url":"https://a.example/x"}`
	answer := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, link) }
	proxy, service := newRecorder(t, answer), newRecorder(t, answer)
	port := service.URL[strings.LastIndex(service.URL, ":"):]
	const auth = "Bearer secret-token"
	through := []string{"HTTP_PROXY=" + proxy.URL, "HTTPS_PROXY=" + proxy.URL}
	s := newShell(t, service.URL, append(through, "CATS_TOKEN=secret-token")...)
	filed := newShell(t, service.URL, through...)
	filed.write("token", []byte("secret-token\n"))
	none := newShell(t, service.URL, through...)
	for _, host := range []string{"cats.example", "cats.example:8080", "192.0.2.1", "10.0.0.1:8080", "[2001:db8::1]", "0.0.0.0", "localhost.example", "127.0.0.1.example", "127.1"} {
		server := "http://" + host
		for _, got := range []printed{
			s.cats("url", "mia", "--server", server), s.cats("url", "mia", "--json", "--server", server), s.cats("get", "mia", "--server", strings.ToUpper(server)),
			filed.cats("url", "mia", "--token-file", "token", "--server", server),
		} {
			got.want(t, 2, "https", "--insecure")
			if strings.Contains(got.out+got.stderr, "secret-token") {
				t.Errorf("%s: %q, %q", host, got.out, got.stderr)
			}
		}
		if seen := proxy.requests(); len(seen) > 0 {
			t.Fatalf("%s: sent %q", host, seen)
		}
		s.cats("url", "mia", "--insecure", "--server", server).want(t, 0)
		filed.cats("url", "mia", "--insecure", "--token-file", "token", "--server", server).want(t, 0)
		none.cats("url", "mia", "--server", server).want(t, 0)
		if diff := cmp.Diff([]string{"GET " + host + " " + auth, "GET " + host + " " + auth, "GET " + host}, proxy.requests()); diff != "" {
			t.Errorf("%s: the proxy got (- want, + got):\n%s", host, diff)
		}
	}
	// This machine, without the proxy: a resolver or a proxy elsewhere would get the token.
	for _, host := range []string{"localhost", "LOCALHOST", "127.0.0.1", "cats.localhost", "a.b.localhost"} {
		s.cats("url", "mia", "--server", "http://"+host+port).want(t, 0)
		if diff := cmp.Diff([]string{"GET " + host + port + " " + auth}, service.requests()); diff != "" {
			t.Errorf("%s (- want, + got):\n%s", host, diff)
		}
	}
	// HTTPS to another machine is allowed: the proxy sees no more than the host.
	s.cats("url", "mia", "--retries", "0", "--server", "https://cats.example").want(t, 7)
	if diff := cmp.Diff([]string{"CONNECT cats.example:443"}, proxy.requests()); diff != "" {
		t.Error(diff)
	}

	for _, status := range []int{301, 302, 303, 307, 308} {
		secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, service.URL+r.URL.Path, status)
		}))
		defer secure.Close()
		ca := filepath.Join(s.dir, fmt.Sprintf("%d.pem", status))
		s.write(filepath.Base(ca), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}))
		trusting := newShell(t, secure.URL, "CATS_TOKEN=secret-token", "SSL_CERT_FILE="+ca)
		trusting.cats("url", "mia").want(t, 1, fmt.Sprint(status))
		trusting.with(bytes.NewReader(harness.Cat), "put", "mia", "-").want(t, 1, fmt.Sprint(status))
	}
	if seen := service.requests(); len(seen) > 0 {
		t.Errorf("sent after a redirect: %q", seen)
	}
}
