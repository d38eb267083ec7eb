package signerapi

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
)

const (
	// dialPatience is how long calls wait for a signer that refuses connections. A crashed container restarts in one or two
	// seconds.
	dialPatience = 5 * time.Second

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
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		conn, err := d.connect(ctx, network, address)
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetWriteBuffer(sendBuffer) // fails only on a broken connection, which the first write reports
		}
		if again := d.note(err); !again {
			return conn, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// note records the result of a dial and reports whether dial tries again.
func (d *dialer) note(err error) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch refused := errors.Is(err, syscall.ECONNREFUSED); {
	case err == nil:
		d.outage = time.Time{}
		return false
	case refused && d.outage.IsZero():
		d.outage = time.Now()
		return true
	default:
		return refused && time.Since(d.outage) < dialPatience
	}
}

// transport sends calls over HTTP/1.1.
//
// net/http repeats a call if a kept connection turns out to be closed. The signer must have sent no byte of a response, and no
// byte of a body may have been read. DELETE and commit must not be sent twice: the second answer would hide that the first call
// was carried out. They get a new connection each, where net/http repeats nothing.
type transport struct{ kept, fresh *http.Transport }

func newTransport() *transport {
	kept := &http.Transport{
		DialContext:            (&dialer{connect: (&net.Dialer{Timeout: 2 * time.Second}).DialContext}).dial,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    512,
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
	return t.kept.RoundTrip(req)
}
