package httpserver

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/http"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"cats.example/shared/apierror"
	"cats.example/shared/ratelimit"
	"cats.example/shared/telemetry"
)

// Headers that identify a request in both containers.
const (
	requestIDHeader   = "X-Request-Id"
	traceParentHeader = "Traceparent"
)

var (
	requestIDForm   = regexp.MustCompile(`^[A-Za-z0-9._~+/=-]{1,128}$`)
	traceParentForm = regexp.MustCompile(`^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)
)

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
	counter := func(name, help string) prometheus.Counter {
		return auto.NewCounter(prometheus.CounterOpts{Name: prefix + name, Help: help})
	}
	return &Middleware{
		options: options,
		total: auto.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "requests_total", Help: "Requests by route, method and status code of the response.",
		}, []string{"route", "method", "code"}),
		duration: auto.NewHistogramVec(prometheus.HistogramOpts{
			Name: prefix + "request_duration_seconds", Help: "Time from the end of the request header to the end of the response.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}, []string{"route", "method"}),
		inFlight: auto.NewGauge(prometheus.GaugeOpts{
			Name: prefix + "requests_in_flight", Help: "Requests in progress.",
		}),
		received: counter("request_body_bytes_total", "Bytes of request bodies that were read."),
		sent:     counter("response_body_bytes_total", "Bytes of response bodies that were written."),
		panics:   counter("panics_total", "Requests whose handler panicked."),
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
	x := &exchange{ResponseWriter: w, start: time.Now(), requestID: r.Header.Get(requestIDHeader), traceParent: r.Header.Get(traceParentHeader)}
	if !requestIDForm.MatchString(x.requestID) {
		x.requestID = rand.Text()
	}
	if !traceParentForm.MatchString(x.traceParent) {
		x.traceParent = ""
	}
	w.Header().Set(requestIDHeader, x.requestID)
	ctx := context.WithValue(r.Context(), exchangeKey{}, x)
	if m.options.Traces != nil {
		x.traceParent = telemetry.TraceParent(ctx)
	}
	r = r.WithContext(ctx)
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
	ctx, method, received, took := r.Context(), methodLabel(r.Method), x.body.n.Load(), time.Since(x.start)
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
	h := m.options.Log.Handler()
	if !h.Enabled(ctx, level) {
		return
	}
	line := slog.NewRecord(time.Now(), level, "request", 0) // the logger itself would look up its caller
	line.AddAttrs(
		slog.String("request_id", x.requestID),
		slog.String("http.route", route),
		slog.String("http.request.method", method),
		slog.Int("http.response.status_code", x.status),
		slog.Float64("http.server.request.duration", took.Seconds()),
		slog.Int64("http.request.body.size", received),
		slog.Int64("http.response.body.size", x.sent),
		slog.String("network.peer.address", r.RemoteAddr),
	)
	if x.client.IsValid() {
		line.AddAttrs(slog.String("client.address", x.client.String()))
	}
	if x.traceParent != "" {
		line.AddAttrs(slog.String("trace_id", x.traceParent[3:35]), slog.String("span_id", x.traceParent[36:52]))
	}
	if x.err != nil {
		line.AddAttrs(slog.String("error", telemetry.Truncate(x.err.Error())))
	}
	_ = h.Handle(ctx, line) // a failure cannot be reported
}

var methods = []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions}

// methodLabel returns method, or "other" for methods that clients invent.
func methodLabel(method string) string {
	if slices.Contains(methods, method) {
		return method
	}
	return "other"
}
