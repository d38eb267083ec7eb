package blobstore

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
)

func TestStorageErrorsHaveOneMeaning(t *testing.T) {
	for _, c := range []struct {
		status     int
		code       string
		want       *apierror.Error
		retryAfter time.Duration
	}{
		{404, "BlobNotFound", apierror.ErrNotFound, 0},
		{404, "ContainerNotFound", apierror.ErrInternal, 0},
		{404, "", apierror.ErrInternal, 0}, // not storage's word that there is no cat
		{403, "AuthorizationPermissionMismatch", apierror.ErrIdentityUnavailable, 0},
		{401, "InvalidAuthenticationInfo", apierror.ErrIdentityUnavailable, 0},
		{400, "InvalidHeaderValue", apierror.ErrInternal, 0},
		{503, "ServerBusy", apierror.ErrThrottled, 17 * time.Second},
		{429, "", apierror.ErrThrottled, 17 * time.Second},
		{500, "InternalError", apierror.ErrStorageUnavailable, 0},
		{504, "", apierror.ErrStorageUnavailable, 0},
		{302, "", apierror.ErrInternal, 0},
	} {
		s, back, creds := withKey(t, nil)
		back.fault = func(w http.ResponseWriter, _ *http.Request) bool {
			if c.retryAfter > 0 {
				w.Header().Set("Retry-After", "17")
			}
			w.Header().Set("Location", "https://elsewhere.localhost:1/")
			refuse(w, c.status, c.code)
			return true
		}
		s.retries = -1
		err := s.Delete(t.Context(), user(t, "x"), signerapi.Preconditions{})
		e := apierror.AsError(err)
		if !errors.Is(err, c.want) || (c.retryAfter > 0 && e.RetryAfter != c.retryAfter) {
			t.Errorf("%d %s: %v, Retry-After %v; want %v, %v", c.status, c.code, err, e.RetryAfter, c.want, c.retryAfter)
		}
		if strings.ContainsAny(err.Error(), "\n") || strings.Contains(err.Error(), "localhost") {
			t.Errorf("%d %s: the log would show %q", c.status, c.code, err)
		}
		if want := c.status == 401; want != (creds.renewed > 0) {
			t.Errorf("%d: the token was asked for anew %d times", c.status, creds.renewed)
		}
	}
}

func TestConflictsAndPreconditionsHaveTheirOwnErrors(t *testing.T) {
	var s *Store
	ctx, mia := t.Context(), user(t, "mia")
	for _, c := range []struct {
		status          int
		code            string
		want            *apierror.Error
		ifUnconditional *apierror.Error // nil for the same
	}{
		{409, "BlobArchived", apierror.ErrArchived, nil},
		{409, "BlobBeingRehydrated", apierror.ErrArchived, nil},
		{409, "BlobRehydrationInProgress", apierror.ErrArchived, nil},
		{409, "BlobImmutableDueToPolicy", apierror.ErrImmutable, nil},
		{409, "BlobImmutableDueToLegalHold", apierror.ErrImmutable, nil},
		{409, "ContainerHasLegalHold", apierror.ErrImmutable, nil},
		{409, "ContainerImmutabilityPolicyLocked", apierror.ErrImmutable, nil},
		{409, "ImmutabilityPolicyDeleteOnLockedPolicy", apierror.ErrImmutable, nil},
		{412, "LeaseIdMissing", apierror.ErrLeased, nil},
		{412, "LeaseLost", apierror.ErrLeased, nil},
		{412, "LeaseIdMismatchWithBlobOperation", apierror.ErrLeased, nil},
		{412, "LeaseNotPresentWithBlobOperation", apierror.ErrLeased, nil},
		{409, "LeaseAlreadyPresent", apierror.ErrLeased, nil},
		{409, "LeaseIdMissing", apierror.ErrLeased, nil},
		{409, "InvalidBlobType", apierror.ErrRejectedByStorage, nil},
		{409, "BlobUsesCustomerSpecifiedEncryption", apierror.ErrRejectedByStorage, nil},
		{409, "SnapshotsPresent", apierror.ErrRejectedByStorage, nil},
		{409, "BlobNotArchived", apierror.ErrRejectedByStorage, nil},
		{409, "PendingCopyOperation", apierror.ErrRejectedByStorage, nil},
		{409, "BlockCountExceedsLimit", apierror.ErrRejectedByStorage, nil},
		{409, "BlobOperationNotSupported", apierror.ErrRejectedByStorage, nil},
		{409, "MadeUp", apierror.ErrRejectedByStorage, nil},
		{409, "", apierror.ErrRejectedByStorage, nil},
		{400, "InvalidBlockList", apierror.ErrConflict, nil},
		{400, "InvalidBlobOrBlock", apierror.ErrConflict, nil},
		{412, "ConditionNotMet", apierror.ErrPreconditionFailed, nil},
		{412, "TargetConditionNotMet", apierror.ErrPreconditionFailed, nil},
		{409, "BlobAlreadyExists", apierror.ErrPreconditionFailed, apierror.ErrConflict},
		{412, "", apierror.ErrPreconditionFailed, apierror.ErrRejectedByStorage},
		{412, "MadeUp", apierror.ErrPreconditionFailed, apierror.ErrRejectedByStorage},
	} {
		var back *storage
		s, back, _ = newStore(t, nil)
		back.fault = func(w http.ResponseWriter, _ *http.Request) bool { refuse(w, c.status, c.code); return true }
		for _, conditions := range []signerapi.Preconditions{{}, {IfMatch: `"0x1"`}, {IfNoneMatch: "*"}} {
			want := c.want
			if conditions == (signerapi.Preconditions{}) && c.ifUnconditional != nil {
				want = c.ifUnconditional
			}
			_, put := s.Put(ctx, mia, strings.NewReader(pngOf(100)), signerapi.PutOptions{Size: 100, Preconditions: conditions})
			for call, err := range map[string]error{"put": put, "delete": s.Delete(ctx, mia, conditions)} {
				e := apierror.AsError(err)
				if !errors.Is(err, want) || e.Detail != want.Detail {
					t.Errorf("%s with %+v: %d %s is %v, %q; want %v", call, conditions, c.status, c.code, err, e.Detail, want)
				}
				if cause := e.Unwrap(); !errors.Is(want, apierror.ErrPreconditionFailed) && (cause == nil || !strings.Contains(cause.Error(), c.code)) {
					t.Errorf("%s: the log does not show %s: %v", call, c.code, cause)
				}
			}
		}
		if conflicts := testutil.ToFloat64(s.metrics.conflicts); (conflicts > 0) != errors.Is(c.want, apierror.ErrConflict) && c.ifUnconditional == nil {
			t.Errorf("%d %s: %v conflicts counted", c.status, c.code, conflicts)
		}
	}
}

func TestRejectedNamesAreInvalidUsers(t *testing.T) {
	s, back, _ := withKey(t, func(o *Options) { o.MaxDirectUploadSize = MaxDirectUploadSize })
	ctx, mia := t.Context(), user(t, "mia")
	for _, c := range []struct {
		code string
		want *apierror.Error
	}{
		{"", apierror.ErrInvalidUser},
		{"InvalidUri", apierror.ErrInvalidUser},
		{"InvalidResourceName", apierror.ErrInvalidUser},
		{"OutOfRangeInput", apierror.ErrInvalidUser},
		{"RequestUrlFailedToParse", apierror.ErrInvalidUser},
		{"InvalidHeaderValue", apierror.ErrInternal},
		{"InvalidMd5", apierror.ErrInternal},
	} {
		back.mu.Lock() // a block of the last large picture may still be on its way
		back.fault = func(w http.ResponseWriter, _ *http.Request) bool {
			if c.code == "" { // as the front end of Azure answers
				w.Header().Set("Content-Type", "text/html")
				w.WriteHeader(http.StatusBadRequest)
				_, _ = w.Write([]byte("<HTML><TITLE>Bad Request</TITLE><h2>Bad Request - Invalid URL</h2></HTML>"))
				return true
			}
			refuse(w, http.StatusBadRequest, c.code)
			return true
		}
		back.mu.Unlock()
		_, small := s.Put(ctx, mia, strings.NewReader(pngOf(100)), unknown)
		_, large := s.Put(ctx, mia, strings.NewReader(pngOf(5<<20)), unknown)
		_, link := s.Link(ctx, mia, signerapi.LinkOptions{})
		for call, err := range map[string]error{"put": small, "large put": large, "link": link, "delete": s.Delete(ctx, mia, signerapi.Preconditions{})} {
			if !errors.Is(err, c.want) || errors.Is(err, apierror.ErrInvalidUser) && apierror.AsError(err).Detail != "storage does not accept this user name" {
				t.Errorf("%s: %q is %v; want %v", call, c.code, err, c.want)
			}
		}
		// The name of a staged blob is not the client's.
		if _, err := s.CommitUpload(ctx, mia, newTicket(s.now(), 100).id, signerapi.CommitOptions{}); !errors.Is(err, apierror.ErrInternal) {
			t.Errorf("commit: %q is %v", c.code, err)
		}
		if err := s.removeAbandoned(ctx); !errors.Is(err, apierror.ErrInternal) {
			t.Errorf("listing: %q is %v", c.code, err)
		}
	}
}

func TestErrorsHoldNoURLs(t *testing.T) {
	raw := func(answer string) func(*Options) { // a server that answers each connection with that, and then cuts it
		return func(o *Options) {
			l, err := tls.Listen("tcp", "127.0.0.1:0", testCertificate(t))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					_, _ = conn.Read(make([]byte, 16<<10))
					_, _ = io.WriteString(conn, answer)
					_ = conn.Close()
				}
			}()
			o.AccountURL = "https://acct.blob.localhost:" + strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
			o.Transport.(*http.Client).Transport.(*http.Transport).TLSClientConfig.InsecureSkipVerify = true
		}
	}
	const path = "/cats/Davyd/cat?sig=c2VjcmV0"
	for what, change := range map[string]func(*Options){
		"down":                     func(o *Options) { o.AccountURL = "https://acct.blob.localhost:1" },
		"name that is not known":   func(o *Options) { o.AccountURL = "https://acct.blob.invalid" },
		"untrusted certificate":    func(o *Options) { o.Transport = NewTransport() },
		"cut connection":           raw(""),
		"broken answer":            raw("no HTTP, but https://acct.blob.localhost" + path + "\r\n\r\n"),
		"broken redirect":          raw("HTTP/1.1 307 Elsewhere\r\nLocation: " + path + "%zz\r\n\r\n"),
		"broken absolute redirect": raw("HTTP/1.1 302 Elsewhere\r\nLocation: https://acct.blob.localhost" + path + "%zz\r\n\r\n"),
		"redirect":                 raw("HTTP/1.1 301 Elsewhere\r\nLocation: https://acct.blob.localhost" + path + "\r\nContent-Length: 0\r\n\r\n"),
		"cut body":                 raw("HTTP/1.1 400 Bad Request\r\nContent-Length: 1000\r\n\r\nhttps://acct.blob.localhost" + path),
		"unparsable header":        raw("HTTP/1.1 200 OK\r\n" + path + " https://acct.blob.localhost" + path + "\r\n\r\n"),
		"timeout": func(o *Options) {
			o.Transport = transporter(func(r *http.Request) (*http.Response, error) {
				return nil, &url.Error{Op: "Put", URL: r.URL.String(), Err: fmt.Errorf("in between: %w", &url.Error{Op: "Get", URL: r.URL.String(), Err: context.DeadlineExceeded})}
			})
		},
		"URL in the text alone": func(o *Options) {
			o.Transport = transporter(func(r *http.Request) (*http.Response, error) {
				return nil, fmt.Errorf("proxy %q of %v", r.URL.Path, &url.Error{Op: "Get", URL: r.URL.String(), Err: io.EOF})
			})
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			var log logBuffer
			s, _, _ := newStore(t, change)
			s.log, s.retries = slog.New(slog.NewTextHandler(&log, nil)), -1
			ctx, davyd := t.Context(), user(t, "Davyd")
			fake, _, _ := withKey(t, nil)
			key := fake.key.key.Load()
			scratch := s.NewScratch()
			_, fetch := s.FetchKey(ctx)
			s.key.key.Store(key)
			_, put := s.Put(ctx, davyd, strings.NewReader(pngOf(100)), unknown)
			_, large := s.Put(ctx, davyd, strings.NewReader(pngOf(5<<20)), unknown)
			_, link := s.Link(ctx, davyd, signerapi.LinkOptions{})
			_, commit := s.CommitUpload(ctx, davyd, newTicket(s.now(), 100).id, signerapi.CommitOptions{})
			for call, err := range map[string]error{
				"put": put, "large put": large, "link": link, "commit": commit, "delete": s.Delete(ctx, davyd, signerapi.Preconditions{}), "sweep": s.removeAbandoned(ctx),
				"container": s.checkContainer(ctx), "key": fetch, "trial": s.tryLink(ctx, key, davyd),
				"scratch put": scratch.Put(ctx), "scratch read": scratch.Read(ctx, s.opts.AccountURL), "scratch copy": scratch.Copy(ctx), "scratch delete": scratch.Delete(ctx),
			} {
				if err == nil {
					t.Errorf("%s: no error", call)
					continue
				}
				for _, part := range []string{"Davyd", "/cats", "://", "sig="} {
					if strings.Contains(err.Error(), part) {
						t.Errorf("%s has %s in its error: %v", call, part, err)
					}
				}
				if _, ok := errors.AsType[*url.Error](err); ok {
					t.Errorf("%s has a URL behind its error: %v", call, err)
				}
			}
			if what == "timeout" && !errors.Is(put, context.DeadlineExceeded) {
				t.Errorf("the cause is lost: %v", put)
			}
			if strings.Contains(log.String(), "Davyd") {
				t.Errorf("the log has the name: %s", log.String())
			}
		})
	}
}

// testCertificate returns a certificate of httptest's.
func testCertificate(t *testing.T) *tls.Config {
	srv := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(srv.Close)
	return &tls.Config{Certificates: srv.TLS.Certificates}
}

// transporter answers requests in place of a network.
type transporter func(*http.Request) (*http.Response, error)

func (f transporter) Do(r *http.Request) (*http.Response, error) { return f(r) }

func TestAShortThrottlingIsRiddenOut(t *testing.T) {
	s, back, _ := newStore(t, nil)
	n := 0
	back.fault = func(w http.ResponseWriter, _ *http.Request) bool {
		if n++; n > 2 {
			return false
		}
		refuse(w, 503, "ServerBusy")
		return true
	}
	content := pngOf(100_000)
	if _, err := s.Put(t.Context(), user(t, "x"), strings.NewReader(content), unknown); err != nil {
		t.Fatal(err)
	}
	if back.blobs["/cats/x/cat"] != content || len(back.called()) != 3 {
		t.Error("not stored whole on the third try")
	}
	if got := testutil.ToFloat64(s.metrics.requests.WithLabelValues(opPut, "503")); got != 2 {
		t.Errorf("%v refusals counted", got)
	}
}

func TestTheIdentitysErrorComesThroughStorage(t *testing.T) {
	s, back, creds := newStore(t, nil)
	creds.err = apierror.ErrIdentityUnavailable.Wrap(errors.New("AADSTS1"))
	err := s.Delete(t.Context(), user(t, "x"), signerapi.Preconditions{})
	if !errors.Is(err, apierror.ErrIdentityUnavailable) || len(back.called()) > 0 {
		t.Errorf("got %v", err)
	}
}

func TestStorageThatIsDownIsUnavailable(t *testing.T) {
	s, _, _ := newStore(t, func(o *Options) { o.AccountURL = "https://acct.blob.localhost:1" })
	err := s.Delete(t.Context(), user(t, "x"), signerapi.Preconditions{})
	if !errors.Is(err, apierror.ErrStorageUnavailable) || apierror.AsError(err).RetryAfter == 0 {
		t.Errorf("got %v", err)
	}
}

func TestRunGetsAKeyOnceItIsLetInAndSaysWhichRoleIsMissing(t *testing.T) {
	var log logBuffer
	s, back, _ := newStore(t, nil)
	s.log = slog.New(slog.NewJSONHandler(&log, nil))
	back.fault = func(w http.ResponseWriter, r *http.Request) bool {
		refuse(w, 403, "AuthorizationPermissionMismatch")
		return true
	}
	ctx, cancel := context.WithCancel(t.Context())
	authenticated, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.Run(ctx, authenticated) }()
	if err := s.Ready(ctx); err == nil || len(back.called()) > 0 {
		t.Errorf("before it is authenticated: %v", err)
	}
	close(authenticated)
	eventually(t, "the log line", func() bool { return strings.Contains(log.String(), "Storage Blob Delegator") })
	if err := s.Ready(ctx); !errors.Is(err, apierror.ErrIdentityUnavailable) || !strings.Contains(err.Error(), "Storage Blob Delegator") {
		t.Errorf("refused: %v", err)
	}
	becomesReady(ctx, t, s, back)
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run returned %v", err)
	}
}

func TestErrorWithoutAKeySaysWhy(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(http.ResponseWriter) // to the request for a key; nil if there was none
		want   *apierror.Error
	}{
		"not yet asked":     {nil, apierror.ErrSignerUnavailable},
		"storage is broken": {func(w http.ResponseWriter) { refuse(w, 500, "InternalError") }, apierror.ErrStorageUnavailable},
		"storage throttles": {func(w http.ResponseWriter) { refuse(w, 429, "TooManyRequests") }, apierror.ErrThrottled},
		"token refused":     {func(w http.ResponseWriter) { refuse(w, 401, "InvalidAuthenticationInfo") }, apierror.ErrIdentityUnavailable},
		"no role":           {func(w http.ResponseWriter) { refuse(w, 403, "AuthorizationPermissionMismatch") }, apierror.ErrIdentityUnavailable},
		"another refusal":   {func(w http.ResponseWriter) { refuse(w, 400, "InvalidXmlDocument") }, apierror.ErrIdentityUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			s, back, _ := newStore(t, nil)
			s.retries = -1
			back.blobs["/cats/x/cat"] = "cat"
			back.fault = func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Query().Get("comp") != "userdelegationkey" {
					return false
				}
				c.answer(w)
				return true
			}
			ctx, cancel := context.WithCancel(t.Context())
			authenticated, done := make(chan struct{}), make(chan error, 1)
			go func() { done <- s.Run(ctx, authenticated) }()
			if c.answer != nil {
				close(authenticated)
				eventually(t, "the outcome", func() bool { return !errors.Is(s.Ready(ctx), apierror.ErrSignerUnavailable) })
			}
			if _, err := s.Link(ctx, user(t, "x"), signerapi.LinkOptions{}); !errors.Is(err, c.want) {
				t.Errorf("Link: %v; want %v", err, c.want.Code)
			}
			if err := s.Ready(ctx); !errors.Is(err, c.want) {
				t.Errorf("Ready: %v; want %v", err, c.want.Code)
			}
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run returned %v", err)
			}
		})
	}
}

func TestEveryRefusalOfAKeyIsAnError(t *testing.T) {
	for code, status := range map[string]int{"BlobNotFound": 404, "BlobAlreadyExists": 409, "ConditionNotMet": 412, "InternalError": 500} {
		s, back, _ := newStore(t, nil)
		s.retries = -1
		back.fault = func(w http.ResponseWriter, _ *http.Request) bool {
			refuse(w, status, code)
			return true
		}
		if _, err := s.FetchKey(t.Context()); err == nil {
			t.Errorf("%d %s: no error", status, code)
		}
	}
}

func TestATokenRefusedForTheKeyIsFetchedAnew(t *testing.T) {
	s, back, creds := newStore(t, nil)
	back.fault = func(w http.ResponseWriter, _ *http.Request) bool {
		refuse(w, 401, "InvalidAuthenticationInfo")
		return true
	}
	if _, err := s.fetchKey(t.Context()); err == nil || creds.renewed != 1 {
		t.Errorf("%v; the token was asked for anew %d times", err, creds.renewed)
	}
}

// becomesReady ends the fault of the storage and waits until s is ready.
func becomesReady(ctx context.Context, t *testing.T, s *Store, back *storage) {
	t.Helper()
	back.mu.Lock()
	back.fault = nil
	back.mu.Unlock()
	eventually(t, "a key", func() bool { return s.Ready(ctx) == nil })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting for %s", what)
		}
	}
}

// logBuffer is a log that the test reads while the store writes it.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
