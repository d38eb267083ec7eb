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

// deps lists every package that a module's own packages link, as the module
// builds by itself, without the workspace.
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

// azure returns those of the packages that come from Azure's organisations.
func azure(packages []string) []string {
	var found []string
	for _, p := range packages {
		if strings.HasPrefix(p, "github.com/Azure") { // and github.com/AzureAD
			found = append(found, p)
		}
	}
	return found
}

func TestNothingThatFacesTheInternetLinksAzure(t *testing.T) {
	harness.NeedOwnSystem(t)
	for _, dir := range []string{"frontend", "shared", "local"} {
		if found := azure(deps(t, dir)); len(found) > 0 {
			t.Errorf("%s links %v: only the signer may, so that no bug in the public container can use an identity", dir, found)
		}
	}
	if len(azure(deps(t, "signer"))) == 0 {
		t.Error("the signer links no Azure either: this test sees nothing")
	}
}

func TestTheContractIsStandardLibraryOnly(t *testing.T) {
	harness.NeedOwnSystem(t)
	for _, p := range deps(t, "shared/signerapi") {
		if first, _, _ := strings.Cut(p, "/"); strings.Contains(first, ".") && !strings.HasPrefix(p, "cats.example/shared/") {
			t.Errorf("shared/signerapi links %s: what both processes trust should be small enough to read", p)
		}
	}
}

func TestTheFrontendBinaryHoldsNoAzureCode(t *testing.T) {
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
