package signing

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
	"cats.example/signer/internal/storage"
	"cats.example/signer/internal/storagetest"
)

const pictureBlob = "x/cat"

// fixture has Keys without a key, over a storage that has a picture.
type fixture struct {
	*Keys
	server     *storagetest.Server
	credential *storagetest.Credential
	log        *storagetest.Log

	mu     sync.Mutex
	probes int
	reject func(link url.Values) (status int, code string) // how storage answers probes; status 0 for the real answer
}

func newFixture(t testing.TB, blobName string) *fixture {
	t.Helper()
	transport := storage.NewTransport()
	f := &fixture{server: storagetest.New(t, transport), credential: &storagetest.Credential{}, log: &storagetest.Log{}}
	f.server.Put(pictureBlob, "cat", "image/png")
	log, reg := slog.New(slog.NewJSONHandler(f.log, nil)), prometheus.NewRegistry()
	client, err := storage.New(storage.Options{
		Settings:   storage.Settings{AccountURL: storagetest.AccountURL, Container: "cats", BlobName: blobName},
		Credential: f.credential, Transport: transport, Retry: &policy.RetryOptions{MaxRetries: -1},
	}, log, reg)
	if err != nil {
		t.Fatal(err)
	}
	f.Keys = New(Settings{LinkTTL: time.Hour, LinkMaxTTL: 24 * time.Hour, LinkBaseURL: "https://cdn.example.com"}, client, 0, log, reg)
	f.server.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		q := r.URL.Query()
		if q.Get("sig") == "" {
			return false
		}
		if r.Header.Get("Authorization") != "" || r.Method != http.MethodHead || r.URL.Path != "/cats/"+pictureBlob {
			t.Errorf("a probe is %s %s with %v", r.Method, r.URL.Path, r.Header)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.probes++
		if f.reject == nil {
			return false
		}
		status, code := f.reject(q)
		if status != 0 {
			storagetest.Reject(w, status, code)
		}
		return status != 0
	})
	return f
}

// withKey calls test with a new fixture, which has a key, in a bubble.
func withKey(t *testing.T, test func(*testing.T, *fixture)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "cat")
		if _, err := f.Fetch(t.Context()); err != nil {
			t.Fatal(err)
		}
		test(t, f)
	})
}

// rejecting sets how storage answers probes.
func (f *fixture) rejecting(reject func(url.Values) (int, string)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reject = reject
}

func always(status int, code string) func(url.Values) (int, string) {
	return func(url.Values) (int, string) { return status, code }
}

// probed returns the number of probes since the last call.
func (f *fixture) probed() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.probes
	f.probes = 0
	return n
}

// get gets a link to the pictureBlob, and waits for what follows from it.
func (f *fixture) get(t *testing.T) (url.Values, error) {
	t.Helper()
	l, err := f.Link(pictureBlob, "image/png", "", time.Hour, nil)
	if err != nil {
		return nil, err
	}
	synctest.Wait()
	return queryOf(t, l.URL), nil
}

func queryOf(t *testing.T, u signerapi.SignedURL) url.Values {
	t.Helper()
	parsed, err := url.Parse(string(u))
	if err != nil {
		t.Fatal(err)
	}
	return parsed.Query()
}

// running calls body in a bubble in which Keys.Run runs.
func running(t *testing.T, before, body func(*testing.T, *fixture)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "cat")
		if before != nil {
			before(t, f)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			f.Run(ctx)
		}()
		synctest.Wait()
		body(t, f)
		cancel()
		<-done
	})
}

func TestLinksAreProbedOnceAMinute(t *testing.T) {
	running(t, nil, func(t *testing.T, f *fixture) {
		all := 0
		for seconds := range 300 { // all of them the same link
			if _, err := f.get(t); err != nil {
				t.Fatal(err)
			}
			if all += f.probed(); all == 0 || all > 1+seconds/45 {
				t.Errorf("after %d s, %d probes", seconds, all)
			}
			time.Sleep(time.Second)
		}
		time.Sleep(2 * time.Minute) // for the links since the last probe
		if all += f.probed(); all < 5 {
			t.Errorf("%d probes in five minutes", all)
		}
		time.Sleep(time.Hour)
		if n := f.probed(); n != 0 {
			t.Errorf("%d probes without links", n)
		}
		if n := testutil.ToFloat64(f.metrics.probes.WithLabelValues(probeOK)); n != float64(all) {
			t.Errorf("%v of %d probes are counted as ok", n, all)
		}
		before := f.key.Load()
		f.server.Change(func(blobs map[string]*storagetest.Blob) { delete(blobs, pictureBlob) })
		f.requestProbe(pictureBlob)
		synctest.Wait()
		if n := f.probed(); n != 1 || f.key.Load() != before {
			t.Errorf("a picture that was deleted: %d probes, the key was dropped: %t", n, f.key.Load() != before)
		}
	})
}

func TestRevokedKeyIsReplaced(t *testing.T) {
	running(t, nil, func(t *testing.T, f *fixture) {
		first, err := f.get(t)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(25 * time.Hour)
		second, err := f.get(t)
		if err != nil || second.Get("skt") == first.Get("skt") {
			t.Fatal("the key was not renewed", err)
		}
		time.Sleep(2 * time.Minute)
		revoked := time.Now()
		f.rejecting(func(link url.Values) (int, string) {
			if start, _ := time.Parse(time.RFC3339, link.Get("skt")); start.Before(revoked.Add(-ToleratedSkew)) {
				return http.StatusForbidden, "AuthenticationFailed"
			}
			return 0, ""
		})
		f.probed()
		_, _ = f.get(t) // its probe finds out
		third, err := f.get(t)
		if err != nil {
			t.Fatal(err)
		}
		if start, _ := time.Parse(time.RFC3339, third.Get("skt")); start.Before(time.Now().Add(-ToleratedSkew - time.Second)) {
			t.Errorf("links are still signed with the key of %v", start)
		}
		if n := f.probed(); n != 2 {
			t.Errorf("%d probes; want one with each key", n)
		}
		log := f.log.String()
		if !strings.Contains(log, `"level":"ERROR","msg":"storage rejected the user delegation key`) || !strings.Contains(log, "AuthenticationFailed") || !strings.Contains(log, "fix: ") || strings.Contains(log, "sig=") {
			t.Error(log)
		}
	})
}

func TestNewKeyIsProbedAfterADrop(t *testing.T) {
	running(t, nil, func(t *testing.T, f *fixture) {
		if _, err := f.get(t); err != nil {
			t.Fatal(err)
		}
		f.server.SetEarly(func(_ http.ResponseWriter, r *http.Request) bool {
			if r.URL.Query().Get("comp") == "userdelegationkey" { // the key is dropped while the next one is fetched
				f.rejecting(always(http.StatusForbidden, "AuthorizationPermissionMismatch"))
				f.requestProbe(pictureBlob)
				time.Sleep(5 * time.Second)
			}
			return false
		})
		time.Sleep(25 * time.Hour)
		synctest.Wait()
		if n := strings.Count(f.log.String(), "user delegation key obtained"); n != 1 || f.Ready(t.Context()) == nil {
			t.Errorf("%d keys were used; want only the first", n)
		}
		f.rejecting(nil)
		f.server.SetEarly(nil)
		time.Sleep(time.Minute)
		if err := f.Ready(t.Context()); err != nil {
			t.Errorf("with the role back: %v", err)
		}
	})
}

func TestSignerIsNotReadyWithoutItsRole(t *testing.T) {
	running(t, nil, func(t *testing.T, f *fixture) {
		f.rejecting(always(http.StatusForbidden, "AuthorizationPermissionMismatch"))
		_, _ = f.get(t)
		for range 5 {
			if _, err := f.get(t); !errors.Is(err, apierror.ErrIdentityUnavailable) {
				t.Fatalf("a link with a rejected key: %v", err)
			}
			if err := f.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "AuthorizationPermissionMismatch") || !strings.Contains(err.Error(), "Storage Blob Data Contributor") {
				t.Errorf("Ready returned %v", err)
			}
			time.Sleep(time.Minute)
		}
		if n := testutil.ToFloat64(f.metrics.keyExpiry); n != 0 {
			t.Errorf("the metric has a key that expires at %v", n)
		}
		if n := f.probed(); n < 8 || n > 40 { // backoff
			t.Errorf("%d probes within five minutes", n)
		}
		f.rejecting(always(http.StatusServiceUnavailable, "ServerBusy"))
		time.Sleep(time.Minute)
		if err := f.Ready(t.Context()); err == nil {
			t.Error("ready with a key whose probe was inconclusive")
		}
		f.rejecting(nil)
		time.Sleep(time.Minute)
		if _, err := f.get(t); err != nil || f.Ready(t.Context()) != nil {
			t.Errorf("with the role back: %v", err)
		}
	})
}

func TestInconclusiveProbeKeepsTheKey(t *testing.T) {
	for _, c := range []struct {
		status int // 0 for no answer
		code   string
	}{
		{403, "AuthorizationFailure"},
		{403, "AccountIsDisabled"},
		{403, ""},
		{401, ""},
		{407, ""},
		{409, "BlobArchived"},
		{429, "TooManyRequests"},
		{500, "InternalError"},
		{503, "ServerBusy"},
		{0, ""},
	} {
		running(t, nil, func(t *testing.T, f *fixture) {
			if _, err := f.get(t); err != nil {
				t.Fatal(err)
			}
			key := f.key.Load()
			time.Sleep(2 * time.Minute)
			f.rejecting(func(url.Values) (int, string) {
				if c.status == 0 {
					panic(http.ErrAbortHandler)
				}
				return c.status, c.code
			})
			f.requestProbe(pictureBlob)
			synctest.Wait()
			if n := testutil.ToFloat64(f.metrics.probes.WithLabelValues(probeInconclusive)); n != 1 || f.key.Load() != key {
				t.Errorf("%d %s: %v inconclusive probes, the key was dropped: %t", c.status, c.code, n, f.key.Load() != key)
			}
			if log := f.log.String(); !strings.Contains(log, "probe of a signed URL was inconclusive") || strings.Contains(log, "sig=") || f.credential.Renewed() > 0 {
				t.Errorf("%d %s: %s", c.status, c.code, log)
			}
		})
	}
}

func TestProbeDoesNotOutliveTheKey(t *testing.T) {
	withKey(t, func(t *testing.T, f *fixture) {
		k := f.key.Load()
		k.end = time.Now().UTC().Add(time.Minute)
		f.rejecting(func(link url.Values) (int, string) {
			if end := link.Get("se"); end != k.end.Format(time.RFC3339) {
				t.Errorf("the URL expires at %s; want %v", end, k.end)
			}
			return 0, ""
		})
		if err := f.probe(t.Context(), k, pictureBlob); err != nil || f.probed() != 1 {
			t.Error(err)
		}
	})
}

func TestClockSkewIsLogged(t *testing.T) {
	for _, c := range []struct {
		ahead time.Duration // of storage's
		log   string
	}{
		{0, ""},
		{50 * time.Second, ""},
		{-50 * time.Second, ""},
		{10 * time.Minute, "ahead of storage's; from 15m0s on storage rejects new links"},
		{-10 * time.Minute, "behind storage's; links expire that much too early"},
	} {
		running(t, func(_ *testing.T, f *fixture) { f.server.SetAhead(c.ahead) }, func(t *testing.T, f *fixture) {
			for range 3 {
				time.Sleep(2 * time.Minute)
				_, _ = f.get(t)
			}
			if got := testutil.ToFloat64(f.metrics.clockSkew); got < c.ahead.Seconds()-1 || got > c.ahead.Seconds()+1 {
				t.Errorf("%v ahead: the metric has %v", c.ahead, got)
			}
			log := f.log.String()
			if n := strings.Count(log, `"level":"WARN","msg":"clock differs from storage's"`); (n == 1) != (c.log != "") || n > 1 || !strings.Contains(log, c.log) {
				t.Errorf("%v ahead: %s", c.ahead, log)
			}
			f.server.SetAhead(0)
			time.Sleep(2 * time.Minute)
			_, _ = f.get(t)
			if again := strings.Contains(f.log.String(), "agrees with storage's again"); again != (c.log != "") {
				t.Errorf("%v ahead, and then right: %s", c.ahead, f.log.String())
			}
		})
	}
}

// Storage rejects requests for the key or the container, and then accepts them.
func TestKeysBecomeReadyAfterRejections(t *testing.T) {
	isKey := func(r *http.Request) bool { return r.URL.Query().Get("comp") == "userdelegationkey" }
	isContainer := func(r *http.Request) bool { return r.URL.Query().Get("restype") == "container" }
	for _, c := range []struct {
		name   string
		match  func(*http.Request) bool
		status int
		code   string
		want   *apierror.Error // of Link and Ready; nil if they work
		text   string          // in the log, and in the error of Ready
	}{
		{"storage is broken", isKey, 500, "InternalError", apierror.ErrStorageUnavailable, "InternalError"},
		{"storage throttles", isKey, 429, "TooManyRequests", apierror.ErrThrottled, "TooManyRequests"},
		{"token rejected", isKey, 401, "InvalidAuthenticationInfo", apierror.ErrIdentityUnavailable, "AZURE_TENANT_ID"},
		{"no role", isKey, 403, "AuthorizationPermissionMismatch", apierror.ErrIdentityUnavailable, "Storage Blob Delegator on the storage account"},
		{"network rules", isKey, 403, "AuthorizationFailure", apierror.ErrIdentityUnavailable, "network rules"},
		{"other rejection", isKey, 400, "InvalidXmlDocument", apierror.ErrIdentityUnavailable, "InvalidXmlDocument"},
		{"unusual 404", isKey, 404, "BlobNotFound", apierror.ErrIdentityUnavailable, ""},
		{"unusual 409", isKey, 409, "BlobAlreadyExists", apierror.ErrIdentityUnavailable, ""},
		{"no container", isContainer, 404, "ContainerNotFound", apierror.ErrIdentityUnavailable, "--account-name acct --name cats) or set STORAGE_CONTAINER"},
		{"container check throttled", isContainer, 503, "ServerBusy", apierror.ErrThrottled, "ServerBusy"},
		{"container check not permitted", isContainer, 403, "AuthorizationPermissionMismatch", nil, "container check not permitted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			running(t, func(t *testing.T, f *fixture) {
				if _, err := f.Link(pictureBlob, "image/png", "", time.Hour, nil); !errors.Is(err, apierror.ErrSignerUnavailable) || !errors.Is(f.Ready(t.Context()), apierror.ErrSignerUnavailable) {
					t.Errorf("before Run: %v", err)
				}
				f.server.SetFault(storagetest.Rejecting(c.status, c.code, c.match))
			}, func(t *testing.T, f *fixture) {
				if c.want == nil {
					if err := f.Ready(t.Context()); err != nil || !strings.Contains(f.log.String(), `"level":"WARN"`) || !strings.Contains(f.log.String(), c.text) {
						t.Errorf("%v; the log has %s", err, f.log.String())
					}
					return
				}
				ready := f.Ready(t.Context())
				if _, err := f.get(t); !errors.Is(err, c.want) || !errors.Is(ready, c.want) || !strings.Contains(ready.Error(), c.text) || !strings.Contains(f.log.String(), c.text) {
					t.Errorf("Link returned %v, Ready %v; want %s", err, ready, c.want.Code)
				}
				if renewed := f.credential.Renewed() > 0; renewed != (c.status == 401) {
					t.Errorf("the token was renewed: %t", renewed)
				}
				f.server.SetFault(nil)
				time.Sleep(time.Minute)
				if err := f.Ready(t.Context()); err != nil {
					t.Errorf("after the rejections: %v", err)
				}
			})
		})
	}
}

func TestReadyNamesMissingToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "cat")
		f.credential.Err = errors.New("AADSTS700213")
		if err := f.Ready(t.Context()); !errors.Is(err, f.credential.Err) {
			t.Errorf("without a key: %v", err)
		}
		f.credential.Err = nil
		if end, err := f.Fetch(t.Context()); err != nil || !end.After(time.Now()) {
			t.Errorf("Fetch: %v, %v", end, err)
		}
		f.credential.Err = errors.New("AADSTS700213")
		if err := f.Ready(t.Context()); err != nil {
			t.Errorf("with a key: %v", err)
		}
	})
}
