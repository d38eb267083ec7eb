package blobstore

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
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
	wrapped   policy.Transporter // in place of transport
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
		Credential: &storagetest.Credential{}, Transport: cmp.Or[policy.Transporter](opts.wrapped, opts.transport),
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

func contentTypeOf(t *testing.T, link signerapi.Link) string {
	t.Helper()
	u, err := url.Parse(string(link.URL))
	if err != nil {
		t.Fatal(err)
	}
	return u.Query().Get("rsct")
}

func TestExistenceIsCached(t *testing.T) {
	bubble(t, func(o *options) { o.ExistenceCacheTTL = time.Minute }, func(t *testing.T, s *Store, server *storagetest.Server) {
		server.Put("x/cat", "cat", "image/png")
		link := func(name string) error {
			_, err := s.Link(t.Context(), storagetest.User(t, name), signerapi.LinkOptions{})
			return err
		}
		lookups := func(want int, when string) {
			t.Helper()
			if got := len(server.Calls()); got != want {
				t.Errorf("%s: %d calls, want %d", when, got, want)
			}
		}
		for range 3 {
			if err := link("x"); err != nil {
				t.Fatal(err)
			}
		}
		lookups(1, "three links")
		time.Sleep(time.Minute)
		_ = link("x")
		lookups(1, "after the TTL")
		for range 3 {
			if err := link("nobody"); !errors.Is(err, apierror.ErrNotFound) {
				t.Error(err)
			}
		}
		lookups(3, "a missing picture")
		server.SetFault(func(_ http.ResponseWriter, r *http.Request) bool {
			if storagetest.Is("PUT")(r) {
				_ = link("x") // caches the old picture
			}
			return false
		})
		if err := putPicture(t, s, storagetest.PNG(100), unknown); err != nil {
			t.Fatal(err)
		}
		server.Calls()
		_ = link("x")
		lookups(1, "after a Put")
		if err := s.Delete(t.Context(), storagetest.User(t, "x"), signerapi.Preconditions{}); err != nil {
			t.Fatal(err)
		}
		if err := link("x"); !errors.Is(err, apierror.ErrNotFound) {
			t.Errorf("after a Delete: %v", err)
		}
	})
}

func TestLinkRejectsInvalidOptions(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *Store, server *storagetest.Server) {
		server.Put("x/cat", "cat", "image/png")
		for _, opts := range []signerapi.LinkOptions{{TTL: time.Second}, {TTL: 25 * time.Hour}, {Download: "a\nb"}, {Download: "a/b"}} {
			if _, err := s.Link(t.Context(), storagetest.User(t, "x"), opts); !errors.Is(err, apierror.ErrInvalidArgument) {
				t.Errorf("%+v: %v", opts, err)
			}
		}
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
				got, err := s.Link(t.Context(), storagetest.User(t, "x"), signerapi.LinkOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if served := contentTypeOf(t, got); served != contentType && (contentType != "text/html" || served != "application/octet-stream") {
					t.Errorf("%s is served as %s", contentType, served)
				}
				if got.ContentType == last.ContentType && got.URL != last.URL {
					t.Errorf("another URL for the same type %s", got.ContentType)
				}
				last = got
			}
		}
	})
}

// newCache returns a cache whose lookups are counted, and wait until release is closed.
func newCache(ttl time.Duration, lookups *atomic.Int64, release chan struct{}) *existenceCache {
	return newExistenceCache(ttl, func(context.Context, signerapi.User) (signerapi.Info, error) {
		n := lookups.Add(1)
		<-release
		return signerapi.Info{Size: n}, nil
	})
}

func TestConcurrentLookupsAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lookups atomic.Int64
		release := make(chan struct{})
		c := newCache(0, &lookups, release)
		canceled, cancel := context.WithCancel(t.Context())
		var requests sync.WaitGroup
		requests.Go(func() {
			if _, err := c.get(canceled, storagetest.User(t, "x")); !errors.Is(err, apierror.ErrIncomplete) {
				t.Errorf("the canceled request: %v", err)
			}
		})
		synctest.Wait()
		for range 20 {
			requests.Go(func() {
				if f, err := c.get(t.Context(), storagetest.User(t, "x")); err != nil || f.info.Size != 1 {
					t.Errorf("%v, %v", f, err)
				}
			})
		}
		synctest.Wait()
		cancel() // the lookup belongs to all
		synctest.Wait()
		close(release)
		requests.Wait()
		if n := lookups.Load(); n != 1 {
			t.Errorf("%d lookups", n)
		}
	})
}

func TestLookupDuringAChangeIsNotCached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lookups atomic.Int64
		release := make(chan struct{})
		c := newCache(time.Hour, &lookups, release)
		x := storagetest.User(t, "x")
		var requests sync.WaitGroup
		requests.Go(func() { _, _ = c.get(t.Context(), x) })
		synctest.Wait()
		c.forget(x)
		requests.Go(func() {
			if f, err := c.get(t.Context(), x); err != nil || f.info.Size != 2 {
				t.Errorf("after the change: %+v, %v", f, err)
			}
		})
		synctest.Wait()
		close(release)
		requests.Wait()
		if f, err := c.get(t.Context(), x); err != nil || f.info.Size != 2 || lookups.Load() != 2 {
			t.Errorf("later: %+v, %v, %d lookups", f, err, lookups.Load())
		}
	})
}

func TestLookupsAreBounded(t *testing.T) {
	user := func(i int) signerapi.User { return storagetest.User(t, string(rune('\u4e00'+i))) }
	synctest.Test(t, func(t *testing.T) {
		var lookups atomic.Int64
		release := make(chan struct{})
		c := newCache(0, &lookups, release)
		var requests sync.WaitGroup
		var rejected atomic.Int64
		for i := range maxLookups + 5 {
			requests.Go(func() {
				if _, err := c.get(t.Context(), user(i)); errors.Is(err, apierror.ErrOverloaded) {
					rejected.Add(1)
				} else if err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(lookupQueue + time.Second)
		close(release)
		requests.Wait()
		if rejected.Load() != 5 || lookups.Load() != maxLookups {
			t.Errorf("%d lookups, %d requests rejected; want %d and 5", lookups.Load(), rejected.Load(), maxLookups)
		}
	})
	// The lookups of canceled requests continue.
	synctest.Test(t, func(t *testing.T) {
		var lookups atomic.Int64
		release := make(chan struct{})
		c := newCache(0, &lookups, release)
		canceled, cancel := context.WithCancel(t.Context())
		cancel()
		for i := range 4 * maxPending {
			_, _ = c.get(canceled, user(i))
		}
		synctest.Wait()
		if _, err := c.get(t.Context(), user(5*maxPending)); !errors.Is(err, apierror.ErrOverloaded) {
			t.Errorf("one more: %v", err)
		}
		close(release)
		synctest.Wait()
		if n := lookups.Load(); n > maxPending {
			t.Errorf("%d lookups; want at most %d", n, maxPending)
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
		for name, c := range map[string]struct {
			pool         *ratelimit.Pool
			share, total int
			size         int64
			byClient     error // of a client over its share
		}{
			"uploads":         {s.opts.Uploads, 12, 192, 100 << 10, nil},
			"chunked uploads": {s.opts.Chunked, 1, 16, -1, apierror.ErrRateLimited},
		} {
			var releases []func()
			take := func(client string, n int) {
				for range n {
					if release, err := c.pool.Take(client); err == nil {
						releases = append(releases, release)
					}
				}
			}
			take("192.0.2.7", c.share)
			take("mia", c.share)
			if err := putAs(signerapi.WithClient(t.Context(), "192.0.2.7"), c.size); !errors.Is(err, c.byClient) {
				t.Errorf("%s: a client over its share: %v; want %v", name, err, c.byClient)
			}
			if err := putAs(signerapi.WithCaller(t.Context(), "mia"), c.size); !errors.Is(err, apierror.ErrRateLimited) {
				t.Errorf("%s: a caller over its share: %v; want ErrRateLimited", name, err)
			}
			take("", c.total)
			if err := putAs(signerapi.WithCaller(t.Context(), "leo"), c.size); !errors.Is(err, apierror.ErrOverloaded) {
				t.Errorf("%s: with all slots taken: %v; want ErrOverloaded", name, err)
			}
			for _, release := range releases {
				release()
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

// trickle returns a byte each time.
type trickle struct{ each time.Duration }

func (r trickle) Read(p []byte) (int, error) {
	time.Sleep(r.each)
	return copy(p, "x"), nil
}

func TestSlowBodyLosesItsBuffer(t *testing.T) {
	for name, c := range map[string]struct {
		others int // buffers taken by others
		body   io.Reader
		slow   bool
	}{
		"slow, half of the buffers taken":      {bufferCount/2 - 1, io.LimitReader(trickle{time.Second}, 60), false},
		"slow, more than half taken":           {bufferCount / 2, io.LimitReader(trickle{time.Second}, 60), true},
		"silent, more than half taken":         {bufferCount / 2, trickle{time.Hour}, true},
		"fast enough, more than half taken":    {bufferCount / 2, io.LimitReader(trickle{time.Second / (minFill + 1000)}, 6*minFill), false},
		"slow at the end for less than window": {bufferCount / 2, io.MultiReader(strings.NewReader(strings.Repeat("x", minFill)), io.LimitReader(trickle{time.Second}, 4)), false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBuffers()
				for range c.others {
					b.try()
				}
				f := b.filler(c.body)
				defer time.Sleep(2 * time.Hour) // until its goroutine has ended
				defer f.stop()
				if _, err := f.fill(b.try()); errors.Is(err, apierror.ErrStalled) != c.slow || !c.slow && err != io.EOF {
					t.Errorf("got %v", err)
				}
			})
		})
	}
}

func TestFormsLeaveTheSpareBuffer(t *testing.T) {
	b := newBuffers()
	var forms [][]byte
	for range bufferCount {
		forms = append(forms, b.try())
	}
	if len(forms[bufferCount-1]) != bufferBytes || b.try() != nil {
		t.Error("a form takes the spare buffer")
	}
	spare, err := b.take(t.Context())
	if err != nil || len(spare) != spareBytes || b.taken() != bufferCount+1 {
		t.Errorf("the spare buffer: %v, %d bytes", err, len(spare))
	}
	b.give(spare)
	if b.try() != nil {
		t.Error("a form takes the spare buffer after it was returned")
	}
	b.give(forms[0])
	if b.try() == nil || b.taken() != bufferCount {
		t.Error("a returned buffer is not free")
	}
}

func TestUploadsWaitForMemory(t *testing.T) {
	for name, acquire := range map[string]func(b *buffers, ctx context.Context) (release func(), err error){
		"take": func(b *buffers, ctx context.Context) (func(), error) {
			buf, err := b.take(ctx)
			return func() { b.give(buf) }, err
		},
		"reserve": func(b *buffers, ctx context.Context) (func(), error) {
			return b.reserve(ctx, heapTotal/(bufferCount+1))
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := newBuffers()
			var release func()
			for range bufferCount + 1 {
				var err error
				if release, err = acquire(b, t.Context()); err != nil {
					t.Fatal(name, err)
				}
			}
			began := time.Now()
			if _, err := acquire(b, t.Context()); !errors.Is(err, apierror.ErrOverloaded) || apierror.AsError(err).RetryAfter == 0 || time.Since(began) != bufferWait {
				t.Errorf("%s: %v after %v", name, err, time.Since(began))
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := acquire(b, ctx); !errors.Is(err, apierror.ErrIncomplete) {
				t.Errorf("%s: the client disconnected: %v", name, err)
			}
			time.AfterFunc(time.Second, release)
			if _, err := acquire(b, t.Context()); err != nil {
				t.Errorf("%s: memory was released: %v", name, err)
			}
		})
	}
}

func TestReserveDropsIdleBuffers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBuffers()
		var taken [][]byte
		for range bufferCount {
			taken = append(taken, b.try())
		}
		if _, err := b.reserve(t.Context(), heapTotal-2*bufferBytes); !errors.Is(err, apierror.ErrOverloaded) {
			t.Errorf("while all are in use: %v", err)
		}
		b.give(taken[0])
		b.give(taken[1])
		release, err := b.reserve(t.Context(), heapTotal-2*bufferBytes)
		if err != nil {
			t.Fatalf("while two are idle: %v", err)
		}
		if b.try() != nil {
			t.Error("a buffer is allocated beyond the budget")
		}
		release()
		for i, free := range []bool{true, true, false} {
			if got := b.try() != nil; got != free {
				t.Errorf("buffer %d is free: %t; want %t", i, got, free)
			}
		}
	})
}
