package repo

import (
	"bytes"
	"debug/buildinfo"
	"debug/elf"
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

// stages parses a Dockerfile of the plain kind that ours are.
func stages(t *testing.T, file string) [][]instruction {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var all [][]instruction
	for line := range strings.Lines(strings.ReplaceAll(string(text), "\\\n", " ")) {
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

// build runs a build stage in a folder of its own: it copies what COPY names, as
// .dockerignore lets through, and runs what RUN says, in order and with nothing
// else there. It returns the folder, in which output paths such as /signer are.
func build(t *testing.T, stage []instruction, args map[string]string) string {
	t.Helper()
	root, workdir, env := t.TempDir(), "", os.Environ()
	for _, i := range stage {
		switch i.name {
		case "FROM":
		case "WORKDIR":
			workdir = filepath.Join(root, i.args)
			if err := os.MkdirAll(workdir, 0o750); err != nil {
				t.Fatal(err)
			}
		case "ENV":
			env = append(env, strings.Fields(i.args)...)
		case "ARG":
			name, value, _ := strings.Cut(i.args, "=")
			if v, ok := args[name]; ok {
				value = v
			}
			env = append(env, name+"="+value)
		case "COPY":
			words := strings.Fields(i.args)
			for _, src := range words[:len(words)-1] {
				copyInto(t, src, filepath.Join(workdir, words[len(words)-1]), strings.HasSuffix(words[len(words)-1], "/"))
			}
		case "RUN":
			// All absolute paths of our files are outside the work tree.
			script := strings.ReplaceAll(i.args, " /", " "+root+"/")
			cmd := exec.CommandContext(t.Context(), "sh", "-c", script)
			cmd.Dir, cmd.Env = workdir, env
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("RUN %s: %v\n%s", i.args, err, out)
			}
		default:
			t.Fatalf("this test does not know %s", i.name)
		}
	}
	return root
}

// copyInto copies a file or the content of a folder, as COPY does, from the root
// of the repository.
func copyInto(t *testing.T, src, dst string, dstIsDir bool) {
	t.Helper()
	from := harness.Root(src)
	info, err := os.Stat(from)
	if err != nil {
		t.Fatal(err)
	}
	if !info.IsDir() {
		if ignored(t, src) {
			t.Fatalf("COPY %s: .dockerignore keeps it out", src)
		}
		if dstIsDir {
			dst = filepath.Join(dst, filepath.Base(src))
		}
		copyFile(t, from, dst)
		return
	}
	err = filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil || ignored(t, filepath.Join(src, rel)) {
			return err
		}
		copyFile(t, path, filepath.Join(dst, rel))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// ignored reports what .dockerignore says of a path; the last rule that matches wins.
func ignored(t *testing.T, path string) bool {
	t.Helper()
	text, err := os.ReadFile(harness.Root(".dockerignore"))
	if err != nil {
		t.Fatal(err)
	}
	out := false
	for rule := range strings.Lines(string(text)) {
		rule = strings.TrimSpace(rule)
		if rule == "" || strings.HasPrefix(rule, "#") {
			continue
		}
		pattern, back := strings.CutPrefix(rule, "!")
		for prefix := path; prefix != "."; prefix = filepath.Dir(prefix) {
			name, deep := strings.CutPrefix(pattern, "**/")
			subject := prefix
			if deep {
				subject = filepath.Base(prefix)
			}
			if ok, err := filepath.Match(name, subject); err != nil {
				t.Fatal(err)
			} else if ok {
				out = !back
			}
		}
	}
	return out
}

// There is not a container engine everywhere the tests run, so they take the
// Dockerfiles at their word.
func TestImagesBuildFromWhatTheirDockerfilesCopy(t *testing.T) {
	harness.NeedOwnSystem(t)
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

			info, err := os.Stat(binary)
			if err != nil || info.Size() > 30<<20 {
				t.Fatalf("%v, %v; want a binary under 30 MiB", info, err)
			}
			out, err := exec.CommandContext(t.Context(), binary, "--version").Output()
			if err != nil || !strings.Contains(string(out), "v1.2.3-test") || !strings.Contains(string(out), "abc") {
				t.Errorf("--version: %q, %v; want the version that was built", out, err)
			}
			if runtime.GOOS == "linux" {
				wantStaticAndStripped(t, binary)
			}
			wantPlainImage(t, parsed, name)
			wantLicenses(t, binary, filepath.Join(root, "licenses"))
			wantSameBytes(t, binary, filepath.Join(build(t, parsed[0], args), name))
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

// wantLicenses checks that there is the license of each module that is linked, and
// of Go itself, and nothing but such texts.
func wantLicenses(t *testing.T, binary, dir string) {
	t.Helper()
	info, err := buildinfo.ReadFile(binary)
	if err != nil || len(info.Deps) < 10 {
		t.Fatalf("%v, %v; want what is linked", info, err)
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

// wantSameBytes checks that another build, in another folder, gave the same binary:
// whoever doubts an image can build its commit again and compare.
func wantSameBytes(t *testing.T, one, other string) {
	t.Helper()
	a, err := os.ReadFile(one)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(other)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Error("a second build in another folder gave other bytes")
	}
}

// wantPlainImage checks the final stage: distroless, a numeric user, one program and
// the licenses, no shell, and bases pinned by version.
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
		t.Errorf("USER %v: want a number, which Kubernetes can see is not root", got)
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
