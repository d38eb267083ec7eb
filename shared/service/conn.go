package service

import (
	"context"
	"errors"
	"net"
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
	since    time.Time // at rest; of all
	mu       sync.Mutex
	patience patience      // the zero value when not watched
	got      int64         // in this window
	waited   time.Duration // in this window, without the read under way
	began    time.Time     // of the watched read under way; zero for none
	total    time.Duration // waited ever, without the read under way

	accepts time.Time // until when answers are to be accepted; the handlers' own
}

func (c *watchedConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	if c.patience.window > 0 {
		c.began = time.Now()
		_ = c.SetReadDeadline(c.began.Add(c.patience.window - c.waited)) // a closed connection says so itself
	}
	c.mu.Unlock()
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	defer c.mu.Unlock()
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
	watched := &watchedConn{Conn: c, all: l.connections}
	l.connections.add(watched)
	return watched, nil
}

type connKey struct{}

// withConn is the [http.Server]'s ConnContext.
func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}
