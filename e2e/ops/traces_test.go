package ops

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// collector is an OpenTelemetry collector that keeps the spans.
type collector struct {
	url string

	mu    sync.Mutex
	spans []span
	sent  bytes.Buffer // all request bodies, which are binary
}

// span is a span with the name of its service.
type span struct {
	*tracepb.Span
	service string
}

// newCollector starts a collector, which accepts spans by OTLP/HTTP.
func newCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		var got coltracepb.ExportTraceServiceRequest
		if err != nil || r.Method != http.MethodPost || r.URL.Path != "/v1/traces" || proto.Unmarshal(b, &got) != nil {
			http.Error(w, "not OTLP", http.StatusBadRequest)
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.sent.Write(b)
		for _, process := range got.ResourceSpans {
			for _, scope := range process.ScopeSpans {
				for _, s := range scope.Spans {
					c.spans = append(c.spans, span{s, attribute(process.Resource.Attributes, "service.name")})
				}
			}
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(server.Close)
	c.url = server.URL
	return c
}

// attribute returns an attribute as text, "" if it is absent.
func attribute(attributes []*commonpb.KeyValue, key string) string {
	for _, a := range attributes {
		if a.Key == key {
			return cmp.Or(a.Value.GetStringValue(), fmt.Sprint(a.Value.GetIntValue()))
		}
	}
	return ""
}

// trace returns the spans of a trace in the order of their starts, each indented below its parent: service, name, kind, HTTP status,
// error type, and ! if the span has failed.
func (c *collector) trace(id string) (lines []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	slices.SortStableFunc(c.spans, func(a, b span) int { return cmp.Compare(a.StartTimeUnixNano, b.StartTimeUnixNano) })
	var below func(parent, indent string)
	below = func(parent, indent string) {
		for _, s := range c.spans {
			if hex.EncodeToString(s.TraceId) != id || string(s.ParentSpanId) != parent {
				continue
			}
			words := []string{
				s.service, s.Name, strings.ToLower(strings.TrimPrefix(s.Kind.String(), "SPAN_KIND_")),
				attribute(s.Attributes, "http.response.status_code"), attribute(s.Attributes, "error.type"),
			}
			if s.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR {
				words = append(words, "!")
			}
			lines = append(lines, indent+strings.Join(strings.Fields(strings.Join(words, " ")), " "))
			below(string(s.SpanId), indent+"  ")
		}
	}
	below("", "")
	return lines
}

const (
	clientsTrace       = "0af7651916cd43dd8448eb211c80319c"
	clientsTraceparent = "00-" + clientsTrace + "-b7ad6b7169203331-01"
	openMetrics        = "application/openmetrics-text;version=1.0.0"
)

// traceOf returns the trace ID of a request, which must be the same in both logs.
func traceOf(t *testing.T, sys *stack.System, requestID string) string {
	t.Helper()
	var ids [2]string
	for i, log := range []*stack.Log{sys.Frontend.Log, sys.Signer.Log} {
		var line struct {
			TraceID string `json:"trace_id"`
		}
		text := harness.WaitForLog(t, log, 0, `"msg":"request"`, `"request_id":"`+requestID+`"`)
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatal(err)
		}
		ids[i] = line.TraceID
	}
	if len(ids[0]) != 32 || ids[0] != ids[1] {
		t.Fatalf("the trace IDs of %s are %q", requestID, ids)
	}
	return ids[0]
}

func TestTraceReachesFromFrontendToStorage(t *testing.T) {
	t.Parallel()
	c := newCollector(t)
	storage := harness.NewStorageProxy(t)
	// The processes export when they stop.
	on := map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": c.url, "OTEL_BSP_SCHEDULE_DELAY": "3600000"}
	sys := harness.StartDirect(t, stack.SystemOptions{StorageURL: storage.URL, FrontendEnv: on, SignerEnv: on})
	ids := map[string]string{}
	send := func(status int, id, method, path, body string, header ...string) {
		t.Helper()
		header = append(header, "X-Request-Id", id, "User-Agent", "secret-agent", "X-Forwarded-For", "192.0.2.1",
			"Authorization", "Bearer token-secret", "Traceparent", clientsTraceparent, "Tracestate", "vendor=state-secret")
		harness.Send(t, method, sys.URL+path, body, header...).Want(t, status)
		if id != "" {
			ids[id] = traceOf(t, sys, id)
		}
	}
	send(200, "put", "PUT", "/cat/Davyd", string(harness.Cat))
	send(200, "get", "GET", "/cat/Davyd?ttl=10m&download=Secretfile.png", "")
	send(404, "missing", "GET", "/cat/Secretnobody", "")
	send(412, "condition", "DELETE", "/cat/Davyd", "", "If-Match", `"etag-secret"`)
	send(404, "", "GET", "/Secretpath/Davyd?x=query-secret", "")
	send(405, "", "BREW", "/cat/Davyd", "")
	session := harness.Stage(t, sys, "Davyd", harness.Cat)
	send(200, "commit", "POST", "/cat/Davyd/upload/"+session.ID+"/commit", "")
	storage.Set("SecretReset", harness.Reset)
	send(503, "reset", "GET", "/cat/SecretReset", "")
	storage.Set("SecretRejected", harness.Reject(403, "AuthenticationFailed"))
	send(502, "rejected", "PUT", "/cat/SecretRejected", string(harness.Cat))
	metrics := ""
	for _, base := range []string{sys.FrontendOps, sys.SignerOps} {
		metrics += string(harness.Send(t, "GET", base+"/metrics", "", "Accept", openMetrics).Body)
	}
	for _, histogram := range []string{"frontend_http", "signer_http", "signer_storage"} {
		exemplar := "cats_" + histogram + `_request_duration_seconds_bucket\{.* # \{trace_id="[0-9a-f]{32}"`
		if !regexp.MustCompile(exemplar).MatchString(metrics) {
			t.Errorf("no metric matches %s", exemplar)
		}
	}
	token, err := os.ReadFile(sys.Token.Path())
	if err != nil || !strings.HasPrefix(string(token), harness.JWTPrefix) {
		t.Fatalf("the federated token: %d bytes, %v", len(token), err)
	}
	if err := sys.Close(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}

	trees, err := os.ReadFile("testdata/spans.txt")
	if err != nil {
		t.Fatal(err)
	}
	for tree := range strings.SplitSeq(strings.TrimSpace(string(trees)), "\n\n") {
		lines := strings.Split(tree, "\n")
		if diff := gocmp.Diff(lines[1:], c.trace(ids[lines[0]])); diff != "" {
			t.Errorf("%s (-want +got):\n%s", lines[0], diff)
		}
	}
	wantParts(t, strings.Join(c.trace(ids["commit"]), "\n"), "      cats-signer put_block_from_url internal\n        cats-signer HTTP ")
	names := ""
	for _, s := range c.spans {
		names += "\n" + s.Name
		switch id := hex.EncodeToString(s.TraceId); {
		case id == clientsTrace:
			t.Errorf("%s is in the client's trace", s.Name)
		case id == ids["put"] && s.Kind == tracepb.Span_SPAN_KIND_SERVER && s.service == "cats-frontend":
			if size := attribute(s.Attributes, "http.request.body.size"); size != fmt.Sprint(len(harness.Cat)) {
				t.Errorf("the body has %s bytes", size)
			}
			if len(s.Links) != 1 || hex.EncodeToString(s.Links[0].TraceId) != clientsTrace {
				t.Errorf("the links are %v; want the client's trace", s.Links)
			}
		}
	}
	wantParts(t, names+"\n", "\nHTTP /cat/{user}\n", "\nGET\n", "\nuser_delegation_key\n", "\nWorkloadIdentityCredential.GetToken\n")
	everything := c.sent.String()
	for _, secret := range append(strings.Fields(`Davyd Secret sig= skoid skt= Bearer 192.0.2.1 secret-agent query-secret token-secret etag-secret
		state-secret AuthenticationErrorDetail http://127`), strings.Split(string(token), ".")[2], session.ID, harness.JWTPrefix, "/"+sys.Container) {
		if i := strings.Index(everything, secret); i >= 0 {
			t.Errorf("%q is in a span: …%q…", secret, everything[max(0, i-200):min(len(everything), i+200)])
		}
	}
}
