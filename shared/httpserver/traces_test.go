package httpserver

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"cats.example/shared/telemetry"
)

// traced turns traces on, with the sampler of the environment.
func traced(public bool, options ...sdktrace.TracerProviderOption) func(*Server, *MiddlewareOptions) {
	return func(_ *Server, m *MiddlewareOptions) {
		m.Public, m.Traces = public, &telemetry.Traces{TracerProvider: sdktrace.NewTracerProvider(options...)}
	}
}

func TestClientsCannotInfluenceTraces(t *testing.T) {
	const id = "0af7651916cd43dd8448eb211c80319c"
	const sampled, notSampled = "00-" + id + "-b7ad6b7169203331-01", "00-" + id + "-b7ad6b7169203331-00"
	for _, c := range []struct {
		public          bool
		sampler, header string
		recorded        bool
	}{
		{true, "", sampled, true},
		{true, "", notSampled, true},
		{true, "parentbased_always_off", sampled, false},
		{false, "parentbased_always_off", sampled, true},
		{false, "", notSampled, false},
	} {
		t.Setenv("OTEL_TRACES_SAMPLER", c.sampler)
		synctest.Test(t, func(t *testing.T) {
			spans, propagated := tracetest.NewSpanRecorder(), http.Header{}
			r := start(t, relaxed, handlers{"/cat/{user}": func(_ http.ResponseWriter, r *http.Request) {
				Propagate(r.Context(), propagated)
			}}, traced(c.public, sdktrace.WithSpanProcessor(spans)))
			r.dial(t).send(get("/cat/mia", "Traceparent: "+c.header+"\r\nTracestate: vendor=secret\r\n")).status()
			logged, _ := r.lines(t, "request")[0]["trace_id"].(string)
			if (logged == id) == c.public || len(logged) != 32 || !strings.Contains(propagated.Get("Traceparent"), logged) {
				t.Errorf("%+v: the log has the trace %s, and %v is propagated", c, logged, propagated)
			}
			ended := spans.Ended()
			if len(ended) > 1 || (len(ended) == 1) != c.recorded {
				t.Errorf("%+v: %d spans", c, len(ended))
			}
			for _, s := range ended {
				if s.SpanContext().TraceID().String() != logged || s.SpanContext().TraceState().Len() > 0 || len(s.Links()) > 0 != c.public {
					t.Errorf("%+v: the span has the context %v and the links %v; the log has the trace %s", c, s.SpanContext(), s.Links(), logged)
				}
				for _, link := range s.Links() {
					if link.SpanContext.TraceID().String() != id || link.SpanContext.TraceState().Len() > 0 {
						t.Errorf("%+v: the link is %v; want the client's trace", c, link)
					}
				}
			}
		})
	}
}
