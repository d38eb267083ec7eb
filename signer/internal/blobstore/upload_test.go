package blobstore

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
)

const mib = 1 << 20

// sized returns the options of a picture of n bytes with a Content-Length.
func sized(n int) signerapi.PutOptions { return signerapi.PutOptions{Size: int64(n)} }

// inForm returns the options of a file of n bytes in a form, in which after bytes follow it.
func inForm(n, after int) signerapi.PutOptions {
	return signerapi.PutOptions{Size: -1, MinSize: int64(max(0, n+after-90_000)), MaxSize: int64(n + after)}
}

// broken is a body that breaks off.
type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, apierror.ErrIncomplete }

func TestPutMakesTheFewestRequests(t *testing.T) {
	put, blocks := []string{"PUT"}, []string{"PUT block", "PUT block", "PUT blocklist"}
	for _, c := range []struct {
		size  int
		opts  signerapi.PutOptions
		calls []string
		noMD5 bool
	}{
		{100, sized(100), put, false},
		{64 << 10, sized(64 << 10), put, false},
		{64<<10 + 1, sized(64<<10 + 1), put, false},
		{9*mib + 777, sized(9*mib + 777), put, false},
		{100, inForm(100, 50), put, false},
		{70_000, inForm(70_000, 30_000), put, false},
		{70_001, inForm(70_001, 30_000), put, false},
		{4 * mib, inForm(4*mib, 64<<10), put, false},
		{bufferBytes - 1, inForm(bufferBytes-1, 0), put, false},
		{bufferBytes, inForm(bufferBytes, 0), blocks, true},
		{9 * mib, inForm(9*mib, 50), blocks, true},
		{9 * mib, inForm(9*mib, 90_000), blocks[1:], true}, // all of it is in the first block
		{100, unknown, put, false},
		{64 << 10, unknown, put, false},
		{64<<10 + 1, unknown, put, false},
		{bufferBytes - 1, unknown, put, false},
		{bufferBytes, unknown, blocks[1:], true},
		{bufferBytes + 1, unknown, blocks, true},
		{2 * bufferBytes, unknown, blocks, true},
		{2*bufferBytes + 1, unknown, slices.Concat(blocks[:1], blocks), true},
	} {
		t.Run(fmt.Sprintf("%d of %+v", c.size, c.opts), func(t *testing.T) {
			s, back, _ := newStore(t, nil)
			content := pngOf(c.size)
			info, err := s.Put(t.Context(), user(t, "Мурчик"), iotest.HalfReader(strings.NewReader(content)), c.opts)
			if err != nil {
				t.Fatal(err)
			}
			sum := md5.Sum([]byte(content))
			want := signerapi.Info{ETag: `"0x1"`, ContentType: "image/png", Size: int64(c.size), MD5: sum[:]}
			if c.noMD5 {
				want.MD5 = nil
			}
			if diff := cmp.Diff(want, info); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(c.calls, back.called()); diff != "" {
				t.Error(diff)
			}
			if got := back.blobs["/cats/Мурчик/cat"]; got != content || back.types["/cats/Мурчик/cat"] != "image/png" {
				t.Errorf("%d bytes are stored, as %q", len(got), back.types["/cats/Мурчик/cat"])
			}
			if n := s.buffers.taken(); n > 0 {
				t.Errorf("%d buffers are still taken", n)
			}
		})
	}
}

func TestConditionalPutLooksFirst(t *testing.T) {
	head := "HEAD"
	for _, c := range []struct {
		size  int
		opts  signerapi.PutOptions
		calls []string
	}{
		{64 << 10, sized(64 << 10), []string{"PUT"}},
		{64<<10 + 1, sized(64<<10 + 1), []string{head, "PUT"}},
		{9 * mib, inForm(9*mib, 50), []string{head, "PUT block", "PUT block", "PUT blocklist"}},
		{100, unknown, []string{head, "PUT"}},
	} {
		s, back, _ := newStore(t, nil)
		c.opts.IfNoneMatch = "*"
		if _, err := s.Put(t.Context(), user(t, "x"), strings.NewReader(pngOf(c.size)), c.opts); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(c.calls, back.called()); diff != "" {
			t.Errorf("%d of %+v: %s", c.size, c.opts, diff)
		}
	}
}

func TestBrokenBodyIsNotStored(t *testing.T) {
	const size = 5 * mib
	for name, opts := range map[string]signerapi.PutOptions{"sized": sized(size), "form": inForm(size, 50), "chunked": unknown} {
		for _, cause := range []error{apierror.ErrIncomplete, fmt.Errorf("reading: %w", io.EOF)} {
			for _, at := range []int{0, 10, 64 << 10, 64<<10 + 1, mib, bufferBytes, size - 90_000, size - 1, size} {
				s, back, _ := newStore(t, nil)
				body := io.MultiReader(strings.NewReader(pngOf(size)[:at]), iotest.ErrReader(cause))
				_, err := s.Put(t.Context(), user(t, "x"), body, opts)
				if err != cause { //lint:ignore errorsis as it is
					t.Errorf("%s, cut at %d by %v: %v", name, at, cause, err)
				}
				if apierror.AsError(err).Outcome != "" {
					t.Errorf("%s, cut at %d by %v: outcome %s", name, at, cause, apierror.AsError(err).Outcome)
				}
				back.mu.Lock()
				if len(back.blobs) > 0 {
					t.Errorf("%s, cut at %d by %v: stored", name, at, cause)
				}
				back.mu.Unlock()
				if s.buffers.taken() > 0 || s.circuit.Counts().Requests > 0 && s.circuit.Counts().TotalFailures > 0 {
					t.Errorf("%s, cut at %d by %v: %d buffers are taken, the circuit breaker has counted %+v", name, at, cause, s.buffers.taken(), s.circuit.Counts())
				}
			}
		}
	}
}

// A frontend that is not honest about a size gets nothing stored.
func TestPutRejectsWrongSizes(t *testing.T) {
	form := func(least, most int64) signerapi.PutOptions {
		return signerapi.PutOptions{Size: -1, MinSize: least, MaxSize: most}
	}
	for _, c := range []struct {
		size int
		opts signerapi.PutOptions
		want error
	}{
		{mib, sized(mib + 1), apierror.ErrIncomplete},
		{mib, sized(mib - 1), apierror.ErrIncomplete},
		{1000, sized(1001), apierror.ErrIncomplete},
		{1000, sized(999), apierror.ErrIncomplete},
		{1000, form(0, 999), apierror.ErrIncomplete},
		{mib, form(mib+1, mib+10), apierror.ErrIncomplete},
		{mib, form(mib-10, mib-1), apierror.ErrIncomplete},
		{6 * mib, form(6*mib+1, 6*mib+10), apierror.ErrIncomplete},
		{6 * mib, form(6*mib-10, 6*mib-1), apierror.ErrIncomplete},
		{mib, form(0, mib), apierror.ErrInvalidArgument}, // more would have to be buffered than the contract says
		{mib, form(mib, mib), apierror.ErrInvalidArgument},
		{mib, form(-1, 10), apierror.ErrInvalidArgument},
		{mib, form(10, 0), apierror.ErrInvalidArgument},
		{mib, signerapi.PutOptions{Size: mib, MinSize: 1, MaxSize: 2}, apierror.ErrInvalidArgument},
		{mib, form(33*mib, 33*mib+10), apierror.ErrTooLarge},
		{33 * mib, form(32*mib-10, 32*mib+10), apierror.ErrTooLarge},
		{33 * mib, unknown, apierror.ErrTooLarge},
	} {
		s, back, _ := newStore(t, nil)
		_, err := s.Put(t.Context(), user(t, "x"), strings.NewReader(pngOf(c.size)), c.opts)
		if !errors.Is(err, c.want) {
			t.Errorf("%d as %+v: %v; want %v", c.size, c.opts, err, c.want)
		}
		if len(back.blobs) > 0 {
			t.Errorf("%d as %+v: stored", c.size, c.opts)
		}
	}
}

func TestDamagedUploads(t *testing.T) {
	damage := func(comp string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPut || r.URL.Query().Get("comp") != comp {
				return false
			}
			w.Header().Set("X-Ms-Content-Crc64", crcOf([]byte("another")))
			w.Header().Set("ETag", `"0x1"`)
			w.WriteHeader(http.StatusCreated)
			return true
		}
	}
	s, back, _ := newStore(t, nil)
	back.fault = damage("")
	_, err := s.Put(t.Context(), user(t, "x"), strings.NewReader(pngOf(mib)), sized(mib))
	if !errors.Is(err, apierror.ErrDamaged) || apierror.AsError(err).Outcome != apierror.OutcomeStored {
		t.Errorf("Put Blob: %v", err)
	}
	back.fault = damage("block")
	_, err = s.Put(t.Context(), user(t, "x"), strings.NewReader(pngOf(6*mib)), inForm(6*mib, 50))
	if !errors.Is(err, apierror.ErrStorageUnavailable) || apierror.AsError(err).Outcome != "" || len(back.blobs) > 0 {
		t.Errorf("Put Block: %v, %d stored", err, len(back.blobs))
	}
}

func TestDigestsAreChecked(t *testing.T) {
	for _, c := range []struct {
		size int
		opts signerapi.PutOptions
	}{{1000, sized(1000)}, {mib, sized(mib)}, {mib, inForm(mib, 50)}, {6 * mib, inForm(6*mib, 50)}, {mib, unknown}, {6 * mib, unknown}} {
		t.Run(fmt.Sprintf("%d of %+v", c.size, c.opts), func(t *testing.T) {
			s, back, _ := newStore(t, nil)
			content := pngOf(c.size)
			sum, sha := md5.Sum([]byte(content)), sha256.Sum256([]byte(content))
			back.fault = func(_ http.ResponseWriter, r *http.Request) bool {
				if r.URL.Query().Get("comp") == "blocklist" && r.Header.Get("X-Ms-Blob-Content-Md5") == "" {
					t.Error("the MD5 is not stored")
				}
				return false
			}
			wrong := bytes.Repeat([]byte{1}, 32)
			for name, d := range map[string]signerapi.Digests{"md5": {MD5: wrong[:16]}, "sha256": {SHA256: wrong}, "one of two": {MD5: sum[:], SHA256: wrong}} {
				c.opts.Digests = d
				if _, err := s.Put(t.Context(), user(t, "x"), strings.NewReader(content), c.opts); !errors.Is(err, apierror.ErrDigestMismatch) {
					t.Errorf("a wrong %s: %v", name, err)
				}
			}
			if len(back.blobs) > 0 {
				t.Error("stored with a wrong digest")
			}
			c.opts.Digests = signerapi.Digests{MD5: sum[:], SHA256: sha[:]}
			info, err := s.Put(t.Context(), user(t, "x"), strings.NewReader(content), c.opts)
			if err != nil || !bytes.Equal(info.MD5, sum[:]) {
				t.Errorf("the right ones: %v, %x", err, info.MD5)
			}
		})
	}
}

// Bodies that break off anywhere, and storage that fails now and then, leave no buffer taken.
func TestFailedPutsReturnTheirBuffers(t *testing.T) {
	s, back, _ := newStore(t, nil)
	s.retries = -1
	back.fault = func(w http.ResponseWriter, _ *http.Request) bool {
		if rand.IntN(8) > 0 {
			return false
		}
		refuse(w, 409, "Whatever")
		return true
	}
	content := pngOf(6 * mib)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 4 {
				n := rand.IntN(len(content)) + 1
				body := io.Reader(strings.NewReader(content[:n]))
				if rand.IntN(2) == 0 {
					body = io.MultiReader(body, broken{})
				}
				opts := []signerapi.PutOptions{unknown, sized(n), inForm(n, 50)}[rand.IntN(3)]
				_, _ = s.Put(t.Context(), user(t, "x"), body, opts)
			}
		})
	}
	wg.Wait()
	if n := s.buffers.taken(); n > 0 {
		t.Errorf("%d buffers are taken", n)
	}
}
