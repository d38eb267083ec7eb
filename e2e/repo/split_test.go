package repo

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cats.example/e2e/harness"
)

// deps lists the packages that a module's packages link when it is built without the workspace.
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

// azure returns the packages of Azure's organizations.
func azure(packages []string) []string {
	var found []string
	for _, p := range packages {
		if strings.HasPrefix(p, "github.com/Azure") { // and github.com/AzureAD
			found = append(found, p)
		}
	}
	return found
}

func TestOnlySignerLinksAzure(t *testing.T) {
	harness.NeedOwnSystem(t)
	for _, dir := range []string{"frontend", "shared", "cats"} {
		if found := azure(deps(t, dir)); len(found) > 0 {
			t.Errorf("%s links %v; no shipped program but the signer may, so that a bug in the public container cannot use the identity", dir, found)
		}
	}
	if len(azure(deps(t, "signer"))) == 0 {
		t.Error("signer links no Azure package; the test is broken")
	}
}

func TestContractImportsOnlyStandardLibrary(t *testing.T) {
	harness.NeedOwnSystem(t)
	for _, p := range deps(t, "shared/signerapi") {
		if first, _, _ := strings.Cut(p, "/"); strings.Contains(first, ".") && p != "cats.example/shared/signerapi" && p != "cats.example/shared/watchdog" && p != "cats.example/shared/apierror" {
			t.Errorf("shared/signerapi links %s; the code that both processes trust must be small enough to review", p)
		}
	}
}

func TestFrontendBinaryContainsNoAzureCode(t *testing.T) {
	harness.NeedOwnSystem(t)
	for name, want := range map[string]bool{"frontend": false, "signer": true} {
		binary, err := os.ReadFile(filepath.Join(harness.BinDir(t), name))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []string{"azidentity", "azure-sdk-for-go"} {
			if got := bytes.Contains(binary, []byte(s)); got != want {
				t.Errorf("%q in the %s binary: %v; want %v", s, name, got, want)
			}
		}
	}
}
