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
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"

	"cats.example/frontend/internal/form"
	"cats.example/shared/apierror"
	"cats.example/shared/config"
	"cats.example/shared/httpserver"
	"cats.example/shared/ratelimit"
	"cats.example/shared/signerapi"
)

// call is a call of the signer.
type call struct {
	user  string
	token signerapi.Token
	link  signerapi.LinkOptions
}

// fakeSigner keeps pictures in memory. It stores a picture only after a bare io.EOF, as the contract requires.
type fakeSigner struct {
	pictures map[string]string // by user
	err      error             // of every call, if set
	user     string            // of every call, if set
	last     call
	fault    error // the first call that breaks the contract
}

// record keeps the call of u and returns the error of the fake. errs are the validation errors of the arguments.
func (s *fakeSigner) record(ctx context.Context, u signerapi.User, c call, errs ...error) error {
	c.user, c.token = u.String(), signerapi.TokenFrom(ctx)
	s.last = c
	_, invalid := signerapi.ParseUser(c.user)
	other := config.Require(s.user == "" || s.user == c.user, "the user in the path is %q", s.user)
	if err := errors.Join(append(errs, invalid, other)...); err != nil && s.fault == nil {
		s.fault = fmt.Errorf("the signer was called with %+v: %w", c, err)
	}
	return s.err
}

func (s *fakeSigner) Put(ctx context.Context, u signerapi.User, body io.Reader, opts signerapi.PutOptions) (signerapi.Info, error) {
	content, err := io.ReadAll(body)
	n, invalid := int64(len(content)), error(nil)
	if err == nil && (n > maxSize || n == 0 || opts.Size >= 0 && (n != opts.Size || opts.MaxSize > 0) ||
		opts.MaxSize > 0 && (n < opts.MinSize || n > opts.MaxSize || opts.MaxSize-opts.MinSize > signerapi.MaxSizeRange)) {
		invalid = fmt.Errorf("the picture has %d bytes", n)
	}
	recorded := s.record(ctx, u, call{}, opts.Preconditions.Validate(), opts.Digests.Validate(), invalid)
	if err := errors.Join(recorded, err); err != nil {
		return signerapi.Info{}, err
	}
	s.pictures[u.String()] = string(content)
	return infoOf(string(content)), nil
}

func infoOf(content string) signerapi.Info {
	return signerapi.Info{ETag: `"1"`, ContentType: "image/png", Size: int64(len(content))}
}

func (s *fakeSigner) Link(ctx context.Context, u signerapi.User, opts signerapi.LinkOptions) (signerapi.Link, error) {
	if err := s.record(ctx, u, call{link: opts}, signerapi.ValidateDownloadName(opts.Download)); err != nil {
		return signerapi.Link{}, err
	}
	content, ok := s.pictures[u.String()]
	if !ok {
		return signerapi.Link{}, apierror.ErrNotFound
	}
	return signerapi.Link{Info: infoOf(content), URL: "https://acct.blob/cats/x/cat?sig=a%2Fb&se=2", ExpiresAt: time.Now().Add(time.Hour)}, nil
}

func (s *fakeSigner) Delete(ctx context.Context, u signerapi.User, c signerapi.Preconditions) error {
	if err := s.record(ctx, u, call{}, c.Validate()); err != nil {
		return err
	}
	if _, ok := s.pictures[u.String()]; !ok {
		return apierror.ErrNotFound
	}
	delete(s.pictures, u.String())
	return c.Evaluate(`"1"`)
}

func (s *fakeSigner) StartUpload(ctx context.Context, u signerapi.User, size int64) (signerapi.UploadSession, error) {
	err := s.record(ctx, u, call{}, config.Require(size >= 0, "the size is %d", size))
	return signerapi.UploadSession{ID: "1-3-A", URL: "https://acct.blob/cats/upload?sig=a%2Fb&sp=c"}, err
}

func (s *fakeSigner) CommitUpload(ctx context.Context, u signerapi.User, id string, opts signerapi.CommitOptions) (signerapi.Info, error) {
	invalid := errors.Join(signerapi.ValidateUploadID(id), opts.Validate(), signerapi.Digests{MD5: opts.MD5}.Validate())
	return infoOf("abc"), s.record(ctx, u, call{}, invalid)
}

func (s *fakeSigner) About(context.Context) (signerapi.About, error) {
	return signerapi.About{MaxDirectUploadSize: 5 << 30, LinkTTL: 3600, LinkMaxTTL: 86400, LinkOrigin: "https://acct.blob", UserClaim: "oid"}, s.err
}

func (*fakeSigner) Ready(context.Context) error { return nil }

// errCalled is the error of a signer that must not be called.
var errCalled = errors.New("the signer was called")

// png has the first bytes of a picture.
var png = "\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01" + strings.Repeat("cat", 3000)

const maxSize = 20_000

// testAPI is the public API over a fakeSigner.
type testAPI struct {
	http.Handler
	t        testing.TB
	options  Options
	deps     Dependencies
	signer   *fakeSigner
	registry *prometheus.Registry
	log      *bytes.Buffer
}

// newAPI returns the API with these settings, NAME=value each. When the test ends, no call of the signer may have broken the
// contract.
func newAPI(t testing.TB, settings ...string) *testAPI {
	t.Helper()
	a := &testAPI{t: t, signer: &fakeSigner{pictures: map[string]string{}}, registry: prometheus.NewRegistry(), log: &bytes.Buffer{}}
	var err error
	if a.options, err = parseOptions(append([]string{fmt.Sprintf("MAX_PICTURE_SIZE=%d", maxSize), "RATE_LIMIT=0"}, settings...)...); err != nil {
		t.Fatal(err)
	}
	pools := ratelimit.NewPools("frontend", 0.125, a.registry)
	slots := Slots{Requests: pools.New("requests", 64), Uploads: pools.New("uploads", 16), Commits: pools.New("commits", 8)}
	log := slog.New(slog.NewTextHandler(a.log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	a.deps = Dependencies{Signer: a.signer, Slots: slots, Log: log, Registry: a.registry, Requests: httpserver.NewMiddleware(httpserver.MiddlewareOptions{
		Name: "frontend", Settings: httpserver.Settings{StallTimeout: time.Minute, MinUploadRate: 1}, Log: slog.New(slog.DiscardHandler), Registry: a.registry,
		Uploads: slots.Uploads, WriteError: WriteError,
	})}
	a.Handler = New(a.options, a.deps)
	t.Cleanup(func() {
		if a.signer.fault != nil {
			t.Error(a.signer.fault)
		}
	})
	return a
}

// send sends a request. header has names and values in turn.
func (a *testAPI) send(method, target string, body io.Reader, header ...string) *httptest.ResponseRecorder {
	a.t.Helper()
	r := httptest.NewRequestWithContext(a.t.Context(), method, target, body)
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	return a.serve(r)
}

func (a *testAPI) serve(r *http.Request) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	a.ServeHTTP(rec, r)
	return rec
}

// wantProblem checks that the response is a problem document with this status and code, which openapi.json documents.
func wantProblem(t testing.TB, rec *httptest.ResponseRecorder, status int, code string) problem {
	t.Helper()
	var p problem
	if err := json.Unmarshal(rec.Body.Bytes(), &p); err != nil {
		t.Fatalf("%d %q is not a problem document: %v", rec.Code, rec.Body, err)
	}
	want := problem{"about:blank", http.StatusText(status), status, apierror.Error{Code: code, Detail: p.Detail, Outcome: p.Outcome}, rec.Header().Get("X-Request-Id")}
	if p != want || rec.Code != status || p.Detail == "" || p.RequestID == "" || rec.Header().Get("Content-Type") != "application/problem+json" {
		t.Errorf("got %d %s %s; want %d %s", rec.Code, rec.Header(), rec.Body, status, code)
	}
	if e := declared()[p.Code]; e == nil || e.Status != status {
		t.Errorf("%s with status %d is not declared", p.Code, status)
	}
	return p
}

// unread is a body that must not be read.
type unread struct{ t testing.TB }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("the body was read")
	return 0, io.EOF
}

const formType = "multipart/form-data; boundary=b"

// formOf returns a form with a file and a text field after it.
func formOf(name, content, after string) string {
	return "--b\r\nContent-Disposition: form-data; name=" + name + "; filename=a\r\n\r\n" + content +
		"\r\n--b\r\nContent-Disposition: form-data; name=after\r\n\r\n" + after + "\r\n--b--"
}

// writes are the requests that change the stored picture.
var writes = []struct{ method, path, contentType, body string }{
	{"PUT", "/cat/x", "image/png", png},
	{"POST", "/cat/x", formType, formOf("file", png, "")},
	{"DELETE", "/cat/x", "", ""},
	{"POST", "/cat/x/upload/1-3-A/commit", "", ""},
}

// declared returns the errors of the public API by code.
func declared() map[string]*apierror.Error {
	own := []*apierror.Error{
		errNoRoute, errMethodNotAllowed, errURITooLong, errMisdirected, errCrossOrigin, errPartialUpload, form.ErrMissingFile, form.ErrTwoFiles, form.ErrMalformed,
	}
	errs := map[string]*apierror.Error{}
	for _, e := range slices.AppendSeq(own, apierror.All()) {
		errs[e.Code] = e
	}
	return errs
}

func TestErrorsBecomeProblemDocuments(t *testing.T) {
	secret := errors.New("hunter2")
	private := &apierror.Error{Code: "private", Detail: "hunter2"} // has no status
	wants := map[error]*apierror.Error{
		secret: apierror.ErrInternal, private: apierror.ErrInternal,
		private.WithUnknownOutcome(apierror.MayBeStored): apierror.ErrInternal.WithUnknownOutcome(""),
	}
	for e := range apierror.All() {
		unknown := e.WithUnknownOutcome(apierror.MayBeStored)
		wants[fmt.Errorf("storing: %w", e.Wrap(secret))], wants[unknown.Wrap(secret)] = e, unknown
	}
	a := newAPI(t)
	for err, want := range wants {
		a.signer.err = err
		for _, r := range writes {
			rec := a.send(r.method, r.path, strings.NewReader(r.body), "Content-Type", r.contentType)
			p := wantProblem(t, rec, want.Status, want.Code)
			after, _ := strconv.Atoi(rec.Header().Get("Retry-After"))
			if p.Detail != want.Detail || p.Outcome != want.Outcome || time.Duration(after)*time.Second != want.RetryAfter ||
				strings.Contains(rec.Body.String(), "hunter2") {
				t.Errorf("%s %s, %v: %v %s", r.method, r.path, err, rec.Header(), rec.Body)
			}
		}
	}
}

func TestMetricsCountEachSignerCall(t *testing.T) {
	a := newAPI(t)
	a.signer.err = apierror.ErrThrottled
	for _, request := range []string{
		"PUT /cat/x", "GET /cat/x", "GET /cat/x/picture", "DELETE /cat/x", "GET /about", "POST /cat/x/upload?size=3",
		"POST /cat/x/upload/1-3-A/commit",
	} {
		method, target, _ := strings.Cut(request, " ")
		a.send(method, target, strings.NewReader(png))
	}
	want := map[string]string{`signer_requests_total{operation="link",outcome="throttled"}`: "2"}
	for _, op := range []string{"put", "delete", "about", "start_upload", "commit_upload"} {
		want[fmt.Sprintf("signer_requests_total{operation=%q,outcome=%q}", op, "throttled")] = "1"
	}
	if diff := cmp.Diff(want, counters(t, a.registry, "upload_bytes_total", "signer_requests_total")); diff != "" {
		t.Errorf("counters (-want +got):\n%s", diff)
	}
}

// counters returns the values above zero of the frontend's counters with these names, by name and labels.
func counters(t *testing.T, reg *prometheus.Registry, names ...string) map[string]string {
	t.Helper()
	for i := range names {
		names[i] = "cats_frontend_" + names[i]
	}
	text, err := testutil.GatherAndFormat(reg, expfmt.TypeTextPlain, names...)
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^cats_frontend_(\S+) ([1-9]\S*)$`).FindAllStringSubmatch(string(text), -1) {
		values[m[1]] = m[2]
	}
	return values
}

func TestTrailingSlashesAreRedirected(t *testing.T) {
	a := newAPI(t)
	for path, want := range map[string]string{
		"/service/": "/service", "/cat/Davyd/": "/cat/Davyd", "/cat/a%2Fb/?ttl=1m": "/cat/a%2Fb?ttl=1m", "/cat/a%20b/picture/": "/cat/a%20b/picture",
	} {
		if rec := a.send("POST", path, nil); rec.Code != 307 || rec.Header().Get("Location") != want {
			t.Errorf("%s: %d to %q; want %q", path, rec.Code, rec.Header().Get("Location"), want)
		}
	}
}
