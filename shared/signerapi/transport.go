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
	"os"
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

// askTimeout is how long a body waits to be asked for before it is sent all the same.
const askTimeout = time.Second

// transport carries the calls over HTTP/1.1, each by a connection that it has to
// itself, in the goroutine that asks. net/http keeps two goroutines for each
// connection, and to hand a call to them and back costs more than the call; and for
// each body 70 KiB of buffers, however slowly it comes.
type transport struct {
	dial func(ctx context.Context, network, address string) (net.Conn, error)

	mu   sync.Mutex
	idle []*conn // the last is the one that was used last
}

// conn carries one call at a time.
type conn struct {
	net.Conn
	limit io.LimitedReader // of what is read of one answer
	in    *bufio.Reader    // of limit
	out   *bufio.Writer
	kept  time.Time // since when it is idle; zero when it is new

	deadline time.Time // that is set; zero when it is not known
}

// RoundTrip implements [http.RoundTripper] for the calls of the contract. The signer
// is asked whether it wants a body before a byte of it is read, and answers are read whole.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	// A second try would hide that the first one may have been carried out.
	fresh := req.Method == http.MethodDelete || req.URL.Path == commitPath
	for {
		c, err := t.conn(req.Context(), req.URL.Host, fresh)
		if err != nil {
			return nil, err
		}
		resp, err := c.call(req)
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
// has not seen the request, or has been restarted amid it. A GET and a ticket change
// nothing, nor does a body that was not asked for: all can be sent again.
var errStale = errors.New("the signer had closed the connection")

// call sends req and reads the answer. After an error, or where the response is to
// close the connection, c is of no more use, and the body may still be read from.
func (c *conn) call(req *http.Request) (*http.Response, error) {
	ctx, now := req.Context(), time.Now()
	switch { // of a closed connection the first write tells
	case req.Body != nil:
		c.deadline = time.Time{} // it is changed as the body goes on
		_ = c.SetDeadline(now.Add(putTimeout))
	case req.URL.Path == commitPath:
		c.deadline = time.Time{} // or the next call would wait as long
		_ = c.SetDeadline(now.Add(commitTimeout))
	case c.deadline.Sub(now) < getTimeout:
		c.deadline = now.Add(2 * getTimeout) // so that not each call has to set it
		_ = c.SetDeadline(c.deadline)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	c.limit.N = 2 * maxAnswer // with the headers
	wanted, err := c.ask(req)
	if err != nil {
		if ne, ok := errors.AsType[net.Error](err); !c.kept.IsZero() && (!ok || !ne.Timeout()) {
			err = errors.Join(errStale, err)
		}
		return nil, err
	}
	var sent chan bool
	if wanted {
		_ = c.SetDeadline(time.Time{}) // the picture may take as long as the watchdog of the body allows
		sent = make(chan bool, 1)
		go func() { sent <- c.sendBody(req.Body, req.ContentLength) }()
	}
	resp, err := c.answer(req)
	if err != nil {
		return nil, err
	}
	whole := req.Body == nil
	if wanted && resp.StatusCode == http.StatusOK {
		whole = <-sent // the signer has seen its end
	} else {
		select {
		case whole = <-sent:
		default:
		}
	}
	if !whole {
		resp.Close = true // what may still come of the picture must not be taken for a call
	}
	if !stop() {
		return nil, context.Cause(ctx)
	}
	return resp, nil
}

// ask sends the header of req, and reports whether its body is wanted. Where it
// returns no error, the signer is there.
func (c *conn) ask(req *http.Request) (wanted bool, err error) {
	for _, s := range []string{req.Method, " ", req.URL.RequestURI(), " HTTP/1.1\r\nHost: ", req.URL.Host, "\r\n"} {
		_, _ = c.out.WriteString(s)
	}
	switch {
	case req.Body == nil:
	case req.ContentLength < 0:
		_, _ = c.out.WriteString("Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n")
	default:
		_, _ = fmt.Fprintf(c.out, "Expect: 100-continue\r\nContent-Length: %d\r\n", req.ContentLength)
	}
	_ = req.Header.Write(c.out)
	_, _ = c.out.WriteString("\r\n")
	if err := c.out.Flush(); err != nil { // what went wrong before, too
		return false, err
	}
	if req.Body == nil {
		_, err := c.in.Peek(1)
		return false, err
	}
	const goOn = "HTTP/1.1 100"
	deadline := time.Now().Add(askTimeout)
	_ = c.SetReadDeadline(deadline)
	status, err := c.in.Peek(len(goOn))
	_ = c.SetReadDeadline(deadline.Add(putTimeout))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return true, nil
	}
	return string(status) == goOn, err
}

// answer reads the answer to req whole.
func (c *conn) answer(req *http.Request) (resp *http.Response, err error) {
	for resp == nil || resp.StatusCode == http.StatusContinue && req.Body != nil {
		if resp, err = http.ReadResponse(c.in, req); err != nil {
			return nil, err
		}
	}
	if resp.ContentLength < 0 || resp.ContentLength > maxAnswer || resp.StatusCode < http.StatusOK {
		return nil, fmt.Errorf("the answer %s of %d bytes is outside the contract", resp.Status, resp.ContentLength)
	}
	content := make([]byte, resp.ContentLength)
	if _, err := io.ReadFull(resp.Body, content); err != nil {
		return nil, err
	}
	if c.in.Buffered() > 0 {
		return nil, errors.New("there is more than the answer")
	}
	resp.Body = io.NopCloser(bytes.NewReader(content))
	return resp, nil
}

const (
	// What is read of a picture at once, in bytes: little where little comes, so that
	// a slow client holds little, and more where that was all there.
	smallCopy = 2 << 10
	largeCopy = 32 << 10

	chunkHead = "0000\r\n" // the length of a chunk, in hexadecimal digits
	chunkTail = "\r\n"
	chunkEnd  = "0\r\n\r\n" // the last chunk, of none
	chunkRoom = len(chunkHead) + len(chunkTail) + len(chunkEnd)
)

var largeCopies = sync.Pool{New: func() any { return new([largeCopy + chunkRoom]byte) }}

// sendBody sends body: of size bytes, or in chunks where that is -1. A body that
// breaks off, or has another size, cuts the connection, and so is never taken for
// whole. It reports whether all was sent.
func (c *conn) sendBody(body io.Reader, size int64) bool {
	small := make([]byte, smallCopy+chunkRoom)
	var large *[largeCopy + chunkRoom]byte
	defer func() {
		if large != nil {
			largeCopies.Put(large)
		}
	}()
	for sent := int64(0); ; {
		buf := small
		if large != nil {
			buf = large[:]
		}
		most := len(buf) - chunkRoom
		n, err := body.Read(buf[len(chunkHead):][:most])
		ended := err == io.EOF // bare: a wrapped one is a broken body, not its end
		sent += int64(n)
		if err != nil && !ended || size >= 0 && (sent > size || ended && sent < size) {
			_ = c.Close()
			return false
		}
		if _, err := c.Write(piece(buf, n, size < 0, ended)); err != nil {
			_ = c.SetReadDeadline(time.Now().Add(time.Second)) // the answer is there, or never comes
			return false
		}
		if ended {
			return true
		}
		switch {
		case large == nil && n == most:
			large, _ = largeCopies.Get().(*[largeCopy + chunkRoom]byte)
		case large != nil && n < smallCopy:
			largeCopies.Put(large)
			large = nil
		}
	}
}

// piece returns the n bytes of a body behind the room for a chunk's head in buf, as
// a chunk where chunked, with the last chunk behind it where ended.
func piece(buf []byte, n int, chunked, ended bool) []byte {
	start, end := len(chunkHead), len(chunkHead)+n
	if !chunked {
		return buf[start:end]
	}
	if n > 0 {
		start = 0
		for i, left := len(chunkHead)-len(chunkTail)-1, n; i >= 0; i, left = i-1, left>>4 {
			buf[i] = "0123456789abcdef"[left&15]
		}
		copy(buf[len(chunkHead)-len(chunkTail):], chunkTail)
		end += copy(buf[end:], chunkTail)
	}
	if ended {
		end += copy(buf[end:], chunkEnd)
	}
	return buf[start:end]
}

// conn returns the connection that was used last, or a new one.
func (t *transport) conn(ctx context.Context, address string, fresh bool) (*conn, error) {
	t.mu.Lock()
	if n := len(t.idle); n > 0 && !fresh {
		c := t.idle[n-1]
		t.idle = t.idle[:n-1]
		t.mu.Unlock()
		return c, nil
	}
	t.mu.Unlock()
	dialled, err := t.dial(ctx, "tcp", address)
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
