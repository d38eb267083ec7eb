package service

import (
	"compress/gzip"
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"cats.example/shared/pool"
	"cats.example/shared/signerapi"
)

func TestTracesAreOffUnlessAskedFor(t *testing.T) {
	const on = "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1"
	for _, row := range []struct {
		environ string
		on      bool
		err     string
	}{
		{"", false, ""},
		{"OTEL_TRACES_EXPORTER=otlp OTEL_SERVICE_NAME=x", false, ""},
		{"OTEL_EXPORTER_OTLP_ENDPOINT=", false, ""},
		{on, true, ""},
		{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=https://collector/v1/traces", true, ""},
		{on + " OTEL_SDK_DISABLED=TRUE", false, ""},
		{on + " OTEL_SDK_DISABLED=false OTEL_TRACES_EXPORTER=otlp OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf", true, ""},
		{on + " OTEL_TRACES_EXPORTER=none", false, ""},
		{"OTEL_EXPORTER_OTLP_ENDPOINT=collector:4317", false, "http://COLLECTOR:4318"},
		{on + " OTEL_EXPORTER_OTLP_PROTOCOL=grpc", false, "http/protobuf"},
		{on + " OTEL_EXPORTER_OTLP_PROTOCOL=grpc OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf", true, ""},
	} {
		traces, err := NewTraces(t.Context(), "test", strings.Fields(row.environ), slog.New(slog.DiscardHandler))
		if row.err == "" && err != nil || row.err != "" && (err == nil || !strings.Contains(err.Error(), row.err)) {
			t.Errorf("%s: %v; want %q", row.environ, err, row.err)
		}
		if (traces != nil) != row.on {
			t.Errorf("%s: on is %v", row.environ, traces != nil)
		}
		traces.close(time.Second)
	}
}

// traced is a handler for one path whose spans are in spans once they have ended.
type traced struct {
	spans   *tracetest.SpanRecorder
	sent    *tracetest.InMemoryExporter // as they leave the process
	traces  *Traces
	handler http.Handler
	log     *logBuffer
	reg     *prometheus.Registry
}

func newTraced(t *testing.T, strangers bool, h http.HandlerFunc) *traced {
	t.Helper()
	r := &traced{spans: tracetest.NewSpanRecorder(), sent: tracetest.NewInMemoryExporter(), log: &logBuffer{}, reg: prometheus.NewRegistry()}
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(r.spans), sdktrace.WithSyncer(discreet{r.sent})) // the sampler of the environment
	r.traces = &Traces{provider: provider, tracer: provider.Tracer(scope)}
	requests := NewRequests("test", r.reg, NewLogger(r.log, slog.LevelDebug, "test"), relaxed, pool.NewSet("test", 0, r.reg).New("uploads", 1), func(w http.ResponseWriter, _ *http.Request, _ error) { http.Error(w, "sorry", 500) })
	requests.Trace(r.traces, strangers)
	r.handler = requests.Route("/cat/{user}", h)
	return r
}

func (r *traced) ask(t *testing.T, traceParent string) {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/cat/mia", nil)
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
			Note(r.Context(), signerapi.ErrNotFound)
			w.WriteHeader(404)
		}, 404, "not_found", false},
		"no answer": {func(w http.ResponseWriter, r *http.Request) {
			Note(r.Context(), signerapi.ErrStorageUnavailable.Wrap(errors.New("secret")))
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
	r.ask(t, "")
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
	for _, key := range []attribute.Key{"http.request.method", "http.route", "http.response.status_code", "http.request.body.size", "http.response.body.size"} {
		if set := attribute.NewSet(spans[1].Attributes...); !set.HasValue(key) {
			t.Errorf("our own span lost %s", key)
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
	ctx := context.WithValue(t.Context(), recordKey{}, &record{})
	if n := testing.AllocsPerRun(100, func() { Observe(ctx, h, 1) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestASamplerThatDoesNotExistIsTold(t *testing.T) {
	for name, value := range map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_SAMPLER": "nonsense",
	} {
		t.Setenv(name, value)
	}
	log := &logBuffer{}
	traces, err := NewTraces(t.Context(), "test", os.Environ(), NewLogger(log, slog.LevelDebug, "test"))
	if err != nil {
		t.Fatal(err)
	}
	defer traces.close(time.Second)
	var told []any
	for _, line := range log.lines(t, notAsAsked) {
		told = append(told, line["error"])
	}
	if diff := cmp.Diff([]any{"unsupported sampler: nonsense"}, told); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
}

// A collector gets what the variables say, as often as it asks for.
func TestSpansAreSentAsTheVariablesSay(t *testing.T) {
	var asked []*http.Request
	var got tracepb.TracesData
	collector := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r)
		if len(asked) == 1 {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		body, err := gzip.NewReader(r.Body)
		if err == nil {
			var b []byte
			if b, err = io.ReadAll(body); err == nil {
				err = proto.Unmarshal(b, &got)
			}
		}
		if err != nil {
			t.Error(err)
		}
	}))
	defer collector.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: collector.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := newOTLPClient(map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT": collector.URL + "/in/", "OTEL_EXPORTER_OTLP_HEADERS": "api-key=a%20b, x=y", "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
		"OTEL_EXPORTER_OTLP_CERTIFICATE": ca, "OTEL_EXPORTER_OTLP_TIMEOUT": "1", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "5000",
	})
	if err != nil {
		t.Fatal(err)
	}
	sent := []*tracepb.ResourceSpans{{SchemaUrl: "of a test"}}
	if err := c.UploadTraces(t.Context(), sent); err != nil {
		t.Fatal(err)
	}
	if len(asked) != 2 || len(got.ResourceSpans) != 1 || got.ResourceSpans[0].SchemaUrl != "of a test" {
		t.Fatalf("asked %d times, for %v", len(asked), &got)
	}
	if r := asked[1]; r.URL.Path != "/in/v1/traces" || r.Header.Get("Api-Key") != "a b" || r.Header.Get("X") != "y" || r.Header.Get("Content-Type") != "application/x-protobuf" {
		t.Errorf("asked for %s with %v", r.URL, r.Header)
	}
}

func TestVariablesOfTheExporterThatCannotBeAreRefusedWithoutTheirValues(t *testing.T) {
	for name, value := range map[string]string{
		"HEADERS": "Authorization: Bearer secret==", "TRACES_HEADERS": "a=%zzsecret", "ENDPOINT": "http//user:secret@collector", "TIMEOUT": "secret", "COMPRESSION": "secret",
		"CERTIFICATE": "/secret", "CLIENT_KEY": "secret", "TRACES_PROTOCOL": "secret",
	} {
		vars := map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_EXPORTER_OTLP_" + name: value}
		if _, err := newOTLPClient(vars); err == nil || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "OTEL_EXPORTER_OTLP_") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What a collector says of spans: that it did not take them all, and when to come again.
func TestACollectorsAnswerIsListenedTo(t *testing.T) {
	partly := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 512)
	partly = protowire.AppendString(protowire.AppendTag(partly, 2, protowire.BytesType), "quota")
	partly = protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), partly)
	for what, c := range map[string]struct {
		status int
		after  string
		body   []byte
		says   string
	}{
		"all":          {200, "", nil, ""},
		"later":        {202, "", nil, ""},
		"a warning":    {200, "", protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), []byte{0x12, 1, 'x'}), ""},
		"not all":      {200, "", partly, "512 spans: quota"},
		"cut off":      {200, "", partly[:3], ""},
		"nothing":      {400, "", nil, "400"},
		"not for long": {503, "60", nil, "503"},
	} {
		asked := 0
		collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			asked++
			w.Header().Set("Retry-After", c.after)
			w.WriteHeader(c.status)
			_, _ = w.Write(c.body)
		}))
		client, err := newOTLPClient(map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": collector.URL, "OTEL_EXPORTER_OTLP_TIMEOUT": "30000"})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		err = client.UploadTraces(t.Context(), nil)
		if (err != nil) != (c.says != "") || err != nil && !strings.Contains(err.Error(), c.says) || asked != 1 || time.Since(began) > 15*time.Second {
			t.Errorf("%s: %v, asked %d times, in %v", what, err, asked, time.Since(began))
		}
		collector.Close()
	}
}

func TestOnlyOneExporterIsPossible(t *testing.T) {
	_, err := NewTraces(t.Context(), "test", []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1", "OTEL_TRACES_EXPORTER=console"}, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "OTEL_TRACES_EXPORTER") {
		t.Errorf("%v", err)
	}
}

func TestLostTracesAreToldOnce(t *testing.T) {
	log := &logBuffer{}
	traces, err := NewTraces(t.Context(), "test", []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://user:secret@127.0.0.1:1"}, NewLogger(log, slog.LevelInfo, "test"))
	if err != nil {
		t.Fatal(err)
	}
	defer traces.close(time.Second)
	for range 3 {
		otel.Handle(errors.New("no collector"))
	}
	lines := log.lines(t, "traces are lost")
	if len(lines) != 1 || lines[0]["level"] != "WARN" || lines[0]["error"] != "no collector" {
		t.Errorf("told %v", lines)
	}
	if on := log.lines(t, "traces are sent"); len(on) != 1 || on[0]["endpoint"] != "http://127.0.0.1:1" {
		t.Errorf("told %v", on)
	}
}
