package blobstore

import (
	"context"
	"errors"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
)

func TestAPictureThatIsThereIsLookedUpOnceInAWhile(t *testing.T) {
	s, back, _ := withKey(t, func(o *Options) { o.ExistenceCacheTTL = time.Minute })
	back.blobs["/cats/x/cat"] = "cat"
	now := time.Now()
	s.now = func() time.Time { return now }
	heads := func(want int, when string) {
		t.Helper()
		if got := len(back.called()); got != want {
			t.Errorf("%s: %d calls, want %d", when, got, want)
		}
	}
	link := func(name string) (signerapi.Link, error) {
		return s.Link(t.Context(), user(t, name), signerapi.LinkOptions{})
	}
	for range 3 {
		if _, err := link("x"); err != nil {
			t.Fatal(err)
		}
	}
	heads(1, "three links")
	now = now.Add(time.Minute)
	_, _ = link("x")
	heads(1, "after its time")
	for range 3 {
		if _, err := link("nobody"); !errors.Is(err, apierror.ErrNotFound) {
			t.Error(err)
		}
	}
	heads(3, "one that is missing")
	if _, err := s.Put(t.Context(), user(t, "x"), strings.NewReader(pngOf(100)), unknown); err != nil {
		t.Fatal(err)
	}
	back.called()
	_, _ = link("x")
	heads(1, "after our own put")
	if err := s.Delete(t.Context(), user(t, "x"), signerapi.Preconditions{}); err != nil {
		t.Fatal(err)
	}
	back.called()
	if _, err := link("x"); !errors.Is(err, apierror.ErrNotFound) {
		t.Errorf("after our own delete: %v", err)
	}
}

func TestLookupsOfOnePictureAreShared(t *testing.T) {
	var looks atomic.Int64
	begun, release := make(chan struct{}), make(chan struct{})
	k := newKnown(0, time.Now, func(context.Context, signerapi.User) (signerapi.Info, error) {
		if looks.Add(1) == 1 {
			close(begun)
		}
		<-release
		return signerapi.Info{Size: 1}, nil
	})
	first, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := k.of(first, user(t, "x")); !errors.Is(err, apierror.ErrIncomplete) {
			t.Errorf("the one that left: %v", err)
		}
	})
	<-begun
	var waiting sync.WaitGroup
	for range 20 {
		waiting.Add(1)
		wg.Go(func() {
			waiting.Done()
			if p, err := k.of(t.Context(), user(t, "x")); err != nil || p.info.Size != 1 {
				t.Errorf("%v, %v", p, err)
			}
		})
	}
	waiting.Wait()
	cancel() // of whose request the lookup is must not matter
	time.Sleep(20 * time.Millisecond)
	close(release)
	wg.Wait()
	if n := looks.Load(); n > 2 {
		t.Errorf("%d lookups", n)
	}
}

// What a lookup found before a put or a delete is not told to those who ask after.
func TestALookupThatAChangeOvertookIsForgotten(t *testing.T) {
	version, begun, release := int64(1), make(chan struct{}, 8), make(chan struct{})
	k := newKnown(time.Hour, time.Now, func(context.Context, signerapi.User) (signerapi.Info, error) {
		seen := atomic.LoadInt64(&version)
		begun <- struct{}{}
		<-release
		return signerapi.Info{Size: seen}, nil
	})
	x := user(t, "x")
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = k.of(t.Context(), x) })
	<-begun
	k.forget(x)
	atomic.StoreInt64(&version, 2)
	k.forget(x)
	wg.Go(func() {
		if p, err := k.of(t.Context(), x); err != nil || p.info.Size != 2 {
			t.Errorf("after the change: %+v, %v", p, err)
		}
	})
	<-begun
	close(release)
	wg.Wait()
	if p, err := k.of(t.Context(), x); err != nil || p.info.Size != 2 {
		t.Errorf("later: %+v, %v", p, err)
	}
}

// Those who asked may be gone, and their lookups go on: there is an end to them, too.
func TestLookupsOfThoseWhoLeftAreFew(t *testing.T) {
	release := make(chan struct{})
	k := newKnown(0, time.Now, func(context.Context, signerapi.User) (signerapi.Info, error) {
		<-release
		return signerapi.Info{}, nil
	})
	before := runtime.NumGoroutine()
	gone, leave := context.WithCancel(t.Context())
	leave()
	for i := range 4 * maxAsked {
		_, _ = k.of(gone, user(t, string(rune('\u4e00'+i))))
	}
	for deadline := time.Now().Add(time.Second); runtime.NumGoroutine() > before+maxAsked+10; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("%d goroutines", runtime.NumGoroutine()-before)
			break
		}
	}
	if _, err := k.of(t.Context(), user(t, "x")); !errors.Is(err, apierror.ErrOverloaded) {
		t.Errorf("one more: %v", err)
	}
	close(release)
}

func TestTooManyLookupsAreOverload(t *testing.T) {
	release := make(chan struct{})
	k := newKnown(0, time.Now, func(context.Context, signerapi.User) (signerapi.Info, error) {
		<-release
		return signerapi.Info{}, nil
	})
	var wg sync.WaitGroup
	var refused atomic.Int64
	for i := range maxLooks + 5 {
		wg.Go(func() {
			if _, err := k.of(t.Context(), user(t, string(rune('\u4e00'+i)))); errors.Is(err, apierror.ErrOverloaded) {
				refused.Add(1)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	time.Sleep(lookWait + 500*time.Millisecond)
	close(release)
	wg.Wait()
	if refused.Load() != 5 {
		t.Errorf("%d were refused, want 5", refused.Load())
	}
}

func TestStorageThatIsDownIsAskedNoMore(t *testing.T) {
	s, back, _ := withKey(t, nil)
	s.retries = -1
	down := func(w http.ResponseWriter, _ *http.Request) bool { refuse(w, 500, "InternalError"); return true }
	back.fault = down
	x := user(t, "x")
	link := func() error { _, err := s.Link(t.Context(), x, signerapi.LinkOptions{}); return err }
	for range tripAfter + 20 {
		if err := link(); !errors.Is(err, apierror.ErrStorageUnavailable) {
			t.Fatalf("got %v", err)
		}
	}
	if n := len(back.called()); n != tripAfter {
		t.Errorf("%d calls, want %d", n, tripAfter)
	}
	if _, err := s.Put(t.Context(), x, broken{}, unknown); !errors.Is(err, apierror.ErrStorageUnavailable) || apierror.AsError(err).RetryAfter == 0 {
		t.Errorf("an upload is told %v before a byte of it is read; want ErrStorageUnavailable", err)
	}
	back.mu.Lock()
	back.fault, back.blobs["/cats/x/cat"] = nil, "cat"
	back.mu.Unlock()
	began := time.Now()
	for link() != nil {
		if time.Since(began) > openTime+2*time.Second {
			t.Fatal("it is never asked again")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Storage that throttles is there, and says itself when to come back.
func TestThrottlingOpensNoCircuit(t *testing.T) {
	s, back, _ := withKey(t, nil)
	s.retries = -1
	back.fault = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Retry-After", "7")
		refuse(w, 503, "ServerBusy")
		return true
	}
	for range 2 * tripAfter {
		_, err := s.Link(t.Context(), user(t, "x"), signerapi.LinkOptions{})
		if !errors.Is(err, apierror.ErrThrottled) || apierror.AsError(err).RetryAfter != 7*time.Second {
			t.Fatalf("got %v", err)
		}
	}
}
