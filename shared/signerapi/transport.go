package signerapi

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"time"
)

// dialPatience is how long dialling waits for a signer that refuses connections: a
// container that has crashed is back in one or two seconds.
const dialPatience = 5 * time.Second

// sendBuffer is what the kernel may hold of a picture on its way to the signer, in
// bytes. By itself it would hold megabytes for each.
const sendBuffer = 64 << 10

// What the transport keeps of connections that no call is using.
const (
	maxIdle     = 256
	idleTimeout = 30 * time.Second // below the signer's own, or it closes them under a call
)

// newTransport returns an HTTP/1.1 transport for the loopback hop: connections
// are kept and reused, each call or each phase of it has a limit, and nothing is
// compressed or sent through a proxy.
func newTransport() *transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &transport{bodies: &http.Transport{
		DialContext:           new(patience).dial,
		Protocols:             protocols,
		MaxIdleConns:          1024,
		MaxIdleConnsPerHost:   1024, // one host; Go's default is 2
		IdleConnTimeout:       30 * time.Second,
		ResponseHeaderTimeout: 4 * time.Minute, // above the signer's own limits for what it still has to store
		ExpectContinueTimeout: time.Second,
		DisableCompression:    true,
		// A chunk of a form's picture, which then is one write and not three. A picture
		// whose length is known does not pass through it.
		WriteBufferSize: 33 << 10,
	}}
}

// patience lets dialling wait for a signer that refuses connections, because it is
// being restarted: nothing has been sent yet, and so nothing needs to fail. It ends
// dialPatience after the first refusal, for all, so that nobody waits for a signer
// that does not come back.
type patience struct {
	mu          sync.Mutex
	first, last time.Time // refusals of the outage
}

func (p *patience) dial(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: 2 * time.Second}
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		conn, err := dialer.DialContext(ctx, network, address)
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetWriteBuffer(sendBuffer) // gone already: the first write says so
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			p.reset()
			return conn, err
		}
		if p.over(time.Now()) {
			return nil, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// reset ends an outage.
func (p *patience) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = time.Time{}
}

// over reports whether a refusal at now comes too long after the first.
func (p *patience) over(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Sub(p.last) > dialPatience {
		p.first = now // of another outage
	}
	p.last = now
	return now.Sub(p.first) >= dialPatience
}

// transport carries the calls. A GET, which is nearly every call, goes over a
// connection of its own, in the goroutine that asks: net/http keeps two goroutines
// for each connection, and to hand a call to them and back costs more than the call.
// Everything else goes by net/http.
type transport struct {
	bodies *http.Transport

	mu   sync.Mutex
	idle []*conn // the last is the one that was used last
}

// conn carries one GET at a time.
type conn struct {
	net.Conn
	limit io.LimitedReader // of what is read of one answer
	in    *bufio.Reader    // of limit
	out   *bufio.Writer
	kept  time.Time // since when it is idle; zero when it is new
}

// RoundTrip implements [http.RoundTripper].
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method != http.MethodGet {
		return t.bodies.RoundTrip(req)
	}
	for {
		c, err := t.conn(req.Context(), req.URL.Host)
		if err != nil {
			return nil, err
		}
		resp, err := c.get(req)
		if err == nil && !resp.Close {
			t.keep(c)
			return resp, nil
		}
		_ = c.Close()
		if !errors.Is(err, errStale) || req.Context().Err() != nil {
			return resp, err
		}
	}
}

// errStale is that a connection that was kept had been closed by the signer, which
// has not seen the request, or has been restarted amid it. A GET changes nothing
// and can be asked again.
var errStale = errors.New("the signer had closed the connection")

// get asks, and reads the answer whole. After an error c is of no more use.
func (c *conn) get(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	deadline := time.Now().Add(getTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	_ = c.SetDeadline(deadline) // of a closed connection the first write tells
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	err := req.Write(c.out)
	if err == nil {
		err = c.out.Flush()
	}
	c.limit.N = 2 * maxAnswer // with the header
	if err == nil {
		_, err = c.in.Peek(1)
	}
	if err != nil {
		if ne, ok := errors.AsType[net.Error](err); !c.kept.IsZero() && (!ok || !ne.Timeout()) {
			err = errors.Join(errStale, err)
		}
		return nil, err
	}
	resp, err := http.ReadResponse(c.in, req)
	if err != nil {
		return nil, err
	}
	if resp.ContentLength < 0 || resp.ContentLength > maxAnswer || resp.StatusCode < http.StatusOK {
		return nil, fmt.Errorf("the answer %s of %d bytes is outside the contract", resp.Status, resp.ContentLength)
	}
	answer := make([]byte, resp.ContentLength)
	if _, err := io.ReadFull(resp.Body, answer); err != nil {
		return nil, err
	}
	if c.in.Buffered() > 0 {
		return nil, errors.New("there is more than the answer")
	}
	if !stop() {
		return nil, context.Cause(ctx)
	}
	resp.Body = io.NopCloser(bytes.NewReader(answer))
	return resp, nil
}

// conn returns the connection that was used last, or a new one.
func (t *transport) conn(ctx context.Context, address string) (*conn, error) {
	t.mu.Lock()
	if n := len(t.idle); n > 0 {
		c := t.idle[n-1]
		t.idle = t.idle[:n-1]
		t.mu.Unlock()
		return c, nil
	}
	t.mu.Unlock()
	dialled, err := t.bodies.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: dialled, out: bufio.NewWriterSize(dialled, 1<<10)}
	c.limit.R = dialled
	c.in = bufio.NewReaderSize(&c.limit, 2<<10)
	return c, nil
}

// keep has c used again, and closes those that were not for a while. Probes ask
// every few seconds, so that none stays for long.
func (t *transport) keep(c *conn) {
	c.kept = time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.idle = append(t.idle, c)
	old := 0
	for len(t.idle)-old > maxIdle || c.kept.Sub(t.idle[old].kept) > idleTimeout {
		_ = t.idle[old].Close()
		old++
	}
	t.idle = slices.Delete(t.idle, 0, old)
}
