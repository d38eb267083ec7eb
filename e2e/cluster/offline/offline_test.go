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

// checkout returns the root of the checkout.
func checkout(t *testing.T) string {
	t.Helper()
	root, err := stack.FindRoot()
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// fakes returns a folder of fake programs and an environment that uses them.
func fakes(t *testing.T, files map[string]string) (dir string, environ []string) {
	t.Helper()
	dir = t.TempDir()
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
	return dir, append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "FAKES="+dir, "KEEP=", "MAKEFLAGS=", "LOAD_IMAGE=load")
}

// changes returns the commands that the fake programs in dir have recorded.
func changes(t *testing.T, dir string) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "changes"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.FieldsFunc(string(b), func(r rune) bool { return r == '\n' })
}

// clusterTest builds the test program of package cluster.
func clusterTest(t *testing.T, root string) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "cluster.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-tags", "cluster", "-c", "-o", binary, "./e2e/cluster")
	build.Dir = root
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	return binary
}

func TestClusterTestDeletesOnlyItsOwnNamespaces(t *testing.T) {
	root := checkout(t)
	const (
		label    = `{"kind":"Namespace","metadata":{"labels":{"cats-api.example/cluster-test":"true"}}}`
		first    = "cats-api-test"
		second   = "cats-api-test-monitoring"
		selected = "--selector cats-api.example/cluster-test=true --field-selector metadata.name="
	)
	binary := clusterTest(t, root)
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
				dir, environ := fakes(t, row.files)
				cmd := exec.CommandContext(t.Context(), binary, args...)
				cmd.Dir, cmd.Env = filepath.Join(root, "e2e", "cluster"), environ
				said, err := cmd.CombinedOutput()
				if !strings.Contains(string(said), "context prod, server https://prod.example") {
					t.Errorf("the cluster is not named:\n%s", said)
				}
				got := changes(t, dir)
				if row.problem != "" || args[0] == "-check" {
					if len(got) > 0 || (err != nil) != (row.problem != "") || !strings.Contains(string(said), row.problem) {
						t.Errorf("%v; %q; want no change, and %q:\n%s", err, got, row.problem, said)
					}
					return
				}
				var want []string
				for _, ns := range row.deletes {
					want = append(want, "--namespace "+ns+" delete deployments --all", "--namespace "+ns+" wait --for delete pods --all", "delete namespace "+selected+ns)
				}
				want = append(want, "create --save-config", "apply -k")
				if !slices.EqualFunc(got, want, strings.Contains) {
					t.Errorf("the changes are\n%s\nwant\n%s\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"), said)
				}
			})
		}
	}
}

func TestClusterTestReportsContainersThatCannotStart(t *testing.T) {
	root := checkout(t)
	binary := clusterTest(t, root)
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
			_, environ := fakes(t, map[string]string{
				"pods":        `{"items":[{"metadata":{"name":"one"},"status":{"containerStatuses":[{"name":"web",` + row.status + `}]}}]}`,
				"deployments": "azure: quota exceeded\ncats-api: \n",
			})
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // the tests would wait for three
			defer cancel()
			cmd := exec.CommandContext(ctx, binary, "-test.run", "^$")
			cmd.Dir, cmd.Env = filepath.Join(root, "e2e", "cluster"), environ
			said, err := cmd.CombinedOutput()
			if err == nil || ctx.Err() != nil {
				t.Errorf("the tests return %v, %v", err, ctx.Err())
			}
			for _, part := range append(row.want, "pod one: web", "deployment azure: quota exceeded") {
				if !strings.Contains(string(said), part) {
					t.Errorf("%q is missing:\n%s", part, said)
				}
			}
			if strings.Contains(string(said), "deployment cats-api: ") {
				t.Errorf("a deployment without a failure is listed:\n%s", said)
			}
		})
	}
}

func TestMakeClusterTestChecksBeforeItBuilds(t *testing.T) {
	root := checkout(t)
	dir, environ := fakes(t, map[string]string{"docker-runs": "", "namespace-cats-api-test": `{"metadata":{"labels":{"team":"sre"}}}`})
	cmd := exec.CommandContext(t.Context(), "make", "cluster-test")
	cmd.Dir, cmd.Env = root, environ
	said, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(said), "namespace cats-api-test exists") {
		t.Errorf("make returns %v:\n%s", err, said)
	}
	if got := changes(t, dir); len(got) > 0 {
		t.Errorf("before the check, it ran %q", got)
	}
}

// Kubernetes completes an image name without a registry with docker.io/library/.
func TestMakeImagesUsesTheNamesInManifests(t *testing.T) {
	root := checkout(t)
	var inManifests []string
	for _, file := range []string{"k8s/base/deployment.yaml", "k8s/overlays/emulator/azure.yaml"} {
		b, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`image: (cats-api-\S+)`).FindAllStringSubmatch(string(b), -1) {
			inManifests = append(inManifests, "docker.io/library/"+m[1])
		}
	}
	slices.Sort(inManifests)
	for builder, files := range map[string]map[string]string{"docker build": {"docker-runs": ""}, "buildah bud": nil} {
		dir, environ := fakes(t, files)
		cmd := exec.CommandContext(t.Context(), "make", "images")
		cmd.Dir, cmd.Env = root, environ
		if said, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, said)
		}
		var tags []string
		for _, command := range changes(t, dir) {
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
