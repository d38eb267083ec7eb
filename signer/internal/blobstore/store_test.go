package blobstore

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"cats.example/shared/apierror"
	"cats.example/shared/ratelimit"
	"cats.example/shared/signerapi"
	"cats.example/signer/internal/signing"
	"cats.example/signer/internal/storage"
	"cats.example/signer/internal/storagetest"
)

const mib = 1 << 20

// fixture is a store with a key, and its storage.
type fixture struct {
	*Store
	server *storagetest.Server
	x      signerapi.User
}

// bubble calls test with a new store in a bubble. Its existence cache keeps pictures for a minute.
func bubble(t *testing.T, test func(*testing.T, *fixture), change ...func(*storage.Options)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		server, pools := storagetest.New(t, change...), ratelimit.NewPools("test", 0.0625, prometheus.NewRegistry())
		keys := signing.New(signing.Settings{LinkTTL: time.Hour, LinkMaxTTL: 24 * time.Hour}, server.Client, 0, server.Logger, server.Registry)
		if _, err := keys.Fetch(t.Context()); err != nil {
			t.Fatal(err)
		}
		server.Calls()
		test(t, &fixture{New(Options{
			Settings: Settings{ExistenceCacheTTL: time.Minute}, Limits: storagetest.Limits, Storage: server.Client, Keys: keys,
			Uploads: pools.New("uploads", 192), Chunked: pools.New("chunked uploads", 16),
		}, server.Logger, server.Registry), server, storagetest.User(t, "x")})
	})
}

// withRetries is a change for bubble.
func withRetries(o *storage.Options) { o.Retry = nil }

// Options of a picture of unknown size, of n bytes, and of n bytes in a form in which after bytes follow it.
var unknown = signerapi.PutOptions{Size: -1}

func sized(n int) signerapi.PutOptions { return signerapi.PutOptions{Size: int64(n)} }

func inForm(n, after int) signerapi.PutOptions {
	return signerapi.PutOptions{Size: -1, MinSize: int64(max(0, n+after-90_000)), MaxSize: int64(n + after)}
}

// put stores a picture of x.
func (f *fixture) put(t *testing.T, content string, opts signerapi.PutOptions) error {
	t.Helper()
	_, err := f.Put(t.Context(), f.x, strings.NewReader(content), opts)
	return err
}

// link gets a link to the picture of a user.
func (f *fixture) link(ctx context.Context, t *testing.T, name string) (signerapi.Link, error) {
	t.Helper()
	return f.Link(ctx, storagetest.User(t, name), signerapi.LinkOptions{})
}

func TestExistenceIsCached(t *testing.T) {
	bubble(t, func(t *testing.T, f *fixture) {
		f.server.Put("x/cat", "cat", "image/png")
		links := func(when, name string, n, lookups int, want error) {
			t.Helper()
			for range n {
				if _, err := f.link(t.Context(), t, name); !errors.Is(err, want) {
					t.Errorf("%s: %v; want %v", when, err, want)
				}
			}
			if got := len(f.server.Calls()); got != lookups {
				t.Errorf("%s: %d calls; want %d", when, got, lookups)
			}
		}
		links("at first", "x", 3, 1, nil)
		time.Sleep(time.Minute)
		links("after the TTL", "x", 3, 1, nil)
		links("a missing picture", "nobody", 3, 3, apierror.ErrNotFound)
		f.server.SetFault(func(_ http.ResponseWriter, r *http.Request) bool {
			if storagetest.Is("PUT")(r) {
				_, _ = f.link(t.Context(), t, "x") // caches the old picture
			}
			return false
		})
		if err := f.put(t, storagetest.PNG(100), unknown); err != nil {
			t.Fatal(err)
		}
		f.server.Calls()
		links("after a Put", "x", 1, 1, nil)
		if err := f.Delete(t.Context(), f.x, signerapi.Preconditions{}); err != nil {
			t.Fatal(err)
		}
		f.server.Calls()
		links("after a Delete", "x", 1, 1, apierror.ErrNotFound)
	})
}

// Another replica may replace the picture by one of another type.
func TestCachedLinkFollowsContentType(t *testing.T) {
	bubble(t, func(t *testing.T, f *fixture) {
		f.ExistenceCacheTTL = time.Second
		var last signerapi.Link
		for _, contentType := range []string{"image/png", "image/gif", "image/png", "image/png"} {
			f.server.Put("x/cat", "cat", contentType)
			time.Sleep(2 * time.Second) // in the same window
			got, err := f.link(t.Context(), t, "x")
			if err != nil || !strings.Contains(string(got.URL), "&rsct="+url.QueryEscape(contentType)+"&") {
				t.Errorf("%s is served with %s, %v", contentType, string(got.URL), err)
			}
			if got.ContentType == last.ContentType && got.URL != last.URL {
				t.Errorf("another URL for the same type %s", got.ContentType)
			}
			last = got
		}
	})
}

// block makes requests to storage wait until release is called.
func (f *fixture) block() (release func()) {
	wait := make(chan struct{})
	f.server.SetFault(func(http.ResponseWriter, *http.Request) bool { <-wait; return false })
	return func() { close(wait) }
}

func TestLookupsAreSharedUntilAChange(t *testing.T) {
	bubble(t, func(t *testing.T, f *fixture) {
		f.server.Put("x/cat", "cat", "image/png")
		release := f.block()
		canceled, cancel := context.WithCancel(t.Context())
		var requests sync.WaitGroup
		request := func(ctx context.Context, want error) {
			requests.Go(func() {
				if _, err := f.link(ctx, t, "x"); !errors.Is(err, want) {
					t.Errorf("%v; want %v", err, want)
				}
			})
			synctest.Wait()
		}
		request(canceled, apierror.ErrIncomplete)
		for range 20 {
			request(t.Context(), nil)
		}
		cancel() // the lookup belongs to all
		f.forget(f.x)
		request(t.Context(), nil)
		release()
		requests.Wait()
		if n := len(f.server.Calls()); n != 2 {
			t.Errorf("%d lookups; want one before the change and one after it", n)
		}
		if _, err := f.link(t.Context(), t, "x"); err != nil || len(f.server.Calls()) > 0 {
			t.Errorf("later: %v", err)
		}
	})
}

// The lookups of canceled requests continue.
func TestLookupsAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T, f *fixture) {
		release := f.block()
		canceled, cancel := context.WithCancel(t.Context())
		cancel()
		for i := range maxLookups + 10 {
			_, err := f.link(canceled, t, fmt.Sprint("user ", i))
			if overloaded := errors.Is(err, apierror.ErrOverloaded); overloaded != (i >= maxLookups) {
				t.Fatalf("lookup %d: %v", i, err)
			}
		}
		release()
		synctest.Wait()
		if n := len(f.server.Calls()); n != maxLookups {
			t.Errorf("%d lookups; want %d", n, maxLookups)
		}
		if _, err := f.link(t.Context(), t, "another"); !errors.Is(err, apierror.ErrNotFound) {
			t.Errorf("after they have ended: %v", err)
		}
	})
}

// A caller or a client over its share gets 429; a full pool is 503.
func TestSlotsAreCountedByCallerOrClient(t *testing.T) {
	bubble(t, func(t *testing.T, f *fixture) {
		putAs := func(ctx context.Context, size int64) error {
			_, err := f.Put(ctx, f.x, strings.NewReader(storagetest.PNG(100<<10)), signerapi.PutOptions{Size: size})
			return err
		}
		client, mia, leo := signerapi.WithClient(t.Context(), "192.0.2.7"), signerapi.WithCaller(t.Context(), "mia"), signerapi.WithCaller(t.Context(), "leo")
		for _, c := range []struct {
			pool     *ratelimit.Pool
			size     int64
			byClient error // of a client over its share
		}{{f.Chunked, -1, apierror.ErrRateLimited}, {f.Uploads, 100 << 10, nil}} {
			for _, taker := range []string{"192.0.2.7", "mia"} {
				for range c.pool.Total() / 16 {
					_, _ = c.pool.Take(taker)
				}
			}
			byClient, byCaller := putAs(client, c.size), putAs(mia, c.size)
			for range c.pool.Total() {
				_, _ = c.pool.Take("")
			}
			full := putAs(leo, c.size)
			if !errors.Is(byClient, c.byClient) || !errors.Is(byCaller, apierror.ErrRateLimited) || !errors.Is(full, apierror.ErrOverloaded) {
				t.Errorf("over their shares, a client: %v, a caller: %v; with all slots taken: %v", byClient, byCaller, full)
			}
		}
	})
}
