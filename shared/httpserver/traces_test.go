package httpserver

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"cats.example/shared/ratelimit"
	"cats.example/shared/telemetry"
)

// traced is a handler with traces.
type traced struct {
	spans    *tracetest.SpanRecorder
	exported *tracetest.InMemoryExporter
	traces   *telemetry.Traces
	handler  http.Handler
	log      bytes.Buffer
}

func newTraced(t *testing.T, public bool, h http.HandlerFunc) *traced {
	t.Helper()
	r := &traced{spans: tracetest.NewSpanRecorder(), exported: tracetest.NewInMemoryExporter()}
	reg := prometheus.NewRegistry()
	r.traces = &telemetry.Traces{TracerProvider: sdktrace.NewTracerProvider( // with the sampler of the environment
		sdktrace.WithSpanProcessor(r.spans), sdktrace.WithSyncer(telemetry.RedactSpans(r.exported)))}
	r.handler = NewMiddleware(MiddlewareOptions{
		Name: "test", Settings: relaxed, Log: telemetry.NewLogger(&r.log, slog.LevelDebug, "test"), Registry: reg,
		Uploads: ratelimit.NewPools("test", 0, reg).New("uploads", 1), Traces: r.traces, Public: public,
		WriteError: func(w http.ResponseWriter, _ *http.Request, _ error) { http.Error(w, "sorry", 500) },
	}).Route("/cat/{user}", h)
	return r
}

// serve sends a request with secrets wherever a client can put them, and returns the ended spans.
func (r *traced) serve(t *testing.T, traceParent string) []sdktrace.ReadOnlySpan {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://secret:7777/cat/mia?secret", nil)
	for name, value := range map[string]string{
		"User-Agent": "secret", "X-Forwarded-For": "secret", "Referer": "secret", "Tracestate": "vendor=secret", "Baggage": "key=secret", "Traceparent": traceParent,
	} {
		req.Header.Set(name, value)
	}
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
			if linked := len(s.Links()) == 1 && s.Links()[0].SpanContext.TraceID().String() == id; linked != (c.public && strings.HasPrefix(c.header, "00-")) {
				t.Errorf("%+v: links %v", c, s.Links())
			}
		}
	}
}

func TestSpansAreRedacted(t *testing.T) {
	r := newTraced(t, true, func(_ http.ResponseWriter, r *http.Request) {
		_, span := trace.SpanFromContext(r.Context()).TracerProvider().Tracer("a library").Start(r.Context(), "HTTP GET", trace.WithAttributes(
			attribute.String("http.url", "https://x/secret"), attribute.String("client.address", "192.0.2.1"), attribute.Int("http.status_code", 404)))
		span.AddEvent("secret")
		span.RecordError(errors.New("secret"))
		span.SetStatus(codes.Error, "*azcore.ResponseError:\nGET https://x/secret")
		span.End()
	})
	r.serve(t, someTrace)
	keys := map[string][]string{"HTTP GET": {"http.status_code"}, "GET /cat/{user}": {"http.request.method", "http.response.status_code", "http.route"}}
	spans := r.exported.GetSpans()
	if len(spans) != len(keys) {
		t.Fatalf("%d spans; want %d", len(spans), len(keys))
	}
	for _, s := range spans {
		var got []string
		for _, a := range s.Attributes {
			got = append(got, string(a.Key))
		}
		slices.Sort(got)
		if diff := cmp.Diff(keys[s.Name], got); diff != "" || len(s.Events) > 0 || s.Status.Description != "" {
			t.Errorf("%s has events %v, status %v, attributes (-want +got):\n%s", s.Name, s.Events, s.Status, diff)
		}
		for _, link := range append(s.Links, sdktrace.Link{SpanContext: s.SpanContext}) {
			if state := link.SpanContext.TraceState().String(); state != "" {
				t.Errorf("%s has the trace state %s", s.Name, state)
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
