package blobstore

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/minio/crc64nvme"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
)

func TestStreamHoldsTheLastByteBack(t *testing.T) {
	for name, c := range map[string]struct {
		r    io.Reader
		want string
		err  error
	}{
		"whole":              {strings.NewReader("cat"), "cat", nil},
		"in single bytes":    {iotest.OneByteReader(strings.NewReader("cat")), "cat", nil},
		"io.EOF with data":   {iotest.DataErrReader(strings.NewReader("cat")), "cat", nil},
		"too short":          {strings.NewReader("ca"), "ca", apierror.ErrIncomplete},
		"too long":           {strings.NewReader("cats"), "ca", apierror.ErrIncomplete},
		"fails at its end":   {io.MultiReader(strings.NewReader("cat"), iotest.ErrReader(apierror.ErrDigestMismatch)), "ca", apierror.ErrDigestMismatch},
		"fails with data":    {iotest.DataErrReader(io.MultiReader(strings.NewReader("cat"), iotest.ErrReader(apierror.ErrStalled))), "ca", apierror.ErrStalled},
		"wraps io.EOF":       {io.MultiReader(strings.NewReader("cat"), iotest.ErrReader(fmt.Errorf("x: %w", io.EOF))), "ca", io.EOF},
		"wraps io.EOF early": {io.MultiReader(strings.NewReader("c"), iotest.ErrReader(fmt.Errorf("x: %w", io.EOF))), "c", io.EOF},
	} {
		for size := range 5 {
			s := &stream{r: c.r, size: 3, commit: true}
			var got []byte
			var err error
			for err == nil {
				buf := make([]byte, size+1)
				var n int
				n, err = s.Read(buf)
				got = append(got, buf[:n]...)
			}
			if bare := err == io.EOF; string(got) != c.want || bare != (c.err == nil) || !bare && !errors.Is(err, c.err) {
				t.Errorf("%s, by %d: read %q, %v; want %q, %v", name, size+1, got, err, c.want, c.err)
			}
			if seeker, ok := c.r.(io.Seeker); !ok {
				break
			} else if _, err := seeker.Seek(0, io.SeekStart); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// viewOf returns a view of a stream of n bytes.
func viewOf(r io.Reader, n int64) *view {
	s := &stream{r: r, size: n, commit: true}
	s.source = s
	return &view{stream: s, crc: crc64nvme.New()}
}

func TestRevokedViewReadsNothing(t *testing.T) {
	for name, v := range map[string]*view{
		"buffer": {body: strings.NewReader("secret"), crc: crc64nvme.New()}, "stream": viewOf(strings.NewReader("secret"), 6),
	} {
		if n, err := v.Read(make([]byte, 3)); n != 3 || err != nil {
			t.Errorf("%s: %d, %v", name, n, err)
		}
		v.revoke()
		if n, err := v.Read(make([]byte, 3)); n != 0 || !errors.Is(err, errRevoked) {
			t.Errorf("%s: read %d, %v after revoke", name, n, err)
		}
	}
	// A Read that waits for the client when the try ends hands out nothing.
	synctest.Test(t, func(t *testing.T) {
		blocked, unblock := io.Pipe()
		pipe := viewOf(blocked, 100)
		read := make(chan error)
		go func() {
			_, err := pipe.Read(make([]byte, 3))
			read <- err
		}()
		synctest.Wait()
		pipe.revoke()
		_, _ = unblock.Write([]byte("cat"))
		if err := <-read; !errors.Is(err, errRevoked) || pipe.stream.err != nil {
			t.Errorf("read %v, noted %v", err, pipe.stream.err)
		}
	})
}

// hijacked returns the connection of a request, and a reader of it that begins with the bytes that the server has buffered.
func hijacked(t *testing.T, w http.ResponseWriter) (net.Conn, io.Reader) {
	t.Helper()
	conn, rw, err := w.(http.Hijacker).Hijack()
	if err != nil {
		t.Error(err)
		return nil, nil
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn, rw
}

// raw writes an answer without a body.
func raw(conn net.Conn, status int, code, header string) {
	_, _ = fmt.Fprintf(conn, "HTTP/1.1 %d X\r\nX-Ms-Error-Code: %s\r\n%sContent-Length: 0\r\n\r\n", status, code, header)
}

// Storage that answers before it has read the body.
func TestStorageAnswersEarly(t *testing.T) {
	challenge := `WWW-Authenticate: Bearer realm="", error="insufficient_claims", claims="eyJhIjoiYiJ9"` + "\r\n"
	for _, answer := range []struct {
		status       int
		code, header string
		want         error
		wait         time.Duration
	}{
		{401, "InvalidAuthenticationInfo", "", apierror.ErrIdentityUnavailable, 0},
		{401, "InvalidAuthenticationInfo", challenge, apierror.ErrIdentityUnavailable, 0},
		{412, "ConditionNotMet", "", apierror.ErrPreconditionFailed, 0},
		{503, "ServerBusy", "Retry-After: 120\r\n", apierror.ErrThrottled, 2 * time.Minute},
	} {
		for _, read := range []int{0, mib / 2} { // bytes of the body before the answer
			for _, closes := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d %d after %d closes %t", answer.status, len(answer.header), read, closes), func(t *testing.T) {
					s, back, _ := newStore(t, nil)
					back.blobs["/cats/x/cat"] = "old"
					back.early = func(w http.ResponseWriter, r *http.Request) bool {
						if r.Method != http.MethodPut {
							return false
						}
						_, _ = io.CopyN(io.Discard, r.Body, int64(read))
						conn, _ := hijacked(t, w)
						if closes {
							// A server that closes at once, with bytes unread, resets the connection, and its answer can be lost.
							raw(conn, answer.status, answer.code, answer.header+"Connection: close\r\n")
							_ = conn.(*tls.Conn).CloseWrite()
							_, _ = io.Copy(io.Discard, conn)
							_ = conn.Close()
							return true
						}
						raw(conn, answer.status, answer.code, answer.header)
						return true
					}
					opts := sized(mib)
					if answer.status == 412 {
						opts.IfMatch = `"0x1"`
					}
					_, err := s.Put(t.Context(), user(t, "x"), strings.NewReader(pngOf(mib)), opts)
					e := apierror.AsError(err)
					if !errors.Is(err, answer.want) || e.Outcome != "" || e.RetryAfter != answer.wait && answer.wait > 0 {
						t.Errorf("%v, outcome %q, after %v; want %v", err, e.Outcome, e.RetryAfter, answer.want)
					}
					if back.blobs["/cats/x/cat"] != "old" {
						t.Error("the old picture is gone")
					}
				})
			}
		}
	}
}

// A stream that no try has read can be sent again, such as after a stale connection.
func TestUnreadStreamIsSentAgain(t *testing.T) {
	s, back, _ := newStore(t, nil)
	var tries atomic.Int64
	back.early = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut || tries.Add(1) > 2 {
			return false
		}
		conn, _ := hijacked(t, w)
		if tries.Load() == 2 {
			raw(conn, 503, "ServerBusy", "Connection: close\r\n")
		}
		_ = conn.Close()
		return true
	}
	content := pngOf(mib)
	if _, err := s.Put(t.Context(), user(t, "x"), strings.NewReader(content), sized(mib)); err != nil || tries.Load() != 3 {
		t.Errorf("%v after %d tries", err, tries.Load())
	}
	if back.blobs["/cats/x/cat"] != content {
		t.Error("another picture is stored")
	}
}

func TestStorageBreaksStreams(t *testing.T) {
	for name, c := range map[string]struct {
		breaks func(net.Conn)
		read   int64 // bytes of the body before that; all and its end if they are mib
		want   apierror.Outcome
		accept time.Duration // of the store
	}{
		"reset during the body": {func(c net.Conn) {
			_ = c.(*tls.Conn).NetConn().(*net.TCPConn).SetLinger(0)
			_ = c.(*tls.Conn).NetConn().Close()
		}, mib / 2, "", time.Minute},
		"closed during the body":     {func(c net.Conn) { _ = c.Close() }, mib / 2, "", time.Minute},
		"silent during the body":     {func(net.Conn) {}, mib / 4, "", time.Second},
		"silent after the last byte": {func(net.Conn) {}, mib, apierror.OutcomeUnknown, 5 * time.Second},
		"closed after the last byte": {func(c net.Conn) { _ = c.Close() }, mib, apierror.OutcomeUnknown, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, back, _ := newStore(t, nil)
			s.accept = c.accept
			back.blobs["/cats/x/cat"] = "old"
			back.early = func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method != http.MethodPut {
					return false
				}
				_, _ = io.CopyN(io.Discard, r.Body, c.read)
				conn, _ := hijacked(t, w)
				c.breaks(conn)
				return true
			}
			// More than the kernel keeps of a connection, so that the transport has to wait.
			size := mib
			if c.read < mib {
				size = 16 * mib
			}
			_, err := s.Put(t.Context(), user(t, "x"), strings.NewReader(pngOf(size)), sized(size))
			if e := apierror.AsError(err); !errors.Is(err, apierror.ErrStorageUnavailable) || e.Outcome != c.want {
				t.Errorf("%v, outcome %q; want %q", err, e.Outcome, c.want)
			}
			if n := s.circuit.Counts().TotalFailures; n != 1 && c.want == "" {
				t.Errorf("the circuit breaker has counted %d failures", n)
			}
			if back.blobs["/cats/x/cat"] != "old" {
				t.Error("the old picture is gone")
			}
		})
	}
}

// Storage answers early and continues to read. It must not receive bytes of the next upload, which uses the same buffer.
func TestBuffersAreReusedWhileConnectionsStillSend(t *testing.T) {
	s, back, _ := newStore(t, func(o *Options) {
		// The kernel may take a whole body, and the connection would be used again.
		o.Transport.(*http.Client).Transport.(*http.Transport).DisableKeepAlives = true
	})
	s.retries = -1
	var reading sync.WaitGroup
	goOn := make(chan struct{})
	back.early = func(w http.ResponseWriter, r *http.Request) bool {
		begin := make([]byte, 100)
		_, _ = io.ReadFull(r.Body, begin) // asks for the body; what the server has buffered of it is not looked at
		conn, _ := hijacked(t, w)
		letter := r.URL.Path[len("/cats/") : len("/cats/")+1]
		reading.Go(func() {
			<-goOn
			rest, _ := io.ReadAll(conn)
			if other := strings.Trim(string(rest), letter); other != "" {
				t.Errorf("the connection of %s sent %.20q", letter, other)
			}
		})
		raw(conn, 503, "ServerBusy", "")
		return true
	}
	for i := range 12 {
		letter := string(rune('a' + i))
		content := pngOf(24) + strings.Repeat(letter, 4*mib)
		for _, opts := range []signerapi.PutOptions{unknown, inForm(len(content), 50), sized(len(content))} {
			if _, err := s.Put(t.Context(), user(t, letter), strings.NewReader(content), opts); !errors.Is(err, apierror.ErrThrottled) {
				t.Error(err)
			}
		}
	}
	close(goOn)
	reading.Wait()
	if n := s.buffers.taken(); n > 0 {
		t.Errorf("%d buffers are taken", n)
	}
}

func TestEarlySuccessIsNotBelieved(t *testing.T) {
	const size = 24 * mib // more than the kernel keeps of a connection
	for name, c := range map[string]struct {
		opts    signerapi.PutOptions
		outcome apierror.Outcome
	}{"Put Blob": {sized(size), apierror.OutcomeUnknown}, "Put Block": {inForm(size, 50), ""}} {
		s, back, _ := newStore(t, nil)
		back.early = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPut {
				return false
			}
			_, _ = io.CopyN(io.Discard, r.Body, mib)
			conn, _ := hijacked(t, w)
			raw(conn, 201, "", "ETag: \"0x1\"\r\n")
			return true
		}
		_, err := s.Put(t.Context(), user(t, "x"), strings.NewReader(pngOf(size)), c.opts)
		if e := apierror.AsError(err); !errors.Is(err, apierror.ErrStorageUnavailable) || e.Outcome != c.outcome {
			t.Errorf("%s: %v, outcome %q", name, err, e.Outcome)
		}
	}
}

// Without a connection nothing was sent, so the outcome is known.
func TestNoConnectionHasAKnownOutcome(t *testing.T) {
	s, _, _ := newStore(t, func(o *Options) { o.Transport = NewTransport() }) // does not trust the certificate
	s.retries = -1
	for _, size := range []int{1000, mib} {
		if _, err := s.Put(t.Context(), user(t, "x"), strings.NewReader(pngOf(size)), sized(size)); !errors.Is(err, apierror.ErrStorageUnavailable) || apierror.AsError(err).Outcome != "" {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	if err := s.Delete(t.Context(), user(t, "x"), signerapi.Preconditions{}); !errors.Is(err, apierror.ErrStorageUnavailable) || apierror.AsError(err).Outcome != "" {
		t.Errorf("delete: %v", err)
	}
}
