// Package provision tests the scripts with fakes of az and kubectl. testdata/*.txtar are the tests, in the format of testscript:
// https://pkg.go.dev/github.com/rogpeppe/go-internal/testscript
package provision

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain makes az and kubectl programs in PATH, which are this test binary. They keep the state of Azure and of the cluster in files
// of the folder WORK, where a script can read and change it.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"az": az, "kubectl": kubectl})
}

func TestScripts(t *testing.T) {
	folder, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			for _, variable := range []string{
				"HOME=" + env.WorkDir, "TMPDIR=" + env.WorkDir + "/a folder", "PATH=" + env.WorkDir + "/bin:" + env.Getenv("PATH"),
				"OVERLAY=" + env.WorkDir + "/overlay", "AZ_COMMANDS=" + folder + "/testdata/az.txt", "PAUSE=0", "DEPLOY_TIMEOUT=60",
				"GORACE=atexit_sleep_ms=0", // the race detector delays each exit by a second
				"STORAGE_ACCOUNT=davydscats", "RESOURCE_GROUP=my(group)", "ANONYMOUS_ACCESS=true",
				"FRONTEND_IMAGE=r.example:5000/cats-api-frontend:v1", "SIGNER_IMAGE=r.example/cats-api-signer:v1.2@sha256:0123abc",
			} {
				name, value, _ := strings.Cut(variable, "=")
				env.Setenv(name, value)
			}
			return os.Mkdir(filepath.Join(env.WorkDir, "a folder"), 0o700)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"reset":     reset,
			"provision": script(folder + "/provision.sh"),
			"teardown":  script(folder + "/teardown.sh"),
			"doctor":    script(folder + "/../doctor.sh"),
			"edit":      edit,
		},
	})
}

// reset restores the overlay of the checkout and deletes all resources.
func reset(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(os.RemoveAll(ts.MkAbs("azure")))
	ts.Check(os.RemoveAll(ts.MkAbs("overlay")))
	ts.Check(os.CopyFS(ts.MkAbs("overlay"), os.DirFS(filepath.Dir(ts.Getenv("AZ_COMMANDS"))+"/../../overlays/aks")))
	for name, content := range map[string]string{
		"credentials": "kubeconfig", "kubectl-version": "1.32.4-dispatcher",
		"cluster": "[{kind: replicaset, name: cats-api-one, hash: one, revision: 1}, {kind: pod, name: one, hash: one, created: 1, " +
			"signer: {state: {running: {startedAt: now}}}}]",
	} {
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(content), 0o600))
	}
}

// script returns the command that runs a script with arguments. The files "commands" and "changes" are then the commands that have
// changed something, whole and without options. "! script" wants exit code 1.
func script(path string) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, fails bool, args []string) {
		for _, file := range []string{"commands", "changes"} {
			ts.Check(os.WriteFile(ts.MkAbs(file), nil, 0o600))
		}
		if err := ts.Exec("bash", append([]string{path}, args...)...); (err != nil) != fails {
			ts.Fatalf("%s: %v", path, err)
		}
		if rejected, err := os.ReadFile(ts.MkAbs("rejected")); err == nil {
			ts.Fatalf("the real program would reject:\n%s", rejected)
		}
		if left, err := filepath.Glob(ts.MkAbs("a folder/*")); err != nil || len(left) > 0 {
			ts.Fatalf("%s left %q, %v", path, left, err)
		}
	}
}

// edit replaces each line of a file that matches a pattern.
func edit(ts *testscript.TestScript, _ bool, args []string) {
	before := ts.ReadFile(args[0])
	pattern := regexp.MustCompile("(?m)^" + args[1] + ".*$")
	if !pattern.MatchString(before) {
		ts.Fatalf("%s has no %s", args[0], args[1])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(pattern.ReplaceAllLiteralString(before, args[2])), 0o600))
}

// The rest is for az and kubectl.

// state returns the content of a file, and whether it exists.
func state(name string) (content string, exists bool) {
	b, err := os.ReadFile(filepath.Join(os.Getenv("WORK"), name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", false
	}
	must(err)
	return string(b), true
}

func write(name, content string) {
	file := filepath.Join(os.Getenv("WORK"), name)
	must(os.MkdirAll(filepath.Dir(file), 0o700))
	must(os.WriteFile(file, []byte(content), 0o600))
}

// next removes the first line of a file and returns it, "" if there is none.
func next(name string) string {
	content, _ := state(name)
	line, rest, _ := strings.Cut(content, "\n")
	write(name, rest)
	return line
}

// record adds a command that changes something to "commands" and "changes".
func record(command string) {
	command = strings.ReplaceAll(command, os.Getenv("WORK")+"/", "")
	commands, _ := state("commands")
	write("commands", commands+command+"\n")
	if !strings.HasPrefix(command, "kubectl") {
		command, _, _ = strings.Cut(command, " -")
	}
	changes, _ := state("changes")
	write("changes", changes+command+"\n")
}

// reject fails the test: the real program would not accept these arguments.
func reject() {
	write("rejected", fmt.Sprintf("%q", os.Args))
	os.Exit(2)
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
