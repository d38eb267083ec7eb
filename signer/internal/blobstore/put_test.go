package blobstore

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
	"cats.example/signer/internal/storage"
	"cats.example/signer/internal/storagetest"
)

// optionsOf returns the options of a Put: "size N", "form MIN MAX", which has bounds of an unknown size, or "unknown"; behind "create" with
// a precondition.
func optionsOf(t *testing.T, text string) signerapi.PutOptions {
	t.Helper()
	opts := unknown
	words := strings.Fields(text)
	for i, word := range words {
		switch word {
		case "create":
			opts.IfNoneMatch = "*"
		case "size":
			opts.Size = storagetest.Number(t, words[i+1])
		case "form":
			opts.MinSize, opts.MaxSize = storagetest.Number(t, words[i+1]), storagetest.Number(t, words[i+2])
		}
	}
	return opts
}

func TestPutMakesFewRequests(t *testing.T) {
	for _, row := range storagetest.Rows(t, "requests.txt") {
		bubble(t, func(t *testing.T, f *fixture) {
			content := storagetest.PNG(int(storagetest.Number(t, row[0])))
			info, err := f.Put(t.Context(), f.x, iotest.HalfReader(strings.NewReader(content)), optionsOf(t, row[1]))
			if err != nil {
				t.Fatalf("%q: %v", row, err)
			}
			stored := f.server.Blob("x/cat")
			want := signerapi.Info{ETag: stored.ETag, ContentType: "image/png", Size: int64(len(content))}
			if sum := md5.Sum([]byte(content)); !strings.Contains(row[2], "blocklist") {
				want.MD5 = sum[:]
			}
			if diff := cmp.Diff(want, info) + cmp.Diff(strings.Split(row[2], ", "), f.server.Calls()); diff != "" {
				t.Errorf("%q: %s", row, diff)
			}
			if stored.Content != content || stored.Type != "image/png" || f.buffers.taken.Load() > 0 {
				t.Errorf("%q: %d bytes are stored, as %q; %d buffers are taken", row, len(stored.Content), stored.Type, f.buffers.taken.Load())
			}
		})
	}
}

func TestBrokenBodyIsNotStored(t *testing.T) {
	const size = bufferBytes + 100_000
	content, wrapped := storagetest.PNG(size), fmt.Errorf("reading: %w", io.EOF)
	for name, opts := range map[string]signerapi.PutOptions{"sized": sized(size), "form": inForm(size, 50), "chunked": unknown} {
		for at, cause := range map[int]error{
			0: wrapped, 10: apierror.ErrIncomplete, 64 << 10: wrapped, 64<<10 + 1: apierror.ErrStalled, mib: wrapped,
			bufferBytes: wrapped, size - 90_000: wrapped, size - 1: apierror.ErrIncomplete, size: wrapped,
		} {
			bubble(t, func(t *testing.T, f *fixture) {
				whole, last := content[:max(0, at-1)], content[max(0, at-1):at] // which comes with the error
				end := iotest.DataErrReader(io.MultiReader(strings.NewReader(last), iotest.ErrReader(cause)))
				_, err := f.Put(t.Context(), f.x, io.MultiReader(strings.NewReader(whole), end), opts)
				synctest.Wait() // for storage
				//lint:ignore errorsis the error must be the same
				if err != cause || apierror.AsError(err).Outcome != "" || len(f.server.Names()) > 0 || f.buffers.taken.Load() > 0 {
					t.Errorf("%s, cut at %d by %v: %v; stored %v; %d buffers are taken", name, at, cause, err, f.server.Names(), f.buffers.taken.Load())
				}
			})
		}
	}
}

// Errors of clients are neither failures nor successes of storage, and the blocks of an upload do not close the circuit breaker.
func TestBreakerCountsNoBrokenBodiesAndNoBlocks(t *testing.T) {
	bubble(t, func(t *testing.T, f *fixture) {
		f.server.SetFault(storagetest.Rejecting(500, "InternalError", nil))
		for i := range 9 { // a put and the search for its mark are two failures
			body, opts := io.Reader(strings.NewReader(storagetest.PNG(100))), sized(100)
			if i%2 > 0 {
				cause := []error{apierror.ErrStalled, apierror.ErrIncomplete, apierror.ErrDigestMismatch}[i%3]
				body, opts = io.MultiReader(strings.NewReader(storagetest.PNG(mib/2)), iotest.ErrReader(cause)), sized(mib)
			}
			if _, err := f.Put(t.Context(), f.x, body, opts); errors.Is(err, storage.ErrBreakerOpen) {
				t.Fatalf("the breaker is open before put %d", i)
			}
		}
		if err := f.put(t, storagetest.PNG(100), sized(100)); !errors.Is(err, storage.ErrBreakerOpen) {
			t.Errorf("after ten failures: %v", err)
		}
		f.server.SetFault(nil)
		time.Sleep(6 * time.Second)
		f.server.Calls()
		err := f.put(t, storagetest.PNG(5*mib), unknown)
		if got := fmt.Sprint(f.server.Calls()); err != nil || got != "[HEAD PUT block PUT block PUT blocklist]" {
			t.Errorf("half open: %v; calls %s", err, got)
		}
	})
}

func TestPutRejectsInvalidContent(t *testing.T) {
	for _, row := range storagetest.Rows(t, "rejected.txt") {
		bubble(t, func(t *testing.T, f *fixture) {
			f.Limits.MaxPictureSize = 7 * mib
			content := row[0]
			if n, err := strconv.Atoi(content); err == nil {
				content = storagetest.PNG(n)
			}
			if err := f.put(t, content, optionsOf(t, row[1])); apierror.AsError(err).Code != row[2] || len(f.server.Names()) > 0 {
				t.Errorf("%q: %v, stored %v", row, err, f.server.Names())
			}
		})
	}
}

func TestDamagedBlockIsNotCommitted(t *testing.T) {
	bubble(t, func(t *testing.T, f *fixture) {
		f.server.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("X-Ms-Content-Crc64", storagetest.CRC64([]byte("another")))
			return storagetest.Rejecting(http.StatusCreated, "", storagetest.Is("PUT block"))(w, r)
		})
		err := f.put(t, storagetest.PNG(6*mib), inForm(6*mib, 50))
		if !errors.Is(err, apierror.ErrStorageUnavailable) || apierror.AsError(err).Outcome != "" || len(f.server.Names()) > 0 {
			t.Errorf("%v, stored %v", err, f.server.Names())
		}
	})
}

func TestDigestsAreVerified(t *testing.T) {
	wrong := bytes.Repeat([]byte{1}, 32)
	for _, c := range []struct {
		size int
		opts signerapi.PutOptions
	}{{1000, sized(1000)}, {mib, sized(mib)}, {mib, inForm(mib, 50)}, {5 * mib, inForm(5*mib, 50)}, {mib, unknown}, {5 * mib, unknown}} {
		bubble(t, func(t *testing.T, f *fixture) {
			content := storagetest.PNG(c.size)
			sum, sha := md5.Sum([]byte(content)), sha256.Sum256([]byte(content))
			f.server.SetFault(func(_ http.ResponseWriter, r *http.Request) bool {
				if storagetest.Is("PUT blocklist")(r) && r.Header.Get("X-Ms-Blob-Content-Md5") == "" {
					t.Error("the MD5 is not stored")
				}
				return false
			})
			for _, c.opts.Digests = range []signerapi.Digests{{MD5: wrong[:16]}, {MD5: sum[:], SHA256: wrong}} {
				if err := f.put(t, content, c.opts); !errors.Is(err, apierror.ErrDigestMismatch) || len(f.server.Names()) > 0 {
					t.Errorf("%d of %+v: %v, stored %v", c.size, c.opts, err, f.server.Names())
				}
			}
			c.opts.Digests = signerapi.Digests{MD5: sum[:], SHA256: sha[:]}
			if err := f.put(t, content, c.opts); err != nil {
				t.Errorf("%d of %+v, right digests: %v", c.size, c.opts, err)
			}
		})
	}
}

// A chunked upload that has only the spare buffer is stored in small blocks.
func TestSpareBufferStoresLargePictures(t *testing.T) {
	bubble(t, func(t *testing.T, f *fixture) {
		for range bufferCount {
			f.buffers.try()
		}
		for _, size := range []int{spareBytes, 3*spareBytes + 7} {
			content := storagetest.PNG(size)
			if err := f.put(t, content, unknown); err != nil || f.server.Blob("x/cat").Content != content {
				t.Errorf("%d bytes: %v", size, err)
			}
		}
	})
}
