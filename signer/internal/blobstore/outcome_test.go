package blobstore

import (
	"bytes"
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
	"cats.example/signer/internal/storagetest"
)

// carryOut carries out a request without an answer.
func carryOut(server *storagetest.Server, r *http.Request) {
	server.Answer(&noAnswer{header: http.Header{}}, r)
}

type noAnswer struct{ header http.Header }

func (n *noAnswer) Header() http.Header         { return n.header }
func (n *noAnswer) Write(p []byte) (int, error) { return len(p), nil }
func (n *noAnswer) WriteHeader(int)             {}

// The answer to the first attempt of a write is lost.
func TestLostAnswerHasTheRightOutcome(t *testing.T) {
	none, unknownResult := apierror.Outcome(""), apierror.OutcomeUnknown
	for name, c := range map[string]struct {
		carriedOut bool // the first attempt
		retries    bool
		later      storagetest.Handler // of the requests after the first one, nil for storage itself
		put        *apierror.Error     // nil for success
		delete     *apierror.Error
		outcome    apierror.Outcome // of the errors
	}{
		"put finds its picture":              {true, false, nil, nil, apierror.ErrStorageUnavailable, unknownResult},
		"the repetition finds its own write": {true, true, nil, nil, nil, none},
		"not carried out, repeated":          {false, true, nil, nil, nil, none},
		"storage is down":                    {false, false, storagetest.Rejecting(500, "InternalError", nil), apierror.ErrStorageUnavailable, apierror.ErrStorageUnavailable, unknownResult},
		"another picture was stored": {false, true, storagetest.Rejecting(412, "ConditionNotMet", func(r *http.Request) bool {
			return r.Method != http.MethodHead
		}), apierror.ErrPreconditionFailed, apierror.ErrPreconditionFailed, unknownResult},
	} {
		for _, size := range []int{1000, 5 * mib} { // one Put Blob, and a commit of blocks
			bubble(t, func(o *options) { o.retries = c.retries }, func(t *testing.T, s *Store, server *storagetest.Server) {
				lose := func() {
					writes := 0
					server.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
						if storagetest.Is("PUT block")(r) || writes == 0 && r.Method == http.MethodHead {
							return false
						}
						if writes++; writes > 1 {
							return c.later != nil && c.later(w, r)
						}
						if c.carriedOut {
							carryOut(server, r)
						}
						panic(http.ErrAbortHandler)
					})
				}
				check := func(call string, err error, want *apierror.Error) {
					if want == nil && err != nil || want != nil && (!errors.Is(err, want) || apierror.AsError(err).Outcome != c.outcome) {
						t.Errorf("%s, %d bytes: %s: %v, outcome %q; want %v", name, size, call, err, apierror.AsError(err).Outcome, want)
					}
				}
				content, opts := storagetest.PNG(size), signerapi.PutOptions{Size: -1, Preconditions: signerapi.Preconditions{IfNoneMatch: "*"}}
				lose()
				info, err := s.Put(t.Context(), storagetest.User(t, "x"), strings.NewReader(content), opts)
				check("put", err, c.put)
				if sum := md5.Sum([]byte(content)); c.put == nil && (info.Size != int64(size) || !bytes.Equal(info.MD5, sum[:]) && size == 1000 || server.Blob("x/cat").Content != content) {
					t.Errorf("%s, %d bytes: got %+v", name, size, info)
				}
				server.Put("x/cat", "another", "image/png")
				lose()
				check("delete", s.Delete(t.Context(), storagetest.User(t, "x"), signerapi.Preconditions{}), c.delete)
			})
		}
	}
}

// Without a connection nothing was sent.
func TestNoConnectionHasAKnownOutcome(t *testing.T) {
	refused := func(o *options) {
		o.transport.Transport.(*http.Transport).DialTLSContext = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("connection refused") }
	}
	bubble(t, refused, func(t *testing.T, s *Store, _ *storagetest.Server) {
		for call, err := range map[string]error{
			"put":        putPicture(t, s, storagetest.PNG(1000), sized(1000)),
			"put stream": putPicture(t, s, storagetest.PNG(mib), sized(mib)),
			"delete":     s.Delete(t.Context(), storagetest.User(t, "x"), signerapi.Preconditions{}),
		} {
			if !errors.Is(err, apierror.ErrStorageUnavailable) || apierror.AsError(err).Outcome != "" {
				t.Errorf("%s: %v", call, err)
			}
		}
	})
}

// during returns a handler that reads n bytes of the body of a PUT, and then calls f with the connection.
func during(t *testing.T, n int64, f func(net.Conn)) storagetest.Handler {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut {
			return false
		}
		_, _ = io.CopyN(io.Discard, r.Body, n)
		f(storagetest.Hijack(t, w))
		return true
	}
}

func TestEarlyErrorResponseReachesClient(t *testing.T) {
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
		for _, read := range []int64{0, mib / 2} { // bytes of the body before the answer
			for _, closes := range []bool{false, true} {
				bubble(t, func(o *options) { o.retries = true }, func(t *testing.T, s *Store, server *storagetest.Server) {
					old := server.Put("x/cat", "old", "image/png")
					server.SetEarly(during(t, read, func(conn net.Conn) {
						if closes {
							storagetest.WriteRaw(conn, answer.status, answer.code, answer.header+"Connection: close\r\n")
							_, _ = io.Copy(io.Discard, conn) // or the client may fail to write before it reads the response
							_ = conn.Close()
						} else {
							storagetest.WriteRaw(conn, answer.status, answer.code, answer.header)
						}
					}))
					opts := sized(mib)
					if answer.status == 412 {
						opts.IfMatch = old
					}
					err := putPicture(t, s, storagetest.PNG(mib), opts)
					e := apierror.AsError(err)
					if !errors.Is(err, answer.want) || e.Outcome != "" || e.RetryAfter != answer.wait && answer.wait > 0 || server.Blob("x/cat").Content != "old" {
						t.Errorf("%d %q after %d bytes, closes %t: %v, outcome %q, after %v; want %v", answer.status, answer.header, read, closes, err, e.Outcome, e.RetryAfter, answer.want)
					}
				})
			}
		}
	}
}

// A stream that no attempt has read can be sent again, such as after a stale connection.
func TestUnreadStreamIsSentAgain(t *testing.T) {
	bubble(t, func(o *options) { o.retries = true }, func(t *testing.T, s *Store, server *storagetest.Server) {
		var attempts atomic.Int64
		server.SetEarly(func(w http.ResponseWriter, _ *http.Request) bool {
			n := attempts.Add(1)
			if n > 2 {
				return false
			}
			conn := storagetest.Hijack(t, w)
			if n == 2 {
				storagetest.WriteRaw(conn, 503, "ServerBusy", "Connection: close\r\n")
			}
			_ = conn.Close()
			return true
		})
		content := storagetest.PNG(mib)
		if err := putPicture(t, s, content, sized(mib)); err != nil || attempts.Load() != 3 || server.Blob("x/cat").Content != content {
			t.Errorf("%v after %d attempts", err, attempts.Load())
		}
	})
}

func TestBrokenConnectionLeavesTheOldPicture(t *testing.T) {
	silent, closed := func(net.Conn) {}, func(c net.Conn) { _ = c.Close() }
	trust := func(c net.Conn) { storagetest.WriteRaw(c, 201, "", "ETag: \"0x1\"\r\n") } // an early success
	for name, c := range map[string]struct {
		opts   signerapi.PutOptions
		breaks func(net.Conn)
		read   int64 // bytes of the body before that; all and its end if they are 5 MiB
		want   apierror.Outcome
	}{
		"closed during the body":               {sized(5 * mib), closed, mib / 2, ""},
		"silent during the body":               {sized(5 * mib), silent, mib / 2, ""},
		"closed after the last byte":           {sized(5 * mib), closed, 5 * mib, apierror.OutcomeUnknown},
		"silent after the last byte":           {sized(5 * mib), silent, 5 * mib, apierror.OutcomeUnknown},
		"success during the body":              {sized(5 * mib), trust, mib / 2, apierror.OutcomeUnknown},
		"success during the body of the block": {inForm(5*mib, 50), trust, mib / 2, ""},
	} {
		bubble(t, func(o *options) { o.retries = true }, func(t *testing.T, s *Store, server *storagetest.Server) {
			server.Put("x/cat", "old", "image/png")
			server.SetEarly(during(t, c.read, c.breaks))
			began := time.Now()
			err := putPicture(t, s, storagetest.PNG(5*mib), c.opts)
			e, took := apierror.AsError(err), time.Since(began)
			if !errors.Is(err, apierror.ErrStorageUnavailable) || e.Outcome != c.want || took > time.Minute || server.Blob("x/cat").Content != "old" {
				t.Errorf("%s: %v, outcome %q after %v; want %q", name, err, e.Outcome, took, c.want)
			}
		})
	}
}

// A client that disconnects after the last byte does not decide whether the picture is stored.
func TestPutOutlivesItsClient(t *testing.T) {
	for _, size := range []int{1000, mib} {
		bubble(t, nil, func(t *testing.T, s *Store, server *storagetest.Server) {
			ctx, cancel := context.WithCancel(t.Context())
			server.SetFault(func(http.ResponseWriter, *http.Request) bool {
				cancel()
				time.Sleep(time.Second)
				return false
			})
			if _, err := s.Put(ctx, storagetest.User(t, "x"), strings.NewReader(storagetest.PNG(size)), sized(size)); err != nil {
				t.Error(err)
			}
		})
	}
}

// The blocks of a large upload must not be the calls by which the circuit breaker closes.
func TestHalfOpenBreakerIsProbedBeforeBlocks(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *Store, server *storagetest.Server) {
		server.SetFault(storagetest.Rejecting(500, "InternalError", nil))
		for range 11 {
			_ = putPicture(t, s, storagetest.PNG(100), unknown)
		}
		server.SetFault(nil)
		time.Sleep(6 * time.Second)
		server.Calls()
		err := putPicture(t, s, storagetest.PNG(5*mib), unknown)
		if got := fmt.Sprint(server.Calls()); err != nil || got != "[HEAD PUT block PUT block PUT blocklist]" {
			t.Errorf("%v; calls %s", err, got)
		}
	})
}
