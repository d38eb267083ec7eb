package repo

import (
	"debug/buildinfo"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"cats.example/e2e/harness"
)

var dockerfiles = map[string]string{ // by the program
	"frontend": "Dockerfile.frontend", "signer": "Dockerfile.signer", "emulator": "local/emulator/Dockerfile",
}

// The last stage: distroless, one program and the licenses, and a user by number: runAsNonRoot cannot check a name.
const image = `^FROM gcr\.io/distroless/static-debian12:nonroot
(ARG .*\n)*LABEL (.*\n)*?.*org\.opencontainers\.image\.version(.*\n)*?COPY --from=build /licenses /licenses
COPY --from=build /PROGRAM /PROGRAM
USER [1-9]\d*:[1-9]\d*
(EXPOSE .*\n)?ENTRYPOINT \["/PROGRAM"\]\n$`

// build runs a build stage and returns the folder that takes the place of the image's root.
func build(t *testing.T, stage string) string {
	t.Helper()
	root := t.TempDir()
	stage = regexp.MustCompile(`(?m)^RUN (.*)$`).ReplaceAllStringFunc(stage, func(run string) string {
		return "(" + strings.ReplaceAll(run[len("RUN "):], " /", ` "$ROOT"/`) + ")" // absolute paths are outputs
	})
	cmd := exec.CommandContext(t.Context(), "bash", "-c", read(t, "testdata/dockerfile.sh")+stage)
	cmd.Env = append(os.Environ(), "ROOT="+root, "CHECKOUT="+harness.Root(), "VERSION=v1.2.3-test", "REVISION=abc")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return root
}

// The test runs the build stages without a container engine, which CI does not have.
func TestDockerfilesBuildReproducibleImages(t *testing.T) {
	for name, file := range dockerfiles {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := read(t, harness.Root(file))
			at := strings.LastIndex(text, "\nFROM ") + 1
			stage, last := text[:at], text[at:]
			if !regexp.MustCompile(strings.ReplaceAll(image, "PROGRAM", name)).MatchString(last) {
				t.Errorf("the image is\n%s", last)
			}
			if name == "emulator" { // for trials and tests only
				return
			}
			root := build(t, stage)
			binary := filepath.Join(root, name)
			if info, err := os.Stat(binary); err != nil || info.Size() > 30<<20 {
				t.Fatalf("%v, %v; want a binary under 30 MiB", info, err)
			}
			out, err := exec.CommandContext(t.Context(), binary, "--version").Output()
			if err != nil || !strings.Contains(string(out), "v1.2.3-test") || !strings.Contains(string(out), "abc") {
				t.Errorf("--version: %q, %v; want the version of the build", out, err)
			}
			wantStaticAndStripped(t, binary)
			wantLicenses(t, binary, filepath.Join(root, "licenses"))
			if read(t, binary) != read(t, filepath.Join(build(t, stage), name)) {
				t.Error("the second build, in another folder, differs")
			}
		})
	}
}

func wantStaticAndStripped(t *testing.T, binary string) {
	t.Helper()
	f, err := elf.Open(binary)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the binary is not static")
		}
	}
	if f.Section(".symtab") != nil || f.Section(".debug_info") != nil {
		t.Error("the binary is not stripped")
	}
}

// wantLicenses checks that dir has the licenses of all linked modules and of Go.
func wantLicenses(t *testing.T, binary, dir string) {
	t.Helper()
	info, err := buildinfo.ReadFile(binary)
	if err != nil || len(info.Deps) < 10 {
		t.Fatalf("%v, %v; want at least 10 linked modules", info, err)
	}
	modules := []string{"."} // Go
	for _, m := range info.Deps {
		if !strings.HasPrefix(m.Path, "cats.example/") {
			modules = append(modules, m.Path)
		}
	}
	for _, m := range modules {
		if found, err := filepath.Glob(filepath.Join(dir, m, "LICENSE*")); err != nil || len(found) == 0 {
			t.Errorf("licenses/%s has no LICENSE: %v", m, err)
		}
	}
}
