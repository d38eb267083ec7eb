// Package offline tests make cluster-test and make images with fake programs, without a cluster.
package offline

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"cats.example/local/stack"
)

// fakeKubectl prints files of the folder $FAKES, and adds each command that could change something to $FAKES/changes. It is also
// docker, buildah and the program that loads images.
const fakeKubectl = `#!/bin/sh
name=$(basename "$0")
case "$name $*" in
"docker info") [ -e "$FAKES/docker-runs" ] ;;
kubectl*config\ view*) echo "context prod, server https://prod.example" ;;
kubectl*get\ namespace*) [ ! -e "$FAKES/unreachable" ] && { cat "$FAKES/namespace-$4" 2>/dev/null || true; } ;;
kubectl*get\ services*) cat "$FAKES/services" 2>/dev/null || true ;;
kubectl*rollout\ status*) exit 1 ;;
kubectl*get\ pods*) cat "$FAKES/pods" ;;
kubectl*get\ deployments*) cat "$FAKES/deployments" 2>/dev/null || true ;;
*) echo "$name $*" >>"$FAKES/changes"
   case "$*" in *apply*) [ -e "$FAKES/pods" ] ;; esac ;;
esac
`

// run runs a command in a folder of the checkout, with fake programs that read files. It returns the output, and the commands of the
// fake programs that could change something.
func run(ctx context.Context, t *testing.T, files map[string]string, folder string, command ...string) (output string, changes []string, err error) {
	t.Helper()
	dir := t.TempDir()
	for _, program := range []string{"kubectl", "docker", "buildah", "kind", "load"} {
		if err := os.WriteFile(filepath.Join(dir, program), []byte(fakeKubectl), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Dir = filepath.Join(root(t), folder)
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "FAKES="+dir, "KEEP=", "MAKEFLAGS=", "LOAD_IMAGE=load")
	out, err := cmd.CombinedOutput()
	recorded, readErr := os.ReadFile(filepath.Join(dir, "changes"))
	if readErr != nil && !os.IsNotExist(readErr) {
		t.Fatal(readErr)
	}
	return string(out), strings.FieldsFunc(string(recorded), func(r rune) bool { return r == '\n' }), err
}

// root returns the root of the checkout.
func root(t *testing.T) string {
	t.Helper()
	root, err := stack.FindRoot()
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// clusterTest builds the test program of package cluster.
func clusterTest(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "cluster.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-tags", "cluster", "-c", "-o", binary, "./e2e/cluster")
	build.Dir = root(t)
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	return binary
}

func TestClusterTestDeletesOnlyItsOwnNamespaces(t *testing.T) {
	const (
		label    = `{"kind":"Namespace","metadata":{"labels":{"cats-api.example/cluster-test":"true"}}}`
		first    = "cats-api-test"
		second   = "cats-api-test-monitoring"
		selected = "--selector cats-api.example/cluster-test=true --field-selector metadata.name="
	)
	binary := clusterTest(t)
	for name, row := range map[string]struct {
		files   map[string]string
		problem string // a part of the error, "" when the tests start
		deletes []string
	}{
		"nothing there":         {nil, "", nil},
		"both labeled":          {map[string]string{"namespace-" + first: label, "namespace-" + second: label}, "", []string{first, second}},
		"one labeled":           {map[string]string{"namespace-" + second: label}, "", []string{second}},
		"no labels":             {map[string]string{"namespace-" + first: `{"metadata":{}}`}, "namespace " + first, nil},
		"the second without":    {map[string]string{"namespace-" + first: label, "namespace-" + second: `{"metadata":{"labels":{"team":"sre"}}}`}, "namespace " + second, nil},
		"another value":         {map[string]string{"namespace-" + first: strings.Replace(label, `"true"`, `"false"`, 1)}, "namespace " + first, nil},
		"another key":           {map[string]string{"namespace-" + first: strings.Replace(label, "cats-api.example", "cats.example", 1)}, "namespace " + first, nil},
		"an annotation":         {map[string]string{"namespace-" + first: strings.Replace(label, "labels", "annotations", 1)}, "namespace " + first, nil},
		"no JSON":               {map[string]string{"namespace-" + first: "Warning: strange"}, "namespace " + first, nil},
		"no answer":             {map[string]string{"unreachable": ""}, "nothing was changed", nil},
		"port taken":            {map[string]string{"namespace-" + first: label, "services": "default/kubernetes 0\ncats-api/azure-front 30180\n"}, "Service cats-api/azure-front", nil},
		"port taken by a third": {map[string]string{"services": "web/shop 31000 30180\n"}, "Service web/shop", nil},
		"port taken by its own": {map[string]string{"namespace-" + first: label, "services": first + "/azure-front 30180\ncats-api/azure-front 30100\n"}, "", []string{first}},
	} {
		for _, args := range [][]string{{"-check"}, {"-test.run", "^$"}} {
			t.Run(name+" "+args[0], func(t *testing.T) {
				output, got, err := run(t.Context(), t, row.files, "e2e/cluster", append([]string{binary}, args...)...)
				if !strings.Contains(output, "context prod, server https://prod.example") {
					t.Errorf("the cluster is not named:\n%s", output)
				}
				if row.problem != "" || args[0] == "-check" {
					if len(got) > 0 || (err != nil) != (row.problem != "") || !strings.Contains(output, row.problem) {
						t.Errorf("%v; %q; want no change, and %q:\n%s", err, got, row.problem, output)
					}
					return
				}
				var want []string
				for _, ns := range row.deletes {
					want = append(want, "--namespace "+ns+" delete deployments --all", "--namespace "+ns+" wait --for delete pods --all", "delete namespace "+selected+ns)
				}
				want = append(want, "create --save-config", "apply -k")
				if !slices.EqualFunc(got, want, strings.Contains) {
					t.Errorf("the changes are\n%s\nwant\n%s\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"), output)
				}
			})
		}
	}
}

func TestClusterTestReportsContainersThatCannotStart(t *testing.T) {
	binary := clusterTest(t)
	for name, row := range map[string]struct {
		status string // of a container
		want   []string
	}{
		"back-off":     {`"state":{"waiting":{"reason":"ImagePullBackOff","message":"Back-off pulling"}}`, []string{"ImagePullBackOff: Back-off pulling"}},
		"a wrong name": {`"state":{"waiting":{"reason":"InvalidImageName","message":"couldn't parse"}}`, []string{"InvalidImageName: couldn't parse"}},
		"no secret":    {`"state":{"waiting":{"reason":"CreateContainerConfigError","message":"secret \"x\" not found"}}`, []string{`secret "x" not found`}},
		"a configuration error": {
			`"restartCount":2,"state":{"waiting":{"reason":"CrashLoopBackOff","message":"back-off 20s"}},"lastState":{"terminated":{"exitCode":2,"reason":"Error","message":"field kubernetes_sd_configs not found"}}`,
			[]string{"CrashLoopBackOff: back-off 20s", "exit code 2 (Error): field kubernetes_sd_configs not found"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // the tests would wait for three
			defer cancel()
			output, _, err := run(ctx, t, map[string]string{
				"pods":        `{"items":[{"metadata":{"name":"one"},"status":{"containerStatuses":[{"name":"web",` + row.status + `}]}}]}`,
				"deployments": "azure: quota exceeded\ncats-api: \n",
			}, "e2e/cluster", binary, "-test.run", "^$")
			if err == nil || ctx.Err() != nil {
				t.Errorf("the tests return %v, %v", err, ctx.Err())
			}
			for _, part := range append(row.want, "pod one: web", "deployment azure: quota exceeded") {
				if !strings.Contains(output, part) {
					t.Errorf("%q is missing:\n%s", part, output)
				}
			}
			if strings.Contains(output, "deployment cats-api: ") {
				t.Errorf("a deployment without a failure is listed:\n%s", output)
			}
		})
	}
}

func TestMakeClusterTestChecksBeforeItBuilds(t *testing.T) {
	files := map[string]string{"docker-runs": "", "namespace-cats-api-test": `{"metadata":{"labels":{"team":"sre"}}}`}
	output, changes, err := run(t.Context(), t, files, "", "make", "cluster-test")
	if err == nil || !strings.Contains(output, "namespace cats-api-test exists") {
		t.Errorf("make returns %v:\n%s", err, output)
	}
	if len(changes) > 0 {
		t.Errorf("before the check, it ran %q", changes)
	}
}

// Kubernetes completes an image name without a registry with docker.io/library/.
func TestMakeImagesUsesTheNamesInManifests(t *testing.T) {
	var inManifests []string
	for _, file := range []string{"k8s/base/deployment.yaml", "k8s/overlays/emulator/azure.yaml"} {
		b, err := os.ReadFile(filepath.Join(root(t), file))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`image: (cats-api-\S+)`).FindAllStringSubmatch(string(b), -1) {
			inManifests = append(inManifests, "docker.io/library/"+m[1])
		}
	}
	slices.Sort(inManifests)
	for builder, files := range map[string]map[string]string{"docker build": {"docker-runs": ""}, "buildah bud": nil} {
		output, changes, err := run(t.Context(), t, files, "", "make", "images")
		if err != nil {
			t.Fatalf("%v\n%s", err, output)
		}
		var tags []string
		for _, command := range changes {
			if m := regexp.MustCompile(`-t (\S+)`).FindStringSubmatch(command); m != nil && strings.HasPrefix(command, builder) {
				tags = append(tags, m[1])
			}
		}
		slices.Sort(tags)
		if len(tags) != 3 || !slices.Equal(tags, inManifests) {
			t.Errorf("%s: the images are tagged %q; the manifests name %q", builder, tags, inManifests)
		}
	}
}
