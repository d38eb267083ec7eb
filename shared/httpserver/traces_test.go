package httpserver

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"cats.example/shared/ratelimit"
	"cats.example/shared/telemetry"
)

// traced is a handler with traces.
type traced struct {
	spans   *tracetest.SpanRecorder
	traces  *telemetry.Traces
	handler http.Handler
	log     bytes.Buffer
}

func newTraced(t *testing.T, public bool, h http.HandlerFunc) *traced {
	t.Helper()
	r := &traced{spans: tracetest.NewSpanRecorder()}
	reg := prometheus.NewRegistry()
	r.traces = &telemetry.Traces{TracerProvider: sdktrace.NewTracerProvider( // with the sampler of the environment
		sdktrace.WithSpanProcessor(r.spans))}
	r.handler = NewMiddleware(MiddlewareOptions{
		Name: "test", Settings: relaxed, Log: telemetry.NewLogger(&r.log, slog.LevelDebug, "test"), Registry: reg,
		Uploads: ratelimit.NewPools("test", 0, reg).New("uploads", 1), Traces: r.traces, Public: public,
		WriteError: func(w http.ResponseWriter, _ *http.Request, _ error) { http.Error(w, "sorry", 500) },
	}).Route("/cat/{user}", h)
	return r
}

// serve sends a request and returns the ended spans.
func (r *traced) serve(t *testing.T, traceParent string) []sdktrace.ReadOnlySpan {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/cat/mia", nil)
	req.Header.Set("Traceparent", traceParent)
	req.Header.Set("Tracestate", "vendor=secret")
	r.handler.ServeHTTP(httptest.NewRecorder(), req)
	return r.spans.Ended()
}

func TestClientsCannotInfluenceTraces(t *testing.T) {
	const id = "0af7651916cd43dd8448eb211c80319c"
	const sampled, notSampled = "00-" + id + "-b7ad6b7169203331-01", "00-" + id + "-b7ad6b7169203331-00"
	for _, c := range []struct {
		public, own     bool // own: the trace has an ID of its own
		sampler, header string
		recorded        bool
	}{
		{public: true, own: true, header: sampled, recorded: true},
		{public: true, own: true, header: notSampled, recorded: true},
		{public: true, own: true, header: sampled, sampler: "parentbased_always_off"},
		{public: true, own: true, header: "not one", recorded: true},
		{public: true, own: true, recorded: true},
		{header: sampled, sampler: "parentbased_always_off", recorded: true},
		{header: notSampled},
		{own: true, recorded: true},
	} {
		t.Setenv("OTEL_TRACES_SAMPLER", c.sampler)
		propagated := http.Header{}
		r := newTraced(t, c.public, func(_ http.ResponseWriter, r *http.Request) { Propagate(r.Context(), propagated) })
		spans := r.serve(t, c.header)
		logged, _ := logLines(t, &r.log, "request")[0]["trace_id"].(string)
		if (logged != id) != c.own || len(logged) != 32 || !strings.Contains(propagated.Get("Traceparent"), logged) {
			t.Errorf("%+v: the log has the trace %s, and %v is propagated", c, logged, propagated)
		}
		if (len(spans) == 1) != c.recorded {
			t.Errorf("%+v: %d spans", c, len(spans))
			continue
		}
		for _, s := range spans {
			if s.SpanContext().TraceID().String() != logged || s.Name() != "GET /cat/{user}" || s.SpanKind() != trace.SpanKindServer {
				t.Errorf("%+v: %s of the trace %s; the log has %s", c, s.Name(), s.SpanContext().TraceID(), logged)
			}
			if s.SpanContext().TraceState().Len() > 0 || len(s.Links()) > 0 && s.Links()[0].SpanContext.TraceState().Len() > 0 {
				t.Errorf("%+v: the span or its link has the client's trace state", c)
			}
			if linked := len(s.Links()) == 1 && s.Links()[0].SpanContext.TraceID().String() == id; linked != (c.public && strings.HasPrefix(c.header, "00-")) {
				t.Errorf("%+v: links %v", c, s.Links())
			}
		}
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func TestCallsOutsideOfATraceAreNoSpans(t *testing.T) {
	var sent string
	next := roundTrip(func(req *http.Request) (*http.Response, error) {
		sent = req.Header.Get("Traceparent")
		return nil, errors.New("unreachable")
	})
	var r *traced
	call := func(ctx context.Context) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:8081/v1/link", nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := r.traces.Transport(next).RoundTrip(req); err == nil {
			resp.Body.Close()
		}
	}
	r = newTraced(t, true, func(_ http.ResponseWriter, req *http.Request) { call(req.Context()) })
	if spans := r.serve(t, ""); len(spans) != 2 || !strings.Contains(sent, spans[0].SpanContext().SpanID().String()) {
		t.Errorf("a call within a request: %d spans, traceparent %q", len(spans), sent)
	}
	if call(t.Context()); len(r.spans.Ended()) != 2 || sent != "" {
		t.Errorf("a call outside of a trace: %d spans, traceparent %q", len(r.spans.Ended()), sent)
	}
}

// The minimum upload rate is a deadline that the middleware sets through the response writer of otelhttp.
func TestTracedHandlersControlTheConnection(t *testing.T) {
	r := newTraced(t, true, func(w http.ResponseWriter, _ *http.Request) {
		c := http.NewResponseController(w)
		if err := errors.Join(c.SetReadDeadline(time.Time{}), c.SetWriteDeadline(time.Time{}), c.Flush()); err != nil {
			t.Error(err)
		}
	})
	server := httptest.NewServer(r.handler)
	defer server.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}
