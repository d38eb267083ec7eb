package signing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
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
	l, err := f.Link(pictureBlob, "image/png", signerapi.LinkOptions{}, nil)
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
			_, _ = f.get(t)
			if all += f.probed(); all == 0 || all > 1+seconds/45 {
				t.Fatalf("after %d s, %d probes", seconds, all)
			}
			time.Sleep(time.Second)
		}
		time.Sleep(2 * time.Minute) // for the links since the last probe
		if all += f.probed(); all < 5 {
			t.Errorf("%d probes in five minutes", all)
		}
		time.Sleep(time.Hour)
		if n := f.probed(); n != 0 || testutil.ToFloat64(f.metrics.probes.WithLabelValues("ok")) != float64(all) {
			t.Errorf("%d probes without links, or not all %d are counted", n, all)
		}
		before := f.key.Load()
		f.server.Change(func(blobs map[string]*storagetest.Blob) { delete(blobs, pictureBlob) })
		f.linked <- pictureBlob
		synctest.Wait()
		if n := f.probed(); n != 1 || f.key.Load() != before {
			t.Errorf("a picture that was deleted: %d probes, the key was dropped: %t", n, f.key.Load() != before)
		}
		time.Sleep(25 * time.Hour)
		if key := f.key.Load(); key == before {
			t.Error("the key was not renewed")
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
				f.linked <- pictureBlob
				time.Sleep(5 * time.Second)
			}
			return false
		})
		time.Sleep(25 * time.Hour)
		synctest.Wait()
		f.server.SetEarly(nil)
		for range 5 {
			_, err := f.get(t)
			ready := fmt.Sprint(f.Ready(t.Context()))
			if !errors.Is(err, apierror.ErrIdentityUnavailable) || !strings.Contains(ready, "Storage Blob Data Contributor") {
				t.Errorf("without the role: %v; Ready returned %v", err, ready)
			}
			time.Sleep(time.Minute)
		}
		f.rejecting(always(http.StatusServiceUnavailable, "ServerBusy"))
		time.Sleep(time.Minute)
		keys := strings.Count(f.log.String(), "user delegation key obtained")
		if expiry := testutil.ToFloat64(f.metrics.keyExpiry); f.Ready(t.Context()) == nil || keys != 1 || expiry != 0 {
			t.Errorf("a key whose probe was inconclusive is used: %d keys, the metric has %v", keys, expiry)
		}
		f.rejecting(nil)
		time.Sleep(time.Minute)
		if _, err := f.get(t); err != nil || f.Ready(t.Context()) != nil {
			t.Errorf("with the role back: %v", err)
		}
	})
}

func TestInconclusiveProbeKeepsTheKey(t *testing.T) {
	for _, row := range storagetest.Rows(t, "inconclusive.txt") {
		running(t, nil, func(t *testing.T, f *fixture) {
			if _, err := f.get(t); err != nil {
				t.Fatal(err)
			}
			key := f.key.Load()
			time.Sleep(2 * time.Minute)
			f.rejecting(func(url.Values) (int, string) {
				if row[0] == "0" {
					panic(http.ErrAbortHandler)
				}
				return int(storagetest.Number(t, row[0])), row[1]
			})
			f.linked <- pictureBlob
			synctest.Wait()
			if n := testutil.ToFloat64(f.metrics.probes.WithLabelValues("inconclusive")); n != 1 || f.key.Load() != key {
				t.Errorf("%q: %v inconclusive probes, the key was dropped: %t", row, n, f.key.Load() != key)
			}
			if log := f.log.String(); !strings.Contains(log, "probe of a signed URL was inconclusive") || strings.Contains(log, "sig=") || f.credential.Renewed() > 0 {
				t.Errorf("%q: %s", row, log)
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
	for ahead, text := range map[time.Duration]string{ // of storage's
		-50 * time.Second: "", 50 * time.Second: "",
		10 * time.Minute: "ahead of storage's; from 15m0s on storage rejects new links", -10 * time.Minute: "behind storage's; links expire that much too early",
	} {
		running(t, func(_ *testing.T, f *fixture) { f.server.SetAhead(ahead) }, func(t *testing.T, f *fixture) {
			for range 3 {
				time.Sleep(2 * time.Minute)
				_, _ = f.get(t)
			}
			warnings := strings.Count(f.log.String(), `"level":"WARN","msg":"clock differs from storage's"`)
			if skew := testutil.ToFloat64(f.metrics.clockSkew); math.Abs(skew-ahead.Seconds()) > 1 || (warnings == 1) != (text != "") || !strings.Contains(f.log.String(), text) {
				t.Errorf("%v ahead: the metric has %v, the log %s", ahead, skew, f.log)
			}
			f.server.SetAhead(0)
			time.Sleep(2 * time.Minute)
			_, _ = f.get(t)
			if again := strings.Contains(f.log.String(), "agrees with storage's again"); again != (text != "") {
				t.Errorf("%v ahead, and then right: %s", ahead, f.log)
			}
		})
	}
}

// Storage rejects requests for the key or the container, and then accepts them.
func TestKeysBecomeReadyAfterRejections(t *testing.T) {
	requests := map[string]func(*http.Request) bool{
		"key":       func(r *http.Request) bool { return r.URL.Query().Get("comp") == "userdelegationkey" },
		"container": func(r *http.Request) bool { return r.URL.Query().Get("restype") == "container" },
	}
	for _, row := range storagetest.Rows(t, "rejections.txt") {
		running(t, func(t *testing.T, f *fixture) {
			if _, err := f.get(t); !errors.Is(err, apierror.ErrSignerUnavailable) || !errors.Is(f.Ready(t.Context()), apierror.ErrSignerUnavailable) {
				t.Errorf("before Run: %v", err)
			}
			f.server.SetFault(storagetest.Rejecting(int(storagetest.Number(t, row[1])), row[2], requests[row[0]]))
		}, func(t *testing.T, f *fixture) {
			ready := f.Ready(t.Context())
			_, err := f.get(t)
			if want := apierror.ByCode(row[3]); want == nil && (ready != nil || err != nil) ||
				want != nil && (!errors.Is(ready, want) || !errors.Is(err, want) || !strings.Contains(ready.Error(), row[4])) {
				t.Errorf("%q: Link returned %v, Ready %v", row, err, ready)
			}
			if renewed := f.credential.Renewed() > 0; renewed != (row[1] == "401") || !strings.Contains(f.log.String(), row[4]) {
				t.Errorf("%q: the token was renewed: %t; the log has %s", row, renewed, f.log)
			}
			f.server.SetFault(nil)
			time.Sleep(time.Minute)
			if err := f.Ready(t.Context()); err != nil {
				t.Errorf("%q, after the rejections: %v", row, err)
			}
		})
	}
}

func TestReadyNamesMissingToken(t *testing.T) {
	withKey(t, func(t *testing.T, f *fixture) {
		f.credential.Err = errors.New("AADSTS700213")
		if err := f.Ready(t.Context()); err != nil {
			t.Errorf("with a key: %v", err)
		}
		f.set(nil)
		if err := f.Ready(t.Context()); !errors.Is(err, f.credential.Err) {
			t.Errorf("without a key: %v", err)
		}
	})
}
