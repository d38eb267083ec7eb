// Package offline tests make cluster-test and make images with fake programs, without a cluster.
package offline

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cats.example/local/stack"
)

// fake is kubectl, docker, buildah and the program that loads images. It prints files of the folder $FAKES, and adds each command
// that could change something to $FAKES/changes.
const fake = `#!/bin/sh
name=$(basename "$0")
case "$name $*" in
"docker info") [ -e "$FAKES/docker-runs" ] ;;
kubectl*config\ current-context*) echo prod ;;
kubectl*get\ namespaces\ --selector\ cats-api.example/cluster-test!=true*) cat "$FAKES/foreign" ;;
*) echo "$name $*" >>"$FAKES/changes"
   case "$*" in *apply*) exit 1 ;; esac ;;
esac
`

// runMake runs make in the checkout with fake programs that read files. It returns the output, and the commands of the fake programs
// that could change something.
func runMake(t *testing.T, files map[string]string, target string) (output, changes string, err error) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, program := range []string{"kubectl", "docker", "buildah", "load"} {
		write(program, fake, 0o755)
	}
	write("changes", "", 0o600)
	for name, content := range files {
		write(name, content, 0o600)
	}
	cmd := exec.CommandContext(t.Context(), "make", target)
	cmd.Dir = root(t)
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "FAKES="+dir, "MAKEFLAGS=", "LOAD_IMAGE=load")
	out, err := cmd.CombinedOutput()
	recorded, readErr := os.ReadFile(filepath.Join(dir, "changes"))
	if readErr != nil {
		t.Fatal(readErr)
	}
	return string(out), string(recorded), err
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

func TestClusterTestChangesNothingBesideForeignNamespaces(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"namespace cats-api-test exists":            {"foreign": "default cats-api-test"},
		"namespace cats-api-test-monitoring exists": {"foreign": "cats-api-test-monitoring"},
		"nothing was changed":                       nil, // kubectl fails
	} {
		output, changes, err := runMake(t, files, "cluster-test")
		if err == nil || changes != "" || !strings.Contains(output, name) {
			t.Errorf("%v, and %q; want %q and no change:\n%s", err, changes, name, output)
		}
	}
}

func TestClusterTestDeletesOnlyNamespacesWithItsLabel(t *testing.T) {
	output, changes, _ := runMake(t, map[string]string{"foreign": "default cats-api", "docker-runs": ""}, "cluster-test")
	_, got, _ := strings.Cut(changes, "kubectl")
	const down = "--namespace NS delete deployments --all --timeout 5m\n" +
		"--namespace NS wait --for delete pods --all --timeout 5m\n" +
		"delete namespace --selector cats-api.example/cluster-test=true --field-selector metadata.name=NS --timeout 5m\n"
	want := strings.ReplaceAll(down, "NS", "cats-api-test") + strings.ReplaceAll(down, "NS", "cats-api-test-monitoring") +
		"create --save-config -f testdata/namespaces.yaml\napply -k testdata/overlay\n"
	got = strings.ReplaceAll("kubectl"+got, "kubectl --context=prod --namespace=cats-api-test ", "")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the changes (-want +got):\n%s\n%s", diff, output)
	}
}

// Kubernetes completes an image name without a registry with docker.io/library/.
func TestMakeImagesUsesTheNamesInManifests(t *testing.T) {
	var want []string
	for _, file := range []string{"k8s/base/deployment.yaml", "k8s/overlays/emulator/azure.yaml"} {
		b, err := os.ReadFile(filepath.Join(root(t), file))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`image: (cats-api-\S+)`).FindAllStringSubmatch(string(b), -1) {
			want = append(want, "docker.io/library/"+m[1])
		}
	}
	slices.Sort(want)
	for builder, files := range map[string]map[string]string{"docker build": {"docker-runs": ""}, "buildah bud": nil} {
		output, changes, err := runMake(t, files, "images")
		var got []string
		for _, m := range regexp.MustCompile(`(?m)^`+builder+` .*-t (\S+)`).FindAllStringSubmatch(changes, -1) {
			got = append(got, m[1])
		}
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" || len(want) != 3 || err != nil {
			t.Errorf("%s: %v; the tags (-manifests +got):\n%s\n%s", builder, err, diff, output)
		}
	}
}
