package signerapi

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
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

// linking is a signer whose signed URLs contain the user name.
var linking = stub{link: func(_ context.Context, u User, _ LinkOptions) (Link, error) {
	return Link{URL: SignedURL("https://a/" + u.String())}, nil
}}

func mustLink(t *testing.T, c *Client, name string) {
	t.Helper()
	link, err := c.Link(t.Context(), mustUser(t, name), LinkOptions{})
	if err != nil || string(link.URL) != "https://a/"+name {
		t.Errorf("Link(%q) = %s, %v", name, string(link.URL), err)
	}
}

func TestConcurrentLinksShareConnections(t *testing.T) {
	c, connections := serve(t, linking)
	const workers, each = 16, 50
	var group sync.WaitGroup
	for i := range workers {
		group.Go(func() {
			for k := range each {
				mustLink(t, c, fmt.Sprint("cat-", i, "-", k))
			}
		})
	}
	group.Wait()
	// net/http dials for each call without an idle connection, even if the call then gets one that became idle.
	if n := connections.Load(); n > workers*each/10 {
		t.Errorf("%d connections for %d calls", n, workers*each)
	}
}

func TestLinksWithoutASlotAreOverloaded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var begun atomic.Int64
		finish := make(chan struct{})
		c := peer(t, func(conn net.Conn, in *bufio.Reader) {
			req, err := readRequest(conn, in)
			if err == nil && req.URL.Path == linkPath {
				begun.Add(1)
				<-finish
				_, _ = io.WriteString(conn, response(200, `{"picture_url":"https://a/tom"}`))
			}
			_, _ = io.WriteString(conn, response(204, ""))
		})
		var links sync.WaitGroup
		for range maxURLCalls {
			links.Go(func() { mustLink(t, c, "tom") })
		}
		synctest.Wait()
		began := time.Now()
		if _, err := c.Link(t.Context(), mustUser(t, "tom"), LinkOptions{}); !errors.Is(err, apierror.ErrOverloaded) || time.Since(began) != slotTimeout {
			t.Errorf("one more link: %v after %v; want ErrOverloaded after %v", err, time.Since(began), slotTimeout)
		}
		if err := c.Ready(t.Context()); err != nil || begun.Load() != maxURLCalls {
			t.Errorf("Ready: %v, with %d links in progress; want %d", err, begun.Load(), maxURLCalls)
		}
		links.Go(func() { mustLink(t, c, "tom") })
		close(finish)
		links.Wait()
	})
}

// A signer that rejects an upload and keeps the connection would take the rest of the picture for a request.
func TestRejectedUploadsCloseTheirConnection(t *testing.T) {
	const overloaded = `{"code":"overloaded","detail":"x"}`
	for name, answer := range map[string]string{
		"before the body":                    response(503, overloaded),
		"before the body, Connection: close": strings.Replace(response(503, overloaded), "Content", "Connection: close\r\nContent", 1),
		"within the body":                    goOn + response(503, overloaded),
	} {
		for _, size := range []int64{-1, 1 << 30} {
			t.Run(fmt.Sprintf("%s of size %d", name, size), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					connections := 0
					c := peer(t, func(conn net.Conn, in *bufio.Reader) {
						connections++
						if req, err := http.ReadRequest(in); err != nil || req.Method == http.MethodGet {
							_, _ = io.WriteString(conn, response(200, `{"picture_url":"https://a/two"}`))
							return
						}
						_, _ = io.WriteString(conn, answer)
						_, _ = io.Copy(io.Discard, conn)
					})
					body, feed := io.Pipe()
					read := 0
					go func() { read, _ = feed.Write(make([]byte, 3000)) }()
					began := time.Now()
					_, err := c.Put(t.Context(), mustUser(t, "one"), body, PutOptions{Size: size})
					if took := time.Since(began); !errors.Is(err, apierror.ErrOverloaded) || took > 100*time.Millisecond {
						t.Errorf("Put returned %v after %v; want ErrOverloaded at once", err, took)
					}
					mustLink(t, c, "two")
					_ = body.Close()
					synctest.Wait()
					if strings.Contains(answer, "close") && read > 0 || connections != 2 {
						t.Errorf("%d bytes of the body were read, and %d connections opened; want 2", read, connections)
					}
				})
			})
		}
	}
}

// net/http waits for the client's next byte before it reports the lost connection.
func TestLostConnectionEndsSilentUploads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := peer(t, func(conn net.Conn, in *bufio.Reader) {
			if req, err := http.ReadRequest(in); err == nil {
				_, _ = io.WriteString(conn, goOn)
				_, _ = io.CopyN(io.Discard, req.Body, 3000)
			}
		})
		body, feed := io.Pipe()
		go func() { _, _ = feed.Write(make([]byte, 3000)) }()
		began := time.Now()
		_, err := c.Put(t.Context(), mustUser(t, "x"), body, unknownSize)
		if took := time.Since(began); !errors.Is(err, apierror.ErrSignerUnavailable) || took > lostTimeout {
			t.Errorf("Put returned %v after %v; want ErrSignerUnavailable within %v", err, took, lostTimeout)
		}
		_ = body.Close()
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// RoundTrip may return while it still sends the body.
func TestPutReadsNothingAfterItReturns(t *testing.T) {
	var late io.Reader
	c, err := NewClient("http://signer.test:1", ClientOptions{Transport: func(http.RoundTripper) http.RoundTripper {
		return roundTrip(func(r *http.Request) (*http.Response, error) {
			late = r.Body
			return &http.Response{StatusCode: http.StatusServiceUnavailable, Body: http.NoBody, Request: r}, nil
		})
	}})
	if err != nil {
		t.Fatal(err)
	}
	body := strings.NewReader("picture")
	if _, err := c.Put(t.Context(), mustUser(t, "x"), body, unknownSize); err == nil {
		t.Error("Put returned no error")
	}
	if _, err := late.Read(make([]byte, 1)); err == nil || body.Len() < 7 {
		t.Errorf("%d bytes were read after Put had returned, %v", 7-body.Len(), err)
	}
}

// recorder is a signer that responds to every call, counts the calls, and injects one fault.
type recorder struct {
	mu       sync.Mutex
	listener net.Listener
	conns    []net.Conn
	fault    func(net.Conn, *http.Request) (respond bool) // in the next call
	calls                                                 // so far
}

// calls are the request headers that a signer got, and the whole requests that it executed.
type calls struct{ seen, executed int }

// listen serves connections at address until the test or the listener ends.
func (s *recorder) listen(t *testing.T, address string) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(context.WithoutCancel(t.Context()), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	s.listener = l
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns = append(s.conns, conn)
			s.mu.Unlock()
			go s.serve(conn)
		}
	}()
}

func (s *recorder) serve(conn net.Conn) {
	defer conn.Close()
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
		if fault != nil && !fault(conn, req) || readBody(conn, req) != nil {
			return
		}
		s.mu.Lock()
		s.executed++
		s.mu.Unlock()
		answer := response(http.StatusOK, "{}")
		if req.Method == http.MethodDelete || req.URL.Path == readyPath {
			answer = response(http.StatusNoContent, "")
		}
		if _, err := io.WriteString(conn, answer); err != nil {
			return
		}
	}
}

// drop closes all connections; with a TCP reset if reset is set.
func (s *recorder) drop(reset bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, conn := range s.conns {
		closeConn(conn, reset)
	}
}

func closeConn(conn net.Conn, reset bool) {
	if reset {
		_ = conn.(*net.TCPConn).SetLinger(0)
	}
	_ = conn.Close()
}

// TestCallsOverIdleConnectionsExecuteOnce plays faults on a connection that the client kept: net/http repeats what it can repeat,
// and no call is executed twice.
func TestCallsOverIdleConnectionsExecuteOnce(t *testing.T) {
	type result struct {
		calls
		code    string // "" for success
		outcome apierror.Outcome
	}
	const dead = "signer_unavailable"
	once, again := result{calls{1, 1}, "", ""}, result{calls{2, 1}, "", ""}
	definite, unknown := result{calls{1, 0}, dead, ""}, result{calls{1, 0}, dead, apierror.OutcomeUnknown}
	closing := func(reset bool, before string) func(net.Conn, *http.Request) bool {
		return func(conn net.Conn, _ *http.Request) bool {
			_, _ = io.WriteString(conn, before)
			closeConn(conn, reset)
			return false
		}
	}
	reading := func(before string, n int64) func(net.Conn, *http.Request) bool {
		return func(conn net.Conn, req *http.Request) bool {
			_, _ = io.WriteString(conn, before)
			_, _ = io.CopyN(io.Discard, req.Body, n)
			return false
		}
	}
	for name, c := range map[string]struct {
		closed, reset, restarted, stopped bool // before the call; it closes the connection
		early                             bool // the client waits only 10 ms for a 100 Continue
		fault                             func(net.Conn, *http.Request) bool
		size                              int64
		want                              map[kind]result
	}{
		"closed while idle":          {closed: true, want: map[kind]result{read: once, put: once, fresh: once}},
		"reset while idle":           {closed: true, reset: true, want: map[kind]result{read: once, put: once, fresh: once}},
		"restarted while idle":       {closed: true, restarted: true, want: map[kind]result{read: once, put: once, fresh: once}},
		"stopped after the header":   {stopped: true, fault: closing(false, ""), want: map[kind]result{read: definite, put: definite, fresh: {calls{}, dead, ""}}},
		"closed after the header":    {fault: closing(false, ""), want: map[kind]result{read: again, put: again, fresh: unknown}},
		"reset after the header":     {fault: closing(true, ""), want: map[kind]result{read: again, put: again, fresh: unknown}},
		"closed within the response": {fault: closing(false, "HTTP/1.1 200 OK\r\nContent-Le"), want: map[kind]result{read: definite, put: definite, fresh: unknown}},
		"closed within the body":     {fault: reading(goOn, 50_000), size: 1 << 40, want: map[kind]result{put: definite}}, // larger than all buffers
		"closed after the body":      {fault: reading(goOn, 1<<40), want: map[kind]result{put: unknown}},
		"closed after an early body": {early: true, fault: reading("", 1<<40), want: map[kind]result{put: unknown}},
	} {
		for called, call := range everyCall {
			want, ok := c.want[call.kind]
			if !ok {
				continue
			}
			t.Run(called+", "+name, func(t *testing.T) {
				t.Parallel()
				s := new(recorder)
				s.listen(t, "127.0.0.1:0")
				address := s.listener.Addr().String()
				client := newClient(t, "http://"+address)
				if c.early {
					client.transport.(*transport).kept.ExpectContinueTimeout = 10 * time.Millisecond
				}
				restart := sync.OnceFunc(func() { s.listen(t, address) })
				dialWith(client, dialer(func(ctx context.Context, network, address string) (net.Conn, error) {
					conn, err := new(net.Dialer).DialContext(ctx, network, address)
					switch {
					case err != nil && c.stopped:
						return nil, &net.OpError{Op: "dial", Err: errors.New("refused for long")}
					case err != nil:
						restart()
					}
					return conn, err
				}).dial)
				if _, err := client.About(t.Context()); err != nil { // opens the connection that is kept
					t.Fatal(err)
				}
				s.mu.Lock()
				s.calls, s.fault = calls{}, c.fault
				s.mu.Unlock()
				if c.restarted || c.stopped {
					_ = s.listener.Close()
				}
				if c.closed {
					s.drop(c.reset)
				}
				err := call.do(t.Context(), client, mustUser(t, "x"), cmp.Or(c.size, 100_000))
				s.mu.Lock()
				defer s.mu.Unlock()
				if s.calls != want.calls {
					t.Errorf("the signer got %+v; want %+v", s.calls, want.calls)
				}
				if want.code == "" && err != nil {
					t.Errorf("%v; want success", err)
				} else if want.code != "" {
					checkError(t, err, want.code, want.outcome, call.suffix)
				}
			})
		}
	}
}

// net/http does not repeat a call if the connection breaks between two writes of its header.
func TestHeadersWithLongTokensAreOneWrite(t *testing.T) {
	c, _ := serve(t, linking)
	var writes atomic.Int64
	dialWith(c, func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		return countingConn{conn, &writes}, err
	})
	ctx := WithToken(t.Context(), Token(strings.Repeat("x", 7<<10)))
	if _, err := c.Link(ctx, mustUser(t, "x"), LinkOptions{}); err != nil || writes.Load() != 1 {
		t.Errorf("%d writes, %v; want 1", writes.Load(), err)
	}
}

type countingConn struct {
	net.Conn
	writes *atomic.Int64
}

func (c countingConn) Write(p []byte) (int, error) { c.writes.Add(1); return c.Conn.Write(p) }

func TestDialRetriesRefusedConnections(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	timeout := &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}
	for _, c := range []struct {
		results     []error // the last one repeats
		limit, took time.Duration
	}{
		{[]error{nil}, time.Hour, 0},
		{[]error{timeout}, time.Hour, 0},
		{[]error{refused, refused, nil}, time.Hour, 30 * time.Millisecond},
		{[]error{refused}, time.Hour, restartTimeout},
		{[]error{refused}, time.Second, time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), c.limit)
			defer cancel()
			began, want, left := time.Now(), c.results[len(c.results)-1], c.results
			_, err := dialer(func(context.Context, string, string) (net.Conn, error) {
				result := left[0]
				left = left[min(1, len(left)-1):]
				return nil, result
			}).dial(ctx, "tcp", "")
			if took := time.Since(began); !errors.Is(err, want) || took < c.took || took > c.took+200*time.Millisecond || c.took == 0 && took > 0 {
				t.Errorf("dial returned %v after %v; want %v after %v", err, took, want, c.took)
			}
		})
	}
}
