package k8s

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestBuildNamesTheMissingSetting(t *testing.T) {
	for file, names := range map[string][]string{
		settings: {
			"AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_STORAGE_ACCOUNT_URL", "FRONTEND_IMAGE", "SIGNER_IMAGE", "VERSION", "ANONYMOUS_ACCESS",
		},
		authentication: {"OIDC_ISSUER", "OIDC_AUDIENCE"},
		monitoring:     {"RUNBOOK_URL"},
	} {
		for _, name := range names {
			f := filled(t)
			if file != settings {
				f.switchOn(filepath.Base(filepath.Dir(file)))
			}
			f.edit(file, "(?m)^"+name+"=", "# $0")
			if _, err := build(filepath.Join(f.dir, aks)); err == nil || !strings.Contains(err.Error(), "`data."+name+"` is missing") {
				t.Errorf("without %s the build returns %v", name, err)
			}
			if !strings.Contains(read(t, file), "\n# "+name+"=") {
				t.Errorf("%s comes with a value of %s", file, name)
			}
		}
	}
}

// Settings with the tag shared:"true" must be equal in both containers, so they belong into the ConfigMap that both read.
func TestSharedSettingsHaveTheirFile(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("..", "shared", "*", "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	offered := regexp.MustCompile(setting).FindAllString(read(t, shared)+read(t, authentication), -1)
	total := 0
	for _, file := range files {
		for _, m := range regexp.MustCompile(`env:"([A-Z_]+)[^"]*" shared:"true"`).FindAllStringSubmatch(read(t, file), -1) {
			total++
			if !slices.Contains(offered, "# "+m[1]+"=") && !slices.Contains(offered, m[1]+"=") && !strings.HasSuffix(file, "_test.go") {
				t.Errorf("%s is neither in shared.env nor in authentication.env", m[1])
			}
		}
	}
	if total < 6 {
		t.Errorf("only %d shared settings", total)
	}
}

func TestContainersGetTheirSettings(t *testing.T) {
	f := filled(t).switchOn(".*")
	for name, value := range map[string]string{
		"AZURE_CLIENT_ID": "the-client", "AZURE_TENANT_ID": "the-tenant", "AZURE_STORAGE_ACCOUNT_URL": "https://acct.blob.core.windows.net",
		"FRONTEND_IMAGE": "r.example/f@sha256:1", "SIGNER_IMAGE": "r.example:5000/s:v1", "VERSION": "v1-rc.1",
	} {
		f.set(settings, name, value)
	}
	f.set(shared, "MAX_PICTURE_SIZE", "64MiB")
	f.build(aks).wantRules(t, "aks with settings", "settings")
}
