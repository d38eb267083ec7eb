package repo

import (
	"maps"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"cats.example/e2e/harness"
)

// workflow has the fields of a GitHub workflow that the tests use.
type workflow struct {
	On          map[string]any `json:"true"` // YAML 1.1 reads the key on as true
	Permissions map[string]string
	Jobs        map[string]struct {
		Permissions map[string]string
		Steps       []struct {
			Uses, Run string
			With      map[string]any
		}
	}
}

// parse reads a YAML or JSON file.
func parse[T any](t *testing.T, file string) (content T) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(read(t, file)), &content); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return content
}

func TestWorkflowsHaveLeastPrivilege(t *testing.T) {
	reads := map[string]string{"contents": "read"}
	want := map[string]map[string]string{ // by file and job; without a job for the whole workflow
		"ci.yml ": reads, "ci.yml ci": nil, "ci.yml vulnerabilities": nil, "release.yml ": {}, "release.yml ci": reads,
		"release.yml images": {"contents": "read", "packages": "write", "id-token": "write", "attestations": "write"},
	}
	got := map[string]map[string]string{}
	for _, file := range glob(t, ".github/workflows/*") {
		w, name := parse[workflow](t, file), filepath.Base(file)
		got[name+" "] = w.Permissions
		for id, job := range w.Jobs {
			got[name+" "+id] = job.Permissions
			for _, step := range job.Steps {
				if strings.HasPrefix(step.Uses, "actions/checkout@") && step.With["persist-credentials"] != false {
					t.Errorf("%s, %s: the checkout leaves its token to later steps", name, id)
				}
				if strings.Contains(step.Run, "${{") {
					t.Errorf("%s, %s: an expression in a script: the name of a branch could be a command", name, id)
				}
			}
		}
		for event := range w.On {
			if !slices.Contains([]string{"push", "pull_request", "schedule", "workflow_call"}, event) {
				t.Errorf("%s runs on %s, which may run untrusted code with the repository's rights", name, event)
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("permissions (- want, + got):\n%s", diff)
	}
}

// TestFilesPinVersions compares lines of files with patterns.
func TestFilesPinVersions(t *testing.T) {
	const version = `v?\d+\.\d+\.\d+`
	programs := append(slices.Collect(maps.Values(dockerfiles)), "Makefile", ".ci/run", ".github/workflows/*", "local/stack/install.go")
	for _, row := range []struct {
		files            []string
		lines, want, not string
	}{
		{[]string{".github/workflows/*"}, `uses: .*`, `uses: (actions/[\w-]+@[0-9a-f]{40} # ` + version + `|\./\.github/workflows/ci\.yml)`, ""},
		{[]string{".github/workflows/*"}, `.*`, "", `secrets[.:]`},
		{[]string{"k8s/*/*.yaml", "k8s/*/*/*.yaml"}, `image: *\S+`, `image: *(cats-api-\w+:dev|[\w./-]+:` + version + `|[\w./:-]+@sha256:[0-9a-f]{64})`, ""},
		// Programs come from modules and lock files only.
		{programs, `.*`, "", `@latest|go (install|run|get) [^\n]*@|\bnpx\b|npm"?,? "?(install|i)\b|pip3? install|curl [^\n]*\|`},
		{[]string{"local/package.json"}, `.*ependencies.*`, "", `": "(\D|\d+(\.\d+)?")`},
	} {
		total := 0
		for _, file := range glob(t, row.files...) {
			for _, line := range regexp.MustCompile(row.lines).FindAllString(read(t, file), -1) {
				total++
				if !regexp.MustCompile("^(?:"+row.want+")$").MatchString(line) && row.want != "" {
					t.Errorf("%s: %q; want %s", file, line, row.want)
				}
				if row.not != "" && regexp.MustCompile(row.not).MatchString(line) {
					t.Errorf("%s: %q; want no %s", file, line, row.not)
				}
			}
		}
		if total == 0 {
			t.Errorf("%s have no line %s", row.files, row.lines)
		}
	}
}

func TestNpmPackagesArePinnedByHash(t *testing.T) {
	lock := parse[struct {
		Packages map[string]struct {
			Version, Integrity, Resolved string
			Link                         bool
		}
	}](t, harness.Root("local", "package-lock.json"))
	for path, p := range lock.Packages {
		elsewhere := p.Resolved != "" && !strings.HasPrefix(p.Resolved, "https://registry.npmjs.org/")
		if path != "" && (!strings.HasPrefix(p.Integrity, "sha512-") || p.Version == "" || p.Link || elsewhere) {
			t.Errorf("%s is not pinned by version and hash: %+v", path, p)
		}
	}
	if len(lock.Packages) < 50 {
		t.Errorf("%d packages in the lock file", len(lock.Packages))
	}
}

func TestPushesAreCheckedForVulnerabilities(t *testing.T) {
	ci := parse[workflow](t, harness.Root(".github", "workflows", "ci.yml"))
	want := []string{"pull_request", "push", "schedule", "workflow_call"}
	if got := slices.Sorted(maps.Keys(ci.On)); !slices.Equal(got, want) {
		t.Errorf("ci.yml runs on %q", got)
	}
	if steps := ci.Jobs["vulnerabilities"].Steps; len(steps) == 0 || steps[len(steps)-1].Run != "make vuln" {
		t.Errorf("the steps of vulnerabilities are %v; want make vuln", steps)
	}
	out, err := exec.CommandContext(t.Context(), "make", "-C", harness.Root(), "-n", "vuln").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "govulncheck") {
		t.Fatalf("make -n vuln: %v\n%s", err, out)
	}
	for _, module := range modules(t) {
		if !regexp.MustCompile(`for m in [a-z0-9 ]*\b` + module + `\b`).Match(out) {
			t.Errorf("make vuln omits %s", module)
		}
	}
}

// modules returns the modules of the workspace.
func modules(t *testing.T) (found []string) {
	t.Helper()
	for _, m := range regexp.MustCompile(`(?m)^\t\./(\w+)$`).FindAllStringSubmatch(read(t, harness.Root("go.work")), -1) {
		found = append(found, m[1])
	}
	if len(found) < 7 {
		t.Fatalf("go.work has %v", found)
	}
	return found
}

// A release replaces each tag with the digest in Dockerfile.bases. The test runs the shell function of the workflow that reads it.
func TestReleasesAreTestedPinnedAndAttested(t *testing.T) {
	release := read(t, harness.Root(".github", "workflows", "release.yml"))
	wanted := []string{
		"  ci:\n    permissions:\n      contents: read\n    uses: ./.github/workflows/ci.yml\n", "  images:\n    needs: ci\n",
		"--attest type=provenance,mode=max", `--attest "type=sbom,generator=$scanner"`, `--driver-opt "image=$buildkit"`,
		`"${golang%@*}=docker-image://$golang"`, `"${static%@*}=docker-image://$static"`,
		`VERSION=$GITHUB_REF_NAME`, `REVISION=$GITHUB_SHA`,
		"uses: actions/attest@", "subject-name: ${{ steps.push.outputs.image }}",
		"subject-digest: ${{ steps.push.outputs.digest }}", "push-to-registry: true",
	}
	bases := map[string]string{} // by image
	function := regexp.MustCompile(`(?m)^ *(pinned\(\) .*)$`).FindString(release)
	reference := regexp.MustCompile(`^([\w./-]+:[\w.-]+)@sha256:[0-9a-f]{64}\n$`)
	for _, name := range []string{"golang", "static", "buildkit", "scanner"} {
		cmd := exec.CommandContext(t.Context(), "bash", "-ec", function+"\npinned "+name)
		cmd.Dir = harness.Root()
		out, err := cmd.Output()
		m := reference.FindSubmatch(out)
		if err != nil || m == nil {
			t.Fatalf("%s is %q, %v; want one image with tag and digest", name, out, err)
		}
		bases[string(m[1])] = name
	}
	from := regexp.MustCompile(`(?m)^FROM (?:--platform=\$BUILDPLATFORM )?(\S+)( AS build)?$|--from=(\w+) `)
	for _, file := range dockerfiles {
		wanted = append(wanted, "dockerfile: "+file+"}")
		for _, m := range from.FindAllStringSubmatch(read(t, harness.Root(file)), -1) {
			if bases[m[1]] == "" && m[3] != "build" {
				t.Errorf("%s: %s has no digest in Dockerfile.bases", file, m[0])
			}
			if bases[m[1]] == "golang" { // ci.yml has the same version
				golang, _, _ := strings.Cut(strings.TrimPrefix(m[1], "golang:"), "-")
				ci := read(t, harness.Root(".github", "workflows", "ci.yml"))
				if strings.Count(ci, "go-version: "+golang+" ") != strings.Count(ci, "go-version: ") {
					t.Errorf("%s has Go %s, and ci.yml another version", file, golang)
				}
			}
		}
	}
	for _, part := range wanted {
		if !strings.Contains(release, part) {
			t.Errorf("release.yml has no %q", part)
		}
	}
	if files := glob(t, "Dockerfile.*", "*/*/Dockerfile"); len(files) != len(dockerfiles)+1 {
		t.Errorf("the Dockerfiles are %q; want Dockerfile.bases and %v", files, dockerfiles)
	}
}

func TestDependabotUpdatesEverything(t *testing.T) {
	config := parse[struct {
		Updates []struct {
			Ecosystem   string `json:"package-ecosystem"`
			Directory   string
			Directories []string
		}
	}](t, harness.Root(".github", "dependabot.yml"))
	updated := map[string]bool{}
	for _, u := range config.Updates {
		for _, dir := range append(u.Directories, u.Directory) {
			updated[u.Ecosystem+" "+dir] = true
		}
	}
	want := []string{"npm /local", "docker /", "docker /local/emulator", "docker /k8s/overlays/emulator", "github-actions /", "gomod /tools/pinned"}
	for _, m := range modules(t) {
		want = append(want, "gomod /"+m)
	}
	for _, w := range want {
		if !updated[w] {
			t.Errorf("dependabot.yml omits %s", w)
		}
	}
}
