package signerapi

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"cats.example/shared/apierror"
)

const (
	// restartTimeout is how long calls wait for a signer that refuses connections. A container restarts in one or two seconds.
	restartTimeout = 5 * time.Second

	// lostTimeout is the longest time between the end of a connection and the end of the call on it.
	lostTimeout = time.Second

	// sendBuffer is the size of the kernel's send buffer of a connection, in bytes. Without it, the buffer grows to megabytes.
	sendBuffer = 64 << 10
)

// dialer opens connections to the signer. While the signer restarts, the kernel refuses connections. Nothing was sent then, so
// the dialer can wait and retry.
type dialer struct {
	connect func(ctx context.Context, network, address string) (net.Conn, error)
	mu      sync.Mutex
	outage  time.Time // first refused connection since the last successful dial; zero if there is none
}

// dial opens a connection. It retries refused connections until restartTimeout after the first one of an outage. All calls share
// that time, so a call during a long outage fails at once. Only a successful dial ends an outage.
func (d *dialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := d.connect(ctx, network, address)
	for wait := 10 * time.Millisecond; d.retry(err); wait = min(2*wait, 200*time.Millisecond) {
		select {
		case <-time.After(wait):
			conn, err = d.connect(ctx, network, address)
		case <-ctx.Done():
			return nil, err
		}
	}
	if err != nil {
		return nil, err
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetWriteBuffer(sendBuffer) // fails only on a broken connection, which the first write reports
	}
	return &watchedConn{Conn: conn}, nil
}

// retry records the result of a dial and reports whether dial retries.
func (d *dialer) retry(err error) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	refused := errors.Is(err, syscall.ECONNREFUSED)
	if err == nil {
		d.outage = time.Time{}
	} else if refused && d.outage.IsZero() {
		d.outage = time.Now()
	}
	return refused && time.Since(d.outage) < restartTimeout
}

// watchedConn reports that it was closed. [http.Transport] closes it when the signer has closed its side.
type watchedConn struct {
	net.Conn
	onClose atomic.Pointer[func()] // of the Put that is using the connection
}

// Close implements [net.Conn].
func (c *watchedConn) Close() error {
	if f := c.onClose.Swap(nil); f != nil {
		(*f)()
	}
	return c.Conn.Close()
}

var errConnectionClosed = errors.New("the signer closed the connection while it received the picture")

// untilLost calls send, which sends req with body, and returns its error. If the connection is closed while body is being read,
// it returns after lostTimeout: [http.Transport] would wait for a Read of the body, and so for a client that may send nothing.
// The caller must cancel the context of req afterwards.
func untilLost(req *http.Request, body *trackedBody, send func(*http.Request) error) error {
	done := make(chan error, 2)
	onClose := func() {
		if body.begun.Load() { // otherwise net/http repeats the call
			time.AfterFunc(lostTimeout, func() { done <- apierror.ErrSignerUnavailable.Wrap(lost(errConnectionClosed)) })
		}
	}
	trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		if conn, ok := info.Conn.(*watchedConn); ok {
			conn.onClose.Store(&onClose)
		}
	}}
	go func() { done <- send(req.WithContext(httptrace.WithClientTrace(req.Context(), trace))) }()
	return <-done
}

// transport sends calls over HTTP/1.1.
//
// net/http repeats a call if an idle connection turns out to be closed, a PUT or POST only if it has an Idempotency-Key. It does
// so only if no byte of the body was read and no byte of a response has arrived. DELETE and commit must not be sent twice: the
// second response would hide that the first call was carried out. Each of them gets a connection of its own, on which net/http
// repeats nothing.
type transport struct{ kept, fresh *http.Transport }

func newTransport() *transport {
	kept := &http.Transport{
		DialContext:            (&dialer{connect: (&net.Dialer{Timeout: 2 * time.Second}).DialContext}).dial,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    128,
		IdleConnTimeout:        20 * time.Second, // shorter than the signer's, which might close a connection at the start of a call
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxResponse,
		ReadBufferSize:         2 << 10,
		WriteBufferSize:        8 << 10, // for a header with a long token: net/http does not repeat a call after a part of its header was sent
	}
	fresh := kept.Clone()
	fresh.DisableKeepAlives = true
	return &transport{kept, fresh}
}

// RoundTrip implements [http.RoundTripper].
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method == http.MethodDelete || req.URL.Path == commitPath {
		return t.fresh.RoundTrip(req)
	}
	req.Header["Idempotency-Key"] = nil // a field without a value is not sent
	return t.kept.RoundTrip(req)
}
