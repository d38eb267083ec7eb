package blobstore

import (
	"context"
	"errors"
	"fmt"
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

	"cats.example/shared/apierror"
	"cats.example/shared/ratelimit"
	"cats.example/shared/signerapi"
	"cats.example/signer/internal/signing"
	"cats.example/signer/internal/storage"
	"cats.example/signer/internal/storagetest"
)

const mib = 1 << 20

type options struct {
	Options
	retries   bool
	transport *http.Client
}

// newStore returns a store with a key, and its storage.
func newStore(t testing.TB, change func(*options)) (*Store, *storagetest.Server) {
	t.Helper()
	pools := ratelimit.NewPools("test", 0.0625, prometheus.NewRegistry())
	opts := options{transport: storage.NewTransport(), Options: Options{
		Limits: storagetest.Limits, Uploads: pools.New("uploads", 192), Chunked: pools.New("chunked uploads", 16),
	}}
	server := storagetest.New(t, opts.transport)
	if change != nil {
		change(&opts)
	}
	so := storage.Options{
		Settings:   storage.Settings{AccountURL: storagetest.AccountURL, Container: "cats", BlobName: "cat"},
		Credential: &storagetest.Credential{}, Transport: opts.transport,
	}
	if !opts.retries {
		so.Retry = &policy.RetryOptions{MaxRetries: -1}
	}
	log, reg := slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	var err error
	if opts.Storage, err = storage.New(so, log, reg); err != nil {
		t.Fatal(err)
	}
	opts.Keys = signing.New(signing.Settings{LinkTTL: time.Hour, LinkMaxTTL: 24 * time.Hour}, opts.Storage, 0, log, reg)
	_, _ = opts.Keys.Fetch(t.Context())
	server.Calls()
	return New(opts.Options, log, reg), server
}

// bubble calls test with a new store in a bubble.
func bubble(t *testing.T, change func(*options), test func(*testing.T, *Store, *storagetest.Server)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s, server := newStore(t, change)
		test(t, s, server)
	})
}

// Options of a picture of unknown size, of n bytes, and of n bytes in a form in which after bytes follow it.
var unknown = signerapi.PutOptions{Size: -1}

func sized(n int) signerapi.PutOptions { return signerapi.PutOptions{Size: int64(n)} }

func inForm(n, after int) signerapi.PutOptions {
	return signerapi.PutOptions{Size: -1, MinSize: int64(max(0, n+after-90_000)), MaxSize: int64(n + after)}
}

func putPicture(t testing.TB, s *Store, content string, opts signerapi.PutOptions) error {
	t.Helper()
	_, err := s.Put(t.Context(), storagetest.User(t, "x"), strings.NewReader(content), opts)
	return err
}

// link gets a link to the picture of a user.
func link(t *testing.T, s *Store, name string) (signerapi.Link, error) {
	t.Helper()
	return s.Link(t.Context(), storagetest.User(t, name), signerapi.LinkOptions{})
}

func TestExistenceIsCached(t *testing.T) {
	bubble(t, func(o *options) { o.ExistenceCacheTTL = time.Minute }, func(t *testing.T, s *Store, server *storagetest.Server) {
		server.Put("x/cat", "cat", "image/png")
		links := func(when, name string, n, lookups int, want error) {
			t.Helper()
			for range n {
				if _, err := link(t, s, name); !errors.Is(err, want) {
					t.Errorf("%s: %v; want %v", when, err, want)
				}
			}
			if got := len(server.Calls()); got != lookups {
				t.Errorf("%s: %d calls; want %d", when, got, lookups)
			}
		}
		links("at first", "x", 3, 1, nil)
		time.Sleep(time.Minute)
		links("after the TTL", "x", 3, 1, nil)
		links("a missing picture", "nobody", 3, 3, apierror.ErrNotFound)
		server.SetFault(func(_ http.ResponseWriter, r *http.Request) bool {
			if storagetest.Is("PUT")(r) {
				_, _ = link(t, s, "x") // caches the old picture
			}
			return false
		})
		if err := putPicture(t, s, storagetest.PNG(100), unknown); err != nil {
			t.Fatal(err)
		}
		server.Calls()
		links("after a Put", "x", 1, 1, nil)
		if err := s.Delete(t.Context(), storagetest.User(t, "x"), signerapi.Preconditions{}); err != nil {
			t.Fatal(err)
		}
		server.Calls()
		links("after a Delete", "x", 1, 1, apierror.ErrNotFound)
	})
}

// Another replica may replace the picture by one of another type.
func TestCachedLinkFollowsContentType(t *testing.T) {
	bubble(t, func(o *options) { o.ExistenceCacheTTL = time.Second }, func(t *testing.T, s *Store, server *storagetest.Server) {
		var last signerapi.Link
		for _, contentType := range []string{"image/png", "image/gif", "text/html", "image/png", "image/png"} {
			server.Put("x/cat", "cat", contentType)
			time.Sleep(2 * time.Second) // in the same window
			for range 2 {
				got, err := link(t, s, "x")
				if err != nil {
					t.Fatal(err)
				}
				served := strings.Replace(contentType, "text/html", "application/octet-stream", 1)
				if !strings.Contains(string(got.URL), "&rsct="+url.QueryEscape(served)+"&") {
					t.Errorf("%s is served with %s", contentType, string(got.URL))
				}
				if got.ContentType == last.ContentType && got.URL != last.URL {
					t.Errorf("another URL for the same type %s", got.ContentType)
				}
				last = got
			}
		}
	})
}

// blocking calls test in a bubble with a store whose lookups wait until release is called.
func blocking(t *testing.T, test func(t *testing.T, s *Store, server *storagetest.Server, release func())) {
	t.Helper()
	bubble(t, func(o *options) { o.ExistenceCacheTTL = time.Hour }, func(t *testing.T, s *Store, server *storagetest.Server) {
		wait := make(chan struct{})
		server.SetFault(func(http.ResponseWriter, *http.Request) bool { <-wait; return false })
		test(t, s, server, func() { close(wait) })
	})
}

func TestConcurrentLookupsAreShared(t *testing.T) {
	blocking(t, func(t *testing.T, s *Store, server *storagetest.Server, release func()) {
		server.Put("x/cat", "cat", "image/png")
		canceled, cancel := context.WithCancel(t.Context())
		var requests sync.WaitGroup
		requests.Go(func() {
			if _, err := s.Link(canceled, storagetest.User(t, "x"), signerapi.LinkOptions{}); !errors.Is(err, apierror.ErrIncomplete) {
				t.Errorf("the canceled request: %v", err)
			}
		})
		synctest.Wait()
		for range 20 {
			requests.Go(func() {
				if _, err := link(t, s, "x"); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		cancel() // the lookup belongs to all
		synctest.Wait()
		release()
		requests.Wait()
		if n := len(server.Calls()); n != 1 {
			t.Errorf("%d lookups", n)
		}
	})
}

func TestLookupDuringAChangeIsNotCached(t *testing.T) {
	blocking(t, func(t *testing.T, s *Store, server *storagetest.Server, release func()) {
		server.Put("x/cat", "cat", "image/png")
		x := storagetest.User(t, "x")
		var requests sync.WaitGroup
		requests.Go(func() { _, _ = link(t, s, "x") })
		synctest.Wait()
		s.forget(x)
		requests.Go(func() { _, _ = link(t, s, "x") })
		synctest.Wait()
		release()
		requests.Wait()
		if n := len(server.Calls()); n != 2 {
			t.Errorf("%d lookups; want one before the change and one after it", n)
		}
		if _, err := link(t, s, "x"); err != nil || len(server.Calls()) > 0 {
			t.Errorf("later: %v", err)
		}
	})
}

// The lookups of canceled requests continue.
func TestLookupsAreBounded(t *testing.T) {
	blocking(t, func(t *testing.T, s *Store, server *storagetest.Server, release func()) {
		canceled, cancel := context.WithCancel(t.Context())
		cancel()
		for i := range maxLookups + 10 {
			_, err := s.Link(canceled, storagetest.User(t, fmt.Sprint("user ", i)), signerapi.LinkOptions{})
			if overloaded := errors.Is(err, apierror.ErrOverloaded); overloaded != (i >= maxLookups) {
				t.Fatalf("lookup %d: %v", i, err)
			}
		}
		release()
		synctest.Wait()
		if n := len(server.Calls()); n != maxLookups {
			t.Errorf("%d lookups; want %d", n, maxLookups)
		}
		if _, err := link(t, s, "another"); !errors.Is(err, apierror.ErrNotFound) {
			t.Errorf("after they have ended: %v", err)
		}
	})
}

// A caller or a client over its share gets 429; a full pool is 503.
func TestSlotsAreCountedByCallerOrClient(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *Store, _ *storagetest.Server) {
		putAs := func(ctx context.Context, size int64) error {
			_, err := s.Put(ctx, storagetest.User(t, "mia"), strings.NewReader(storagetest.PNG(100<<10)), signerapi.PutOptions{Size: size})
			return err
		}
		client, mia, leo := signerapi.WithClient(t.Context(), "192.0.2.7"), signerapi.WithCaller(t.Context(), "mia"), signerapi.WithCaller(t.Context(), "leo")
		for _, c := range []struct {
			pool     *ratelimit.Pool
			size     int64
			byClient error // of a client over its share
		}{{s.Chunked, -1, apierror.ErrRateLimited}, {s.Uploads, 100 << 10, nil}} {
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

func BenchmarkLink(b *testing.B) {
	s, server := newStore(b, func(o *options) { o.ExistenceCacheTTL = time.Hour })
	server.Put("x/cat", "cat", "image/png")
	x := storagetest.User(b, "x")
	for name, opts := range map[string]signerapi.LinkOptions{"signed": {Download: "cat.png"}, "cached": {}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Link(b.Context(), x, opts); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
