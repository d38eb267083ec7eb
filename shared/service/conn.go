package service

import (
	"context"
	"net"
	"sync"
	"time"
)

// watchedConn gives each read from the network a deadline of its own while it is
// watched, so that a body may be slow but not stalled. A deadline for each read
// of the body would not do: net/http fills the reader's whole buffer before it
// returns from a chunked body, however long that takes.
type watchedConn struct {
	net.Conn
	mu   sync.Mutex
	time time.Duration // for each read; 0 when not watched
}

func (c *watchedConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	if c.time > 0 {
		_ = c.SetReadDeadline(time.Now().Add(c.time)) // a connection that is closed says so itself
	}
	c.mu.Unlock()
	return c.Conn.Read(p)
}

// watch gives each read from now on the time d, the one under way included.
func (c *watchedConn) watch(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.time != d {
		c.time = d
		_ = c.SetReadDeadline(time.Now().Add(d))
	}
}

// until gives all reads from now on the time until t together, the zero time for
// as long as it takes. net/http sets deadlines of its own after the request.
func (c *watchedConn) until(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.time = 0
	_ = c.SetReadDeadline(t)
}

// watchedListener makes the connections of a server such that they can be watched.
type watchedListener struct{ net.Listener }

func (l watchedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &watchedConn{Conn: c}, nil
}

type connKey struct{}

// withConn is the [http.Server]'s ConnContext.
func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}
