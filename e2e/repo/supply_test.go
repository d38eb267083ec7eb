package repo

import (
	"io/fs"
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

var dockerfiles = []string{"Dockerfile.frontend", "Dockerfile.signer", "local/emulator/Dockerfile"}

// workflow has the fields of a GitHub workflow that the tests use.
type workflow struct {
	text        string
	On          map[string]any    `json:"true"` // YAML 1.1 reads the key on as true
	Permissions map[string]string `json:"permissions"`
	Jobs        map[string]struct {
		Needs       string            `json:"needs"`
		Permissions map[string]string `json:"permissions"`
		Uses        string            `json:"uses"`
		Steps       []struct {
			Uses string         `json:"uses"`
			Run  string         `json:"run"`
			With map[string]any `json:"with"`
		} `json:"steps"`
	} `json:"jobs"`
}

// workflows returns all workflows by file name.
func workflows(t *testing.T) map[string]workflow {
	t.Helper()
	found := map[string]workflow{}
	for _, file := range glob(t, ".github/workflows/*") {
		w := parse[workflow](t, file)
		w.text = read(t, file)
		found[filepath.Base(file)] = w
	}
	return found
}

// parse reads a YAML or JSON file.
func parse[T any](t *testing.T, file string) (content T) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(read(t, file)), &content); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return content
}

func TestActionsArePinnedByCommit(t *testing.T) {
	pinned := regexp.MustCompile(`^\s*(- )?uses: actions/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$`)
	for name, w := range workflows(t) {
		for line := range strings.Lines(w.text) {
			if line = strings.TrimRight(line, "\n"); strings.Contains(line, "uses:") && !pinned.MatchString(line) && !strings.HasSuffix(line, " ./.github/workflows/ci.yml") {
				t.Errorf("%s: %q: want an action of GitHub, pinned by commit, with its version", name, line)
			}
		}
	}
}

func TestWorkflowsHaveLeastPrivilege(t *testing.T) {
	read := map[string]string{"contents": "read"}
	want := map[string]map[string]string{ // by file and job; without a job for the whole workflow
		"ci.yml ":                read,
		"ci.yml ci":              nil,
		"ci.yml vulnerabilities": nil,
		"release.yml ":           {},
		"release.yml ci":         read,
		"release.yml images":     {"contents": "read", "packages": "write", "id-token": "write", "attestations": "write"},
	}
	got := map[string]map[string]string{}
	for name, w := range workflows(t) {
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
		if len(w.On) == 0 {
			t.Errorf("%s has no event", name)
		}
		for event := range w.On {
			if !slices.Contains([]string{"push", "pull_request", "schedule", "workflow_call"}, event) {
				t.Errorf("%s runs on %s, which may run untrusted code with the repository's rights", name, event)
			}
		}
		if strings.Contains(w.text, "secrets.") || strings.Contains(w.text, "secrets:") {
			t.Errorf("%s uses a secret", name)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("permissions (- want, + got):\n%s", diff)
	}
}

func TestPushesAreCheckedForVulnerabilities(t *testing.T) {
	ci := workflows(t)["ci.yml"]
	for _, event := range []string{"push", "pull_request", "schedule", "workflow_call"} {
		if _, ok := ci.On[event]; !ok {
			t.Errorf("ci.yml does not run on %s", event)
		}
	}
	steps := ci.Jobs["vulnerabilities"].Steps
	if len(steps) == 0 || steps[len(steps)-1].Run != "make vuln" {
		t.Errorf("the steps of vulnerabilities are %v; want make vuln", steps)
	}
	out, err := exec.CommandContext(t.Context(), "make", "-C", harness.Root(), "-n", "vuln").CombinedOutput()
	if err != nil {
		t.Fatalf("make -n vuln: %v\n%s", err, out)
	}
	for _, module := range modules(t) {
		if !regexp.MustCompile(`for m in [a-z0-9 ]*\b` + module + `\b[a-z0-9 ]*;`).Match(out) {
			t.Errorf("make vuln omits %s", module)
		}
	}
	if !strings.Contains(string(out), "govulncheck") {
		t.Errorf("make vuln does not run govulncheck: %s", out)
	}
}

// modules returns the modules of the workspace.
func modules(t *testing.T) []string {
	t.Helper()
	var found []string
	for _, m := range regexp.MustCompile(`(?m)^\t\./(\w+)$`).FindAllStringSubmatch(read(t, harness.Root("go.work")), -1) {
		found = append(found, m[1])
	}
	if len(found) < 7 {
		t.Fatalf("go.work has %v", found)
	}
	return found
}

func TestReleasesAreTestedAndAttested(t *testing.T) {
	release := workflows(t)["release.yml"]
	images := release.Jobs["images"]
	if images.Needs != "ci" || release.Jobs["ci"].Uses != "./.github/workflows/ci.yml" {
		t.Errorf("images needs %q, which is %q; want ci", images.Needs, release.Jobs["ci"].Uses)
	}
	var script string
	var signed bool
	for _, step := range images.Steps {
		script += step.Run
		if strings.HasPrefix(step.Uses, "actions/attest@") {
			signed = step.With["subject-digest"] == "${{ steps.push.outputs.digest }}" && step.With["push-to-registry"] == true &&
				step.With["subject-name"] == "${{ steps.push.outputs.image }}"
		}
	}
	if !signed {
		t.Error("the pushed image is not attested by its digest")
	}
	for _, part := range []string{
		"--attest type=provenance,mode=max", `--attest "type=sbom,generator=$scanner"`, `--driver-opt "image=$buildkit"`,
		`"${golang%@*}=docker-image://$golang"`, `"${static%@*}=docker-image://$static"`,
		`VERSION=$GITHUB_REF_NAME`, `REVISION=$GITHUB_SHA`,
	} {
		if !strings.Contains(script, part) {
			t.Errorf("the release is built without %s", part)
		}
	}
	for _, file := range dockerfiles {
		if !strings.Contains(release.text, "dockerfile: "+file+"}") {
			t.Errorf("%s is not released", file)
		}
		if !slices.Contains(find(stages(t, harness.Root(file))[1], "COPY"), "--from=build /licenses /licenses") {
			t.Errorf("%s: the image has no licenses", file)
		}
	}
	if n := len(glob(t, "Dockerfile.*", "*/*/Dockerfile")) - 1; n != len(dockerfiles) {
		t.Errorf("%d Dockerfiles; want %v and Dockerfile.bases", n, dockerfiles)
	}
}

// A release replaces each tag with the digest in Dockerfile.bases. The test runs the shell function of the workflow that reads it.
func TestReleasesAreBuiltFromBasesByDigest(t *testing.T) {
	function := regexp.MustCompile(`(?m)^ *(pinned\(\) .*)$`).FindStringSubmatch(read(t, harness.Root(".github", "workflows", "release.yml")))
	if function == nil {
		t.Fatal("release.yml has no pinned()")
	}
	reference := regexp.MustCompile(`^([\w./-]+:[\w.-]+)@sha256:[0-9a-f]{64}\n$`)
	byDigest := map[string]bool{}
	for _, name := range []string{"golang", "static", "buildkit", "scanner"} {
		cmd := exec.CommandContext(t.Context(), "bash", "-ec", function[1]+"\npinned "+name)
		cmd.Dir = harness.Root()
		out, err := cmd.Output()
		m := reference.FindSubmatch(out)
		if err != nil || m == nil {
			t.Fatalf("%s is %q, %v; want one image with tag and digest", name, out, err)
		}
		byDigest[string(m[1])] = true
	}
	for _, file := range dockerfiles {
		for _, stage := range stages(t, harness.Root(file)) {
			words := strings.Fields(find(stage, "FROM")[0])
			image := words[0]
			if strings.HasPrefix(image, "--platform=") {
				image = words[1]
			}
			if !byDigest[image] {
				t.Errorf("%s: %s has no digest in Dockerfile.bases", file, image)
			}
			for _, from := range find(stage, "COPY") {
				if strings.HasPrefix(from, "--from=") && !strings.HasPrefix(from, "--from=build ") {
					t.Errorf("%s: COPY %s", file, from)
				}
			}
		}
	}
}

func TestGoVersionsAreEqual(t *testing.T) {
	versions := map[string]bool{}
	for _, file := range append([]string{"Dockerfile.bases", ".github/workflows/ci.yml"}, dockerfiles...) {
		found := regexp.MustCompile(`(?:golang:|go-version: )(\d+\.\d+\.\d+)`).FindAllStringSubmatch(read(t, harness.Root(file)), -1)
		if len(found) == 0 {
			t.Errorf("%s has no version of Go", file)
		}
		for _, m := range found {
			versions[m[1]] = true
		}
	}
	if len(versions) != 1 {
		t.Errorf("versions of Go: %v; want one", slices.Sorted(maps.Keys(versions)))
	}
}

func TestManifestsPinImages(t *testing.T) {
	image := regexp.MustCompile(`(?m)^\s*(?:- )?image: *(\S+)`)
	pinned := regexp.MustCompile(`^(cats-api-\w+:dev|[\w./-]+:v?\d+\.\d+\.\d+|[\w./:-]+@sha256:[0-9a-f]{64})$`)
	count := 0
	err := filepath.WalkDir(harness.Root("k8s"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".yaml" {
			return err
		}
		for _, m := range image.FindAllStringSubmatch(read(t, path), -1) {
			if count++; !pinned.MatchString(m[1]) {
				t.Errorf("%s: the tag of %s may move", path, m[1])
			}
		}
		return nil
	})
	if err != nil || count < 4 {
		t.Errorf("%v; %d images found", err, count)
	}
}

// Programs come from modules and lock files only, which pin them.
func TestNothingUnpinnedIsInstalled(t *testing.T) {
	unpinned := regexp.MustCompile(`@latest|go (install|run|get) [^\n]*@|\bnpx\b|npm (install|i)\b|pip3? install|curl [^\n]*\|`)
	for _, file := range append([]string{"Makefile", ".ci/run", ".github/workflows/ci.yml", ".github/workflows/release.yml"}, dockerfiles...) {
		if found := unpinned.FindString(read(t, harness.Root(file))); found != "" {
			t.Errorf("%s: %q", file, found)
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
	if len(lock.Packages) < 50 {
		t.Fatalf("%d packages in the lock file", len(lock.Packages))
	}
	for path, p := range lock.Packages {
		if path != "" && (!strings.HasPrefix(p.Integrity, "sha512-") || p.Version == "" || p.Link ||
			p.Resolved != "" && !strings.HasPrefix(p.Resolved, "https://registry.npmjs.org/")) {
			t.Errorf("%s is not pinned by version and hash: %+v", path, p)
		}
	}
	direct := parse[struct{ Dependencies map[string]string }](t, harness.Root("local", "package.json"))
	for name, version := range direct.Dependencies {
		if !regexp.MustCompile(`^\d+\.\d+\.\d+$`).MatchString(version) {
			t.Errorf("package.json: %s %s", name, version)
		}
	}
	if !strings.Contains(read(t, harness.Root("local", "stack", "install.go")), `"npm", "ci"`) {
		t.Error("the local stack does not install with npm ci, which verifies the lock file")
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
