package main

import (
	"fmt"
	"os"
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

func TestWebhookVariablesAndAccountAreEnough(t *testing.T) {
	c, err := parse(good)
	if err != nil || c.Storage.AccountURL != "https://davydscats.blob.core.windows.net" || c.Storage.Container != "cats" ||
		c.Storage.BlobName != "cat" || c.Signing.LinkTTL != time.Hour || c.ListenAddress != "127.0.0.1:8081" {
		t.Errorf("%+v, %v", c, err)
	}
	for _, valid := range []string{
		"LISTEN_ADDRESS=[::1]:0", "LISTEN_ADDRESS=127.0.0.2:1", "LISTEN_ADDRESS=localhost:8081",
		"LINK_BASE_URL=http://127.0.0.1:8082/", "MAX_UPLOADS=1024", "MAX_PICTURE_SIZE=4000MiB",
		"AZURE_CLIENT_ID=ABCDEF01-1111-4111-8111-111111111111", "AZURE_TENANT_ID=contoso.onmicrosoft.com",
	} {
		if c, err := parse(with(valid)); err != nil || c.Identity.Validate() != nil {
			t.Errorf("%s: %v, %v", valid, err, c.Identity.Validate())
		}
	}
	if c, err := parse([]string{good[0], good[4], "CREDENTIAL=default"}); err != nil || c.Identity.Validate() != nil {
		t.Errorf("with az login: %v, %v", err, c.Identity.Validate())
	}
}

// The signer starts with an invalid identity, so that the doctor can run in its container.
func TestInvalidSettingIsRejectedByName(t *testing.T) {
	for file, fault := range map[string]func(c settings, err error) error{
		"invalid_settings.txt": func(_ settings, err error) error { return err },
		"invalid_identity.txt": func(c settings, err error) error {
			if fault := c.Identity.Validate(); err == nil && fault != nil && strings.Contains(fault.Error(), "; fix: ") {
				return fault
			}
			return nil
		},
	} {
		content, err := os.ReadFile("testdata/" + file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(content)) {
			if strings.HasPrefix(line, "#") {
				continue
			}
			quoted, err := strconv.QuotedPrefix(line)
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			setting, _ := strconv.Unquote(quoted)
			name, _, _ := strings.Cut(setting, "=")
			got := fmt.Sprint(fault(parse(with(setting))))
			if want := strings.TrimSpace(line[len(quoted):]); !strings.Contains(got, name) || !strings.Contains(got, want) {
				t.Errorf("%s: %s; want %s and %q in it", setting, got, name, want)
			}
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
