package blobstore

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"cats.example/shared/signerapi"
)

func TestErrorsOfStorageMeanOneThingEach(t *testing.T) {
	for _, c := range []struct {
		status     int
		code       string
		want       *signerapi.Error
		retryAfter time.Duration
	}{
		{404, "BlobNotFound", signerapi.ErrNotFound, 0},
		{404, "ContainerNotFound", signerapi.ErrInternal, 0},
		{404, "", signerapi.ErrInternal, 0}, // not storage's word that there is no cat
		{403, "AuthorizationPermissionMismatch", signerapi.ErrIdentityUnavailable, 0},
		{401, "InvalidAuthenticationInfo", signerapi.ErrIdentityUnavailable, 0},
		{409, "BlobImmutableDueToPolicy", signerapi.ErrConflict, 0},
		{400, "InvalidBlockList", signerapi.ErrConflict, 0},
		{400, "InvalidHeaderValue", signerapi.ErrInternal, 0},
		{503, "ServerBusy", signerapi.ErrThrottled, 17 * time.Second},
		{429, "", signerapi.ErrThrottled, 17 * time.Second},
		{500, "InternalError", signerapi.ErrStorageUnavailable, 0},
		{504, "", signerapi.ErrStorageUnavailable, 0},
		{302, "", signerapi.ErrInternal, 0},
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
		err := s.Delete(t.Context(), user(t, "x"), signerapi.Conditions{})
		e := signerapi.AsError(err)
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
	creds.err = signerapi.ErrIdentityUnavailable.Wrap(errors.New("AADSTS1"))
	err := s.Delete(t.Context(), user(t, "x"), signerapi.Conditions{})
	if !errors.Is(err, signerapi.ErrIdentityUnavailable) || len(back.called()) > 0 {
		t.Errorf("got %v", err)
	}
}

func TestStorageThatIsDownIsUnavailable(t *testing.T) {
	s, _, _ := newStore(t, func(o *Options) { o.AccountURL = "https://acct.blob.localhost:1" })
	err := s.Delete(t.Context(), user(t, "x"), signerapi.Conditions{})
	if !errors.Is(err, signerapi.ErrStorageUnavailable) || signerapi.AsError(err).RetryAfter == 0 {
		t.Errorf("got %v", err)
	}
}

func TestRunGetsAKeyOnceItIsLetInAndSaysWhichRoleIsMissing(t *testing.T) {
	var log logBuffer
	s, back, _ := newStore(t, nil)
	s.key.log = slog.New(slog.NewJSONHandler(&log, nil))
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
	if err := s.Ready(ctx); !errors.Is(err, signerapi.ErrIdentityUnavailable) || !strings.Contains(err.Error(), "Storage Blob Delegator") {
		t.Errorf("refused: %v", err)
	}
	back.mu.Lock()
	back.fault = nil
	back.mu.Unlock()
	eventually(t, "a key", func() bool { return s.Ready(ctx) == nil })
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run returned %v", err)
	}
}

func TestATokenRefusedForTheKeyIsFetchedAnew(t *testing.T) {
	s, back, creds := newStore(t, nil)
	back.fault = func(w http.ResponseWriter, _ *http.Request) bool {
		refuse(w, 401, "InvalidAuthenticationInfo")
		return true
	}
	if _, err := s.key.fetch(t.Context()); err == nil || creds.renewed != 1 {
		t.Errorf("%v; the token was asked for anew %d times", err, creds.renewed)
	}
}

func TestRunRefusesAContainerThatDoesNotExist(t *testing.T) {
	s, back, _ := newStore(t, nil)
	back.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("restype") != "container" {
			return false
		}
		refuse(w, 404, "ContainerNotFound")
		return true
	}
	authenticated := make(chan struct{})
	close(authenticated)
	err := s.Run(t.Context(), authenticated)
	if err == nil || !strings.Contains(err.Error(), `"cats"`) || !strings.Contains(err.Error(), "STORAGE_CONTAINER") {
		t.Errorf("Run returned %v", err)
	}
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
