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
	"cats.example/signer/internal/storagetest"
)

func TestPutMakesFewRequests(t *testing.T) {
	put, blocks := []string{"PUT"}, []string{"PUT block", "PUT block", "PUT blocklist"}
	create := func(opts signerapi.PutOptions) signerapi.PutOptions { opts.IfNoneMatch = "*"; return opts }
	for _, c := range []struct {
		size  int
		opts  signerapi.PutOptions
		calls []string
		noMD5 bool
	}{
		{100, sized(100), put, false},
		{64 << 10, sized(64 << 10), put, false},
		{64<<10 + 1, sized(64<<10 + 1), put, false},
		{5*mib + 777, sized(5*mib + 777), put, false},
		{100, inForm(100, 50), put, false},
		{70_000, inForm(70_000, 30_000), put, false},
		{70_001, inForm(70_001, 30_000), put, false},
		{4 * mib, inForm(4*mib, 64<<10), put, false},
		{bufferBytes - 1, inForm(bufferBytes-1, 0), put, false},
		{bufferBytes, inForm(bufferBytes, 0), blocks, true},
		{5 * mib, inForm(5*mib, 50), blocks, true},
		{5 * mib, inForm(5*mib, 90_000), blocks[1:], true}, // all of it is in the first block
		{100, unknown, put, false},
		{64 << 10, unknown, put, false},
		{64<<10 + 1, unknown, put, false},
		{bufferBytes - 1, unknown, put, false},
		{bufferBytes, unknown, blocks[1:], true},
		{bufferBytes + 1, unknown, blocks, true},
		{2*bufferBytes + 1, unknown, slices.Concat(blocks[:1], blocks), true},
		// The precondition of a large upload is checked before its body is read.
		{64 << 10, create(sized(64 << 10)), put, false},
		{64<<10 + 1, create(sized(64<<10 + 1)), []string{"HEAD", "PUT"}, false},
		{5 * mib, create(inForm(5*mib, 50)), slices.Concat([]string{"HEAD"}, blocks), true},
		{100, create(unknown), []string{"HEAD", "PUT"}, false},
	} {
		t.Run(fmt.Sprintf("%d of %+v", c.size, c.opts), func(t *testing.T) {
			bubble(t, nil, func(t *testing.T, s *Store, server *storagetest.Server) {
				content := storagetest.PNG(c.size)
				info, err := s.Put(t.Context(), storagetest.User(t, "Мурчик"), iotest.HalfReader(strings.NewReader(content)), c.opts)
				if err != nil {
					t.Fatal(err)
				}
				stored := server.Blob("Мурчик/cat")
				sum := md5.Sum([]byte(content))
				want := signerapi.Info{ETag: stored.ETag, ContentType: "image/png", Size: int64(c.size), MD5: sum[:]}
				if c.noMD5 {
					want.MD5 = nil
				}
				if diff := cmp.Diff(want, info) + cmp.Diff(c.calls, server.Calls()); diff != "" {
					t.Error(diff)
				}
				if stored.Content != content || stored.Type != "image/png" || s.buffers.taken() > 0 {
					t.Errorf("%d bytes are stored, as %q; %d buffers are taken", len(stored.Content), stored.Type, s.buffers.taken())
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
				if err != cause || apierror.AsError(err).Outcome != "" || len(server.Names()) > 0 || s.buffers.taken() > 0 {
					t.Errorf("%s, cut at %d by %v: %v; stored %v; %d buffers are taken", name, at, cause, err, server.Names(), s.buffers.taken())
				}
			})
		}
	}
}

func TestBrokenBodiesDoNotOpenTheBreaker(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *Store, _ *storagetest.Server) {
		for range 20 {
			body := io.MultiReader(strings.NewReader(storagetest.PNG(mib/2)), iotest.ErrReader(apierror.ErrStorageUnavailable))
			_, _ = s.Put(t.Context(), storagetest.User(t, "x"), body, sized(mib))
		}
		if err := putPicture(t, s, storagetest.PNG(100), sized(100)); err != nil {
			t.Error(err)
		}
	})
}

func TestPutRejectsInvalidContent(t *testing.T) {
	form := func(least, most int64) signerapi.PutOptions {
		return signerapi.PutOptions{Size: -1, MinSize: least, MaxSize: most}
	}
	png := storagetest.PNG(8 * mib)
	for _, c := range []struct {
		content string
		opts    signerapi.PutOptions
		want    error
	}{
		{"hello", unknown, apierror.ErrUnsupportedMediaType},
		{"", unknown, apierror.ErrEmpty},
		{png, sized(8 * mib), apierror.ErrTooLarge},
		{png, unknown, apierror.ErrTooLarge},
		{png[:mib], sized(mib + 1), apierror.ErrIncomplete},
		{png[:mib], sized(mib - 1), apierror.ErrIncomplete},
		{png[:1000], sized(1001), apierror.ErrIncomplete},
		{png[:1000], sized(999), apierror.ErrIncomplete},
		{png[:1000], form(0, 999), apierror.ErrIncomplete},
		{png[:1000], form(1001, 1010), apierror.ErrIncomplete},
		{png[:mib], form(mib+1, mib+10), apierror.ErrIncomplete},
		{png[:mib], form(mib-10, mib-1), apierror.ErrIncomplete},
		{png[:5*mib], form(5*mib+1, 5*mib+10), apierror.ErrIncomplete},
		{png[:5*mib], form(5*mib-10, 5*mib-1), apierror.ErrIncomplete},
		{png[:mib], form(0, mib), apierror.ErrInvalidArgument}, // more would have to be buffered than the contract says
		{png[:mib], form(mib, mib), apierror.ErrInvalidArgument},
		{png[:mib], form(-1, 10), apierror.ErrInvalidArgument},
		{png[:mib], form(10, 0), apierror.ErrInvalidArgument},
		{png[:mib], signerapi.PutOptions{Size: mib, MinSize: 1, MaxSize: 2}, apierror.ErrInvalidArgument},
		{png[:mib], form(8*mib, 8*mib+10), apierror.ErrTooLarge},
		{png, form(7*mib-10, 7*mib+10), apierror.ErrTooLarge},
	} {
		bubble(t, func(o *options) { o.Limits.MaxPictureSize = 7 * mib }, func(t *testing.T, s *Store, server *storagetest.Server) {
			if err := putPicture(t, s, c.content, c.opts); !errors.Is(err, c.want) || len(server.Names()) > 0 {
				t.Errorf("%d bytes as %+v: %v, stored %v; want %v", len(c.content), c.opts, err, server.Names(), c.want)
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

// Chunked uploads wait for each other, forms do not. Uploads that fail anywhere return their buffers.
func TestConcurrentPutsShareTheBuffers(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *Store, server *storagetest.Server) {
		server.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
			failing := strings.Contains(r.URL.Path, "failing") && rand.IntN(4) == 0
			if failing {
				storagetest.Reject(w, 409, "Whatever")
			}
			return failing
		})
		var puts sync.WaitGroup
		for i := range 24 {
			puts.Go(func() {
				name, content := fmt.Sprint(i), storagetest.PNG(mib+i)
				body, opts := io.Reader(strings.NewReader(content)), []signerapi.PutOptions{unknown, inForm(len(content), 50), sized(len(content))}[i%3]
				switch i % 4 {
				case 0:
					name = "failing " + name
				case 1:
					body = io.MultiReader(strings.NewReader(content[:rand.IntN(len(content))]), iotest.ErrReader(apierror.ErrIncomplete))
				}
				_, err := s.Put(t.Context(), storagetest.User(t, name), body, opts)
				if stored := server.Blob(name + "/cat").Content; (stored == content) != (err == nil) || i%4 > 1 && err != nil {
					t.Errorf("%s: %v, and %d bytes are stored", name, err, len(stored))
				}
			})
		}
		puts.Wait()
		if n := s.buffers.taken(); n > 0 {
			t.Errorf("%d buffers are taken", n)
		}
	})
}

func TestExactReaderHoldsTheLastByteBack(t *testing.T) {
	failing := func(text string, err error) io.Reader {
		return io.MultiReader(strings.NewReader(text), iotest.ErrReader(err))
	}
	for name, c := range map[string]struct {
		r    func() io.Reader
		want string
		err  error
	}{
		"whole":              {func() io.Reader { return strings.NewReader("cat") }, "cat", nil},
		"single bytes":       {func() io.Reader { return iotest.OneByteReader(strings.NewReader("cat")) }, "cat", nil},
		"io.EOF with data":   {func() io.Reader { return iotest.DataErrReader(strings.NewReader("cat")) }, "cat", nil},
		"too short":          {func() io.Reader { return strings.NewReader("ca") }, "ca", apierror.ErrIncomplete},
		"too long":           {func() io.Reader { return strings.NewReader("cats") }, "ca", apierror.ErrIncomplete},
		"fails at its end":   {func() io.Reader { return failing("cat", apierror.ErrDigestMismatch) }, "ca", apierror.ErrDigestMismatch},
		"fails with data":    {func() io.Reader { return iotest.DataErrReader(failing("cat", apierror.ErrStalled)) }, "ca", apierror.ErrStalled},
		"wraps io.EOF":       {func() io.Reader { return failing("cat", fmt.Errorf("x: %w", io.EOF)) }, "ca", io.EOF},
		"wraps io.EOF early": {func() io.Reader { return failing("c", fmt.Errorf("x: %w", io.EOF)) }, "c", io.EOF},
	} {
		for size := 1; size < 6; size++ {
			e := &exactReader{r: c.r(), size: 3, holdLast: true}
			var got []byte
			var err error
			for err == nil {
				buf := make([]byte, size)
				var n int
				n, err = e.Read(buf)
				got = append(got, buf[:n]...)
			}
			if bare := err == io.EOF; string(got) != c.want || bare != (c.err == nil) || !bare && !errors.Is(err, c.err) {
				t.Errorf("%s, by %d: read %q, %v; want %q, %v", name, size, got, err, c.want, c.err)
			}
		}
	}
}
