package harness

import (
	"os"
	"strings"
	"testing"
)

// DocSection returns the text of a document, such as docs/cats.md, between a heading and the next.
func DocSection(t *testing.T, doc, heading string) string {
	t.Helper()
	content, err := os.ReadFile(Root(doc))
	if err != nil {
		t.Fatal(err)
	}
	_, after, ok := strings.Cut(string(content), "\n"+heading+"\n")
	if !ok {
		t.Fatalf("%s has no %q", doc, heading)
	}
	text, _, _ := strings.Cut(after, "\n#")
	return text
}

// TableRows returns the rows of the first table in text.
func TableRows(text string) []string {
	var found []string
	_, table, _ := strings.Cut(text, "| --- |")
	for line := range strings.Lines(table) {
		switch {
		case strings.HasPrefix(line, "| "):
			found = append(found, strings.TrimSpace(line))
		case len(found) > 0:
			return found
		}
	}
	return found
}
