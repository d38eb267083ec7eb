package harness

import (
	"os"
	"strings"
	"testing"
)

// ReadmeSection returns the text of the README between a heading and the next.
func ReadmeSection(t *testing.T, heading string) string {
	t.Helper()
	readme, err := os.ReadFile(Root("README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, after, ok := strings.Cut(string(readme), "\n"+heading+"\n")
	if !ok {
		t.Fatalf("the README has no %q", heading)
	}
	text, _, _ := strings.Cut(after, "\n#")
	return text
}

// TableRows returns the rows of the first table in text whose first cell is code.
func TableRows(text string) []string {
	var found []string
	_, table, _ := strings.Cut(text, "| --- |")
	for line := range strings.Lines(table) {
		switch {
		case strings.HasPrefix(line, "| `"):
			found = append(found, strings.TrimSpace(line))
		case len(found) > 0:
			return found
		}
	}
	return found
}
