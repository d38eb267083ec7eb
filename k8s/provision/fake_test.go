// Package provision tests the scripts with fakes of az, kubectl and kubelogin.
package provision

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fakeProgram is az, kubectl and kubelogin: it sends its name, arguments and input to the test, which answers with the exit code
// and the output. It is a shell script because the tests run it hundreds of times.
const fakeProgram = `
input=
[ "${*: -1}" != - ] || input=$(cat)
exec 3<>"/dev/tcp/127.0.0.1/$FAKE_PORT"
printf '%s\0' "${0##*/}" "${KUBECONFIG:-}" "$input" "$#" "$@" >&3
IFS= read -r -d '' code <&3
IFS= read -r -d '' output <&3
IFS= read -r -d '' errors <&3
printf %s "$output"
printf %s "$errors" >&2
exit "$code"
`

// cloud is the state of Azure and of the cluster. Tests change it between runs of the scripts.
type cloud struct {
	t   *testing.T
	dir string
	env []string
	mu  sync.Mutex // held while a fake program runs

	resources map[string]map[string]any // by kind and names
	commands  []string                  // of the last run that changed something
	stdin     string                    // of these commands

	answers                    map[string]string // other results of az commands than in testdata/az.txt; "denied" is an error
	kubeconfig, kubectlVersion string
	doctorFails, rolloutFails  int      // how often they still fail
	objects                    []object // of the cluster
	doctorRanIn                []string // pods
}

// newCloud returns a cloud without resources, and a copy of the overlay for the scripts to fill in.
func newCloud(t *testing.T) *cloud {
	t.Helper()
	c := &cloud{
		t: t, dir: filepath.Join(t.TempDir(), "a folder with spaces"), resources: map[string]map[string]any{}, answers: map[string]string{},
		kubeconfig: "kubeconfig", kubectlVersion: "1.32.4-dispatcher",
		objects: []object{{Kind: "replicaset", Name: "cats-api-one", Hash: "one", Revision: 1}, {Kind: "pod", Name: "one", Hash: "one", Created: 1, Signer: running}},
	}
	//lint:ignore noctx Listen does not block
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go c.serve(listener)
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	c.env = []string{
		"PATH=" + filepath.Join(c.dir, "bin") + ":" + os.Getenv("PATH"), "HOME=" + c.dir, "TMPDIR=" + c.dir, "FAKE_PORT=" + port,
		"OVERLAY=" + filepath.Join(c.dir, "overlay"), "PAUSE=0", "DEPLOY_TIMEOUT=60",
	}
	for _, dir := range []string{"bin", "overlay"} {
		if err := os.MkdirAll(filepath.Join(c.dir, dir), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	c.install("az")
	c.install("kubectl")
	for _, file := range []string{"settings.env", "kustomization.yaml"} {
		c.write("overlay/"+file, read(t, "../overlays/aks/"+file))
	}
	return c
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (c *cloud) path(name string) string { return filepath.Join(c.dir, filepath.FromSlash(name)) }

func (c *cloud) read(name string) string { return read(c.t, c.path(name)) }

func (c *cloud) write(name, content string) {
	c.t.Helper()
	if err := os.WriteFile(c.path(name), []byte(content), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// edit replaces the line that matches pattern in a file of the overlay, unless line is empty.
func (c *cloud) edit(name, pattern, line string) {
	c.t.Helper()
	if line != "" {
		c.write("overlay/"+name, regexp.MustCompile("(?m)^"+pattern+".*$").ReplaceAllLiteralString(c.read("overlay/"+name), line))
	}
}

// install adds a fake program to PATH.
func (c *cloud) install(name string) {
	c.t.Helper()
	bash, err := exec.LookPath("bash")
	if err == nil {
		err = os.WriteFile(c.path("bin/"+name), []byte("#!"+bash+fakeProgram), 0o700)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// serve answers the fake programs, one after the other.
func (c *cloud) serve(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		in := bufio.NewReader(conn)
		field := func() string {
			text, _ := in.ReadString(0)
			return strings.TrimSuffix(text, "\x00")
		}
		program, kubeconfig, stdin := field(), field(), field()
		n, _ := strconv.Atoi(field())
		args := make([]string, n)
		for i := range args {
			args[i] = field()
		}
		var out, errs strings.Builder
		code := 2
		c.mu.Lock()
		switch program {
		case "az":
			code = c.az(args, &out, &errs)
		case "kubectl":
			code = c.kubectl(args, kubeconfig, stdin, &out)
		case "kubelogin": // makes a kubeconfig use the login of az
			if strings.Join(args, " ") == "convert-kubeconfig --login azurecli --kubeconfig "+kubeconfig && os.WriteFile(kubeconfig, []byte("kubeconfig"), 0o600) == nil {
				code = 0
			}
		}
		c.mu.Unlock()
		if code == 2 {
			c.t.Errorf("the real program would reject %s %q", program, args)
		}
		_, _ = fmt.Fprintf(conn, "%d\x00%s\x00%s\x00", code, &out, &errs)
		_ = conn.Close()
	}
}

// good are the settings of a run without problems.
var good = []string{
	"STORAGE_ACCOUNT=davydscats", "RESOURCE_GROUP=my(group)", "ANONYMOUS_ACCESS=true",
	"FRONTEND_IMAGE=r.example:5000/cats-api-frontend:v1", "SIGNER_IMAGE=r.example/cats-api-signer:v1.2@sha256:0123abc",
}

// result is the outcome of a script.
type result struct {
	code    int
	output  string
	changes []string // the commands up to their first option, or whole for kubectl

	commands []string
	stdin    string
}

// run runs a script.
func (c *cloud) run(script string, environ []string, args ...string) result {
	return c.runWith("", script, environ, args...)
}

func (c *cloud) runWith(stdin, script string, environ []string, args ...string) (r result) {
	c.t.Helper()
	c.mu.Lock()
	c.commands, c.stdin = nil, ""
	c.mu.Unlock()
	cmd := exec.CommandContext(c.t.Context(), "bash", append([]string{script}, args...)...)
	cmd.Env, cmd.Stdin = append(slices.Clone(c.env), environ...), strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		r.code = exit.ExitCode()
	} else if err != nil {
		c.t.Fatal(err)
	}
	if left, _ := filepath.Glob(c.path("tmp.*")); len(left) > 0 {
		c.t.Errorf("%s left %q", script, left)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r.output, r.commands, r.stdin = string(out), c.commands, c.stdin
	for _, command := range c.commands {
		if !strings.HasPrefix(command, "kubectl") {
			command, _, _ = strings.Cut(command, " -")
		}
		r.changes = append(r.changes, strings.ReplaceAll(command, c.dir+"/", ""))
	}
	return r
}

// provision runs provision.sh and fails the test unless it succeeds.
func (c *cloud) provision(environ []string, args ...string) result {
	c.t.Helper()
	r := c.run("provision.sh", environ, args...)
	r.want(c.t, 0, r.changes)
	return r
}

// want compares the exit code and the changes, and checks that the output has the parts.
func (r result) want(t *testing.T, code int, changes []string, parts ...string) {
	t.Helper()
	if diff := cmp.Diff(changes, r.changes); diff != "" || r.code != code {
		t.Errorf("the exit code is %d; want %d; changes: %s\n%s", r.code, code, diff, r.output)
	}
	for _, part := range parts {
		if !strings.Contains(r.output, part) {
			t.Errorf("the output has no %q:\n%s", part, r.output)
		}
	}
}
