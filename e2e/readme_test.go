package e2e

import (
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cats.example/local/stack"
)

// section returns the README from a heading to the next of any level.
func section(t *testing.T, heading string) string {
	t.Helper()
	readme, err := os.ReadFile(filepath.Join("..", "README.md"))
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

// rows returns the rows of the first table in Markdown text.
func rows(text string) []string {
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

func TestTheReadmesSettingsAreThoseOfHelp(t *testing.T) {
	own(t)
	entry := regexp.MustCompile(`(?m)^  ([A-Z_]+)(?:=(\S+)| \((required)\))?\n      (.+)$`)
	for _, name := range []string{"frontend", "signer"} {
		out, err := exec.CommandContext(t.Context(), filepath.Join(binDir, name), "--help").Output()
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, m := range entry.FindAllStringSubmatch(string(out), -1) {
			value := "–"
			switch {
			case m[3] != "":
				value = m[3]
			case m[2] != "":
				value = "`" + m[2] + "`"
			}
			want = append(want, "| `"+m[1]+"` | "+value+" | "+m[4]+" |")
		}
		if diff := cmp.Diff(want, rows(section(t, "### "+name))); diff != "" || len(want) < 9 {
			t.Errorf("settings of %s (- code, + README):\n%s", name, diff)
		}
	}
}

func TestTheReadmesMetricsAreThoseThatThereAre(t *testing.T) {
	sys := start(t, stack.SystemOptions{})
	put(t, sys, "x", cat)
	there := map[string]bool{}
	for _, base := range []string{sys.FrontendOps, sys.SignerOps} {
		text := string(do(t, "GET", base+"/metrics", "", nil).want(t, 200).body)
		for _, m := range regexp.MustCompile(`(?m)^# TYPE (cats_\w+) `).FindAllStringSubmatch(text, -1) {
			there[m[1]] = true
		}
	}
	told := map[string]bool{}
	for _, row := range rows(section(t, "## Metrics, health, logs")) {
		first, _, _ := strings.Cut(strings.TrimPrefix(row, "|"), "|")
		for _, m := range regexp.MustCompile("`(cats_\\w+)`").FindAllStringSubmatch(first, -1) {
			told[m[1]] = true
		}
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(there)), slices.Sorted(maps.Keys(told))); diff != "" {
		t.Errorf("metrics (- there, + README):\n%s", diff)
	}
}

func TestTheTestsThatTheDocsNameAreThere(t *testing.T) {
	root, err := stack.FindRoot()
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, module := range []string{"shared", "frontend", "signer", "local", "k8s", "e2e"} {
		err := filepath.WalkDir(filepath.Join(root, module), func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case d.Name() == "node_modules":
				return fs.SkipDir
			}
			if !strings.HasSuffix(path, "_test.go") {
				return nil
			}
			b, err := os.ReadFile(path)
			for _, m := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)`).FindAllSubmatch(b, -1) {
				there[string(m[1])] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	docs, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range docs {
		b, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w+`).FindAllString(string(b), -1) {
			if !there[name] {
				t.Errorf("%s names %s, which is nowhere", filepath.Base(doc), name)
			}
		}
	}
}
