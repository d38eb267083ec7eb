package telemetry

import (
	"bytes"
	"log/slog"
	"os"
	"strings"
	"testing"
)

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

func TestTracesLogFaultsWithoutValues(t *testing.T) {
	for name, value := range map[string]string{
		"OTEL_TRACES_SAMPLER": "nonsense", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://%secret",
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/secret",
		"OTEL_EXPORTER_OTLP_HEADERS":         "Authorization: Bearer secret", "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "a=%zzsecret", "OTEL_EXPORTER_OTLP_TIMEOUT": "secret",
	} {
		t.Setenv(name, value)
	}
	log := &bytes.Buffer{}
	traces, err := NewTraces(t.Context(), "test", os.Environ(), NewLogger(log, slog.LevelDebug, "test"))
	if err != nil {
		t.Fatal(err)
	}
	_, span := traces.Tracer("test").Start(t.Context(), "GET")
	span.End()
	traces.Close()
	got := log.String()
	for _, want := range []string{
		`"parse url"`, `"parse headers"`, `"escape header value"`, `"parse duration"`, `"unsupported sampler: nonsense"`,
		`"endpoint":"http://127.0.0.1:1"`, "spans are lost",
	} {
		if strings.Count(got, want) != 1 || strings.Contains(got, "secret") {
			t.Errorf("%s is not in the log once, or the log has the value of a variable: %s", want, got)
		}
	}
}
