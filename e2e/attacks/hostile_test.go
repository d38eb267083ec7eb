package attacks

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// hostile is a frontend that somebody has taken over: it speaks to the signer's port
// as it likes, and storage keeps a record of what the signer then asks of it.
type hostile struct {
	sys     *stack.System
	address string
	secrets []string // that no answer may hold

	mu     sync.Mutex
	asked  int
	beyond []string // what the signer asked of storage outside of what it is for
}

// The secret is beside the pictures, in a container of its own.
const secretContainer, secretBlob = "hostile-secret", "boss/cat"

func newHostile(t *testing.T, env map[string]string) *hostile {
	t.Helper()
	storage := harness.NewStorageProxy(t)
	h := &hostile{}
	healthy := storage.Healthy
	storage.Healthy = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.record(r)
		healthy.ServeHTTP(w, r)
	})
	sys := harness.Start(t, stack.SystemOptions{StorageURL: storage.URL, FrontendEnv: map[string]string{"MAX_PICTURE_SIZE": env["MAX_PICTURE_SIZE"]}, SignerEnv: env})
	h.mu.Lock()
	h.sys = sys
	h.mu.Unlock()
	h.address = strings.TrimPrefix(h.sys.SignerAPI, "http://")
	token, err := os.ReadFile(h.sys.Token.Path())
	if err != nil || !bytes.HasPrefix(token, []byte(harness.JWTPrefix)) {
		t.Fatalf("the federated token: %d bytes, %v", len(token), err)
	}
	h.secrets = []string{
		harness.JWTPrefix, string(token), h.sys.Token.Path(), filepath.Dir(h.sys.Token.Path()), strings.TrimPrefix(storage.URL, "https://"),
		"AADSTS", "x-ms-", "X-Ms-", "<?xml", "RequestId", "AuthenticationFailed", "goroutine ", ".go:", "panic",
	}
	for _, v := range h.sys.Storage.Process.Environ() {
		if key, ok := strings.CutPrefix(v, "AZURITE_ACCOUNTS="+stack.Account+":"); ok {
			h.secrets = append(h.secrets, key)
		}
	}
	return h
}

// record keeps what is beyond the calls of the contract, in whatever way they were made.
func (h *hostile) record(r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked++
	say := func(what string) {
		h.beyond = append(h.beyond, fmt.Sprintf("%s: %s %s", what, r.Method, r.URL))
	}
	query := r.URL.Query()
	for name := range r.Header {
		name = strings.ToLower(name)
		if strings.HasPrefix(name, "x-ms-") && !slices.Contains(storageHeaders, name) {
			say("the header " + name)
		}
	}
	if disposition, control := r.Header.Get("X-Ms-Blob-Content-Disposition"), r.Header.Get("X-Ms-Blob-Cache-Control"); disposition+control != "" {
		say("properties")
	}
	container := ""
	if h.sys != nil {
		container = h.sys.Container
	}
	segments := strings.Split(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch {
	case r.URL.Path == "/":
		if r.Method != http.MethodPost || query.Encode() != "comp=userdelegationkey&restype=service" {
			say("the account")
		}
	case container != "" && segments[0] != container:
		say("another container")
	case len(segments) == 1:
		query.Del("marker")
		abandoned := r.Method == http.MethodGet && query.Encode() == "comp=list&include=uncommittedblobs&maxresults=500&prefix=cats-api%2Fupload%2F&restype=container"
		if !abandoned && ((r.Method != http.MethodGet && r.Method != http.MethodHead) || query.Encode() != "restype=container") {
			say("the container")
		}
	case stagedForm.MatchString(strings.Join(segments[1:], "/")):
		if len(query) > 0 || r.Method != http.MethodHead && r.Method != http.MethodGet && r.Method != http.MethodDelete {
			say("what was sent")
		}
	case len(segments) != 3 || segments[2] != "cat":
		say("another blob")
	case r.Method == http.MethodHead || r.Method == http.MethodDelete:
		// The signer's own trial of a link has nothing but the link.
		trial := r.Method == http.MethodHead && query.Get("sp") == "r" && query.Get("sig") != "" && r.Header.Get("Authorization") == ""
		if len(query) > 0 && !trial {
			say("a query")
		}
	case r.Method == http.MethodPut:
		query.Del("blockid")
		if q := query.Encode(); q != "" && q != "comp=block" && q != "comp=blocklist" {
			say("a query")
		}
		if source := r.Header.Get("X-Ms-Copy-Source"); source != "" {
			u, err := url.Parse(source)
			if err != nil || u.Host != r.Host || !stagedForm.MatchString(strings.TrimPrefix(u.Path, "/"+container+"/")) || u.Query().Get("sp") != "r" || r.Header.Get("X-Ms-Source-If-Match") == "" {
				say("a copy of " + source)
			}
		}
		if kind := r.Header.Get("X-Ms-Blob-Content-Type"); kind != "" && !strings.HasPrefix(kind, "image/") {
			say("the type " + kind)
		}
	default:
		say("a method")
	}
}

// storageHeaders are those that the signer sends.
var storageHeaders = []string{
	"x-ms-version", "x-ms-date", "x-ms-client-request-id", "x-ms-return-client-request-id", "x-ms-blob-type",
	"x-ms-blob-content-type", "x-ms-blob-content-md5", "x-ms-content-crc64", "x-ms-delete-snapshots",
	"x-ms-range", "x-ms-copy-source", "x-ms-source-range", "x-ms-source-if-match", "x-ms-source-content-md5", "x-ms-meta-catsupload", "x-ms-meta-catsid",
}

// stagedForm is what the blobs are called that are sent straight to storage.
var stagedForm = regexp.MustCompile(`^cats-api/upload/[0-9]{10}-[0-9a-f]{32}$`)

func (h *hostile) requests() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.asked
}

// known is the header by which a call says that it knows the contract.
const known = "Cats-Contract: 1\r\n"

// call is a request in raw bytes; header is whole lines.
func call(method, target, header, body string) string {
	length := ""
	if body != "" && !strings.Contains(header, "Transfer-Encoding") && !strings.Contains(header, "Content-Length") {
		length = fmt.Sprintf("Content-Length: %d\r\n", len(body))
	}
	return method + " " + target + " HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n" + header + length + "\r\n" + body
}

// dial connects to the signer's port.
func (h *hostile) dial(t *testing.T) *net.TCPConn {
	t.Helper()
	conn, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(t.Context(), "tcp", h.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	return conn.(*net.TCPConn)
}

// say sends raw bytes and returns the first answer, the zero answer where the
// connection is closed instead.
func (h *hostile) say(t *testing.T, raw string) harness.Response {
	t.Helper()
	conn := h.dial(t)
	defer func() { _ = conn.Close() }()
	go func() { _, _ = io.WriteString(conn, raw) }() // it may well be cut off amid that
	return h.hear(t, fmt.Sprintf("%.200q", raw), bufio.NewReader(conn))
}

// hear reads one answer, which must be of the contract.
func (h *hostile) hear(t *testing.T, what string, in *bufio.Reader) harness.Response {
	t.Helper()
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
			t.Errorf("%s: neither an answer nor an end", what)
		}
		return harness.Response{Response: &http.Response{}}
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body) // an answer that is cut off does not match what follows
	a := harness.Response{Response: resp, Body: body}
	for _, fault := range h.faults(a) {
		t.Errorf("%s: answered %d %.200q: %s", what, a.StatusCode, a.Body, fault)
	}
	return a
}

var (
	codeForm  = regexp.MustCompile(`^[a-z_]+$`)
	plainForm = regexp.MustCompile(`^[A-Za-z0-9 :,;()/.'"-]{0,120}\n?$`)
)

// faults returns what in an answer is not of the contract.
func (h *hostile) faults(a harness.Response) (faults []string) {
	var header bytes.Buffer
	_ = a.Header.Write(&header)
	for _, secret := range h.secrets {
		if bytes.Contains(a.Body, []byte(secret)) || bytes.Contains(header.Bytes(), []byte(secret)) {
			faults = append(faults, fmt.Sprintf("%.20q is in it", secret))
		}
	}
	var fields map[string]json.RawMessage
	isJSON := json.Unmarshal(a.Body, &fields) == nil
	if outcome := string(fields["outcome"]); outcome == `"unknown"` && fields["code"] != nil {
		delete(fields, "outcome") // any error of a write can have one
	}
	switch has := slices.Sorted(maps.Keys(fields)); {
	case a.StatusCode == 200 && isJSON: // what it holds is for the caller to check
	case a.StatusCode == 100 || (a.StatusCode == 204 || a.StatusCode == 200) && len(a.Body) == 0: // the latter to OPTIONS *
	case isJSON && slices.Equal(has, []string{"code", "detail"}) && codeForm.Match(bytes.Trim(fields["code"], `"`)) && a.StatusCode/100 == 4:
	case isJSON && slices.Equal(has, []string{"code", "detail"}) && a.StatusCode == 503 && a.Header.Get("Retry-After") != "":
	case !isJSON && plainForm.Match(a.Body) && (a.StatusCode/100 == 4 || a.StatusCode == 501 || a.StatusCode == 505): // net/http's own, or no call
	default:
		faults = append(faults, "this is not of the contract")
	}
	return faults
}

// linkOf checks what a link to the picture of user is made of, and that it is no
// longer than may be.
func (h *hostile) linkOf(t *testing.T, a harness.Response, user string, longest time.Duration) *url.URL {
	t.Helper()
	text, _ := fieldOf(a, "picture_url").(string)
	u, err := url.Parse(text)
	if err != nil || a.StatusCode != 200 {
		t.Fatalf("no link: %d %.200s, %v", a.StatusCode, a.Body, err)
	}
	query := u.Query()
	for name, values := range query {
		if !slices.Contains([]string{"sv", "st", "se", "sr", "sp", "spr", "sig", "skoid", "sktid", "skt", "ske", "sks", "skv", "rsct", "rscd"}, name) || len(values) != 1 || strings.ContainsAny(values[0], "\r\n") {
			t.Errorf("the link has %s=%q", name, values)
		}
	}
	ends, err := time.Parse(time.RFC3339, query.Get("se"))
	switch {
	case err != nil || time.Until(ends) > longest:
		t.Errorf("the link ends at %q, %v from now; at most %v", query.Get("se"), time.Until(ends), longest)
	case query.Get("sp") != "r" || query.Get("sr") != "b" || query.Get("spr") != "https":
		t.Errorf("the link is for sp=%q sr=%q spr=%q", query.Get("sp"), query.Get("sr"), query.Get("spr"))
	case query.Get("rsct") != "image/png":
		t.Errorf("the link is served as %q", query.Get("rsct"))
	case u.Scheme+"://"+u.Host != harness.Stack(t).FrontURL || u.Path != "/"+h.sys.Container+"/"+user+"/cat":
		t.Errorf("the link leads to %s%s", u.Host, u.Path)
	}
	return u
}

func fieldOf(a harness.Response, name string) any {
	var m map[string]any
	_ = json.Unmarshal(a.Body, &m)
	return m[name]
}

// Whoever owns the frontend gets what the contract says, in whatever way they ask,
// and nothing else: not of the pictures' container, not of another, not of the
// identity.
func TestACompromisedFrontendGetsTheContractAndNothingElse(t *testing.T) {
	t.Parallel()
	h := newHostile(t, map[string]string{"MAX_PICTURE_SIZE": "1MiB", "MAX_DIRECT_UPLOAD_SIZE": "1GiB"})
	ctx, sys := t.Context(), h.sys
	pid := sys.Signer.Pid()
	if err := errors.Join(harness.Stack(t).Storage.CreateContainer(ctx, secretContainer), harness.Stack(t).Storage.Put(ctx, secretContainer, secretBlob, "image/png", []byte("secret"))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = harness.Stack(t).Storage.DeleteContainer(ctx, secretContainer) })
	before, err := harness.Stack(t).Storage.Blobs(ctx, secretContainer)
	if err != nil {
		t.Fatal(err)
	}
	small := string(harness.Cat[:4<<10])
	expected := map[string]bool{}
	stored := func(user string) {
		t.Helper()
		expected[user+"/cat"] = true
	}
	if a := h.say(t, call("PUT", "/v1/picture?user=victim", known, small)); a.StatusCode != 200 {
		t.Fatalf("the contract's own put: %d %s", a.StatusCode, a.Body)
	}
	stored("victim")
	unharmed := func(t *testing.T) {
		t.Helper()
		if _, b, err := sys.Storage.Read(ctx, sys.Container, "victim/cat"); err != nil || string(b) != small {
			t.Errorf("the victim's picture is %d bytes, %v", len(b), err)
		}
	}

	t.Run("names", func(t *testing.T) { h.names(t, small, stored) })
	t.Run("paths", func(t *testing.T) { h.paths(t, small) })
	t.Run("arguments", func(t *testing.T) { h.arguments(t, small, stored) })
	t.Run("lifetimes", func(t *testing.T) { h.lifetimes(t) })
	t.Run("downloads", func(t *testing.T) { h.downloads(t) })
	t.Run("links", func(t *testing.T) { h.links(t, small) })
	t.Run("bodies", func(t *testing.T) { h.bodies(t, small, stored); unharmed(t) })
	t.Run("tickets", func(t *testing.T) { h.tickets(t, small, stored); unharmed(t) })
	t.Run("forged", func(t *testing.T) { h.forged(t, small); unharmed(t) })
	t.Run("garbage", func(t *testing.T) { h.garbage(t) })
	t.Run("mutations", func(t *testing.T) { h.mutations(t, small) })
	t.Run("the most", func(t *testing.T) { h.theMost(t, stored) })

	// As who owns the account sees it.
	unharmed(t)
	got := map[string]bool{}
	for _, name := range harness.BlobNames(t, sys) {
		if !strings.HasPrefix(name, "mutant") {
			got[name] = true
		}
		if strings.Count(name, "/") != 1 || !strings.HasSuffix(name, "/cat") {
			t.Errorf("there is a blob %q", name)
		}
	}
	if diff := cmp.Diff(expected, got); diff != "" {
		t.Errorf("the blobs:\n%s", diff)
	}
	if after, err := harness.Stack(t).Storage.Blobs(ctx, secretContainer); err != nil || !slices.Equal(before, after) {
		t.Errorf("the other container: %v, %v; before: %v", after, err, before)
	}
	h.mu.Lock()
	for _, what := range h.beyond {
		t.Errorf("the signer asked storage for %s", what)
	}
	h.mu.Unlock()
	if sys.Signer.Pid() != pid || harness.Sum(t, sys.SignerOps, "cats_signer_http_panics_total") != 0 {
		t.Error("the signer was restarted, or has panicked")
	}
	log, err := os.ReadFile(sys.Signer.Log.Path())
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(log, []byte(`"panic"`)) || bytes.Contains(log, []byte("http: panic")) || bytes.Contains(log, []byte("DATA RACE")) {
		t.Error("there is a panic or a race in the log")
	}
	harness.WantNoSecrets(t, sys)
}
