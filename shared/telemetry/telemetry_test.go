package telemetry

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
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
	table, err := os.ReadFile("testdata/settings.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		environ, want, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " | ")
		traces, err := NewTraces(t.Context(), "test", strings.Fields(environ), slog.New(slog.DiscardHandler))
		got := "off"
		if err != nil {
			got = err.Error()
		} else if traces != nil {
			got = "on"
		}
		if got != want && (err == nil || len(want) < 5 || !strings.Contains(got, want)) || strings.Contains(got, "secret") {
			t.Errorf("%s: %s; want %s, and no value", environ, got, want)
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
