package service

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
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"cats.example/shared/signerapi"
)

// Headers that make a request known in both containers.
const (
	requestIDHeader   = "X-Request-Id"
	traceParentHeader = "Traceparent"
)

const (
	writeTimeout = 30 * time.Second // for a client to accept an answer, at least; twice that at most

	// Of a body that was refused, so much is still read: many clients look for
	// the answer only when all is sent, and lose it when the connection is cut.
	drainTimeout = 5 * time.Second
	drainBytes   = 64 << 20
	askTimeout   = 500 * time.Millisecond // curl and our own client wait 1 s

	// net/http returns from reading a chunked body only when the buffer is full or
	// the chunk at its end. So that a slow picture is passed on as it comes, the
	// reads are small, in bytes, unless they prove to be fast.
	smallRead = 256
	largeRead = 32 << 10
	fastRead  = 10 * time.Millisecond
)

var traceParentForm = regexp.MustCompile(`^[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}$`)

// Requests gives each request an id, a log line, metrics, a limit on how slow
// its body may be, a place among the bodies that are read at once, and an end to
// its panics; or turns it away when too many are under way.
type Requests struct {
	log      *slog.Logger
	patience patience
	bodies   *bodies
	underWay *underWay
	refuse   func(http.ResponseWriter, *http.Request, error)

	traces    *Traces // nil for none
	strangers bool    // send the requests

	total    *prometheus.CounterVec
	duration *prometheus.HistogramVec
	inFlight prometheus.Gauge
	received prometheus.Counter
	sent     prometheus.Counter
	panics   prometheus.Counter
}

// NewRequests returns a Requests whose metrics are in reg, named
// cats_NAME_http_…. A body that brings less than the settings say ends in
// [os.ErrDeadlineExceeded], one that gets no place in ErrOverloaded, and one that
// had to give its place away in ErrStalled. refuse answers in place of a handler:
// with ErrOverloaded where too many requests are under way, and with ErrInternal for
// one that panicked.
func NewRequests(name string, reg prometheus.Registerer, log *slog.Logger, settings Settings, refuse func(http.ResponseWriter, *http.Request, error)) *Requests {
	prefix := "cats_" + name + "_http_"
	q := &Requests{
		log: log, refuse: refuse, bodies: newBodies(settings.MaxUploads), underWay: newUnderWay(settings.MaxUploads),
		patience: patience{settings.StallTimeout, int64(float64(settings.MinRate) * settings.StallTimeout.Seconds())},
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "requests_total", Help: "Requests answered.",
		}, []string{"route", "method", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: prefix + "request_duration_seconds", Help: "Time from the end of a request's header to the end of its answer.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}, []string{"route", "method"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: prefix + "requests_in_flight", Help: "Requests being answered now.",
		}),
		received: prometheus.NewCounter(prometheus.CounterOpts{
			Name: prefix + "received_bytes_total", Help: "Bytes of request bodies read.",
		}),
		sent: prometheus.NewCounter(prometheus.CounterOpts{
			Name: prefix + "sent_bytes_total", Help: "Bytes of answers written, headers apart.",
		}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: prefix + "panics_total", Help: "Handlers that panicked; each was one 500.",
		}),
	}
	reg.MustRegister(q.total, q.duration, q.inFlight, q.received, q.sent, q.panics)
	return q
}

// Trace has each request be a span of t, which may be nil, in the trace that the
// request's header names. Where strangers send requests, each is a trace of its own.
// It must be called before the first request.
func (q *Requests) Trace(t *Traces, strangers bool) { q.traces, q.strangers = t, strangers }

// record is what one request's log line is made of.
type record struct {
	requestID   string
	traceParent string
	client      netip.Addr // where it is not the peer
	err         error
	span        trace.Span // nil without traces
}

type recordKey struct{}

func recordOf(ctx context.Context) *record {
	r, _ := ctx.Value(recordKey{}).(*record)
	if r == nil {
		return &record{}
	}
	return r
}

// RequestID returns the id of the request that ctx belongs to, "" for none.
func RequestID(ctx context.Context) string { return recordOf(ctx).requestID }

// Note keeps err for the log line of the request that ctx belongs to. Only the
// request's own goroutine may call it.
func Note(ctx context.Context, err error) { recordOf(ctx).err = err }

// NoteClient keeps, for the log line of the request that ctx belongs to, who sent it
// where that is not the peer. Only the request's own goroutine may call it.
func NoteClient(ctx context.Context, client netip.Addr) { recordOf(ctx).client = client }

// Propagate adds the id and the trace context of the request that ctx belongs to,
// to the header of a request to the other container.
func Propagate(ctx context.Context, h http.Header) {
	rec := recordOf(ctx)
	if rec.requestID != "" {
		h.Set(requestIDHeader, rec.requestID)
	}
	if rec.traceParent != "" {
		h.Set(traceParentHeader, rec.traceParent)
	}
}

// otherRoute is the label of requests to no path that there is.
const otherRoute = "other"

// Route returns h with everything that Requests gives, under the label route:
// a template such as "/cat/{user}", from a closed set, never a path as it came.
// "other" is for those that have none.
func (q *Requests) Route(route string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		rec := &record{requestID: r.Header.Get(requestIDHeader), traceParent: r.Header.Get(traceParentHeader)}
		if !isRequestID(rec.requestID) {
			rec.requestID = rand.Text()
		}
		if rec.traceParent != "" && !traceParentForm.MatchString(rec.traceParent) {
			rec.traceParent = ""
		}
		w.Header().Set(requestIDHeader, rec.requestID)
		ctx := context.WithValue(r.Context(), recordKey{}, rec)
		if q.traces != nil {
			ctx = q.traces.begin(ctx, rec, route, r.Method, q.strangers, start)
		}
		r = r.WithContext(ctx)
		conn := http.NewResponseController(w)
		watched, _ := r.Context().Value(connKey{}).(*watchedConn)
		body := &body{ReadCloser: r.Body, ctx: r.Context(), conn: watched, requests: q, done: r.Body == http.NoBody}
		body.whole.Store(body.done)
		if r.ContentLength < 0 {
			body.most = smallRead
		}
		if !body.done {
			_ = conn.EnableFullDuplex() // or net/http drains before it answers; not supported: a test's recorder
		}
		r.Body = body
		answer := &answer{ResponseWriter: w, body: body}

		q.inFlight.Inc()
		end, ok := q.underWay.begin(!body.done && (r.Method == http.MethodPut || r.Method == http.MethodPost))
		defer func() {
			q.inFlight.Dec()
			end()
			q.bodies.end(body)
			cut := recover()
			if cut != nil && cut != http.ErrAbortHandler { //nolint:errorlint // the sentinel itself is panicked with
				q.panics.Inc()
				q.log.ErrorContext(r.Context(), "panic", "request_id", rec.requestID, "panic", cut, "stack", string(debug.Stack()))
				if answer.status == 0 {
					q.refuse(answer, r, signerapi.ErrInternal)
					cut = nil
				}
			}
			if answer.status == 0 && cut == nil {
				answer.WriteHeader(http.StatusOK)
			}
			took := time.Since(start)
			rec.end(answer, body.n.Load(), start.Add(took))
			q.done(r, route, rec, answer, body.n.Load(), took)
			if cut != nil {
				panic(http.ErrAbortHandler) // half an answer is out: cut the connection
			}
			// A client that waits to be asked for the body soon stops waiting.
			waits := r.Header.Get("Expect") != "" && body.n.Load() == 0 && time.Since(start) < askTimeout
			body.drain(waits, conn)
		}()
		if !ok {
			rec.err = signerapi.ErrOverloaded
			q.refuse(answer, r, signerapi.ErrOverloaded)
			return
		}
		h.ServeHTTP(answer, r)
	})
}

func (q *Requests) done(r *http.Request, route string, rec *record, a *answer, received int64, took time.Duration) {
	method := methodLabel(r.Method)
	q.total.WithLabelValues(route, method, strconv.Itoa(a.status)).Inc()
	Observe(r.Context(), q.duration.WithLabelValues(route, method), took.Seconds())
	q.received.Add(float64(received))
	q.sent.Add(float64(a.n))

	level := slog.LevelInfo
	switch {
	case a.status == http.StatusServiceUnavailable:
		level = slog.LevelWarn // degraded and handled
	case a.status >= http.StatusInternalServerError:
		level = slog.LevelError // someone must look
	}
	attrs := []slog.Attr{
		slog.String("request_id", rec.requestID),
		slog.String("route", route),
		slog.String("method", methodLabel(r.Method)),
		slog.Int("status", a.status),
		slog.Int64("duration_us", took.Microseconds()),
		slog.Int64("received", received),
		slog.Int64("sent", a.n),
		slog.String("remote", r.RemoteAddr),
	}
	if rec.client.IsValid() {
		attrs = append(attrs, slog.String("client", rec.client.String()))
	}
	if rec.traceParent != "" {
		attrs = append(attrs, slog.String("trace_id", traceParentForm.FindStringSubmatch(rec.traceParent)[1]))
	}
	if rec.err != nil {
		attrs = append(attrs, slog.String("error", bounded(rec.err.Error())))
	}
	if h := q.log.Handler(); h.Enabled(r.Context(), level) {
		line := slog.NewRecord(time.Now(), level, requestLine, 0) // the logger itself would look for where it was called
		line.AddAttrs(attrs...)
		_ = h.Handle(r.Context(), line) // there is nowhere to tell
	}
}

// maxLoggedError is how much of an error's text is logged, in bytes. Some libraries put what a stranger sent into it.
const maxLoggedError = 512

// bounded cuts s to maxLoggedError bytes.
func bounded(s string) string {
	if len(s) <= maxLoggedError {
		return s
	}
	return strings.ToValidUTF8(s[:maxLoggedError], "") + "…"
}

// isRequestID reports whether a stranger's id can go into a log and a header.
func isRequestID(id string) bool {
	for i := range len(id) {
		c := id[i]
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !letter && strings.IndexByte("._~+/=-", c) < 0 {
			return false
		}
	}
	return 0 < len(id) && len(id) <= 128
}

// methodLabel keeps strangers' methods out of the labels.
func methodLabel(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions:
		return m
	}
	return "other"
}

// body counts what is read of a request's body, and has the connection watched
// while that goes on. A handler that forwards a body may return while the
// forwarding goroutine is still inside a read, hence the lock and the counter.
type body struct {
	io.ReadCloser
	ctx                context.Context //nolint:containedctx // the request's, which a Read cannot be given
	requests           *Requests
	conn               *watchedConn // nil in a test without a connection
	n                  atomic.Int64
	whole              atomic.Bool // it was read to a clean end: nothing of it is left on the connection
	gaveUp             atomic.Bool // its place was needed
	most               int         // bytes to read at once; 0 for as many as are asked for
	entered            bool        // it has a place; the reader's own
	begun, ended, left bool        // of bodies

	mu   sync.Mutex
	done bool // nothing of it is left to read, or nobody may
}

func (b *body) Read(p []byte) (int, error) {
	if !b.entered && !b.whole.Load() {
		if err := b.requests.bodies.enter(b.ctx, b); err != nil {
			return 0, err
		}
		b.entered = true
	}
	b.with(false, func(c *watchedConn) { c.watch(b.requests.patience) })
	began := time.Now()
	if b.most > 0 && len(p) > b.most {
		p = p[:b.most]
	}
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	if took := time.Since(began); b.most > 0 && took < fastRead {
		b.most = min(2*b.most, largeRead)
	} else if b.most > 0 {
		b.most = max(b.most/2, smallRead)
	}
	switch {
	case err == io.EOF: //nolint:errorlint // a wrapped io.EOF is a broken body, not its end
		b.whole.Store(true)
		// From here on the server reads to notice a client that leaves. A deadline
		// would look like one and cancel the request.
		b.with(true, func(c *watchedConn) {
			c.request.Trailer = nil // a thousand may have come behind the body
			c.until(time.Time{})
		})
	case err != nil:
		b.with(true, func(c *watchedConn) { c.until(time.Now()) }) // there is no more to come
		if b.gaveUp.Load() {
			err = errGaveUp.Wrap(err)
		}
	}
	if err != nil {
		b.requests.bodies.leave(b)
	}
	return n, err
}

var errGaveUp = signerapi.ErrStalled.With("the picture came so slowly that it had to make way for others; nothing was stored")

// giveUp ends the body, the read under way included.
func (b *body) giveUp() {
	b.gaveUp.Store(true)
	b.with(true, func(c *watchedConn) { c.until(time.Now()) })
}

// waitedFor returns how long the peer was waited for.
func (b *body) waitedFor() time.Duration {
	if b.conn == nil {
		return 0
	}
	return b.conn.waitedFor()
}

// with calls f on the connection and returns true, unless an earlier call was
// the last: a late read must not meddle with the next request on the connection.
func (b *body) with(last bool, f func(*watchedConn)) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.done || b.conn == nil {
		return false
	}
	b.done = last
	f(b.conn)
	return true
}

// drain sends the answer and then reads, within bounds, what the handler did not
// want of the body.
func (b *body) drain(waits bool, w *http.ResponseController) {
	limit := drainTimeout
	if waits {
		limit = 0 // it was not asked, and sends nothing
	}
	if !b.with(true, func(c *watchedConn) { c.until(time.Now().Add(limit)) }) {
		return
	}
	if limit > 0 && w.Flush() == nil {
		b.conn.all.rest(b.conn)
		_, _ = io.CopyN(io.Discard, b.ReadCloser, drainBytes)
	}
}

// answer counts what is written, and bounds how long the client may take for it.
type answer struct {
	http.ResponseWriter
	body   *body
	status int
	n      int64
}

// Unwrap is for [http.ResponseController].
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (a *answer) WriteHeader(status int) {
	if a.status == 0 && status >= 200 {
		a.status = status
		if !a.body.whole.Load() || a.body.conn != nil && !a.body.conn.fewBehind() {
			// What is left of it, or is broken, must not be taken for a request. In
			// full duplex net/http does not see to that where the framing is broken,
			// or where less than 256 KiB of it are missing.
			a.Header().Set("Connection", "close")
		}
		if a.body.conn != nil {
			a.body.conn.answerWithin(time.Now())
		}
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	n, err := a.ResponseWriter.Write(p)
	a.n += int64(n)
	return n, err
}
