package repo

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"cats.example/e2e/harness"
)

func TestDocsNameExistingTests(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "git", "-C", harness.Root(), "grep", "--untracked", "-hE", "^func (Test|Fuzz)", "--", "*_test.go").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range glob(t, "docs/*.md") {
		for _, name := range regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w+`).FindAllString(read(t, doc), -1) {
			if !strings.Contains(string(out), "func "+name+"(") {
				t.Errorf("%s names the test %s, which does not exist", filepath.Base(doc), name)
			}
		}
	}
}

// Relative links must lead to a file, and to a heading in it.
func TestLinksOfDocsLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#\s:]*)(#[^)\s]+)?\)`)
	heading := regexp.MustCompile(`(?m)^#+ (.*)$`)
	dropped := regexp.MustCompile("[^a-z0-9 _-]") // by GitHub
	anchors := func(file string) (all []string) {
		for _, m := range heading.FindAllStringSubmatch(read(t, file), -1) {
			all = append(all, "#"+strings.ReplaceAll(dropped.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-"))
		}
		return all
	}
	for _, file := range glob(t, "*.md", "docs/*.md", "docs/*/*.md") {
		for _, m := range link.FindAllStringSubmatch(read(t, file), -1) {
			target := file
			if m[1] != "" {
				target = filepath.Join(filepath.Dir(file), m[1])
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s: %v", filepath.Base(file), m[1], err)
			} else if m[2] != "" && !slices.Contains(anchors(target), m[2]) {
				t.Errorf("%s links to %s%s: no such heading", filepath.Base(file), m[1], m[2])
			}
		}
	}
}
