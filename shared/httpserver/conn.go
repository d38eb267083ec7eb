package httpserver

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
)

const (
	// maxHeaderLines is the maximum number of lines in a request header. [http.Server] limits only the bytes, and needs 100 bytes
	// of memory for a line of 4 bytes.
	maxHeaderLines = 128
	// headerRead is the maximum size of a read that may contain a header. Bytes of the next header can arrive with the end of a
	// header or of a body; they are not counted. net/http reads at most serverBuffer bytes at once, except of a body.
	headerRead   = 1 << 10
	serverBuffer = 4 << 10
)

// errHeaderLines is a read error of a connection. net/http answers with 400 and closes the connection.
var errHeaderLines = errors.New("the header has too many lines")

// conn limits the lines of the request headers that are read from a connection.
type conn struct {
	net.Conn
	release func()        // releases the slot of the connection
	request *http.Request // the current request, as net/http knows it

	mu       sync.Mutex
	inHeader bool // the next bytes belong to a header
	header   headerLines
}

// Close implements [net.Conn].
func (c *conn) Close() error {
	c.release()
	return c.Conn.Close()
}

// Read implements [net.Conn].
func (c *conn) Read(p []byte) (int, error) {
	if len(p) <= serverBuffer {
		p = p[:min(len(p), headerRead)]
	}
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inHeader && !c.header.add(p[:n]) {
		return 0, errHeaderLines
	}
	return n, err
}

func (c *conn) setInHeader(inHeader bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inHeader, c.header = inHeader, headerLines{}
}

// headerLines counts the lines of a header up to the blank line at its end. Blank lines before the header do not count: net/http
// skips them after a POST.
type headerLines struct {
	n     int
	line  int  // bytes of the current line so far
	cr    bool // the current line begins with a carriage return
	ended bool
}

// add counts the lines in p, the next bytes, and reports whether the header has at most maxHeaderLines so far.
func (h *headerLines) add(p []byte) bool {
	for line := range bytes.Lines(p) {
		if h.ended {
			break
		}
		if h.line == 0 {
			h.cr = line[0] == '\r'
		}
		h.line += len(line)
		if line[len(line)-1] != '\n' {
			break
		}
		if h.line == 1 || h.line == 2 && h.cr {
			h.ended = h.n > 0
		} else {
			h.n++
		}
		h.line = 0
	}
	return h.n <= maxHeaderLines
}

type connKey struct{}

// withConn is the ConnContext of an [http.Server].
func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// trackHeaders tells the connection of each request when the header has ended and when the next one begins.
func trackHeaders(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(connKey{}).(*conn); ok {
			c.setInHeader(false)
			defer c.setInHeader(true)
			c.request, r.Trailer = r, nil // trailers are not used, and one header line can announce thousands
		}
		h.ServeHTTP(w, r)
	})
}
