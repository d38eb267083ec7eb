package httpserver

import (
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.opentelemetry.io/otel/trace"

	"cats.example/shared/apierror"
	"cats.example/shared/ratelimit"
	"cats.example/shared/telemetry"
)

// requestIDHeader identifies a request in both containers.
const requestIDHeader = "X-Request-Id"

var requestIDForm = regexp.MustCompile(`^[A-Za-z0-9._~+/=-]{1,128}$`)

// methods are the labels of the metrics.
var methods = []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions}

// MiddlewareOptions are the options of a [Middleware]. Only Traces may be nil.
type MiddlewareOptions struct {
	Name     string // the metrics are cats_NAME_http_…
	Settings Settings
	Log      *slog.Logger
	Registry prometheus.Registerer
	Uploads  *ratelimit.Pool   // while more than half of its slots are taken, the minimum upload rate is at least 16 KiB/s
	Traces   *telemetry.Traces // each request is a span; nil if traces are off
	// Public says that clients are not trusted: each request starts a trace of its own, with a link to the one in its header.
	Public bool
	// WriteError writes the response of a request whose handler panicked. The error is ErrInternal.
	WriteError func(http.ResponseWriter, *http.Request, error)
}

// Middleware gives each request an ID, a log line, metrics, a span, a minimum upload rate, a deadline for its response, and a
// response with 500 if its handler panics. It is safe for concurrent use.
type Middleware struct {
	options MiddlewareOptions

	total    *prometheus.CounterVec
	duration *prometheus.HistogramVec
	inFlight prometheus.Gauge
	received prometheus.Counter
	sent     prometheus.Counter
	panics   prometheus.Counter
}

// NewMiddleware returns a Middleware and registers its metrics.
func NewMiddleware(options MiddlewareOptions) *Middleware {
	prefix, auto := "cats_"+options.Name+"_http_", promauto.With(options.Registry)
	return &Middleware{
		options: options,
		total: auto.NewCounterVec(
			prometheus.CounterOpts{Name: prefix + "requests_total", Help: "Requests by route, method and status code of the response."},
			[]string{"route", "method", "code"}),
		duration: auto.NewHistogramVec(prometheus.HistogramOpts{
			Name: prefix + "request_duration_seconds", Help: "Time from the end of the request header to the end of the response.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}, []string{"route", "method"}),
		inFlight: telemetry.NewGauge(options.Registry, prefix+"requests_in_flight", "Requests in progress."),
		received: telemetry.NewCounter(options.Registry, prefix+"request_body_bytes_total", "Bytes of request bodies that were read."),
		sent:     telemetry.NewCounter(options.Registry, prefix+"response_body_bytes_total", "Bytes of response bodies that were written."),
		panics:   telemetry.NewCounter(options.Registry, prefix+"panics_total", "Requests whose handler panicked."),
	}
}

// Route returns h with everything that Middleware adds. route is the label of the metrics and the name in the log: a template
// such as "/cat/{user}", from a closed set, or "other". It must not be a path that a client can choose.
func (m *Middleware) Route(route string, h http.Handler) http.Handler {
	return m.options.Traces.Handler(route, m.options.Public, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x, r := m.begin(w, r)
		defer m.end(x, r, route)
		h.ServeHTTP(x, r)
	}))
}

// begin returns the exchange of a request, and the request with the context and the body for its handler.
func (m *Middleware) begin(w http.ResponseWriter, r *http.Request) (*exchange, *http.Request) {
	x := &exchange{ResponseWriter: w, start: time.Now(), requestID: r.Header.Get(requestIDHeader)}
	if !requestIDForm.MatchString(x.requestID) {
		x.requestID = rand.Text()
	}
	w.Header().Set(requestIDHeader, x.requestID)
	r = r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x))
	x.body = m.newBody(w, r)
	r.Body = x.body
	m.inFlight.Inc()
	return x, r
}

// end completes the response of x, recovers from a panic, and records the request. It must be deferred.
func (m *Middleware) end(x *exchange, r *http.Request, route string) {
	m.inFlight.Dec()
	cut := recover()
	if cut != nil && cut != http.ErrAbortHandler { // net/http compares the value, too
		m.panics.Inc()
		m.options.Log.ErrorContext(r.Context(), "panic", "request_id", x.requestID, "panic", cut, "stack", string(debug.Stack()))
		if x.status == 0 {
			m.options.WriteError(x, r, apierror.ErrInternal)
			cut = nil
		}
	}
	if x.status == 0 && cut == nil {
		x.WriteHeader(http.StatusOK)
	}
	telemetry.SetErrorType(r.Context(), x.err)
	m.record(x, r, route)
	if cut != nil {
		panic(http.ErrAbortHandler) // closes the connection: a part of the response was sent
	}
	// A client that waits for a 100 Continue stops waiting soon, and sends the body.
	waits := r.Header.Get("Expect") != "" && x.body.n.Load() == 0 && time.Since(x.start) < continueTimeout
	x.body.drain(waits)
}

// record updates the metrics and writes the log line of a request.
func (m *Middleware) record(x *exchange, r *http.Request, route string) {
	ctx, method, received, took := r.Context(), r.Method, x.body.n.Load(), time.Since(x.start)
	if !slices.Contains(methods, method) {
		method = "other" // clients can invent methods
	}
	m.total.WithLabelValues(route, method, strconv.Itoa(x.status)).Inc()
	telemetry.Observe(ctx, m.duration.WithLabelValues(route, method), took.Seconds())
	m.received.Add(float64(received))
	m.sent.Add(float64(x.sent))

	level := slog.LevelInfo
	switch {
	case x.status == http.StatusServiceUnavailable:
		level = slog.LevelWarn // degraded and handled
	case x.status >= http.StatusInternalServerError:
		level = slog.LevelError // someone must act
	}
	attrs := []slog.Attr{
		slog.String("request_id", x.requestID),
		slog.String("http.route", route),
		slog.String("http.request.method", method),
		slog.Int("http.response.status_code", x.status),
		slog.Float64("http.server.request.duration", took.Seconds()),
		slog.Int64("http.request.body.size", received),
		slog.Int64("http.response.body.size", x.sent),
		slog.String("network.peer.address", r.RemoteAddr),
	}
	if x.client.IsValid() {
		attrs = append(attrs, slog.String("client.address", x.client.String()))
	}
	if span := trace.SpanContextFromContext(ctx); span.IsValid() {
		attrs = append(attrs, slog.String("trace_id", span.TraceID().String()), slog.String("span_id", span.SpanID().String()))
	}
	if x.err != nil {
		attrs = append(attrs, slog.String("error", telemetry.Truncate(x.err.Error())))
	}
	m.options.Log.LogAttrs(ctx, level, "request", attrs...)
}

// A client must read a response within responseTimeout plus the time of its Content-Length at responseRate, in bytes per second.
const (
	responseTimeout = 10 * time.Second
	responseRate    = 16 << 10
)

// exchange is a request and its response. It is the response writer of the handler: it counts the bytes of the response and sets
// its write deadline.
type exchange struct {
	http.ResponseWriter
	body      *body
	start     time.Time
	requestID string
	client    netip.Addr // the zero Addr if it is the peer
	err       error
	status    int
	sent      int64
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
	if id := RequestID(ctx); id != "" {
		h.Set(requestIDHeader, id)
	}
	telemetry.Inject(ctx, h)
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
