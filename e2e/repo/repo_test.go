// Package repo tests the repository: images, workflows, dependencies, documents.
package repo

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cats.example/e2e/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// glob returns the files of the checkout that match one of patterns.
func glob(t *testing.T, patterns ...string) (files []string) {
	t.Helper()
	for _, pattern := range patterns {
		found, err := filepath.Glob(harness.Root(pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %v, %v", pattern, found, err)
		}
		files = append(files, found...)
	}
	return files
}

// deps returns the packages that the packages in dir link, built without the workspace.
func deps(t *testing.T, dir string) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "./...")
	cmd.Dir, cmd.Env = harness.Root(dir), append(os.Environ(), "GOWORK=off")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list in %s: %v", dir, err)
	}
	return strings.Fields(string(out))
}

// A bug in the public container cannot use an identity that its program has no code for.
func TestOnlySignerLinksAzure(t *testing.T) {
	for dir, want := range map[string]bool{"frontend": false, "shared": false, "cats": false, "signer": true} {
		var azure []string
		for _, p := range deps(t, dir) {
			if strings.HasPrefix(p, "github.com/Azure") { // and github.com/AzureAD
				azure = append(azure, p)
			}
		}
		if len(azure) > 0 != want {
			t.Errorf("%s links %v", dir, azure)
		}
	}
}

// The code that both processes trust must be small enough to review.
func TestContractImportsOnlyStandardLibrary(t *testing.T) {
	allowed := map[string]bool{"cats.example/shared/signerapi": true, "cats.example/shared/apierror": true}
	for _, p := range deps(t, "shared/signerapi") {
		if first, _, _ := strings.Cut(p, "/"); strings.Contains(first, ".") && !allowed[p] {
			t.Errorf("shared/signerapi links %s", p)
		}
	}
}
