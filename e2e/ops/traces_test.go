package ops

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// collector is an OpenTelemetry collector that keeps what it is sent.
type collector struct {
	url         string
	connections atomic.Int64

	mu    sync.Mutex
	spans []span
	sent  bytes.Buffer // all that came, as bytes: in base64 of ids any word of few letters comes up some day
}

// span is one as it came, with the name of its service.
type span struct {
	*tracepb.Span
	service string
}

func newCollector(t *testing.T) *collector {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{url: "http://" + l.Addr().String()}
	server := &http.Server{Handler: c, ReadHeaderTimeout: time.Minute, ConnState: func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			c.connections.Add(1)
		}
	}}
	go func() { _ = server.Serve(l) }() // until it is closed
	t.Cleanup(func() { _ = server.Close() })
	return c
}

// ServeHTTP takes spans as OTLP/HTTP has them.
func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		var err error
		if body, err = gzip.NewReader(r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	b, err := io.ReadAll(body)
	var got coltracepb.ExportTraceServiceRequest
	if err != nil || r.Method != http.MethodPost || r.URL.Path != "/v1/traces" || proto.Unmarshal(b, &got) != nil {
		http.Error(w, "not OTLP", http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent.Write(b)
	for _, process := range got.ResourceSpans {
		service := ""
		for _, a := range process.Resource.Attributes {
			if a.Key == "service.name" {
				service = a.Value.GetStringValue()
			}
		}
		for _, scope := range process.ScopeSpans {
			for _, s := range scope.Spans {
				c.spans = append(c.spans, span{s, service})
			}
		}
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// trace returns the spans of a trace as lines: each one's service, name and kind,
// indented below its parent, in the order of their starts.
func (c *collector) trace(id string) (lines []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	slices.SortStableFunc(c.spans, func(a, b span) int { return int(a.StartTimeUnixNano) - int(b.StartTimeUnixNano) })
	var below func(parent, indent string)
	below = func(parent, indent string) {
		for _, s := range c.spans {
			if hex.EncodeToString(s.TraceId) != id || string(s.ParentSpanId) != parent {
				continue
			}
			kind := strings.ToLower(strings.TrimPrefix(s.Kind.String(), "SPAN_KIND_"))
			if s.EndTimeUnixNano < s.StartTimeUnixNano {
				kind += ", which ends before it starts"
			}
			lines = append(lines, fmt.Sprintf("%s%s: %s (%s)", indent, s.service, s.Name, kind))
			below(string(s.SpanId), indent+"  ")
		}
	}
	below("", "")
	return lines
}

// named returns the one span of a trace with that name and kind.
func (c *collector) named(t *testing.T, id, name string, kind tracepb.Span_SpanKind) span {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.spans {
		if hex.EncodeToString(s.TraceId) == id && s.Name == name && s.Kind == kind {
			return s
		}
	}
	t.Fatalf("the trace %s has no span %s", id, name)
	return span{}
}

// attribute returns an attribute of the span as text, "" where it has none.
func (s span) attribute(key string) string {
	for _, a := range s.Attributes {
		if a.Key == key {
			if v := a.Value.GetStringValue(); v != "" {
				return v
			}
			return fmt.Sprint(a.Value.GetIntValue())
		}
	}
	return ""
}

// to sends both processes' spans to c when they stop, and not before.
func (c *collector) to(opts stack.SystemOptions) stack.SystemOptions {
	on := map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": c.url, "OTEL_BSP_SCHEDULE_DELAY": "3600000"}
	opts.FrontendEnv, opts.SignerEnv = harness.Merge(on, opts.FrontendEnv), harness.Merge(on, opts.SignerEnv)
	return opts
}

const (
	strangersTrace  = "0af7651916cd43dd8448eb211c80319c"
	strangersHeader = "00-" + strangersTrace + "-b7ad6b7169203331-01"
)

// traceOf returns the trace id that both logs have for the request.
func traceOf(t *testing.T, sys *stack.System, requestID string) string {
	t.Helper()
	var ids []string
	for _, log := range []*stack.Log{sys.Frontend.Log, sys.Signer.Log} {
		var line struct {
			TraceID string `json:"trace_id"`
		}
		if err := json.Unmarshal([]byte(harness.WaitForLog(t, log, 0, `"msg":"request"`, `"request_id":"`+requestID+`"`)), &line); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, line.TraceID)
	}
	if len(ids[0]) != 32 || ids[0] != ids[1] {
		t.Fatalf("%s is of the trace %q to the frontend, and %q to the signer", requestID, ids[0], ids[1])
	}
	return ids[0]
}

const openMetrics = "application/openmetrics-text;version=1.0.0"

func TestARequestIsOneTraceFromThePublicToStorage(t *testing.T) {
	t.Parallel()
	c := newCollector(t)
	storage := harness.NewStorageProxy(t)
	sys := harness.StartDirect(t, c.to(stack.SystemOptions{StorageURL: storage.URL}))

	secrets := []string{
		"Davyd", "Secret", "sig=", "skoid", "skt=", harness.JWTPrefix, "Bearer", "192.0.2.1", "secret-agent", "query-secret", "token-secret", "etag-secret", "state-secret",
		"AuthenticationErrorDetail", "http://127", "/" + sys.Container,
	}
	token, err := os.ReadFile(filepath.Join(filepath.Dir(sys.Frontend.Log.Path()), "..", "federated-token"))
	if err != nil || !strings.HasPrefix(string(token), harness.JWTPrefix) {
		t.Fatalf("the federated token: %d bytes, %v", len(token), err)
	}
	secrets = append(secrets, string(token), strings.Split(string(token), ".")[2])
	send := func(id, method, path, body string, header ...string) harness.Response {
		t.Helper()
		return harness.Send(t, method, sys.URL+path, body, append(header, "X-Request-Id", id, "User-Agent", "secret-agent", "X-Forwarded-For", "192.0.2.1",
			"Authorization", "Bearer token-secret", "Traceparent", strangersHeader, "Tracestate", "vendor=state-secret")...)
	}
	send("the-put", "PUT", "/cat/Davyd", string(harness.Cat)).Want(t, 200)
	send("the-get", "GET", "/cat/Davyd?ttl=10m&download=Secretfile.png", "").Want(t, 200)
	send("the-large", "PUT", "/cat/Davyd", string(harness.Picture(harness.LargeSize, 1))).Want(t, 200)
	send("the-missing", "GET", "/cat/Secretnobody", "").Want(t, 404)
	send("the-condition", "DELETE", "/cat/Davyd", "", "If-Match", `"etag-secret"`).Want(t, 412)
	send("the-path", "GET", "/Secretpath/Davyd?x=query-secret", "").Want(t, 404)
	send("the-method", "BREW", "/cat/Davyd", "").Want(t, 405)
	ticket := harness.NewUploadSession(t, sys, "Davyd", int64(len(harness.Cat)))
	ticket.Send(t, bytes.NewReader(harness.Cat), int64(len(harness.Cat)))
	send("the-commit", "POST", "/cat/Davyd/upload/"+ticket.ID+"/commit", "").Want(t, 200)
	secrets = append(secrets, ticket.ID)
	storage.Set("SecretBroken", harness.Reset)
	send("the-reset", "GET", "/cat/SecretBroken", "").Want(t, 503)
	storage.Set("SecretRefused", harness.Reject(403, "AuthenticationFailed"))
	send("the-refused", "PUT", "/cat/SecretRefused", string(harness.Cat)).Want(t, 502)

	ids := map[string]string{}
	for _, request := range []string{"the-put", "the-get", "the-large", "the-missing", "the-commit", "the-reset", "the-refused"} {
		ids[request] = traceOf(t, sys, request)
	}
	for base, metrics := range map[string][]string{
		sys.FrontendOps: {"cats_frontend_http_request_duration_seconds"},
		sys.SignerOps:   {"cats_signer_http_request_duration_seconds", "cats_signer_storage_request_duration_seconds"},
	} {
		text := string(harness.Send(t, "GET", base+"/metrics", "", "Accept", openMetrics).Want(t, 200).Body)
		if !strings.HasSuffix(text, "# EOF\n") {
			t.Errorf("%s/metrics is not in OpenMetrics", base)
		}
		for _, metric := range metrics {
			found := false
			for line := range strings.Lines(text) {
				_, example, _ := strings.Cut(line, ` # {trace_id="`)
				id, _, _ := strings.Cut(example, `"`)
				found = found || strings.HasPrefix(line, metric+"_bucket{") && slices.Contains(slices.Collect(maps.Values(ids)), id)
			}
			if !found {
				t.Errorf("%s has none of the traces as an example", metric)
			}
		}
		if plain := string(harness.Do(t, "GET", base+"/metrics", "", nil).Body); strings.Contains(plain, "trace_id") || strings.Contains(plain, "# EOF") {
			t.Errorf("%s/metrics has exemplars in the plain format", base)
		}
	}
	if err := sys.Close(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}

	const kindServer, kindClient = tracepb.Span_SPAN_KIND_SERVER, tracepb.Span_SPAN_KIND_CLIENT
	for request, want := range map[string][]string{
		"the-put": {
			"cats-frontend: PUT /cat/{user} (server)",
			"  cats-frontend: PUT /v1/picture (client)",
			"    cats-signer: PUT /v1/picture (server)",
			"      cats-signer: put_blob (internal)",
			"        cats-signer: HTTP PUT (client)",
		},
		"the-get": {
			"cats-frontend: GET /cat/{user} (server)",
			"  cats-frontend: GET /v1/link (client)",
			"    cats-signer: GET /v1/link (server)",
			"      cats-signer: head_blob (internal)",
			"        cats-signer: HTTP HEAD (client)",
		},
		"the-refused": {
			"cats-frontend: PUT /cat/{user} (server)",
			"  cats-frontend: PUT /v1/picture (client)",
			"    cats-signer: PUT /v1/picture (server)",
			"      cats-signer: put_blob (internal)",
			"        cats-signer: HTTP PUT (client)",
		},
		"the-reset": {
			"cats-frontend: GET /cat/{user} (server)",
			"  cats-frontend: GET /v1/link (client)",
			"    cats-signer: GET /v1/link (server)",
			"      cats-signer: head_blob (internal)",
			"        cats-signer: HTTP HEAD (client)",
			"        cats-signer: HTTP HEAD (client)",
			"        cats-signer: HTTP HEAD (client)",
			"        cats-signer: HTTP HEAD (client)",
		},
	} {
		if diff := cmp.Diff(want, c.trace(ids[request])); diff != "" {
			t.Errorf("%s (-want +got):\n%s", request, diff)
		}
	}
	for request, last := range map[string]string{"the-large": "put_blob", "the-commit": "put_block_from_url"} {
		if all := strings.Join(c.trace(ids[request]), "\n"); !strings.Contains(all, "      cats-signer: "+last+" (internal)\n        cats-signer: HTTP PUT (client)") {
			t.Errorf("%s is\n%s", request, all)
		}
	}
	for _, row := range []struct {
		request, name string
		kind          tracepb.Span_SpanKind
		status, err   string
		failed        bool
	}{
		{"the-put", "PUT /cat/{user}", kindServer, "200", "", false},
		{"the-put", "PUT /v1/picture", kindClient, "200", "", false},
		{"the-missing", "GET /cat/{user}", kindServer, "404", "not_found", false},
		{"the-missing", "GET /v1/link", kindClient, "404", "404", true},
		{"the-reset", "GET /cat/{user}", kindServer, "503", "storage_unavailable", true},
		{"the-refused", "PUT /cat/{user}", kindServer, "502", "identity_unavailable", true},
		{"the-refused", "put_blob", tracepb.Span_SPAN_KIND_INTERNAL, "", "AuthenticationFailed", true},
	} {
		s := c.named(t, ids[row.request], row.name, row.kind)
		if status, failed := s.attribute("http.response.status_code"), s.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR; status != row.status || failed != row.failed || s.attribute("error.type") != row.err {
			t.Errorf("%s, %s: status %q, error %v %q; want %+v", row.request, row.name, status, failed, s.attribute("error.type"), row)
		}
	}
	public := c.named(t, ids["the-put"], "PUT /cat/{user}", kindServer)
	if public.attribute("http.route") != "/cat/{user}" || public.attribute("http.request.method") != "PUT" || public.attribute("http.request.body.size") != fmt.Sprint(len(harness.Cat)) {
		t.Errorf("the request's attributes are %v", public.Attributes)
	}
	if len(public.Links) != 1 || hex.EncodeToString(public.Links[0].TraceId) != strangersTrace {
		t.Errorf("it is linked to %v; want the stranger's trace", public.Links)
	}
	if spans := c.trace(strangersTrace); len(spans) > 0 {
		t.Errorf("a stranger's trace has our spans: %q", spans)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	everything := c.sent.String()
	for _, secret := range secrets {
		if i := strings.Index(everything, secret); i >= 0 {
			t.Errorf("%q is in a span: …%q…", secret, everything[max(0, i-200):min(len(everything), i+200)])
		}
	}
	for _, name := range []string{"HTTP /cat/{user}", "GET", "user_delegation_key", "WorkloadIdentityCredential.GetToken"} {
		if !slices.ContainsFunc(c.spans, func(s span) bool { return s.Name == name }) {
			t.Errorf("no span has the name %s", name)
		}
	}
}

// Without a word about it in the environment there are none either, as all the other
// tests have it.
func TestTracesThatAreOffCostNoConnection(t *testing.T) {
	t.Parallel()
	c := newCollector(t)
	sys := harness.Start(t, stack.SystemOptions{
		FrontendEnv: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": c.url, "OTEL_TRACES_EXPORTER": "none"},
		SignerEnv:   map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": c.url + "/v1/traces", "OTEL_SDK_DISABLED": "true"},
	})
	harness.Put(t, sys, "Davyd", harness.Cat)
	harness.Send(t, "GET", sys.URL+"/cat/Davyd", "", "Traceparent", strangersHeader, "X-Request-Id", "the-get").Want(t, 200)
	if id := traceOf(t, sys, "the-get"); id != strangersTrace {
		t.Errorf("the logs have the trace %s; want the one that was sent", id)
	}
	for _, base := range []string{sys.FrontendOps, sys.SignerOps} {
		if text := string(harness.Send(t, "GET", base+"/metrics", "", "Accept", openMetrics).Body); strings.Contains(text, "# EOF") {
			t.Errorf("%s/metrics is in OpenMetrics, whose buckets have other names", base)
		}
	}
	if err := sys.Close(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	if n := c.connections.Load(); n > 0 || len(c.spans) > 0 {
		t.Errorf("%d connections, %d spans", n, len(c.spans))
	}
}

func TestACollectorThatIsNotThereHarmsNobody(t *testing.T) {
	t.Parallel()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0") // it accepts, and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	gone := map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_BSP_SCHEDULE_DELAY": "10"}
	silent := map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://" + l.Addr().String(), "OTEL_BSP_SCHEDULE_DELAY": "10", "OTEL_BSP_EXPORT_TIMEOUT": "300"}
	sys := harness.Start(t, stack.SystemOptions{FrontendEnv: gone, SignerEnv: silent})
	for range 20 {
		harness.Put(t, sys, "Davyd", harness.Cat)
		harness.Link(t, sys, "Davyd", "")
		time.Sleep(20 * time.Millisecond) // for another batch
	}
	for _, p := range []*stack.Process{sys.Frontend, sys.Signer} {
		harness.WaitForLog(t, p.Log, 0, `"level":"WARN"`, `"msg":"trace export failed; spans are lost"`)
	}
	for _, p := range []*stack.Process{sys.Frontend, sys.Signer} {
		if err := p.Stop(t.Context()); err != nil { // within 10 s
			t.Error(err)
		}
		lines, err := p.Log.Since(0)
		if err != nil {
			t.Fatal(err)
		}
		told := 0
		for _, line := range lines {
			if strings.Contains(line, "trace export failed; spans are lost") {
				told++
			}
			if !json.Valid([]byte(line)) {
				t.Errorf("not a line of JSON: %s", line)
			}
		}
		if told != 1 {
			t.Errorf("it is told %d times within a minute", told)
		}
	}
}
