package telemetry

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// logLines returns the lines of log with the message msg.
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
