package httpserver

import (
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// busyRate is the minimum upload rate, in bytes per second, while more than half of the slots for uploads are taken. So slow
	// clients do not block fast ones.
	busyRate = 16 << 10

	// After a rejection, so much of the body is still read. Many clients read the response only after they have sent the whole
	// body, and would lose the response if the connection was closed.
	drainTimeout = 5 * time.Second
	drainBytes   = 64 << 20

	// continueTimeout is shorter than clients wait for a 100 Continue before they send the body: curl and our client wait 1 s.
	continueTimeout = 500 * time.Millisecond

	// minRead is the minimum size of a read from a chunk, and so the minimum number of bytes in a window.
	minRead = 512
)

// body is a request body with a minimum upload rate: a window of STALL_TIMEOUT must bring windowBytes. A Read that waits longer
// returns [os.ErrDeadlineExceeded].
//
// A handler that forwards a body may return while another goroutine is still in a Read. Hence the lock and the atomic fields.
type body struct {
	io.ReadCloser
	middleware *Middleware
	conn       *conn // nil in tests without a connection
	control    *http.ResponseController
	chunked    bool
	n          atomic.Int64
	complete   atomic.Bool // it was read to its end: no byte of it is left on the connection

	// Of the current window. Only Read uses them.
	got    int64
	waited time.Duration

	mu   sync.Mutex
	done bool // deadlines of the connection must not be changed any more
}

// newBody returns the body of r, which w answers.
func (m *Middleware) newBody(w http.ResponseWriter, r *http.Request) *body {
	b := &body{ReadCloser: r.Body, middleware: m, control: http.NewResponseController(w), chunked: r.ContentLength < 0, done: r.Body == http.NoBody}
	b.conn, _ = r.Context().Value(connKey{}).(*conn)
	b.complete.Store(b.done)
	return b
}

// windowBytes returns the minimum number of bytes of a body in each window.
func (m *Middleware) windowBytes() int64 {
	rate, uploads := m.options.Settings.MinUploadRate, m.options.Uploads
	if uploads.Taken() > uploads.Total()/2 {
		rate = max(rate, busyRate)
	}
	return int64(float64(rate) * m.options.Settings.StallTimeout.Seconds())
}

// Read implements [io.Reader]. Only the time in Read counts for the minimum upload rate.
func (b *body) Read(p []byte) (int, error) {
	need := b.middleware.windowBytes()
	if b.chunked { // net/http fills p from a chunk before it returns, however long that takes
		p = p[:min(int64(len(p)), max(minRead, need/2))]
	}
	began := time.Now()
	b.setDeadlines(false, func() {
		// SetReadDeadline fails only if the connection is closed, which Read reports.
		_ = b.control.SetReadDeadline(began.Add(b.middleware.options.Settings.StallTimeout - b.waited))
		if b.n.Load() == 0 {
			_ = b.control.SetWriteDeadline(began.Add(responseTimeout)) // for the 100 Continue, which the client may not read
		}
	})
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	b.got += int64(n)
	b.waited += time.Since(began)
	if b.got >= need {
		b.got, b.waited = 0, 0
	}
	switch {
	case err == io.EOF: // a wrapped io.EOF is not the end of the body
		b.complete.Store(true)
		b.setDeadlines(true, func() {
			if b.conn != nil {
				b.conn.request.Trailer = nil // not used, and a thousand may follow the body
			}
		})
	case err != nil:
		b.setDeadlines(true, func() { _ = b.control.SetReadDeadline(time.Now()) })
	}
	return n, err
}

// setDeadlines calls set, unless an earlier call was the last one: a late Read must not change the deadlines of the next request
// on the connection.
func (b *body) setDeadlines(last bool, set func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.done {
		b.done = last
		set()
	}
}

// drain sends the response, and then reads the rest of a body that the handler did not read. If the client waits for a 100
// Continue, there is no rest.
func (b *body) drain(waits bool) {
	limit := drainTimeout
	if waits {
		limit = 0
	}
	rest := false
	b.setDeadlines(true, func() { rest = b.control.SetReadDeadline(time.Now().Add(limit)) == nil })
	if rest && !waits && b.control.Flush() == nil {
		_, _ = io.CopyN(io.Discard, b.ReadCloser, drainBytes)
	}
}
