package repo

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"cats.example/e2e/harness"
)

// parse reads a YAML or JSON file.
func parse[T any](t *testing.T, file string) (content T) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(read(t, file)), &content); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return content
}

func TestFilesKeepTheirRules(t *testing.T) {
	for _, rule := range parse[[]struct {
		Files, Text      []string
		Parts, Want, Not string
	}](t, "testdata/files.yaml") {
		want, not := regexp.MustCompile("^(?:"+rule.Want+")$"), regexp.MustCompile(rule.Not)
		total := 0
		for _, file := range glob(t, rule.Files...) {
			content := read(t, file)
			for _, text := range rule.Text {
				if !strings.Contains(content, text) {
					t.Errorf("%s has no %q", file, text)
				}
			}
			for _, part := range regexp.MustCompile(rule.Parts).FindAllString(content, -1) {
				total++
				if rule.Want != "" && !want.MatchString(part) || rule.Not != "" && not.MatchString(part) {
					t.Errorf("%s: %q; want %q, not %q", file, part, rule.Want, rule.Not)
				}
			}
		}
		if total == 0 {
			t.Errorf("%s have no %s", rule.Files, rule.Parts)
		}
	}
}

func TestWorkflowsHaveLeastPrivilege(t *testing.T) {
	type workflow struct {
		On          any `json:"true"`
		Permissions map[string]string
		Jobs        map[string]struct{ Permissions map[string]string }
	}
	got := map[string]workflow{}
	for _, file := range glob(t, ".github/workflows/*") {
		got[filepath.Base(file)] = parse[workflow](t, file)
	}
	if diff := cmp.Diff(parse[map[string]workflow](t, "testdata/workflows.yaml"), got); diff != "" {
		t.Errorf("events and permissions (- want, + got):\n%s", diff)
	}
}

func TestEachModuleIsCheckedAndUpdated(t *testing.T) {
	modules := regexp.MustCompile(`(?m)^\t\./(\w+)$`).FindAllStringSubmatch(read(t, harness.Root("go.work")), -1)
	if len(modules) < 7 {
		t.Fatalf("go.work has %v", modules)
	}
	for file, list := range map[string]string{
		"Makefile":               `(?m)^MODULES := (.* )?NAME( |$)`,
		".github/dependabot.yml": `(?m)gomod\n    directories: \[(.* )?/NAME[],]`,
	} {
		for _, m := range modules {
			if !regexp.MustCompile(strings.ReplaceAll(list, "NAME", m[1])).MatchString(read(t, harness.Root(file))) {
				t.Errorf("%s omits %s", file, m[1])
			}
		}
	}
}

// A release replaces each tag with the digest in Dockerfile.bases. The test runs the shell function of the workflow that reads it.
func TestReleasesPinTheBasesOfImages(t *testing.T) {
	release, ci := read(t, harness.Root(".github/workflows/release.yml")), read(t, harness.Root(".github/workflows/ci.yml"))
	script := regexp.MustCompile(`(?m)^ *pinned\(\) .*$`).FindString(release) + "\nfor name in golang static buildkit scanner; do pinned $name; done"
	cmd := exec.CommandContext(t.Context(), "bash", "-ec", script)
	cmd.Dir = harness.Root()
	out, err := cmd.Output()
	bases := regexp.MustCompile(`(?m)^([\w./-]+:[\w.-]+)@sha256:[0-9a-f]{64}$`).FindAllStringSubmatch(string(out), -1)
	if err != nil || len(bases) != 4 {
		t.Fatalf("the bases are %q, %v; want 4 images with tag and digest", out, err)
	}
	golang, static := bases[0][1], bases[1][1]
	for _, file := range dockerfiles {
		if !strings.Contains(release, "dockerfile: "+file+"}") {
			t.Errorf("release.yml does not build %s", file)
		}
		from := regexp.MustCompile(`(?m)^FROM (?:--platform=\$BUILDPLATFORM )?(\S+)|--from=(\S+)`)
		for _, m := range from.FindAllStringSubmatch(read(t, harness.Root(file)), -1) {
			if m[1] != golang && m[1] != static && m[2] != "build" {
				t.Errorf("%s: %s has no digest in Dockerfile.bases", file, m[0])
			}
		}
	}
	version, _, _ := strings.Cut(strings.TrimPrefix(golang, "golang:"), "-")
	if strings.Count(ci, "go-version: "+version+" ") != strings.Count(ci, "go-version: ") {
		t.Errorf("the Dockerfiles have Go %s, and ci.yml another version", version)
	}
	if files := glob(t, "Dockerfile.*", "*/*/Dockerfile"); len(files) != len(dockerfiles)+1 {
		t.Errorf("the Dockerfiles are %q; want Dockerfile.bases and %v", files, dockerfiles)
	}
}
