package telemetry

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel"
)

// logLines returns the log lines with the message msg.
func logLines(t *testing.T, log *bytes.Buffer, msg string) []map[string]any {
	t.Helper()
	var found []map[string]any
	for line := range strings.Lines(log.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("not a line of JSON: %q", line)
		}
		if m["msg"] == msg {
			found = append(found, m)
		}
	}
	return found
}

func TestNewTracesFollowsTheStandardVariables(t *testing.T) {
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
		{on + " OTEL_TRACES_EXPORTER=console", false, "OTEL_TRACES_EXPORTER"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT=http://user:secret@collector:4318", false, "OTEL_EXPORTER_OTLP_HEADERS"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT=http//user:secret@collector", false, "OTEL_EXPORTER_OTLP_ENDPOINT"},
		{on + " OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=secret", false, "OTEL_EXPORTER_OTLP_PROTOCOL"},
	} {
		traces, err := NewTraces(t.Context(), "test", strings.Fields(row.environ), slog.New(slog.DiscardHandler))
		if row.err == "" && err != nil || row.err != "" && (err == nil || !strings.Contains(err.Error(), row.err)) {
			t.Errorf("%s: %v; want %q", row.environ, err, row.err)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error contains a value: %v", row.environ, err)
		}
		if (traces != nil) != row.on {
			t.Errorf("%s: traces are on: %t; want %t", row.environ, traces != nil, row.on)
		}
		traces.Close()
	}
}

func TestNewTracesLogsIgnoredSettingsWithoutValues(t *testing.T) {
	for name, value := range map[string]string{
		"OTEL_TRACES_SAMPLER": "nonsense", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://%secret", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1",
		"OTEL_EXPORTER_OTLP_HEADERS": "Authorization: Bearer secret", "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "a=%zzsecret", "OTEL_EXPORTER_OTLP_TIMEOUT": "secret",
	} {
		t.Setenv(name, value)
	}
	log := &bytes.Buffer{}
	traces, err := NewTraces(t.Context(), "test", os.Environ(), NewLogger(log, slog.LevelDebug, "test"))
	if err != nil {
		t.Fatal(err)
	}
	defer traces.Close()
	var errs []any
	for _, line := range logLines(t, log, settingIgnored) {
		errs = append(errs, line["error"])
	}
	if diff := cmp.Diff([]any{"parse url", "parse headers", "escape header value", "parse duration", "unsupported sampler: nonsense"}, errs); diff != "" {
		t.Errorf("errors in the log (-want +got):\n%s", diff)
	}
	if strings.Contains(log.String(), "secret") {
		t.Errorf("the log contains the value of a variable: %s", log.String())
	}
}

func TestNewTracesAppliesExporterVariables(t *testing.T) {
	got := make(chan *http.Request, 1)
	collector := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got <- r }))
	defer collector.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: collector.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"ENDPOINT": collector.URL + "/in", "HEADERS": "api-key=a%20b,x=y", "COMPRESSION": "gzip", "CERTIFICATE": ca,
	} {
		t.Setenv("OTEL_EXPORTER_OTLP_"+name, value)
	}
	traces, err := NewTraces(t.Context(), "test", os.Environ(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	_, span := traces.Tracer("test").Start(t.Context(), "GET")
	span.End()
	traces.Close()
	r := <-got
	if r.URL.Path != "/in/v1/traces" || r.Header.Get("Api-Key") != "a b" || r.Header.Get("X") != "y" || r.Header.Get("Content-Encoding") != "gzip" {
		t.Errorf("the collector got %s with %v", r.URL, r.Header)
	}
}

func TestNewTracesLogsLostSpansOnce(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1/secret")
	log := &bytes.Buffer{}
	traces, err := NewTraces(t.Context(), "test", os.Environ(), NewLogger(log, slog.LevelInfo, "test"))
	if err != nil {
		t.Fatal(err)
	}
	_, span := traces.Tracer("test").Start(t.Context(), "GET")
	span.End()
	traces.Close()
	otel.Handle(errors.New("another one"))
	lines := logLines(t, log, "trace export failed; spans are lost")
	if len(lines) != 1 || lines[0]["level"] != "WARN" {
		t.Fatalf("the log has %v", lines)
	}
	if text, _ := lines[0]["error"].(string); !strings.Contains(text, "http://127.0.0.1:1/v1/traces") {
		t.Errorf("the error is %s", text)
	}
	if on := logLines(t, log, "trace export enabled"); len(on) != 1 || on[0]["endpoint"] != "http://127.0.0.1:1" {
		t.Errorf("the log has %v", on)
	}
}
