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
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"cats.example/shared/apierror"
	"cats.example/shared/ratelimit"
	"cats.example/shared/telemetry"
)

// Headers that make a request known in both containers.
const (
	requestIDHeader   = "X-Request-Id"
	traceParentHeader = "Traceparent"
)

const (
	// A client must accept a response within answerTimeout plus the time that its Content-Length takes at answerRate, in bytes per
	// second.
	answerTimeout = 10 * time.Second
	answerRate    = 16 << 10

	// busyRate is the minimum upload rate, in bytes per second, while more than half of the slots for uploads are taken. So slow
	// clients do not keep fast ones out.
	busyRate = 16 << 10

	// So much of a rejected body is still read: many clients read the response only after they have sent the whole body, and
	// lose it when the connection is closed.
	drainTimeout = 5 * time.Second
	drainBytes   = 64 << 20
	askTimeout   = 500 * time.Millisecond // curl and our own client wait 1 s for a 100 Continue

	// smallRead is the smallest number of bytes that are read of a chunk at once, so the smallest that it must bring in a window.
	smallRead = 512
)

var (
	requestIDForm   = regexp.MustCompile(`^[A-Za-z0-9._~+/=-]{1,128}$`)
	traceParentForm = regexp.MustCompile(`^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)
)

// Requests gives each request an ID, a log line, metrics, a minimum upload rate, a deadline for its response, and a 500 in place
// of a panic.
type Middleware struct {
	options MiddlewareOptions

	total    *prometheus.CounterVec
	duration *prometheus.HistogramVec
	inFlight prometheus.Gauge
	received prometheus.Counter
	sent     prometheus.Counter
	panics   prometheus.Counter
}

// MiddlewareOptions are what a [Middleware] needs. Only Traces may be nil.
type MiddlewareOptions struct {
	Name     string // the metrics are named cats_NAME_http_…
	Settings Settings
	Log      *slog.Logger
	Registry prometheus.Registerer
	Uploads  *ratelimit.Pool
	Traces   *telemetry.Traces // each request becomes a span; nil for none
	// Public says that the clients are not trusted: each request starts a trace of its own, linked to that in its header.
	Public bool
	// WriteError writes the response of a request whose handler panicked; the error is ErrInternal.
	WriteError func(http.ResponseWriter, *http.Request, error)
}

// NewMiddleware returns a Middleware.
//
// A body that brings less than MIN_UPLOAD_RATE in a window of STALL_TIMEOUT ends in [os.ErrDeadlineExceeded]; while Uploads is
// busy, it must bring busyRate.
func NewMiddleware(options MiddlewareOptions) *Middleware {
	prefix, auto := "cats_"+options.Name+"_http_", promauto.With(options.Registry)
	counter := func(name, help string) prometheus.Counter {
		return auto.NewCounter(prometheus.CounterOpts{Name: prefix + name, Help: help})
	}
	return &Middleware{
		options: options,
		total: auto.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "requests_total", Help: "Requests answered.",
		}, []string{"route", "method", "code"}),
		duration: auto.NewHistogramVec(prometheus.HistogramOpts{
			Name: prefix + "request_duration_seconds", Help: "Time from the end of a request's header to the end of its answer.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}, []string{"route", "method"}),
		inFlight: auto.NewGauge(prometheus.GaugeOpts{
			Name: prefix + "requests_in_flight", Help: "Requests being answered now.",
		}),
		received: counter("request_body_bytes_total", "Bytes of request bodies read."),
		sent:     counter("response_body_bytes_total", "Bytes of answers written, headers apart."),
		panics:   counter("panics_total", "Handlers that panicked; each was one 500."),
	}
}

// exchange is a request and its response, as the log has them. It counts the bytes of the response and sets its write deadline.
type exchange struct {
	http.ResponseWriter
	body        *body
	requestID   string
	traceParent string
	client      netip.Addr // where it is not the peer
	err         error
	status      int
	sent        int64
}

type exchangeKey struct{}

func exchangeOf(ctx context.Context) *exchange {
	x, _ := ctx.Value(exchangeKey{}).(*exchange)
	if x == nil {
		return &exchange{}
	}
	return x
}

// RequestID returns the id of the request that ctx belongs to, "" for none.
func RequestID(ctx context.Context) string { return exchangeOf(ctx).requestID }

// SetError keeps err for the log line of the request that ctx belongs to. Only the
// request's own goroutine may call it.
func SetError(ctx context.Context, err error) { exchangeOf(ctx).err = err }

// SetClientAddress keeps, for the log line of the request that ctx belongs to, who sent it
// where that is not the peer. Only the request's own goroutine may call it.
func SetClientAddress(ctx context.Context, client netip.Addr) { exchangeOf(ctx).client = client }

// Propagate adds the id and the trace context of the request that ctx belongs to,
// to the header of a request to the other container.
func Propagate(ctx context.Context, h http.Header) {
	x := exchangeOf(ctx)
	if x.requestID != "" {
		h.Set(requestIDHeader, x.requestID)
	}
	if x.traceParent != "" {
		h.Set(traceParentHeader, x.traceParent)
	}
}

// Route returns h with everything that Requests gives, under the label route:
// a template such as "/cat/{user}", from a closed set, never a path as it came.
// "other" is for those that have none.
func (q *Middleware) Route(route string, h http.Handler) http.Handler {
	return q.options.Traces.Handler(route, q.options.Public, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		x := &exchange{ResponseWriter: w, requestID: r.Header.Get(requestIDHeader), traceParent: r.Header.Get(traceParentHeader)}
		if !requestIDForm.MatchString(x.requestID) {
			x.requestID = rand.Text()
		}
		if x.traceParent != "" && !traceParentForm.MatchString(x.traceParent) {
			x.traceParent = ""
		}
		w.Header().Set(requestIDHeader, x.requestID)
		ctx := context.WithValue(r.Context(), exchangeKey{}, x)
		if q.options.Traces != nil {
			x.traceParent = telemetry.TraceParent(ctx)
		}
		r = r.WithContext(ctx)
		control := http.NewResponseController(w)
		conn, _ := r.Context().Value(connKey{}).(*conn)
		x.body = &body{ReadCloser: r.Body, requests: q, conn: conn, control: control, chunked: r.ContentLength < 0, done: r.Body == http.NoBody}
		x.body.whole.Store(x.body.done)
		if !x.body.done {
			_ = control.EnableFullDuplex() // or net/http drains before it answers; not supported: a test's recorder
		}
		r.Body = x.body

		q.inFlight.Inc()
		defer func() {
			q.inFlight.Dec()
			cut := recover()
			if cut != nil && cut != http.ErrAbortHandler { //nolint:errorlint // the sentinel itself is panicked with
				q.panics.Inc()
				q.options.Log.ErrorContext(r.Context(), "panic", "request_id", x.requestID, "panic", cut, "stack", string(debug.Stack()))
				if x.status == 0 {
					q.options.WriteError(x, r, apierror.ErrInternal)
					cut = nil
				}
			}
			if x.status == 0 && cut == nil {
				x.WriteHeader(http.StatusOK)
			}
			telemetry.SetErrorType(r.Context(), x.err)
			q.done(r, route, x, time.Since(start))
			if cut != nil {
				panic(http.ErrAbortHandler) // half an answer is out: cut the connection
			}
			// A client that waits to be asked for the body soon stops waiting.
			waits := r.Header.Get("Expect") != "" && x.body.n.Load() == 0 && time.Since(start) < askTimeout
			x.body.drain(waits)
		}()
		h.ServeHTTP(x, r)
	}))
}

func (q *Middleware) done(r *http.Request, route string, x *exchange, took time.Duration) {
	method, received := methodLabel(r.Method), x.body.n.Load()
	q.total.WithLabelValues(route, method, strconv.Itoa(x.status)).Inc()
	telemetry.Observe(r.Context(), q.duration.WithLabelValues(route, method), took.Seconds())
	q.received.Add(float64(received))
	q.sent.Add(float64(x.sent))

	level := slog.LevelInfo
	switch {
	case x.status == http.StatusServiceUnavailable:
		level = slog.LevelWarn // degraded and handled
	case x.status >= http.StatusInternalServerError:
		level = slog.LevelError // someone must look
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
	if x.traceParent != "" {
		attrs = append(attrs, slog.String("trace_id", x.traceParent[3:35]), slog.String("span_id", x.traceParent[36:52]))
	}
	if x.err != nil {
		attrs = append(attrs, slog.String("error", telemetry.Truncate(x.err.Error())))
	}
	if h := q.options.Log.Handler(); h.Enabled(r.Context(), level) {
		line := slog.NewRecord(time.Now(), level, "request", 0) // the logger itself would look for where it was called
		line.AddAttrs(attrs...)
		_ = h.Handle(r.Context(), line) // there is nowhere to tell
	}
}

// methodLabel keeps strangers' methods out of the labels.
func methodLabel(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions:
		return m
	}
	return "other"
}

// windowBytes returns the number of bytes that a body must bring in each window.
func (q *Middleware) windowBytes() int64 {
	rate, uploads := q.options.Settings.MinUploadRate, q.options.Uploads
	if uploads.Taken() > uploads.Total()/2 {
		rate = max(rate, busyRate)
	}
	return int64(float64(rate) * q.options.Settings.StallTimeout.Seconds())
}

// body counts the bytes of a request's body and enforces the minimum upload rate. A handler that forwards a body may return
// while another goroutine is still inside a Read, hence the lock and the counter.
type body struct {
	io.ReadCloser
	requests *Middleware
	conn     *conn // nil in a test without a connection
	control  *http.ResponseController
	chunked  bool
	n        atomic.Int64
	whole    atomic.Bool // it was read to a clean end: nothing of it is left on the connection

	// Of the current window; the reader's own.
	got    int64
	waited time.Duration

	mu   sync.Mutex
	done bool // no Read may change the deadlines of the connection any more
}

// Read implements [io.Reader]. Only time inside Read counts for the minimum upload rate.
func (b *body) Read(p []byte) (int, error) {
	window, need := b.requests.options.Settings.StallTimeout, b.requests.windowBytes()
	if b.chunked { // net/http fills p before it returns from a chunk, however long that takes
		p = p[:min(int64(len(p)), max(smallRead, need/2))]
	}
	began := time.Now()
	b.with(false, func() {
		_ = b.control.SetReadDeadline(began.Add(window - b.waited)) // a closed connection fails the Read
		if b.n.Load() == 0 {
			_ = b.control.SetWriteDeadline(began.Add(answerTimeout)) // for the 100 Continue
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
	case err == io.EOF: // a wrapped io.EOF is a broken body, not its end
		b.whole.Store(true)
		b.with(true, func() {
			if b.conn != nil {
				b.conn.request.Trailer = nil // unused; a thousand may have followed the body
			}
			_ = b.control.SetReadDeadline(time.Time{}) // net/http would take it for a client that has left, and cancel the request
		})
	case err != nil:
		b.with(true, func() { _ = b.control.SetReadDeadline(time.Now()) })
	}
	return n, err
}

// with calls f, unless an earlier call was the last: a late Read must not change the deadlines of the next request on the
// connection.
func (b *body) with(last bool, f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.done {
		b.done = last
		f()
	}
}

// drain sends the response and then reads, within bounds, the rest of a body that the handler did not read. A client that waits
// for a 100 Continue sends none.
func (b *body) drain(waits bool) {
	limit := drainTimeout
	if waits {
		limit = 0
	}
	bounded := false
	b.with(true, func() { bounded = b.control.SetReadDeadline(time.Now().Add(limit)) == nil })
	if bounded && !waits && b.control.Flush() == nil {
		_, _ = io.CopyN(io.Discard, b.ReadCloser, drainBytes)
	}
}

// Unwrap is for [http.ResponseController].
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

// WriteHeader implements [http.ResponseWriter].
func (x *exchange) WriteHeader(status int) {
	if x.status == 0 && status >= 200 {
		x.status = status
		if !x.body.whole.Load() {
			// The rest of the body must not be taken for a request. In full duplex, net/http keeps the connection where the framing
			// is broken, or where less than 256 KiB of the body are missing.
			x.Header().Set("Connection", "close")
		}
		size, _ := strconv.ParseInt(x.Header().Get("Content-Length"), 10, 64) // 0 for a short response without one
		_ = x.body.control.SetWriteDeadline(time.Now().Add(answerTimeout + time.Duration(size)*time.Second/answerRate))
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
