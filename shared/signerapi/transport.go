package signerapi

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"syscall"
	"time"

	"cats.example/shared/apierror"
)

const (
	// dialPatience is how long calls wait for a signer that refuses connections. A crashed container restarts in one or two
	// seconds.
	dialPatience = 5 * time.Second

	// lostGrace is the time between the end of a connection and the end of a call on it.
	lostGrace = time.Second

	// sendBuffer bounds the kernel's send buffer of a connection, in bytes. Linux would grow it to megabytes.
	sendBuffer = 64 << 10
)

// dialer opens connections to the signer. While the signer is restarted, the kernel refuses connections. Nothing has been sent
// by then, so dial waits and tries again.
type dialer struct {
	connect func(ctx context.Context, network, address string) (net.Conn, error)
	mu      sync.Mutex
	outage  time.Time // first refusal since the last successful dial; zero if there was none
}

// dial retries refused connections until dialPatience after the first refusal of an outage. This time is one for all calls, so
// that a call during a long outage fails at once. Only a successful dial ends an outage.
func (d *dialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := d.connect(ctx, network, address)
	for wait := 10 * time.Millisecond; d.note(err); wait = min(2*wait, 200*time.Millisecond) {
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
	closed, cancel := context.WithCancel(context.Background())
	return &watchedConn{conn, closed.Done(), cancel}, nil
}

// note records the result of a dial and reports whether dial tries again.
func (d *dialer) note(err error) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	refused := errors.Is(err, syscall.ECONNREFUSED)
	if err == nil {
		d.outage = time.Time{}
	} else if refused && d.outage.IsZero() {
		d.outage = time.Now()
	}
	return refused && time.Since(d.outage) < dialPatience
}

// watchedConn tells when it is closed, by this side or by [http.Transport] because the signer is gone.
type watchedConn struct {
	net.Conn
	closed <-chan struct{}
	cancel context.CancelFunc // closes closed
}

// Close implements [net.Conn].
func (c *watchedConn) Close() error {
	defer c.cancel()
	return c.Conn.Close()
}

// untilLost returns the error of send, which sends req with body. If the connection is closed while body is read, it waits only
// lostGrace for it: [http.Transport] returns after the Read of the body, and the client may send nothing. The context of req
// must be done after that.
func untilLost(req *http.Request, body *trackedBody, send func(*http.Request) error) error {
	ctx, conns, done := req.Context(), make(chan *watchedConn), make(chan error, 1)
	trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		if conn, ok := info.Conn.(*watchedConn); ok {
			select {
			case conns <- conn:
			case <-ctx.Done():
			}
		}
	}}
	go func() { done <- send(req.WithContext(httptrace.WithClientTrace(ctx, trace))) }()
	var closed <-chan struct{}
	var late <-chan time.Time
	for {
		select {
		case err := <-done:
			return err
		case conn := <-conns:
			closed = conn.closed
		case <-closed:
			closed = nil
			if body.unread() != nil { // otherwise the call is repeated
				late = time.After(lostGrace)
			}
		case <-late:
			return apierror.ErrSignerUnavailable.Wrap(lostError{errors.New("the connection was closed while the picture was sent")})
		}
	}
}

// transport sends calls over HTTP/1.1.
//
// net/http repeats a call if a kept connection turns out to be closed, of PUT and POST only with an Idempotency-Key. The signer
// must have sent no byte of a response, and no byte of a body may have been read. DELETE and commit must not be sent twice: the
// second answer would hide that the first call was carried out. They get a new connection each, where net/http repeats nothing.
type transport struct{ kept, fresh *http.Transport }

func newTransport() *transport {
	kept := &http.Transport{
		DialContext:            (&dialer{connect: (&net.Dialer{Timeout: 2 * time.Second}).DialContext}).dial,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    128,
		IdleConnTimeout:        20 * time.Second, // below the signer's, which would otherwise close connections under calls
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxAnswer,
		ReadBufferSize:         2 << 10,
		WriteBufferSize:        8 << 10, // holds a header with a long token: net/http repeats no call whose header was sent in part
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
