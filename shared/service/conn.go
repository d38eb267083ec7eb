package service

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
	// headerRead is the number of bytes that are read of a header at once. Bytes after the blank line belong to the next
	// request and are not counted. Neither are the bytes that net/http reads into its buffer, of serverBuffer bytes, together
	// with the end of a body: if they can be a header of too many lines, that request is the last of its connection.
	headerRead   = 1 << 10
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
	behind   int // lines that net/http may have read together with the end of a body
}

// Close implements [net.Conn].
func (c *conn) Close() error {
	c.release()
	return c.Conn.Close()
}

// Read implements [net.Conn].
func (c *conn) Read(p []byte) (int, error) {
	c.mu.Lock()
	if c.inHeader {
		p = p[:min(len(p), headerRead)]
	}
	c.mu.Unlock()
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.inHeader && !c.header.take(p[:n]):
		return 0, errHeaderLines
	case !c.inHeader && 1 < len(p) && len(p) <= serverBuffer: // with one byte, net/http looks whether the client is there
		c.behind = bytes.Count(p[:n], []byte("\n"))
	}
	return n, err
}

// readsHeader says whether the next bytes belong to the header of a request.
func (c *conn) readsHeader(yes bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inHeader, c.header, c.behind = yes, headerLines{}, 0
}

// fewBehind reports whether no header with too many lines can follow the body in net/http's buffer.
func (c *conn) fewBehind() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.behind <= maxHeaderLines
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
