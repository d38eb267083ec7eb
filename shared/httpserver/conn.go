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
	// maxHeaderLines is the largest number of lines in the header of a request. [http.Server] bounds only its bytes, and takes
	// 100 bytes of memory for a line of 4.
	maxHeaderLines = 128
	// bufferRead is the number of bytes that net/http reads at once into its buffer, of serverBuffer bytes. So much can belong
	// to the next header when a header or a body ends, and is not counted. Larger reads are of a body alone.
	bufferRead   = 1 << 10
	serverBuffer = 4 << 10
)

// errHeaderLines ends a connection; net/http answers 400.
var errHeaderLines = errors.New("the header has too many lines")

// conn counts the lines of the headers that are read from a connection.
type conn struct {
	net.Conn
	release func()        // its slot
	request *http.Request // the current one, as net/http has it

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
		p = p[:min(len(p), bufferRead)]
	}
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inHeader && !c.header.take(p[:n]) {
		return 0, errHeaderLines
	}
	return n, err
}

// readsHeader says whether the next bytes belong to the header of a request.
func (c *conn) readsHeader(yes bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inHeader, c.header = yes, headerLines{}
}

// headerLines counts the lines of a header up to the blank line at its end. After a POST, net/http skips blank lines before it.
type headerLines struct {
	n     int
	line  int  // bytes of the line that has begun
	cr    bool // its first byte is a carriage return
	ended bool
}

// take counts the lines in p, the next bytes, and reports whether there are at most maxHeaderLines.
func (h *headerLines) take(p []byte) bool {
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

// headersEnd tells the connection of each request where its header ends, and where the next one begins.
func headersEnd(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(connKey{}).(*conn); ok {
			c.readsHeader(false)
			defer c.readsHeader(true)
			c.request, r.Trailer = r, nil // unused, and one line announces thousands
		}
		h.ServeHTTP(w, r)
	})
}

// withConn is the ConnContext of an [http.Server].
func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}
