package attacks

import (
	"bufio"
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

const victim = "127.0.0.100" // its address

// from returns a client with the given source address. A machine with Linux has all of 127.0.0.0/8.
func from(t *testing.T, address string) *http.Client {
	t.Helper()
	transport := &http.Transport{DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}).DialContext}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

// small makes a connection have the segments of an Ethernet and a small receive buffer, since the kernel buffers megabytes of a
// loopback connection by default.
func small(_, _ string, conn syscall.RawConn) error {
	var segments, buffer error
	err := conn.Control(func(fd uintptr) {
		segments = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, 1400)
		buffer = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<10)
	})
	return errors.Join(err, segments, buffer)
}

// crowd is the connections of an attack on one listener.
type crowd struct {
	target  string
	attack  context.Context
	end     func() // closes all connections
	sending sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
}

// newCrowd returns a crowd that ends with the test at the latest.
func newCrowd(t *testing.T, url string) *crowd {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	c := &crowd{target: strings.TrimPrefix(url, "http://"), attack: ctx}
	c.end = sync.OnceFunc(func() {
		cancel()
		c.mu.Lock()
		for _, conn := range c.conns {
			conn.Close()
		}
		c.mu.Unlock()
		c.sending.Wait()
	})
	t.Cleanup(c.end)
	return c
}

// send opens a connection and sends a request or a part of one. The server may close the connection or read no more.
func (c *crowd) send(t *testing.T, address, request string) net.Conn {
	t.Helper()
	d := &net.Dialer{Timeout: 20 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}, Control: small}
	conn, err := d.DialContext(t.Context(), "tcp", c.target)
	if err != nil {
		t.Error(err)
		conn, _ = net.Pipe()
	}
	c.mu.Lock()
	c.conns = append(c.conns, conn)
	c.mu.Unlock()
	if c.attack.Err() != nil {
		conn.Close()
	}
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = io.WriteString(conn, request)
	_ = conn.SetWriteDeadline(time.Time{})
	return conn
}

// trickle sends piece each interval, until the server closes the connection or the crowd ends.
func (c *crowd) trickle(conn net.Conn, piece string, interval time.Duration) {
	c.sending.Go(func() {
		for err := error(nil); err == nil && c.attack.Err() == nil; _, err = io.WriteString(conn, piece) {
			time.Sleep(interval)
		}
	})
}

// settle waits until the frontend has taken in all requests of the crowd.
func (c *crowd) settle(t *testing.T, sys *stack.System) {
	t.Helper()
	last, same := -1.0, 0
	harness.Eventually(t, func() error {
		now := harness.Sum(t, sys.FrontendOps, "cats_frontend_http_requests_in_flight") +
			harness.Sum(t, sys.FrontendOps, "cats_frontend_http_requests_total")
		if same++; now != last {
			last, same = now, 0
		}
		if same < 20 { // in a fifth of a second at least
			return errors.New("the frontend still takes in requests")
		}
		return nil
	})
}

// waitForMetric waits until the sum over all series of a metric is as expected.
func waitForMetric(t *testing.T, ops, name string, expected func(float64) bool) {
	t.Helper()
	harness.Eventually(t, func() error {
		if n := harness.Sum(t, ops, name); !expected(n) {
			return fmt.Errorf("%s is %v", name, n)
		}
		return nil
	})
}

// statuses counts the connections by the status of their response: 0 if the server closed them without one, -1 if they still wait.
func (c *crowd) statuses() map[int]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	got := map[int]int{}
	for _, conn := range c.conns {
		_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
			got[-1]++
		} else if err != nil {
			got[0]++
		} else {
			resp.Body.Close()
			got[resp.StatusCode]++
		}
	}
	return got
}

// wantServed fails the test unless the victim, at an address of its own, gets a 200. On a busy machine, one of five tries must succeed.
func wantServed(t *testing.T, method, target, body string) {
	t.Helper()
	client := from(t, victim)
	client.Timeout = 20 * time.Second
	var a harness.Response
	var err error
	for range 5 {
		content := io.Reader(strings.NewReader(body))
		if method == "chunked PUT" {
			content = struct{ io.Reader }{content} // of unknown length
		}
		a, err = harness.TryWith(t.Context(), client, strings.TrimPrefix(method, "chunked "), target, "", content)
		if err == nil && a.StatusCode == http.StatusOK {
			return
		}
	}
	t.Errorf("the victim's %s: %.300s, %v; want 200", method, a.Body, err)
}
