package attacks

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// The pools of the frontend and the share of one client, with the default settings.
const (
	defaultShare      = "0.0625"
	connectionsShare  = 64
	requestsShare     = 32
	uploadsShare      = 8
	commitsShare      = 4
	waitersForKeys    = 8
	victim, attackers = "127.0.0.100", "127.0.0.%d" // addresses; a machine with Linux has all of them
)

// startShared returns a system with the default shares.
func startShared(t *testing.T, opts stack.SystemOptions) *stack.System {
	t.Helper()
	shares := map[string]string{"CLIENT_SHARE": defaultShare}
	opts.FrontendEnv, opts.SignerEnv = harness.Merge(shares, opts.FrontendEnv), harness.Merge(shares, opts.SignerEnv)
	return harness.Start(t, opts)
}

// dialerFrom returns a dialer whose connections have the given source address.
func dialerFrom(address string) *net.Dialer {
	return &net.Dialer{Timeout: 20 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
}

// clientFrom returns a client with the given source address.
func clientFrom(t *testing.T, address string) *http.Client {
	t.Helper()
	transport := &http.Transport{DialContext: dialerFrom(address).DialContext}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// slowReader returns a dialer from the given source address, for connections that the test does not read. They have the segments of
// an Ethernet and a small receive buffer: by default the kernel buffers megabytes of each loopback connection.
func slowReader(address string) *net.Dialer {
	dialer := dialerFrom(address)
	dialer.Control = func(_, _ string, conn syscall.RawConn) error {
		var errs [2]error
		err := conn.Control(func(fd uintptr) {
			errs[0] = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, 1400)
			errs[1] = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<10)
		})
		return errors.Join(err, errs[0], errs[1])
	}
	return dialer
}

// crowd is the connections of an attack.
type crowd struct {
	sys *stack.System

	sending sync.WaitGroup
	stop    chan struct{}

	mu    sync.Mutex
	conns []net.Conn
}

// newCrowd returns a crowd whose connections are closed at the latest when the test ends.
func newCrowd(t *testing.T, sys *stack.System) *crowd {
	t.Helper()
	c := &crowd{sys: sys, stop: make(chan struct{})}
	t.Cleanup(c.end)
	return c
}

// send opens a connection from address, and sends a request or a part of one.
func (c *crowd) send(ctx context.Context, address, request string) (net.Conn, error) {
	return c.sendBy(ctx, dialerFrom(address), request)
}

// sendBy is send with a dialer of the test's own. A server that has closed the connection is no error.
func (c *crowd) sendBy(ctx context.Context, dialer *net.Dialer, request string) (net.Conn, error) {
	conn, err := dialer.DialContext(ctx, "tcp", strings.TrimPrefix(c.sys.URL, "http://"))
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	if c.stopped() {
		conn.Close()
	}
	c.conns = append(c.conns, conn)
	c.mu.Unlock()
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second)) // the server may read no more
	_, _ = io.WriteString(conn, request)
	_ = conn.SetWriteDeadline(time.Time{})
	return conn, nil
}

// trickle sends n more bytes of a body each interval, as a chunk if chunked is true.
func (c *crowd) trickle(conn net.Conn, n int, interval time.Duration, chunked bool) {
	piece := strings.Repeat("x", n)
	if chunked {
		piece = fmt.Sprintf("%x\r\n%s\r\n", n, piece)
	}
	c.sending.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-c.stop:
				return
			case <-tick.C:
			}
			if _, err := io.WriteString(conn, piece); err != nil {
				return
			}
		}
	})
}

// settle waits until the frontend has taken in all requests of the crowd.
func (c *crowd) settle(t *testing.T) {
	t.Helper()
	last, same := -1.0, 0
	harness.Eventually(t, func() error {
		now := harness.Sum(t, c.sys.FrontendOps, "cats_frontend_http_requests_in_flight") + harness.Sum(t, c.sys.FrontendOps, "cats_frontend_http_requests_total")
		if now == last {
			same++
		} else {
			last, same = now, 0
		}
		if same < 5 {
			time.Sleep(50 * time.Millisecond)
			return errors.New("the frontend still takes in requests")
		}
		return nil
	})
}

// responses reads all connections and returns how many have a response of each status. 0 stands for a closed connection without
// a response, -1 for an open one without.
func (c *crowd) responses() map[int]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	got := map[int]int{}
	for _, conn := range c.conns {
		_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err == nil {
			resp.Body.Close()
			got[resp.StatusCode]++
			continue
		}
		//lint:ignore errorsis ReadResponse does not wrap errors
		if e, ok := err.(net.Error); ok && e.Timeout() {
			got[-1]++
			continue
		}
		got[0]++
	}
	return got
}

// stopped reports whether end was called.
func (c *crowd) stopped() bool {
	select {
	case <-c.stop:
		return true
	default:
		return false
	}
}

// end closes all connections.
func (c *crowd) end() {
	c.mu.Lock()
	if !c.stopped() {
		close(c.stop)
	}
	for _, conn := range c.conns {
		conn.Close()
	}
	c.mu.Unlock()
	c.sending.Wait()
}

// servesVictim checks that the victim gets a 200 within a second. On a busy machine, one of five tries must.
func servesVictim(t *testing.T, method, target string, body io.Reader, header ...string) {
	t.Helper()
	c := clientFrom(t, victim)
	c.Timeout = 4 * time.Second // the attack must last for five tries
	content, err := io.ReadAll(body)
	if err != nil {
		t.Fatal(err)
	}
	for try := range 5 {
		body := io.Reader(bytes.NewReader(content))
		if method == chunkedPUT {
			body = struct{ io.Reader }{body}
		}
		req, err := http.NewRequestWithContext(t.Context(), strings.Fields(method)[0], target, body)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		began := time.Now()
		resp, err := c.Do(req)
		if err != nil {
			t.Logf("try %d, the victim's %s: %v", try, method, err)
			continue
		}
		said, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		took := time.Since(began)
		if resp.StatusCode == http.StatusOK && took < time.Second {
			return
		}
		t.Logf("try %d, the victim's %s: %d after %v: %.300s", try, method, resp.StatusCode, took.Round(time.Millisecond), said)
	}
	t.Errorf("the victim's %s has no 200 within a second", method)
}

// chunkedPUT is the method of a PUT that does not tell the length of its body.
const chunkedPUT = "PUT in chunks"
