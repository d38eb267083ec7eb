package signing

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
	"cats.example/signer/internal/storagetest"
)

const pictureBlob = "x/cat"

// fixture has Keys without a key, over a storage that has a picture.
type fixture struct {
	*Keys
	server *storagetest.Server

	mu     sync.Mutex
	probes []url.Values
	reject storagetest.Handler // answers probes in place of storage, nil for storage itself
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{server: storagetest.New(t)}
	f.server.Put(pictureBlob, "cat", "image/png")
	settings := Settings{LinkTTL: time.Hour, LinkMaxTTL: 24 * time.Hour, LinkBaseURL: "https://cdn.example.com"}
	f.Keys = New(settings, f.server.Client, 0, f.server.Logger, f.server.Registry)
	f.server.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("sig") == "" {
			return false
		}
		if r.Header.Get("Authorization") != "" || r.Method != http.MethodHead || r.URL.Path != "/cats/"+pictureBlob {
			t.Errorf("a probe is %s %s with %v", r.Method, r.URL.Path, r.Header)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.probes = append(f.probes, r.URL.Query())
		return f.reject != nil && f.reject(w, r)
	})
	return f
}

// withKey calls test with a new fixture, which has a key, in a bubble.
func withKey(t *testing.T, test func(*testing.T, *fixture)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		if _, err := f.Fetch(t.Context()); err != nil {
			t.Fatal(err)
		}
		test(t, f)
	})
}

// running calls test in a bubble in which Keys.Run runs. Before, early answers requests in place of storage.
func running(t *testing.T, early storagetest.Handler, test func(*testing.T, *fixture)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.server.SetEarly(early)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { f.Run(ctx); close(done) }()
		synctest.Wait()
		test(t, f)
		cancel()
		<-done
	})
}

// rejecting sets how storage answers probes.
func (f *fixture) rejecting(reject storagetest.Handler) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reject = reject
}

// counted returns the number of probes so far.
func (f *fixture) counted() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.probes)
}

// probed returns the query of the last probe.
func (f *fixture) probed() url.Values {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.probes[len(f.probes)-1]
}

// get gets a link to the pictureBlob, and waits for what follows from it.
func (f *fixture) get() error {
	_, err := f.Link(pictureBlob, "image/png", signerapi.LinkOptions{}, nil)
	synctest.Wait()
	return err
}

func TestLinksAreProbedOnceAMinute(t *testing.T) {
	running(t, nil, func(t *testing.T, f *fixture) {
		for seconds := range 300 { // all of them the same link
			_ = f.get()
			if n := f.counted(); n == 0 || n > 1+seconds/45 {
				t.Fatalf("after %d s, %d probes", seconds, n)
			}
			time.Sleep(time.Second)
		}
		time.Sleep(2 * time.Minute) // for the links since the last probe
		all := f.counted()
		if all < 5 {
			t.Errorf("%d probes in five minutes", all)
		}
		time.Sleep(time.Hour)
		if n := f.counted(); n != all || testutil.ToFloat64(f.metrics.probes.WithLabelValues("ok")) != float64(all) {
			t.Errorf("%d probes without links, or not all %d are counted", n-all, all)
		}
		before := f.key.Load()
		f.server.Change(func(blobs map[string]*storagetest.Blob) { delete(blobs, pictureBlob) })
		f.linked <- pictureBlob
		synctest.Wait()
		if n := f.counted() - all; n != 1 || f.key.Load() != before {
			t.Errorf("a picture that was deleted: %d probes, the key was dropped: %t", n, f.key.Load() != before)
		}
		time.Sleep(25 * time.Hour)
		if f.key.Load() == before {
			t.Error("the key was not renewed")
		}
		if log := f.server.Log.String(); strings.Contains(log, "clock differs") {
			t.Errorf("the clocks agree, but the log has %s", log)
		}
	})
}

// The key is dropped while the next one is fetched, and storage does not say whether that one works.
func TestNewKeyIsProbedAfterADrop(t *testing.T) {
	running(t, nil, func(t *testing.T, f *fixture) {
		if err := f.get(); err != nil {
			t.Fatal(err)
		}
		f.server.SetEarly(func(_ http.ResponseWriter, r *http.Request) bool {
			if r.URL.Query().Get("comp") == "userdelegationkey" {
				f.rejecting(storagetest.Rejecting(http.StatusForbidden, "AuthorizationPermissionMismatch", nil))
				f.linked <- pictureBlob
				time.Sleep(5 * time.Second)
				f.rejecting(storagetest.Rejecting(http.StatusServiceUnavailable, "ServerBusy", nil))
			}
			return false
		})
		time.Sleep(25 * time.Hour)
		f.server.SetEarly(nil)
		time.Sleep(10 * time.Second) // the last request for a key ends
		keys := strings.Count(f.server.Log.String(), "user delegation key obtained")
		if err := f.get(); err == nil || f.Ready(t.Context()) == nil || keys != 1 {
			t.Errorf("a key whose probe was inconclusive is used: %v, %d keys", err, keys)
		}
		if end := testutil.ToFloat64(f.metrics.keyExpiry); end != 0 {
			t.Errorf("without a key, the metric has the expiry %v", end)
		}
		f.rejecting(nil)
		time.Sleep(time.Minute)
		if err := f.get(); err != nil || f.Ready(t.Context()) != nil {
			t.Errorf("with a probe that succeeds: %v", err)
		}
	})
}

func TestInconclusiveProbeKeepsTheKey(t *testing.T) {
	for _, row := range storagetest.Rows(t, "inconclusive.txt") {
		running(t, nil, func(t *testing.T, f *fixture) {
			key, reject := f.key.Load(), storagetest.Rejecting(int(storagetest.Number(t, row[0])), row[1], nil)
			if row[0] == "0" {
				reject = func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }
			}
			f.rejecting(reject)
			if err := f.get(); err != nil {
				t.Fatal(err)
			}
			if n := testutil.ToFloat64(f.metrics.probes.WithLabelValues("inconclusive")); n != 1 || f.key.Load() != key {
				t.Errorf("%q: %v inconclusive probes, the key was dropped: %t", row, n, f.key.Load() != key)
			}
			log, renewed := f.server.Log.String(), f.server.Credential.Renewed.Load()
			if !strings.Contains(log, "probe of a signed URL was inconclusive") || strings.Contains(log, "sig=") || renewed {
				t.Errorf("%q: %s", row, log)
			}
		})
	}
}

// Storage rejects requests for the key or the container, and then accepts them.
func TestKeysBecomeReadyAfterRejections(t *testing.T) {
	queries := map[string]string{"key": "comp=userdelegationkey", "container": "restype=container"}
	for _, row := range storagetest.Rows(t, "rejections.txt") {
		running(t, storagetest.Rejecting(int(storagetest.Number(t, row[1])), row[2], func(r *http.Request) bool {
			return strings.Contains(r.URL.RawQuery, queries[row[0]])
		}), func(t *testing.T, f *fixture) {
			ready, err, want := f.Ready(t.Context()), f.get(), apierror.ByCode(row[3])
			if want == nil && (ready != nil || err != nil) ||
				want != nil && (!errors.Is(ready, want) || !errors.Is(err, want) || !strings.Contains(ready.Error(), row[4])) {
				t.Errorf("%q: Link returned %v, Ready %v", row, err, ready)
			}
			if log := f.server.Log.String(); !strings.Contains(log, row[4]) {
				t.Errorf("%q: the log has %s", row, log)
			}
			f.server.SetEarly(nil)
			time.Sleep(time.Minute)
			if err := f.Ready(t.Context()); err != nil {
				t.Errorf("%q, after the rejections: %v", row, err)
			}
		})
	}
}
