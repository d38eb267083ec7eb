package httpserver

import (
	"context"
	"net/http"
	"net/netip"
	"strconv"
	"time"
)

// A client must read a response within responseTimeout plus the time of its Content-Length at responseRate, in bytes per second.
const (
	responseTimeout = 10 * time.Second
	responseRate    = 16 << 10
)

// exchange is a request and its response. It is the response writer of the handler: it counts the bytes of the response and sets
// its write deadline.
type exchange struct {
	http.ResponseWriter
	body        *body
	start       time.Time
	requestID   string
	traceParent string     // "" if there is none
	client      netip.Addr // the zero Addr if it is the peer
	err         error
	status      int
	sent        int64
}

type exchangeKey struct{}

func exchangeOf(ctx context.Context) *exchange {
	if x, ok := ctx.Value(exchangeKey{}).(*exchange); ok {
		return x
	}
	return &exchange{}
}

// RequestID returns the ID of the request that ctx belongs to, or "".
func RequestID(ctx context.Context) string { return exchangeOf(ctx).requestID }

// SetError sets the error in the log line of the request that ctx belongs to. Only the goroutine of the handler may call it.
func SetError(ctx context.Context, err error) { exchangeOf(ctx).err = err }

// SetClientAddress sets the address of the client in the log line of the request that ctx belongs to, if that is not the peer.
// Only the goroutine of the handler may call it.
func SetClientAddress(ctx context.Context, client netip.Addr) { exchangeOf(ctx).client = client }

// Propagate adds the ID and the trace context of the request that ctx belongs to, to the header h of another request.
func Propagate(ctx context.Context, h http.Header) {
	x := exchangeOf(ctx)
	if x.requestID != "" {
		h.Set(requestIDHeader, x.requestID)
	}
	if x.traceParent != "" {
		h.Set(traceParentHeader, x.traceParent)
	}
}

// Unwrap is for [http.ResponseController].
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

// WriteHeader implements [http.ResponseWriter].
func (x *exchange) WriteHeader(status int) {
	if x.status == 0 && status >= 200 {
		x.status = status
		if !x.body.complete.Load() {
			// The rest of the body must not be taken for a request. Without this header, net/http also reads up to 256 KiB of it
			// before it sends the response.
			x.Header().Set("Connection", "close")
		}
		size, _ := strconv.ParseInt(x.Header().Get("Content-Length"), 10, 64) // 0 for a short response without one
		_ = x.body.control.SetWriteDeadline(time.Now().Add(responseTimeout + time.Duration(size)*time.Second/responseRate))
	}
	x.ResponseWriter.WriteHeader(status)
}

// Write implements [http.ResponseWriter].
func (x *exchange) Write(p []byte) (int, error) {
	if x.status == 0 {
		x.WriteHeader(http.StatusOK)
	}
	n, err := x.ResponseWriter.Write(p)
	x.sent += int64(n)
	return n, err
}
