package signerapi

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cats.example/shared/apierror"
)

// staleSigner answers every call, counts the calls, and injects one fault.
type staleSigner struct {
	mu       sync.Mutex
	conns    []net.Conn
	fault    func(net.Conn, *http.Request) (goOn bool) // of the next call
	seen     int                                       // request headers
	executed int                                       // whole requests that were answered
}

func (s *staleSigner) serve(conn net.Conn) {
	defer conn.Close()
	s.mu.Lock()
	s.conns = append(s.conns, conn)
	s.mu.Unlock()
	for in := bufio.NewReader(conn); ; {
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		s.mu.Lock()
		fault := s.fault
		s.fault = nil
		s.seen++
		s.mu.Unlock()
		if fault != nil && !fault(conn, req) || !s.execute(conn, req) {
			return
		}
	}
}

func (s *staleSigner) execute(conn net.Conn, req *http.Request) bool {
	if !readBody(conn, req) {
		return false
	}
	s.mu.Lock()
	s.executed++
	s.mu.Unlock()
	answer := answerOf(http.StatusOK, "{}")
	if req.Method == http.MethodDelete || req.URL.Path == readyPath {
		answer = answerOf(http.StatusNoContent, "")
	}
	_, err := io.WriteString(conn, answer)
	return err == nil
}

// readBody asks for the body of req and reads all of it.
func readBody(conn net.Conn, req *http.Request) bool {
	if req.Header.Get("Expect") != "" {
		_, _ = io.WriteString(conn, "HTTP/1.1 100 Continue\r\n\r\n")
	}
	_, err := io.Copy(io.Discard, req.Body)
	return err == nil
}

// drop closes all connections; with a TCP reset where reset is set.
func (s *staleSigner) drop(reset bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, conn := range s.conns {
		closeConn(conn, reset)
	}
}

func closeConn(conn net.Conn, reset bool) {
	if tcp, ok := conn.(*net.TCPConn); ok && reset {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

// begin resets the counters and injects fault into the next call.
func (s *staleSigner) begin(fault func(net.Conn, *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen, s.executed, s.fault = 0, 0, fault
}

func (s *staleSigner) check(t *testing.T, seen, executed int) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen != seen || s.executed != executed {
		t.Errorf("the signer got %d calls and executed %d; want %d and %d", s.seen, s.executed, seen, executed)
	}
}

// listen serves connections at address until the test or the listener ends.
func (s *staleSigner) listen(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(context.WithoutCancel(t.Context()), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go s.serve(conn)
		}
	}()
	return l
}

type kind int

const (
	read  kind = iota // a call that changes nothing
	put               // a call with a body
	fresh             // a call that is never sent twice
)

// everyCall are the calls of the contract. size is the length of the body of a PUT.
var everyCall = map[string]struct {
	kind kind
	do   func(ctx context.Context, c *Client, u User, size int64) error
}{
	"link": {read, func(ctx context.Context, c *Client, u User, _ int64) error {
		_, err := c.Link(ctx, u, LinkOptions{})
		return err
	}},
	"about": {read, func(ctx context.Context, c *Client, _ User, _ int64) error { _, err := c.About(ctx); return err }},
	"ready": {read, func(ctx context.Context, c *Client, _ User, _ int64) error { return c.Ready(ctx) }},
	"upload URL": {read, func(ctx context.Context, c *Client, u User, _ int64) error {
		_, err := c.StartUpload(ctx, u, 7)
		return err
	}},
	"PUT": {put, func(ctx context.Context, c *Client, u User, size int64) error {
		_, err := c.Put(ctx, u, io.LimitReader(zeros{}, size), PutOptions{Size: size})
		return err
	}},
	"chunked PUT": {put, func(ctx context.Context, c *Client, u User, size int64) error {
		_, err := c.Put(ctx, u, io.LimitReader(zeros{}, size), unknown)
		return err
	}},
	"DELETE": {fresh, func(ctx context.Context, c *Client, u User, _ int64) error { return c.Delete(ctx, u, Preconditions{}) }},
	"commit": {fresh, func(ctx context.Context, c *Client, u User, _ int64) error {
		_, err := c.CommitUpload(ctx, u, "1-1-A", CommitOptions{})
		return err
	}},
}

// keepConnection opens a connection that is kept.
func keepConnection(t *testing.T, c *Client) {
	t.Helper()
	if _, err := c.About(t.Context()); err != nil {
		t.Fatal(err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestClosedConnectionsAndEveryCall(t *testing.T) {
	type result struct {
		seen, executed int
		code           string // "" for success
		outcome        apierror.Outcome
	}
	const dead = "signer_unavailable"
	once, again := result{seen: 1, executed: 1}, result{seen: 2, executed: 1}
	closing := func(reset bool, before string) func(net.Conn, *http.Request) bool {
		return func(conn net.Conn, _ *http.Request) bool {
			_, _ = io.WriteString(conn, before)
			closeConn(conn, reset)
			return false
		}
	}
	for name, c := range map[string]struct {
		idle, reset bool // the signer closes the connection before the call
		fault       func(net.Conn, *http.Request) bool
		size        int64
		want        map[kind]result
	}{
		"closed while idle": {idle: true, want: map[kind]result{read: once, put: once, fresh: once}},
		"reset while idle":  {idle: true, reset: true, want: map[kind]result{read: once, put: once, fresh: once}},
		"closed after the header": {
			fault: closing(false, ""),
			want:  map[kind]result{read: again, put: again, fresh: {1, 0, dead, apierror.OutcomeUnknown}},
		},
		"reset after the header": {
			fault: closing(true, ""),
			want:  map[kind]result{read: again, put: again, fresh: {1, 0, dead, apierror.OutcomeUnknown}},
		},
		"closed within the response": {
			fault: closing(false, "HTTP/1.1 200 OK\r\nContent-Le"),
			want:  map[kind]result{read: {1, 0, dead, ""}, put: {1, 0, dead, ""}, fresh: {1, 0, dead, apierror.OutcomeUnknown}},
		},
		"closed within the body": {
			fault: func(conn net.Conn, req *http.Request) bool {
				_, _ = io.WriteString(conn, "HTTP/1.1 100 Continue\r\n\r\n")
				_, _ = io.CopyN(io.Discard, req.Body, 50_000)
				return false
			},
			size: 1 << 40, // more than all buffers hold
			want: map[kind]result{put: {1, 0, dead, ""}},
		},
		"closed within a body sent without 100 Continue": {
			fault: func(_ net.Conn, req *http.Request) bool {
				_, _ = io.CopyN(io.Discard, req.Body, 50_000)
				return false
			},
			size: 1 << 40,
			want: map[kind]result{put: {1, 0, dead, ""}},
		},
		"closed after a body sent without 100 Continue": {
			fault: func(_ net.Conn, req *http.Request) bool {
				_, _ = io.Copy(io.Discard, req.Body)
				return false
			},
			want: map[kind]result{put: {1, 0, dead, apierror.OutcomeUnknown}},
		},
		"closed after the body": {
			fault: func(conn net.Conn, req *http.Request) bool { readBody(conn, req); return false },
			want:  map[kind]result{put: {1, 0, dead, apierror.OutcomeUnknown}},
		},
	} {
		for called, call := range everyCall {
			want, ok := c.want[call.kind]
			if !ok {
				continue
			}
			t.Run(called+", "+name, func(t *testing.T) {
				t.Parallel()
				s := new(staleSigner)
				client := clientOf(t, "http://"+s.listen(t, "127.0.0.1:0").Addr().String())
				keepConnection(t, client)
				s.begin(c.fault)
				if c.idle {
					s.drop(c.reset)
				}
				size := c.size
				if size == 0 {
					size = 100_000
				}
				err := call.do(t.Context(), client, user(t, "x"), size)
				s.check(t, want.seen, want.executed)
				if want.code == "" && err != nil {
					t.Errorf("%v; want success", err)
				} else if want.code != "" {
					checkOutcome(t, err, want.code, want.outcome, map[bool]string{true: apierror.MayBeDeleted, false: apierror.MayBeStored}[called == "DELETE"])
				}
			})
		}
	}
}

// net/http does not repeat a call if the connection breaks between two writes of its header.
func TestHeadersWithLongTokensAreOneWrite(t *testing.T) {
	s := new(staleSigner)
	client := clientOf(t, "http://"+s.listen(t, "127.0.0.1:0").Addr().String())
	var writes atomic.Int64
	dialWith(client, func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		return countingConn{conn, &writes}, err
	})
	ctx := WithToken(t.Context(), Token(strings.Repeat("x", 7<<10)))
	if _, err := client.Link(ctx, user(t, "x"), LinkOptions{}); err != nil || writes.Load() != 1 {
		t.Errorf("%d writes, %v; want 1", writes.Load(), err)
	}
}

type countingConn struct {
	net.Conn
	writes *atomic.Int64
}

func (c countingConn) Write(p []byte) (int, error) { c.writes.Add(1); return c.Conn.Write(p) }

func TestEveryCallWaitsForRestartedSigner(t *testing.T) {
	for called, call := range everyCall {
		t.Run(called, func(t *testing.T) {
			t.Parallel()
			s := new(staleSigner)
			l := s.listen(t, "127.0.0.1:0")
			address := l.Addr().String()
			client := clientOf(t, "http://"+address)
			restart := sync.OnceFunc(func() { s.listen(t, address) })
			d := &dialer{connect: func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := new(net.Dialer).DialContext(ctx, network, address)
				if errors.Is(err, syscall.ECONNREFUSED) {
					restart()
				}
				return conn, err
			}}
			dialWith(client, d.dial)
			keepConnection(t, client)
			_ = l.Close()
			s.begin(nil)
			s.drop(false)
			if err := call.do(t.Context(), client, user(t, "x"), 100_000); err != nil {
				t.Error(err)
			}
			s.check(t, 1, 1)
		})
	}
}

func TestPausedSignerExecutesEveryCallOnce(t *testing.T) {
	for called, call := range everyCall {
		t.Run(called, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := new(staleSigner)
				client := clientOf(t, "http://signer.test:1")
				dialWith(client, func(context.Context, string, string) (net.Conn, error) {
					ours, theirs := net.Pipe()
					go s.serve(theirs)
					return ours, nil
				})
				keepConnection(t, client)
				s.begin(func(net.Conn, *http.Request) bool {
					time.Sleep(1500 * time.Millisecond) // longer than the client waits for 100 Continue
					return true
				})
				if err := call.do(t.Context(), client, user(t, "x"), 100_000); err != nil {
					t.Error(err)
				}
				s.check(t, 1, 1)
			})
		})
	}
}

func TestDialRetriesRefusedConnectionsPerOutage(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	timeout := &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}
	synctest.Test(t, func(t *testing.T) {
		var result error
		d := &dialer{connect: func(context.Context, string, string) (net.Conn, error) { return nil, result }}
		for i, step := range []struct {
			result error
			waits  bool
		}{
			{refused, true},
			{refused, false},
			{timeout, false}, // is no end of the outage
			{refused, false},
			{nil, false},
			{refused, true},
			{refused, false},
			{nil, false},
			{timeout, false},
			{refused, true},
		} {
			result = step.result
			began := time.Now()
			_, err := d.dial(t.Context(), "tcp", "")
			took := time.Since(began)
			if !errors.Is(err, step.result) || step.waits != (took >= dialPatience) || !step.waits && took > 0 {
				t.Errorf("dial %d returned %v after %v", i, err, took)
			}
		}
	})
	synctest.Test(t, func(t *testing.T) {
		d := &dialer{connect: func(context.Context, string, string) (net.Conn, error) { return nil, refused }}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		if _, err := d.dial(ctx, "tcp", ""); !errors.Is(err, syscall.ECONNREFUSED) || time.Since(began) != time.Second {
			t.Errorf("dial with a timeout of 1s returned %v after %v", err, time.Since(began))
		}
	})
}
