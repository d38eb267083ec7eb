package repo

import (
	"cmp"
	"debug/buildinfo"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"cats.example/e2e/harness"
)

// instruction is one line of a Dockerfile, continuation lines joined.
type instruction struct{ name, args string }

// stages parses a Dockerfile.
func stages(t *testing.T, file string) [][]instruction {
	t.Helper()
	var all [][]instruction
	for line := range strings.Lines(strings.ReplaceAll(read(t, file), "\\\n", " ")) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, args, _ := strings.Cut(line, " ")
		if name == "FROM" {
			all = append(all, nil)
		}
		all[len(all)-1] = append(all[len(all)-1], instruction{name, strings.TrimSpace(args)})
	}
	return all
}

// find returns the arguments of each instruction of that name.
func find(stage []instruction, name string) []string {
	var found []string
	for _, i := range stage {
		if i.name == name {
			found = append(found, i.args)
		}
	}
	return found
}

// build runs a build stage in a new folder that has only the files that COPY names and .dockerignore allows. It returns the folder,
// which takes the place of the image's root.
func build(t *testing.T, stage []instruction, args map[string]string) string {
	t.Helper()
	ignore := strings.Split(read(t, harness.Root(".dockerignore")), "\n")
	var excludes string
	for _, rule := range ignore {
		if name, ok := strings.CutPrefix(rule, "**/"); ok {
			excludes += " --exclude='" + name + "'"
		}
	}
	root, script := t.TempDir(), ""
	for _, i := range stage {
		switch i.name {
		case "FROM":
		case "WORKDIR":
			script += fmt.Sprintf("mkdir %[1]s\ncd %[1]s\n", root+i.args)
		case "ENV":
			script += "export " + i.args + "\n"
		case "ARG":
			name, value, _ := strings.Cut(i.args, "=")
			script += fmt.Sprintf("export %s='%s'\n", name, cmp.Or(args[name], value))
		case "COPY":
			words := strings.Fields(i.args)
			sources, to := words[:len(words)-1], strings.TrimSuffix(words[len(words)-1], "/")
			for _, from := range sources {
				module, _, _ := strings.Cut(from, "/")
				if to != "./"+module || ignore[1] != "*" || !slices.Contains(ignore, "!"+module) {
					t.Fatalf("COPY %s: only whole modules, or their files, that .dockerignore allows", i.args)
				}
			}
			script += fmt.Sprintf("tar -C %s -c %s %s | tar -x\n", harness.Root(), excludes, strings.Join(sources, " "))
		case "RUN":
			script += "(" + strings.ReplaceAll(i.args, " /", " "+root+"/") + ")\n" // absolute paths are outputs
		default:
			t.Fatalf("this test does not support %s", i.name)
		}
	}
	if out, err := exec.CommandContext(t.Context(), "bash", "-exo", "pipefail", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return root
}

// The test runs the build stages without a container engine, which CI does not have.
func TestDockerfilesBuildReproducibleImages(t *testing.T) {
	for _, name := range []string{"frontend", "signer"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			parsed := stages(t, harness.Root("Dockerfile."+name))
			if len(parsed) != 2 {
				t.Fatalf("%d stages; want a build stage and the image", len(parsed))
			}
			args := map[string]string{"VERSION": "v1.2.3-test", "REVISION": "abc"}
			root := build(t, parsed[0], args)
			binary := filepath.Join(root, name)
			if info, err := os.Stat(binary); err != nil || info.Size() > 30<<20 {
				t.Fatalf("%v, %v; want a binary under 30 MiB", info, err)
			}
			out, err := exec.CommandContext(t.Context(), binary, "--version").Output()
			if err != nil || !strings.Contains(string(out), "v1.2.3-test") || !strings.Contains(string(out), "abc") {
				t.Errorf("--version: %q, %v; want the version of the build", out, err)
			}
			if runtime.GOOS == "linux" {
				wantStaticAndStripped(t, binary)
			}
			wantPlainImage(t, parsed, name)
			wantLicenses(t, binary, filepath.Join(root, "licenses"))
			if read(t, binary) != read(t, filepath.Join(build(t, parsed[0], args), name)) {
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

// wantLicenses checks that dir has the licenses of all linked modules and of Go, and no other files.
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
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !regexp.MustCompile(`^(LICENSE|NOTICE|PATENTS)`).MatchString(d.Name()) {
			t.Errorf("%s is in the image", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// wantPlainImage checks the final stage: distroless, a numeric user, one program and the licenses. Bases have a version.
func wantPlainImage(t *testing.T, parsed [][]instruction, name string) {
	t.Helper()
	final := parsed[1]
	if got := find(final, "FROM"); !slices.Equal(got, []string{"gcr.io/distroless/static-debian12:nonroot"}) {
		t.Errorf("FROM %v", got)
	}
	if got := find(parsed[0], "FROM"); !regexp.MustCompile(`^--platform=\$BUILDPLATFORM golang:\d+\.\d+\.\d+-\w+ AS build$`).MatchString(got[0]) {
		t.Errorf("FROM %v: not pinned by version", got)
	}
	if got := find(final, "USER"); len(got) != 1 || !regexp.MustCompile(`^[1-9]\d*:[1-9]\d*$`).MatchString(got[0]) {
		t.Errorf("USER %v: want a number: runAsNonRoot cannot check a name", got)
	}
	if got := find(final, "ENTRYPOINT"); !slices.Equal(got, []string{`["/` + name + `"]`}) {
		t.Errorf("ENTRYPOINT %v", got)
	}
	if got := find(final, "COPY"); !slices.Equal(got, []string{"--from=build /licenses /licenses", "--from=build /" + name + " /" + name}) {
		t.Errorf("COPY %v", got)
	}
	if labels := strings.Join(find(final, "LABEL"), " "); !strings.Contains(labels, "org.opencontainers.image.version") || len(find(final, "RUN")) > 0 {
		t.Errorf("LABEL %s, RUN %v", labels, find(final, "RUN"))
	}
}
