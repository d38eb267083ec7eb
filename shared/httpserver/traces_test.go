package httpserver

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"cats.example/shared/apierror"
	"cats.example/shared/ratelimit"
	"cats.example/shared/telemetry"
)

type traced struct {
	spans   *tracetest.SpanRecorder
	sent    *tracetest.InMemoryExporter // as they leave the process
	traces  *telemetry.Traces
	handler http.Handler
	log     *logBuffer
	reg     *prometheus.Registry
}

func newTraced(t *testing.T, strangers bool, h http.HandlerFunc) *traced {
	t.Helper()
	r := &traced{spans: tracetest.NewSpanRecorder(), sent: tracetest.NewInMemoryExporter(), log: &logBuffer{}, reg: prometheus.NewRegistry()}
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(r.spans), sdktrace.WithSyncer(telemetry.RedactSpans(r.sent))) // the sampler of the environment
	r.traces = &telemetry.Traces{TracerProvider: provider}
	requests := NewMiddleware(MiddlewareOptions{
		Name: "test", Settings: relaxed, Log: telemetry.NewLogger(r.log, slog.LevelDebug, "test"), Registry: r.reg, Uploads: ratelimit.NewPools("test", 0, r.reg).New("uploads", 1),
		Traces: r.traces, Public: strangers, WriteError: func(w http.ResponseWriter, _ *http.Request, _ error) { http.Error(w, "sorry", 500) },
	})
	r.handler = requests.Route("/cat/{user}", h)
	return r
}

func (r *traced) ask(t *testing.T, traceParent string) {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://secret:7777/cat/mia?secret", nil)
	for _, name := range []string{"User-Agent", "X-Forwarded-For", "Referer"} {
		req.Header.Set(name, "secret")
	}
	req.Header.Set("Tracestate", "vendor=secret")
	req.Header.Set("Baggage", "key=secret")
	if traceParent != "" {
		req.Header.Set("Traceparent", traceParent)
	}
	r.handler.ServeHTTP(httptest.NewRecorder(), req)
}

const theirs = "0af7651916cd43dd8448eb211c80319c"

func TestStrangersDecideNothingOfATrace(t *testing.T) {
	for _, row := range []struct {
		strangers, begins bool
		sampler, header   string
		recorded          bool
	}{
		{strangers: true, begins: true, header: "00-" + theirs + "-b7ad6b7169203331-01", recorded: true},
		{strangers: true, begins: true, header: "00-" + theirs + "-b7ad6b7169203331-00", recorded: true},
		{strangers: true, begins: true, header: "00-" + theirs + "-b7ad6b7169203331-01", sampler: "parentbased_always_off"},
		{strangers: true, begins: true, header: "not one", recorded: true},
		{strangers: true, begins: true, recorded: true},
		{header: "00-" + theirs + "-b7ad6b7169203331-01", sampler: "parentbased_always_off", recorded: true},
		{header: "00-" + theirs + "-b7ad6b7169203331-00"},
		{begins: true, recorded: true},
	} {
		t.Setenv("OTEL_TRACES_SAMPLER", row.sampler)
		var passedOn string
		r := newTraced(t, row.strangers, func(_ http.ResponseWriter, r *http.Request) {
			h := http.Header{}
			Propagate(r.Context(), h)
			passedOn = h.Get("Traceparent")
		})
		r.ask(t, row.header)
		eventually(t, "the log", func() bool { return len(r.log.lines(t, "request")) == 1 })
		id, _ := r.log.lines(t, "request")[0]["trace_id"].(string)
		if (id != theirs) != row.begins || len(id) != 32 || !strings.Contains(passedOn, id) {
			t.Errorf("%+v: the log has the trace %s, and %s is passed on", row, id, passedOn)
		}
		spans := r.spans.Ended()
		if (len(spans) == 1) != row.recorded {
			t.Errorf("%+v: %d spans", row, len(spans))
			continue
		}
		if !row.recorded {
			continue
		}
		s := spans[0]
		if s.SpanContext().TraceID().String() != id || s.Name() != "GET /cat/{user}" || s.SpanKind() != trace.SpanKindServer {
			t.Errorf("%+v: %s of the trace %s; the log has %s", row, s.Name(), s.SpanContext().TraceID(), id)
		}
		if linked := len(s.Links()) == 1 && s.Links()[0].SpanContext.TraceID().String() == theirs; linked != (row.strangers && strings.HasPrefix(row.header, "00-")) {
			t.Errorf("%+v: links %v", row, s.Links())
		}
	}
}

func TestARequestsSpanSaysWhatCameOfIt(t *testing.T) {
	for name, row := range map[string]struct {
		h      http.HandlerFunc
		status int64
		err    string
		failed bool
	}{
		"well": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }, 200, "", false},
		"not there": {func(w http.ResponseWriter, r *http.Request) {
			SetError(r.Context(), apierror.ErrNotFound)
			w.WriteHeader(404)
		}, 404, "not_found", false},
		"no answer": {func(w http.ResponseWriter, r *http.Request) {
			SetError(r.Context(), apierror.ErrStorageUnavailable.Wrap(errors.New("secret")))
			w.WriteHeader(503)
		}, 503, "storage_unavailable", true},
		"panic": {func(http.ResponseWriter, *http.Request) { panic("secret") }, 500, "", true},
	} {
		r := newTraced(t, true, row.h)
		r.ask(t, "")
		spans := r.spans.Ended()
		if len(spans) != 1 {
			t.Fatalf("%s: %d spans", name, len(spans))
		}
		got := attribute.NewSet(spans[0].Attributes()...)
		status, _ := got.Value("http.response.status_code")
		kind, _ := got.Value("error.type")
		if status.AsInt64() != row.status || kind.AsString() != row.err || (spans[0].Status().Code == codes.Error) != row.failed {
			t.Errorf("%s: %v, %v; want %+v", name, spans[0].Attributes(), spans[0].Status(), row)
		}
	}
}

func TestNothingButTheListLeavesTheProcess(t *testing.T) {
	r := newTraced(t, true, func(_ http.ResponseWriter, r *http.Request) {
		_, span := trace.SpanFromContext(r.Context()).TracerProvider().Tracer("a library").Start(r.Context(), "HTTP GET", trace.WithAttributes(
			attribute.String("http.url", "https://x/secret"), attribute.String("client.address", "192.0.2.1"), attribute.Int("http.status_code", 404)))
		span.AddEvent("secret")
		span.RecordError(errors.New("secret"))
		span.SetStatus(codes.Error, "*azcore.ResponseError:\nGET https://x/secret")
		span.End()
	})
	r.ask(t, "00-"+theirs+"-b7ad6b7169203331-01")
	spans := r.sent.GetSpans()
	if len(spans) != 2 {
		t.Fatalf("%d spans", len(spans))
	}
	s := spans[0]
	if diff := cmp.Diff([]attribute.KeyValue{attribute.Int("http.status_code", 404)}, s.Attributes, cmp.AllowUnexported(attribute.Value{})); diff != "" {
		t.Errorf("attributes (-want +got):\n%s", diff)
	}
	if len(s.Events) > 0 || s.Status != (sdktrace.Status{Code: codes.Error}) {
		t.Errorf("events %v, status %v", s.Events, s.Status)
	}
	var own []string
	for _, a := range spans[1].Attributes {
		own = append(own, string(a.Key))
	}
	slices.Sort(own)
	if diff := cmp.Diff([]string{"http.request.method", "http.response.status_code", "http.route"}, own); diff != "" {
		t.Errorf("attributes of the request's span (-want +got):\n%s", diff)
	}
	for _, s := range spans {
		for _, link := range append(s.Links, sdktrace.Link{SpanContext: s.SpanContext}) {
			if state := link.SpanContext.TraceState().String(); state != "" {
				t.Errorf("%s has the trace state %s", s.Name, state)
			}
		}
	}
}

func TestACallIsASpanOfTheRequestsTraceAndTellsIt(t *testing.T) {
	var told string
	next := roundTrip(func(req *http.Request) (*http.Response, error) {
		told = req.Header.Get("Traceparent")
		if req.URL.RawQuery == "user=broken" {
			return nil, errors.New("secret")
		}
		return &http.Response{StatusCode: http.StatusNotFound, Body: http.NoBody}, nil
	})
	call := func(ctx context.Context, transport http.RoundTripper, query string) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:8081/v1/link?"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := transport.RoundTrip(req); err == nil {
			resp.Body.Close()
		}
	}
	var r *traced
	r = newTraced(t, true, func(_ http.ResponseWriter, req *http.Request) {
		call(req.Context(), r.traces.Transport(next), "user=mia")
		call(req.Context(), r.traces.Transport(next), "user=broken")
	})
	r.ask(t, "")
	spans := r.spans.Ended()
	if len(spans) != 3 {
		t.Fatalf("%d spans", len(spans))
	}
	for _, s := range spans[:2] {
		if s.Name() != "GET /v1/link" || s.SpanKind() != trace.SpanKindClient || s.Parent().SpanID() != spans[2].SpanContext().SpanID() || s.Status().Code != codes.Error {
			t.Errorf("%s, %v, below %s, %v", s.Name(), s.SpanKind(), s.Parent().SpanID(), s.Status())
		}
	}
	for _, s := range r.sent.GetSpans()[:2] {
		got := attribute.NewSet(s.Attributes...)
		if host, _ := got.Value("server.address"); host.AsString() != "127.0.0.1" || got.HasValue("url.full") {
			t.Errorf("the attributes of a call are %v", s.Attributes)
		}
	}
	if !strings.Contains(told, spans[1].SpanContext().SpanID().String()) {
		t.Errorf("the other side is told %s; want the call's own span %s", told, spans[1].SpanContext().SpanID())
	}
	call(t.Context(), r.traces.Transport(next), "user=mia")
	if n := len(r.spans.Ended()); n != 3 || told != "" {
		t.Errorf("a call outside of a request is a span: %d, told %q", n, told)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func TestADurationHasTheTraceThatIsRecordedAsItsExample(t *testing.T) {
	for sampler, recorded := range map[string]bool{"always_on": true, "always_off": false} {
		t.Setenv("OTEL_TRACES_SAMPLER", sampler)
		r := newTraced(t, true, func(http.ResponseWriter, *http.Request) {})
		r.ask(t, "")
		if n, err := testutil.GatherAndCount(r.reg, "cats_test_http_request_duration_seconds"); n != 1 || err != nil {
			t.Fatalf("%d histograms, %v", n, err)
		}
		families, err := r.reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		var examples []string
		for _, f := range families {
			for _, b := range f.GetMetric()[0].GetHistogram().GetBucket() {
				for _, l := range b.GetExemplar().GetLabel() {
					examples = append(examples, l.GetName()+"="+l.GetValue())
				}
			}
		}
		var want []string
		if recorded {
			want = []string{"trace_id=" + r.spans.Ended()[0].SpanContext().TraceID().String()}
		}
		if diff := cmp.Diff(want, examples); diff != "" {
			t.Errorf("%s (-want +got):\n%s", sampler, diff)
		}
	}
}

func TestWithoutTracesADurationCostsNothingMore(t *testing.T) {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "x", Help: "x"})
	ctx := context.WithValue(t.Context(), exchangeKey{}, &exchange{})
	if n := testing.AllocsPerRun(100, func() { telemetry.Observe(ctx, h, 1) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestTracedHandlersControlTheConnection(t *testing.T) {
	flushed := make(chan struct{})
	r := newTraced(t, true, func(w http.ResponseWriter, _ *http.Request) {
		c := http.NewResponseController(w)
		for what, err := range map[string]error{
			"EnableFullDuplex": c.EnableFullDuplex(), "SetReadDeadline": c.SetReadDeadline(time.Time{}), "SetWriteDeadline": c.SetWriteDeadline(time.Time{}),
		} {
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		w.WriteHeader(http.StatusAccepted)
		if err := c.Flush(); err != nil {
			t.Errorf("Flush: %v", err)
		}
		<-flushed
	})
	server := httptest.NewServer(r.handler)
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	close(flushed)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		t.Errorf("the status is %d", resp.StatusCode)
	}
}
