package repo

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

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestTheReadmesSettingsAreThoseOfHelp(t *testing.T) {
	harness.NeedOwnSystem(t)
	entry := regexp.MustCompile(`(?m)^  ([A-Z_]+)(?:=(\S+)| \((required)\))?\n      (.+)$`)
	for _, name := range []string{"frontend", "signer"} {
		out, err := exec.CommandContext(t.Context(), filepath.Join(harness.BinDir(t), name), "--help").Output()
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
		if diff := cmp.Diff(want, harness.TableRows(harness.ReadmeSection(t, "### "+name))); diff != "" || len(want) < 9 {
			t.Errorf("settings of %s (- code, + README):\n%s", name, diff)
		}
	}
}

func TestTheReadmesMetricsAreThoseThatThereAre(t *testing.T) {
	sys := harness.Start(t, stack.SystemOptions{})
	harness.Put(t, sys, "x", harness.Cat)
	there := map[string]bool{}
	for _, base := range []string{sys.FrontendOps, sys.SignerOps} {
		text := string(harness.Do(t, "GET", base+"/metrics", "", nil).Want(t, 200).Body)
		for _, m := range regexp.MustCompile(`(?m)^# TYPE (cats_\w+) `).FindAllStringSubmatch(text, -1) {
			there[m[1]] = true
		}
	}
	told := map[string]bool{}
	for _, row := range harness.TableRows(harness.ReadmeSection(t, "## Metrics, health, logs")) {
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
	there := map[string]bool{}
	for _, module := range []string{"shared", "frontend", "signer", "cats", "local", "k8s", "e2e"} {
		err := filepath.WalkDir(harness.Root(module), func(path string, d fs.DirEntry, err error) error {
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
	docs, err := filepath.Glob(harness.Root("docs", "*.md"))
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
