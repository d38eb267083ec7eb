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
		t.Run(row[0]+" of "+row[1], func(t *testing.T) {
			bubble(t, nil, func(t *testing.T, s *Store, server *storagetest.Server) {
				content := storagetest.PNG(int(storagetest.Number(t, row[0])))
				info, err := s.Put(t.Context(), storagetest.User(t, "Мурчик"), iotest.HalfReader(strings.NewReader(content)), optionsOf(t, row[1]))
				if err != nil {
					t.Fatal(err)
				}
				stored := server.Blob("Мурчик/cat")
				want := signerapi.Info{ETag: stored.ETag, ContentType: "image/png", Size: int64(len(content))}
				if sum := md5.Sum([]byte(content)); !strings.Contains(row[2], "blocklist") {
					want.MD5 = sum[:]
				}
				if diff := cmp.Diff(want, info) + cmp.Diff(strings.Split(row[2], ", "), server.Calls()); diff != "" {
					t.Error(diff)
				}
				if stored.Content != content || stored.Type != "image/png" || s.buffers.taken.Load() > 0 {
					t.Errorf("%d bytes are stored, as %q; %d buffers are taken", len(stored.Content), stored.Type, s.buffers.taken.Load())
				}
			})
		})
	}
}

func TestPreconditionsAreSent(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *Store, server *storagetest.Server) {
		old, x := server.Put("x/cat", "old", "image/png"), storagetest.User(t, "x")
		stale, create := signerapi.Preconditions{IfMatch: `"0x99"`}, signerapi.Preconditions{IfNoneMatch: "*"}
		_, put := s.Put(t.Context(), x, strings.NewReader(storagetest.PNG(100)), signerapi.PutOptions{Size: 100, Preconditions: stale})
		_, large := s.Put(t.Context(), x, iotest.ErrReader(apierror.ErrStalled), signerapi.PutOptions{Size: 5 * mib, Preconditions: create}) // before the body
		for call, err := range map[string]error{"put": put, "large put": large, "delete": s.Delete(t.Context(), x, signerapi.Preconditions{IfNoneMatch: old})} {
			if !errors.Is(err, apierror.ErrPreconditionFailed) || server.Blob("x/cat").Content != "old" {
				t.Errorf("%s: %v", call, err)
			}
		}
		if _, err := s.Put(t.Context(), x, strings.NewReader(storagetest.PNG(100)), signerapi.PutOptions{Size: 100, Preconditions: signerapi.Preconditions{IfMatch: old}}); err != nil {
			t.Error(err)
		}
	})
}

func TestBrokenBodyIsNotStored(t *testing.T) {
	const size = bufferBytes + 100_000
	content, wrapped := storagetest.PNG(size), fmt.Errorf("reading: %w", io.EOF)
	for name, opts := range map[string]signerapi.PutOptions{"sized": sized(size), "form": inForm(size, 50), "chunked": unknown} {
		for at, cause := range map[int]error{
			0: wrapped, 10: apierror.ErrIncomplete, 64 << 10: wrapped, 64<<10 + 1: apierror.ErrStalled, mib: wrapped,
			bufferBytes: wrapped, size - 90_000: wrapped, size - 1: apierror.ErrIncomplete, size: wrapped,
		} {
			bubble(t, nil, func(t *testing.T, s *Store, server *storagetest.Server) {
				body := io.MultiReader(strings.NewReader(content[:at]), iotest.ErrReader(cause))
				_, err := s.Put(t.Context(), storagetest.User(t, "x"), body, opts)
				//lint:ignore errorsis the error must be the same
				if err != cause || apierror.AsError(err).Outcome != "" || len(server.Names()) > 0 || s.buffers.taken.Load() > 0 {
					t.Errorf("%s, cut at %d by %v: %v; stored %v; %d buffers are taken", name, at, cause, err, server.Names(), s.buffers.taken.Load())
				}
			})
		}
	}
}

// Errors of clients are neither failures nor successes of storage.
func TestBrokenBodiesDoNotCountForTheBreaker(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *Store, server *storagetest.Server) {
		server.SetFault(storagetest.Rejecting(500, "InternalError", nil))
		for i := range 9 { // a put and the search for its mark are two failures
			body, opts := io.Reader(strings.NewReader(storagetest.PNG(100))), sized(100)
			if i%2 > 0 {
				cause := []error{apierror.ErrStalled, apierror.ErrIncomplete, apierror.ErrDigestMismatch}[i%3]
				body, opts = io.MultiReader(strings.NewReader(storagetest.PNG(mib/2)), iotest.ErrReader(cause)), sized(mib)
			}
			if _, err := s.Put(t.Context(), storagetest.User(t, "x"), body, opts); errors.Is(err, storage.ErrBreakerOpen) {
				t.Fatalf("the breaker is open before put %d", i)
			}
		}
		if err := putPicture(t, s, storagetest.PNG(100), sized(100)); !errors.Is(err, storage.ErrBreakerOpen) {
			t.Errorf("after ten failures: %v", err)
		}
	})
}

func TestPutRejectsInvalidContent(t *testing.T) {
	for _, row := range storagetest.Rows(t, "rejected.txt") {
		bubble(t, func(o *options) { o.Limits.MaxPictureSize = 7 * mib }, func(t *testing.T, s *Store, server *storagetest.Server) {
			content := row[0]
			if n, err := strconv.Atoi(content); err == nil {
				content = storagetest.PNG(n)
			}
			if err := putPicture(t, s, content, optionsOf(t, row[1])); apierror.AsError(err).Code != row[2] || len(server.Names()) > 0 {
				t.Errorf("%q: %v, stored %v", row, err, server.Names())
			}
		})
	}
}

func TestDamageIsDetected(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *Store, server *storagetest.Server) {
		damage := func(call string) {
			server.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
				if storagetest.Is(call)(r) {
					w.Header().Set("X-Ms-Content-Crc64", storagetest.CRC64([]byte("another")))
					w.WriteHeader(http.StatusCreated)
					return true
				}
				return false
			})
		}
		damage("PUT")
		if err := putPicture(t, s, storagetest.PNG(mib), sized(mib)); !errors.Is(err, apierror.ErrDamaged) || apierror.AsError(err).Outcome != apierror.OutcomeStored {
			t.Errorf("Put Blob: %v", err)
		}
		damage("PUT block")
		err := putPicture(t, s, storagetest.PNG(6*mib), inForm(6*mib, 50))
		if !errors.Is(err, apierror.ErrStorageUnavailable) || apierror.AsError(err).Outcome != "" || len(server.Names()) > 0 {
			t.Errorf("Put Block: %v, stored %v", err, server.Names())
		}
	})
}

func TestDigestsAreVerified(t *testing.T) {
	wrong := bytes.Repeat([]byte{1}, 32)
	for _, c := range []struct {
		size int
		opts signerapi.PutOptions
	}{{1000, sized(1000)}, {mib, sized(mib)}, {mib, inForm(mib, 50)}, {5 * mib, inForm(5*mib, 50)}, {mib, unknown}, {5 * mib, unknown}} {
		bubble(t, nil, func(t *testing.T, s *Store, server *storagetest.Server) {
			content := storagetest.PNG(c.size)
			sum, sha := md5.Sum([]byte(content)), sha256.Sum256([]byte(content))
			server.SetFault(func(_ http.ResponseWriter, r *http.Request) bool {
				if storagetest.Is("PUT blocklist")(r) && r.Header.Get("X-Ms-Blob-Content-Md5") == "" {
					t.Error("the MD5 is not stored")
				}
				return false
			})
			for name, d := range map[string]signerapi.Digests{"md5": {MD5: wrong[:16]}, "sha256": {SHA256: wrong}, "one of two": {MD5: sum[:], SHA256: wrong}} {
				c.opts.Digests = d
				if err := putPicture(t, s, content, c.opts); !errors.Is(err, apierror.ErrDigestMismatch) || len(server.Names()) > 0 {
					t.Errorf("%d of %+v, wrong %s: %v, stored %v", c.size, c.opts, name, err, server.Names())
				}
			}
			c.opts.Digests = signerapi.Digests{MD5: sum[:], SHA256: sha[:]}
			info, err := s.Put(t.Context(), storagetest.User(t, "x"), strings.NewReader(content), c.opts)
			if err != nil || !bytes.Equal(info.MD5, sum[:]) {
				t.Errorf("%d of %+v, right digests: %v, %x", c.size, c.opts, err, info.MD5)
			}
		})
	}
}

// A chunked upload that has only the spare buffer is stored in small blocks.
func TestSpareBufferStoresLargePictures(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *Store, server *storagetest.Server) {
		for range bufferCount {
			s.buffers.try()
		}
		for _, size := range []int{spareBytes - 1, spareBytes, 3*spareBytes + 7} {
			content := storagetest.PNG(size)
			if err := putPicture(t, s, content, unknown); err != nil || server.Blob("x/cat").Content != content {
				t.Errorf("%d bytes: %v", size, err)
			}
		}
	})
}

func TestLastByteIsHeldBack(t *testing.T) {
	failing := func(text string, err error) io.Reader {
		return io.MultiReader(strings.NewReader(text), iotest.ErrReader(err))
	}
	wrapped := fmt.Errorf("x: %w", io.EOF)
	for name, c := range map[string]struct {
		r    func() io.Reader
		want string
		err  error
	}{
		"whole":              {func() io.Reader { return strings.NewReader("cat") }, "cat", nil},
		"single bytes":       {func() io.Reader { return iotest.OneByteReader(strings.NewReader("cat")) }, "cat", nil},
		"io.EOF with data":   {func() io.Reader { return iotest.DataErrReader(strings.NewReader("cat")) }, "cat", nil},
		"too short":          {func() io.Reader { return strings.NewReader("ca") }, "ca", apierror.ErrIncomplete},
		"much too short":     {func() io.Reader { return strings.NewReader("c") }, "c", apierror.ErrIncomplete},
		"too long":           {func() io.Reader { return strings.NewReader("cats") }, "ca", apierror.ErrIncomplete},
		"fails at its end":   {func() io.Reader { return failing("cat", apierror.ErrDigestMismatch) }, "ca", apierror.ErrDigestMismatch},
		"fails with data":    {func() io.Reader { return iotest.DataErrReader(failing("cat", apierror.ErrStalled)) }, "ca", apierror.ErrStalled},
		"wraps io.EOF":       {func() io.Reader { return failing("cat", wrapped) }, "ca", io.EOF},
		"wraps io.EOF early": {func() io.Reader { return failing("c", wrapped) }, "c", io.EOF},
	} {
		for size := 1; size < 6; size++ {
			body := storage.NewStream(heldBack(c.r(), 3), 3)
			var got []byte
			var err error
			for err == nil {
				buf := make([]byte, size)
				var n int
				n, err = body.Read(buf)
				got = append(got, buf[:n]...)
			}
			if bare := err == io.EOF; string(got) != c.want || bare != (c.err == nil) || !bare && !errors.Is(err, c.err) {
				t.Errorf("%s, by %d: read %q, %v; want %q, %v", name, size, got, err, c.want, c.err)
			}
		}
	}
}
