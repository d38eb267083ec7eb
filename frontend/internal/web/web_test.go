package web

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"cats.example/shared/apierror"
	"cats.example/shared/config"
	"cats.example/shared/httpserver"
	"cats.example/shared/ratelimit"
	"cats.example/shared/signerapi"
)

// memory is a signer that keeps pictures in a map, as the contract has it: a
// picture counts only after a bare io.EOF. A picture outside its bounds is an error without a code, which is answered with 500.
type memory struct {
	mu    sync.Mutex
	cats  map[string]string
	fail  error  // every call's answer, when set
	asked string // of the last link or delete, the user
	opts  signerapi.LinkOptions
	put   signerapi.PutOptions // of the last picture

	ticket string // of the last commit
	commit signerapi.CommitOptions

	token signerapi.Token // of the last call
}

func (m *memory) Put(ctx context.Context, u signerapi.User, body io.Reader, opts signerapi.PutOptions) (signerapi.Info, error) {
	m.token = signerapi.TokenFrom(ctx)
	if m.fail != nil {
		return signerapi.Info{}, m.fail
	}
	var b bytes.Buffer
	for buf := make([]byte, 1000); ; {
		n, err := body.Read(buf)
		b.Write(buf[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			return signerapi.Info{}, err
		}
	}
	if n := int64(b.Len()); opts.MaxSize == 0 && opts.MinSize > 0 || opts.MaxSize > 0 && (opts.Size >= 0 || n < opts.MinSize || n > opts.MaxSize || opts.MaxSize-opts.MinSize > signerapi.MaxSizeRange) {
		return signerapi.Info{}, fmt.Errorf("a picture of %d bytes has the options %+v", n, opts)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.put = opts
	m.cats[u.String()] = b.String()
	return m.info(b.String()), nil
}

func (*memory) info(content string) signerapi.Info {
	return signerapi.Info{ETag: `"1"`, ContentType: "image/png", Size: int64(len(content))}
}

func (m *memory) Link(ctx context.Context, u signerapi.User, opts signerapi.LinkOptions) (signerapi.Link, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.token = signerapi.TokenFrom(ctx)
	m.opts, m.asked = opts, u.String()
	content, ok := m.cats[u.String()]
	switch {
	case m.fail != nil:
		return signerapi.Link{}, m.fail
	case !ok:
		return signerapi.Link{}, apierror.ErrNotFound
	}
	return signerapi.Link{
		Info: m.info(content), URL: signerapi.SignedURL("https://acct.blob/cats/x/cat?sig=a%2Fb&se=2"), ExpiresAt: time.Now().Add(time.Hour).UTC().Truncate(time.Second),
	}, nil
}

func (m *memory) Delete(ctx context.Context, u signerapi.User, c signerapi.Preconditions) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.token = signerapi.TokenFrom(ctx)
	m.asked = u.String()
	if m.fail != nil {
		return m.fail
	}
	if _, ok := m.cats[u.String()]; !ok {
		return apierror.ErrNotFound
	}
	if err := c.Evaluate(`"1"`); err != nil {
		return err
	}
	delete(m.cats, u.String())
	return nil
}

func (m *memory) StartUpload(ctx context.Context, u signerapi.User, size int64) (signerapi.UploadSession, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.token, m.asked = signerapi.TokenFrom(ctx), u.String()
	return signerapi.UploadSession{ID: fmt.Sprintf("1-%d-A", size), URL: "https://acct.blob/cats/upload?sig=a%2Fb&sp=c", ExpiresAt: time.Unix(2e9, 0).UTC()}, m.fail
}

func (m *memory) CommitUpload(ctx context.Context, u signerapi.User, ticket string, opts signerapi.CommitOptions) (signerapi.Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.token, m.asked = signerapi.TokenFrom(ctx), u.String()
	m.ticket, m.commit = ticket, opts
	return m.info("abc"), m.fail
}

func (m *memory) About(context.Context) (signerapi.About, error) {
	return signerapi.About{MaxDirectUploadSize: 5 << 30, LinkTTL: 3600, LinkMaxTTL: 86400, LinkOrigin: "https://acct.blob", UserClaim: "oid"}, m.fail
}

func (*memory) Ready(context.Context) error { return nil }

// png is a picture as far as its first bytes go.
var png = "\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01" + strings.Repeat("cat", 3000)

const maxSize = 20_000

// newWeb returns the public API over an empty memory, with its registry.
func newWeb(t testing.TB) (http.Handler, *memory, *prometheus.Registry) {
	t.Helper()
	return newWebWith(t, "RATE_LIMIT=0")
}

// newSlots returns pools for 16 uploads, of which one client may take share.
func newSlots(share float64, reg *prometheus.Registry) Slots {
	pools := ratelimit.NewPools("frontend", share, reg)
	return Slots{Requests: pools.New("requests", 64), Uploads: pools.New("uploads", 16), Commits: pools.New("commits", 8)}
}

func newRequests(slots Slots, reg *prometheus.Registry) *httpserver.Middleware {
	return httpserver.NewMiddleware(httpserver.MiddlewareOptions{
		Name: "frontend", Settings: httpserver.Settings{StallTimeout: time.Minute, MinUploadRate: 1}, Log: slog.New(slog.DiscardHandler), Registry: reg,
		Uploads: slots.Uploads, WriteError: Refuse,
	})
}

// newHandler returns the public API over signer with newSlots(share, reg).
func newHandler(signer signerapi.Signer, options Options, share float64, reg *prometheus.Registry) http.Handler {
	slots := newSlots(share, reg)
	return New(signer, options, newRequests(slots, reg), slots, slog.New(slog.DiscardHandler), reg)
}

// newWebWith is newWeb with settings, NAME=value each.
func newWebWith(t testing.TB, settings ...string) (http.Handler, *memory, *prometheus.Registry) {
	t.Helper()
	var options Options
	if err := config.Parse(&options, append([]string{fmt.Sprintf("MAX_PICTURE_SIZE=%d", maxSize)}, settings...)); err != nil {
		t.Fatal(err)
	}
	if err := options.Validate(); err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	m := &memory{cats: map[string]string{}}
	return newHandler(m, options, 0, reg), m, reg
}

func TestUnparsableQueriesAreRejected(t *testing.T) {
	h, m, _ := newWeb(t)
	m.cats["x"] = png
	for _, target := range []string{"/cat/x", "/cat/x/picture"} {
		for _, query := range []string{"ttl=5s;x=1", "ttl=5s%", "download=100%.png", "download=a;b.png", "%zz", "a%2=b", "download=%e"} {
			wantProblem(t, send(t, h, "GET", target+"?"+query, "", nil), 422, "invalid_argument")
		}
	}
	for _, target := range []string{"/cat/x/upload?size=%zz", "/cat/x/upload?size=1;2", "/cat/x/upload/1-1-A/commit?content_md5=%zz", "/cat/x/upload/1-1-A/commit?content_md5=a;b"} {
		wantProblem(t, send(t, h, "POST", target, "", nil), 422, "invalid_argument")
	}
}

func TestPutOfAFormNamesTheMethod(t *testing.T) {
	h, _, _ := newWeb(t)
	contentType, body := formOf(t, part{"file", "cat.png", png})
	rec := send(t, h, "PUT", "/cat/x", contentType, bytes.NewReader(body))
	wantProblem(t, rec, 415, "unsupported_media_type")
	if !strings.Contains(rec.Body.String(), "send forms with POST") {
		t.Error(rec.Body)
	}
}

// send answers one request, written as a client sends it.
func send(t testing.TB, h http.Handler, method, target, contentType string, body io.Reader) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, target, body)
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec
}

// wantProblem checks that the answer is a problem document with that status and code.
func wantProblem(t testing.TB, rec *httptest.ResponseRecorder, status int, code string) problem {
	t.Helper()
	var p problem
	if err := json.Unmarshal(rec.Body.Bytes(), &p); err != nil {
		t.Fatalf("%d %q is no problem document: %v", rec.Code, rec.Body, err)
	}
	want := problem{"about:blank", http.StatusText(status), status, apierror.Error{Code: code, Detail: p.Detail, Outcome: p.Outcome}, rec.Header().Get("X-Request-Id")}
	if p != want || rec.Code != status || p.Detail == "" || p.RequestID == "" || rec.Header().Get("Content-Type") != "application/problem+json" {
		t.Errorf("got %d %s %s; want %d %s", rec.Code, rec.Header(), rec.Body, status, code)
	}
	return p
}

func TestServiceIsExactlyTheTutorials(t *testing.T) {
	h, _, _ := newWeb(t)
	rec := send(t, h, "GET", "/service", "", nil)
	if rec.Code != 200 || rec.Body.String() != `{"service-name":"cats-api"}` || rec.Header().Get("Content-Type") != "application/json" {
		t.Errorf("%d %s %q", rec.Code, rec.Header(), rec.Body)
	}
}

func TestPutThenGetThenDelete(t *testing.T) {
	h, m, _ := newWeb(t)
	for path, name := range map[string]string{
		"/cat/Davyd": "Davyd", "/cat/a%20b": "a b", "/cat/a+b": "a+b", "/cat/%F0%9F%90%B1": "🐱", "/cat/Мурчик": "Мурчик", "/cat/picture": "picture", "/cat/%252F": "%2F",
	} {
		wantProblem(t, send(t, h, "GET", path, "", nil), 404, "not_found")
		rec := send(t, h, "PUT", path, "text/plain", strings.NewReader(png))
		want := fmt.Sprintf(`{"owner":{"name":%q},"etag":"\"1\"","content_type":"image/png","size":%d}`, name, len(png))
		if rec.Code != 200 || rec.Body.String() != want {
			t.Errorf("PUT %s: %d %s; want %s", path, rec.Code, rec.Body, want)
		}
		if m.cats[name] != png {
			t.Errorf("PUT %s stored %v", path, m.cats)
		}
		rec = send(t, h, "GET", path, "", nil)
		var got map[string]any
		if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		expires, _ := got["expires_at"].(string)
		if _, err := time.Parse(time.RFC3339, expires); err != nil {
			t.Error(err)
		}
		delete(got, "expires_at")
		if diff := cmp.Diff(map[string]any{
			"owner": map[string]any{"name": name}, "picture_url": "https://acct.blob/cats/x/cat?sig=a%2Fb&se=2",
			"etag": `"1"`, "content_type": "image/png", "size": float64(len(png)),
		}, got); diff != "" || rec.Code != 200 {
			t.Errorf("GET %s: %d %s", path, rec.Code, diff)
		}
		if rec := send(t, h, "DELETE", path, "", nil); rec.Code != 204 || rec.Body.Len() != 0 {
			t.Errorf("DELETE %s: %d %s", path, rec.Code, rec.Body)
		}
		wantProblem(t, send(t, h, "DELETE", path, "", nil), 404, "not_found")
	}
}

func TestACatThatIsNotThereIsTheTutorialsAnswer(t *testing.T) {
	h, _, _ := newWeb(t)
	if p := wantProblem(t, send(t, h, "GET", "/cat/nobody", "", nil), 404, "not_found"); p.Detail != "Cat not found" {
		t.Errorf("detail is %q", p.Detail)
	}
}

func TestNamesThatAreRefusedReachNoSigner(t *testing.T) {
	h, m, _ := newWeb(t)
	m.fail = errors.New("the signer was asked")
	for _, name := range []string{"..%2Fx", "a%2Fb", "a%5Cb", "%00", "a%0Ab", "%2e%2e", "%2E", "..", ".", "a.", "%ff", "%c3", strings.Repeat("x", 200)} {
		for _, method := range []string{"GET", "PUT", "DELETE", "HEAD"} {
			wantProblem(t, send(t, h, method, "/cat/"+name, "", strings.NewReader(png)), 422, "invalid_user")
		}
		wantProblem(t, send(t, h, "GET", "/cat/"+name+"/picture", "", nil), 422, "invalid_user")
		contentType, body := formOf(t, part{"file", "cat.png", png})
		wantProblem(t, send(t, h, "POST", "/cat/"+name, contentType, bytes.NewReader(body)), 422, "invalid_user")
	}
}

func TestPathsThatAreNoRouteAre404(t *testing.T) {
	h, _, _ := newWeb(t)
	for _, path := range []string{"//", "/cat", "/cat/", "/cat/a/b", "/cat/../service", "/cat/a/../b", "//service", "/cat//picture", "/cat/a/picture/x", "/Service", "/docs/x", "/docs/../docs", "/page", "/page/x"} {
		wantProblem(t, send(t, h, "GET", path, "", nil), 404, "no_such_path")
	}
}

func TestATrailingSlashIsSentOn(t *testing.T) {
	h, _, _ := newWeb(t)
	for path, want := range map[string]string{
		"/service/": "/service", "/cat/Davyd/": "/cat/Davyd", "/cat/a%2Fb/?ttl=1m": "/cat/a%2Fb?ttl=1m", "/cat/a%20b/picture/": "/cat/a%20b/picture",
	} {
		if rec := send(t, h, "POST", path, "", nil); rec.Code != 307 || rec.Header().Get("Location") != want {
			t.Errorf("%s: %d to %q; want %q", path, rec.Code, rec.Header().Get("Location"), want)
		}
	}
}

func TestAWrongMethodIsToldWhichAreRight(t *testing.T) {
	h, _, _ := newWeb(t)
	for path, allow := range map[string]string{
		"/service": "GET, HEAD, OPTIONS", "/cat/x": "DELETE, GET, HEAD, OPTIONS, POST, PUT", "/cat/x/picture": "GET, HEAD, OPTIONS",
	} {
		for _, method := range []string{"PATCH", "TRACE", "BREW"} {
			rec := send(t, h, method, path, "", nil)
			wantProblem(t, rec, 405, "method_not_allowed")
			if got := rec.Header().Get("Allow"); got != allow {
				t.Errorf("%s %s: Allow %q; want %q", method, path, got, allow)
			}
		}
		if rec := send(t, h, "OPTIONS", path, "", nil); rec.Code != 204 || rec.Header().Get("Allow") != allow {
			t.Errorf("OPTIONS %s: %d, Allow %q", path, rec.Code, rec.Header().Get("Allow"))
		}
	}
}

func TestThePictureRedirectsAndMayBeKeptForLessThanItsLink(t *testing.T) {
	h, m, _ := newWeb(t)
	m.cats["x"] = png
	rec := send(t, h, "GET", "/cat/x/picture", "", nil)
	var age int
	if _, err := fmt.Sscanf(rec.Header().Get("Cache-Control"), "private, max-age=%d", &age); err != nil || age < 1700 || age > 1800 {
		t.Errorf("Cache-Control %q", rec.Header().Get("Cache-Control"))
	}
	if rec.Code != 307 || rec.Header().Get("Location") != "https://acct.blob/cats/x/cat?sig=a%2Fb&se=2" || rec.Header().Get("Referrer-Policy") != "no-referrer" {
		t.Errorf("%d %v", rec.Code, rec.Header())
	}
}

func TestLinkOptionsReachTheSignerOr422(t *testing.T) {
	h, m, _ := newWeb(t)
	m.cats["x"] = png
	for query, want := range map[string]*signerapi.LinkOptions{
		"":                           {},
		"ttl=10m":                    {TTL: 10 * time.Minute},
		"ttl=1h30m&download=cat.jpg": {TTL: 90 * time.Minute, Download: "cat.jpg"},
		"download=%E7%8C%AB.png":     {Download: "猫.png"},
		"other=1":                    {},
		"ttl=":                       nil, "ttl=10": nil, "ttl=-5m": nil, "ttl=0s": nil, "ttl=1500ms": nil, "ttl=1m&ttl=2m": nil, "ttl=99999999h": nil,
		"download=": nil, "download=a%2Fb": nil, "download=a%0d%0ab": nil, "download=a&download=b": nil, "download=%ff": nil,
	} {
		for _, path := range []string{"/cat/x", "/cat/x/picture"} {
			m.opts = signerapi.LinkOptions{}
			rec := send(t, h, "GET", path+"?"+query, "", nil)
			if want == nil {
				wantProblem(t, rec, 422, "invalid_argument")
			} else if diff := cmp.Diff(*want, m.opts); diff != "" || rec.Code >= 400 {
				t.Errorf("?%s: %d %s", query, rec.Code, diff)
			}
		}
	}
}

func TestEveryErrorOfTheContractHasItsStatus(t *testing.T) {
	for _, c := range []struct {
		err    *apierror.Error
		status int
		retry  bool
	}{
		{apierror.ErrInvalidUser, 422, false},
		{apierror.ErrInvalidArgument, 422, false},
		{apierror.ErrNotFound, 404, false},
		{apierror.ErrEmpty, 422, false},
		{apierror.ErrIncomplete, 400, false},
		{apierror.ErrStalled, 408, false},
		{apierror.ErrTooLarge, 413, false},
		{apierror.ErrUnsupportedMediaType, 415, false},
		{apierror.ErrConflict, 409, false},
		{apierror.ErrThrottled, 503, true},
		{apierror.ErrOverloaded, 503, true},
		{apierror.ErrStorageUnavailable, 503, true},
		{apierror.ErrSignerUnavailable, 503, true},
		{apierror.ErrIdentityUnavailable, 502, false},
		{apierror.ErrDamaged, 502, false},
		{apierror.ErrInternal, 500, false},
	} {
		h, m, _ := newWeb(t)
		m.fail = fmt.Errorf("while testing: %w", c.err.Wrap(errors.New("hunter2")))
		rec := send(t, h, "DELETE", "/cat/x", "", nil)
		p := wantProblem(t, rec, c.status, c.err.Code)
		if strings.Contains(rec.Body.String(), "hunter2") || p.Detail != c.err.Detail {
			t.Errorf("%s: shown as %s", c.err.Code, rec.Body)
		}
		if got := rec.Header().Get("Retry-After") != ""; got != c.retry {
			t.Errorf("%s: Retry-After %q", c.err.Code, rec.Header().Get("Retry-After"))
		}
	}
}

func TestAnErrorWithoutACaseIsAPlain500(t *testing.T) {
	h, m, _ := newWeb(t)
	m.fail = errors.New("account key is hunter2")
	rec := send(t, h, "GET", "/cat/x", "", nil)
	wantProblem(t, rec, 500, "internal")
	if strings.Contains(rec.Body.String(), "hunter2") {
		t.Errorf("shown as %s", rec.Body)
	}
}

func TestMetricsPassPromlint(t *testing.T) {
	_, _, reg := newWeb(t)
	problems, err := testutil.GatherAndLint(reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// FuzzPath has strangers' targets routed: never a 500, and the name that reaches the
// signer is the one segment of the path, decoded once.
func FuzzPath(f *testing.F) {
	for _, s := range []string{"/cat/Davyd", "/cat/%2e%2e", "/cat/a%2Fb/picture", "/service/", "//x", "/cat/%ff", "/cat/a?ttl=1m&download=x", "/cat/;", "/cat/%2541", "/cat/%F0%9F%90%B1/picture"} {
		f.Add("GET", s)
		f.Add("DELETE", s)
	}
	h, m, _ := newWeb(f)
	f.Fuzz(func(t *testing.T, method, target string) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://cats.test"+target, nil)
		if err != nil || !strings.HasPrefix(target, "/") {
			return
		}
		r.Method, r.Body = method, io.NopCloser(strings.NewReader(""))
		m.asked = ""
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		if rec.Code >= 500 {
			t.Fatalf("%s %q: %d %s", method, target, rec.Code, rec.Body)
		}
		if location := rec.Header().Get("Location"); strings.HasPrefix(location, "//") || strings.Contains(location, `\`) {
			t.Fatalf("%q is sent to %q", target, location)
		}
		if m.asked == "" {
			return
		}
		path, _, _ := strings.Cut(target, "?")
		path, _, _ = strings.Cut(path, "#")
		segment, found := strings.CutPrefix(path, "/cat/")
		segment = strings.TrimSuffix(segment, "/picture")
		name, err := url.PathUnescape(segment)
		if _, invalid := signerapi.ParseUser(name); !found || err != nil || invalid != nil || name != m.asked {
			t.Fatalf("%s %q reached the signer as %q", method, target, m.asked)
		}
	})
}
