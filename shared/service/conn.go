package service

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
)

// patience is how little a body may bring: at least bytes in each window of the
// time that the server waits for it. Time in which the server does something else,
// such as waiting for memory, does not count.
type patience struct {
	window time.Duration
	bytes  int64
}

// watchedConn ends a read from the network with [os.ErrDeadlineExceeded] when the
// connection, while it is watched, brings less than it must. A deadline for each
// read of the body would not do: net/http fills the reader's whole buffer before
// it returns from a chunked body, however long that takes.
type watchedConn struct {
	net.Conn
	all      *connections
	mu       sync.Mutex
	patience patience      // the zero value when not watched
	got      int64         // in this window
	waited   time.Duration // in this window, without the read under way
	began    time.Time     // of the watched read under way; zero for none
	total    time.Duration // waited ever, without the read under way

	accepts time.Time     // until when answers are to be accepted; the handlers' own
	request *http.Request // the last one, as net/http has it; the handlers' own

	inHeader bool // what is read is a request's header
	header   headerLines
	behind   int // lines that net/http may have read with the end of a body

	holder *holder   // connections' own, as is since
	since  time.Time // when it came to rest last
}

func (c *watchedConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	if c.inHeader {
		p = p[:min(len(p), headerRead)]
	}
	if c.patience.window > 0 {
		c.began = time.Now()
		_ = c.SetReadDeadline(c.began.Add(c.patience.window - c.waited)) // a closed connection says so itself
	}
	c.mu.Unlock()
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.inHeader && !c.header.take(p[:n]):
		return 0, errHeaderLines
	case !c.inHeader && 1 < len(p) && len(p) <= serverBuffer: // by one it looks whether the client is still there
		c.behind = bytes.Count(p[:n], []byte("\n"))
	}
	if !c.began.IsZero() {
		took := time.Since(c.began)
		c.began = time.Time{}
		c.total += took
		c.waited += took
		c.got += int64(n)
		if c.got >= c.patience.bytes {
			c.got, c.waited = 0, 0
		}
	}
	return n, err
}

// readsHeader says whether what is read from now on is the header of a request.
func (c *watchedConn) readsHeader(yes bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inHeader, c.header, c.behind = yes, headerLines{}, 0
}

// fewBehind reports whether there can be no header of too many lines already behind
// the body that was read.
func (c *watchedConn) fewBehind() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.behind <= maxHeaderLines
}

// watch has what is read from now on watched, the read under way apart.
func (c *watchedConn) watch(p patience) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.patience != p {
		c.patience, c.got, c.waited = p, 0, 0
	}
}

// waitedFor returns how long the connection was waited for while it was watched.
func (c *watchedConn) waitedFor() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.began.IsZero() {
		return c.total
	}
	return c.total + time.Since(c.began)
}

// answerWithin bounds how long the peer may take to accept what is written from now
// on. Not each answer has a deadline of its own, which would be a thirtieth of what a
// GET costs.
func (c *watchedConn) answerWithin(now time.Time) {
	if c.accepts.Sub(now) < writeTimeout {
		c.accepts = now.Add(2 * writeTimeout)
		_ = c.SetWriteDeadline(c.accepts) // a closed connection says so itself
	}
}

// SetWriteDeadline is the [net.Conn]'s, which net/http would take away after each
// request.
func (c *watchedConn) SetWriteDeadline(t time.Time) error {
	if t.IsZero() {
		return nil
	}
	return c.Conn.SetWriteDeadline(t)
}

// until gives all reads from now on the time until t together, the zero time for
// as long as it takes. net/http sets deadlines of its own after the request.
func (c *watchedConn) until(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.patience, c.began = patience{}, time.Time{}
	_ = c.SetReadDeadline(t)
}

const (
	// maxHeaderLines is how many lines a request's header may have. net/http bounds
	// its bytes alone, and makes a hundred bytes of memory of a line of four: a few
	// hundred connections with headers of nothing but such lines would take several
	// times what the container has.
	maxHeaderLines = 128
	// headerRead is how much of a header is read at once, in bytes: what of it is
	// behind its end is the next one's, and is not counted. Nor is what net/http reads
	// into its buffer, of serverBuffer bytes, together with the end of a body: where
	// those are too many lines for a header, it is the last request.
	headerRead   = 1 << 10
	serverBuffer = 4 << 10
)

// errHeaderLines ends a connection; net/http says 400.
var errHeaderLines = errors.New("the header has too many lines")

// headerLines counts the lines of a header up to the empty one at its end.
type headerLines struct {
	n     int
	line  int  // bytes of the line that has begun
	cr    bool // its first byte is a carriage return
	ended bool
}

// take counts what came next and reports whether there are no more lines than may be.
func (h *headerLines) take(p []byte) bool {
	for !h.ended && len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		if h.line == 0 {
			h.cr = p[0] == '\r'
		}
		if end < 0 {
			h.line += len(p)
			return true
		}
		h.line += end
		empty := h.line == 0 || h.line == 1 && h.cr
		h.ended = empty && h.n > 0
		h.line, p = 0, p[end+1:]
		if h.n++; h.n > maxHeaderLines && !h.ended {
			return false
		}
	}
	return true
}

// receiveBuffer is what the kernel may hold of a connection that nobody has read,
// in bytes. By itself it would hold megabytes, which count as the container's
// memory, and which a goroutine reads without ever having to wait: as long as some
// do, Go looks for other requests every 10 ms only.
const receiveBuffer = 256 << 10

// watchedListener makes the connections of a server such that they can be watched.
type watchedListener struct {
	net.Listener
	connections *connections
}

// Accept closes connections at rest where there is no file descriptor for the next.
func (l watchedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	for errors.Is(err, syscall.EMFILE) && l.connections.shed(err) {
		time.Sleep(time.Millisecond) // its reader lets go of it
		c, err = l.Listener.Accept()
	}
	if err != nil {
		return nil, err
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetReadBuffer(receiveBuffer) // gone already: the first read says so
	}
	watched := &watchedConn{Conn: c, all: l.connections, inHeader: true}
	l.connections.add(watched)
	return watched, nil
}

type connKey struct{}

// withConn is the [http.Server]'s ConnContext.
func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}
