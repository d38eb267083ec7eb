package main

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var good = []string{
	"AZURE_STORAGE_ACCOUNT_URL=https://davydscats.blob.core.windows.net/",
	"AZURE_CLIENT_ID=11111111-1111-4111-8111-111111111111", "AZURE_TENANT_ID=22222222-2222-4222-8222-222222222222", "AZURE_FEDERATED_TOKEN_FILE=/f",
	"ANONYMOUS_ACCESS=true",
}

func with(settings ...string) []string { return append(slices.Clone(good), settings...) }

// invalid calls check with each setting of a file in testdata, its name, and the text that its error must hold.
func invalid(t *testing.T, file string, check func(setting, name, text string)) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		if quoted, err := strconv.QuotedPrefix(line); err == nil {
			setting, _ := strconv.Unquote(quoted)
			name, _, _ := strings.Cut(setting, "=")
			check(setting, name, strings.TrimSpace(line[len(quoted):]))
		} else if !strings.HasPrefix(line, "#") {
			t.Errorf("%s: %q: %v", file, line, err)
		}
	}
}

func TestWebhookVariablesAndAccountAreEnough(t *testing.T) {
	c, err := parse(good)
	if err != nil {
		t.Fatal(err)
	}
	if c.Storage.AccountURL != "https://davydscats.blob.core.windows.net" || c.Storage.Container != "cats" || c.Storage.BlobName != "cat" || c.Signing.LinkTTL != time.Hour || c.ListenAddress != "127.0.0.1:8081" {
		t.Errorf("%+v", c)
	}
}

func TestInvalidSettingIsRejectedByName(t *testing.T) {
	invalid(t, "invalid_settings.txt", func(setting, name, text string) {
		if _, err := parse(with(setting)); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v; want %s and %q in it", setting, err, name, text)
		}
	})
	for _, valid := range []string{"LISTEN_ADDRESS=[::1]:0", "LISTEN_ADDRESS=127.0.0.2:1", "LISTEN_ADDRESS=localhost:8081", "LINK_BASE_URL=http://127.0.0.1:8082/", "MAX_UPLOADS=1024", "MAX_PICTURE_SIZE=4000MiB"} {
		if _, err := parse(with(valid)); err != nil {
			t.Errorf("%s: %v", valid, err)
		}
	}
}

func TestAllValidationErrorsAreReported(t *testing.T) {
	_, err := parse([]string{"AZURE_STORAGE_ACCOUNT_URL=https://10.0.0.1", "LISTEN_ADDRESS=:1", "LINK_TTL=0s", "STALL_TIMEOUT=-1s"})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"AZURE_STORAGE_ACCOUNT_URL", "ANONYMOUS_ACCESS", "LISTEN_ADDRESS", "LINK_TTL", "STALL_TIMEOUT"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not in: %v", want, err)
		}
	}
}

func TestAuthenticationMustBeConfigured(t *testing.T) {
	issuer := []string{"OIDC_ISSUER=https://login.example.com", "OIDC_AUDIENCE=cats"}
	for _, c := range []struct {
		choice []string
		want   string
	}{
		{nil, "ANONYMOUS_ACCESS=true"},
		{[]string{"ANONYMOUS_ACCESS=false"}, "OIDC_ISSUER"},
		{[]string{"READ_ACCESS=anyone"}, "OIDC_AUDIENCE"},
		{[]string{"ANONYMOUS_ACCESS=true"}, ""},
		{[]string{"ANONYMOUS_ACCESS=1"}, ""},
		{issuer, ""},
		{append([]string{"ANONYMOUS_ACCESS=false"}, issuer...), ""},
		{append([]string{"ANONYMOUS_ACCESS=true"}, issuer...), "both set"},
	} {
		_, err := parse(append(slices.Clone(good[:4]), c.choice...))
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v; want %q", c.choice, err, c.want)
		}
	}
}

// The signer starts with an invalid identity, so that the doctor can run in its container.
func TestIdentityValidationNamesVariableAndFix(t *testing.T) {
	invalid(t, "invalid_identity.txt", func(setting, name, text string) {
		settings, err := parse(with(setting))
		fault := settings.Identity.Validate()
		if err != nil || fault == nil || !strings.Contains(fault.Error(), name) || !strings.Contains(fault.Error(), text) || !strings.Contains(fault.Error(), "; fix: ") {
			t.Errorf("%s: %v, %v; want %q and a fix in it", setting, err, fault, text)
		}
	})
	for _, valid := range []string{"AZURE_CLIENT_ID=ABCDEF01-1111-4111-8111-111111111111", "AZURE_TENANT_ID=contoso.onmicrosoft.com"} {
		if settings, err := parse(with(valid)); err != nil || settings.Identity.Validate() != nil {
			t.Errorf("%s: %v, %v", valid, err, settings.Identity.Validate())
		}
	}
	login := []string{good[0], good[4], "CREDENTIAL=default"}
	if settings, err := parse(login); err != nil || settings.Identity.Validate() != nil {
		t.Errorf("with az login: %v", err)
	}
	if settings, err := parse(append(login, `AZURE_TENANT_ID="x"`)); err != nil || settings.Identity.Validate() == nil {
		t.Errorf("a tenant in quotes with az login: %v", err)
	}
}

func TestDoctorUsesTheValidSettings(t *testing.T) {
	for _, c := range []struct {
		environ               []string
		faults                []string // the variable of each
		noIdentity, noStorage bool
		linkBase              string
	}{
		{good, nil, false, false, ""},
		{with("LINK_BASE_URL=https://cdn.example.com/"), nil, false, false, "https://cdn.example.com"},
		{nil, []string{"AZURE_STORAGE_ACCOUNT_URL", "AZURE_CLIENT_ID"}, true, true, ""},
		{good[:4], []string{"ANONYMOUS_ACCESS"}, false, false, ""},
		{[]string{good[0], good[4]}, []string{"AZURE_CLIENT_ID"}, true, false, ""},
		{good[1:], []string{"AZURE_STORAGE_ACCOUNT_URL"}, false, true, ""},
		{with("LINK_TTL=soon", "LINK_BASE_URL=cdn"), []string{"LINK_TTL"}, false, false, ""},
		{with("LOG_LEVEL=loud", "LISTEN_ADDRESS=:1", "STORAGE_CONTAINER=A"), []string{"LOG_LEVEL"}, false, true, ""},
		{with("EXISTENCE_CACHE_TTL=-1s"), []string{"EXISTENCE_CACHE_TTL"}, false, false, ""},
	} {
		got := doctorOptions(c.environ)
		var lines []string
		if got.Faults != nil {
			lines = strings.Split(got.Faults.Error(), "\n")
		}
		if (got.Identity.Validate() != nil) != c.noIdentity || (got.Storage.Validate() != nil) != c.noStorage || got.Signing.LinkBaseURL != c.linkBase ||
			!slices.EqualFunc(lines, c.faults, strings.Contains) {
			t.Errorf("%q: %+v, faults %q; want %q", c.environ, got, lines, c.faults)
		}
	}
}
