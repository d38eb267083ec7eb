package main

import (
	"slices"
	"strings"
	"testing"
	"time"
)

var good = []string{
	"AZURE_STORAGE_ACCOUNT_URL=https://davydscats.blob.core.windows.net/",
	"AZURE_CLIENT_ID=11111111-1111-4111-8111-111111111111", "AZURE_TENANT_ID=22222222-2222-4222-8222-222222222222", "AZURE_FEDERATED_TOKEN_FILE=/f",
	"ANONYMOUS_ACCESS=true",
}

func TestTheWebhooksVariablesAndTheAccountAreEnough(t *testing.T) {
	c, err := parse(good)
	if err != nil {
		t.Fatal(err)
	}
	if c.Storage.AccountURL != "https://davydscats.blob.core.windows.net" || c.Storage.Container != "cats" || c.Storage.BlobName != "cat" || c.Storage.LinkTTL != time.Hour || c.APIAddress != "127.0.0.1:8081" {
		t.Errorf("%+v", c)
	}
	if _, err := parse([]string{good[0], "CREDENTIAL=default", "ANONYMOUS_ACCESS=true"}); err != nil {
		t.Errorf("someone logged in with az: %v", err)
	}
}

func TestFaultySettingsAreRefusedByName(t *testing.T) {
	for setting, also := range map[string]string{
		"AZURE_STORAGE_ACCOUNT_URL=":                                             "required",
		"AZURE_STORAGE_ACCOUNT_URL=http://davydscats.blob.core.windows.net":      "https://",
		"AZURE_STORAGE_ACCOUNT_URL=https://davydscats.blob.core.windows.net/c":   "without a path",
		"AZURE_STORAGE_ACCOUNT_URL=https://davydscats.blob.core.windows.net?s=1": "without a path",
		"AZURE_STORAGE_ACCOUNT_URL=https://127.0.0.1:10000":                      "first label",
		"AZURE_STORAGE_ACCOUNT_URL=https://cdn-x.example.com":                    "LINK_BASE_URL",
		"CREDENTIAL=secret":                     "workload-identity",
		"STORAGE_CONTAINER=Cats":                "a-z",
		"STORAGE_CONTAINER=a--b":                "hyphens",
		"BLOB_NAME=a/b":                         "segment",
		"LISTEN_ADDRESS=:8081":                  "loopback",
		"LISTEN_ADDRESS=0.0.0.0:8081":           "loopback",
		"LISTEN_ADDRESS=10.0.0.1:8081":          "loopback",
		"LISTEN_ADDRESS=[::]:8081":              "loopback",
		"LISTEN_ADDRESS=example.com:8081":       "loopback",
		"LISTEN_ADDRESS=8081":                   "loopback",
		"LINK_TTL=25h":                          "LINK_MAX_TTL",
		"LINK_TTL=1s":                           "LINK_MAX_TTL",
		"LINK_MAX_TTL=100h":                     "72h",
		"LINK_MAX_TTL=1m":                       "LINK_TTL",
		"LINK_BASE_URL=cdn.example.com":         "want a URL",
		"LINK_BASE_URL=https://c.com?a=":        "want a URL",
		"EXISTENCE_CACHE_TTL=-1s":               "negative",
		"MAX_PICTURE_SIZE=0":                    "above zero",
		"DRAIN_TIMEOUT=0s":                      "above zero",
		"OIDC_ISSUER=http://login.example.com":  "in iss",
		"OIDC_ISSUER=https://login.example.com": "OIDC_AUDIENCE",
		"OIDC_AUDIENCE=cats":                    "OIDC_ISSUER",
		"ANONYMOUS_ACCESS=":                     "OIDC_AUDIENCE",
		"ANONYMOUS_ACCESS=false":                "OIDC_ISSUER",
		"ANONYMOUS_ACCESS=yes":                  "invalid syntax",
		"ANONYMOUS_ACCESS=\"true\"":             "remove the quotes",
		"OIDC_AUDIENCE='cats'":                  "remove the quotes",
		"READ_ACCESS=everybody":                 "anyone",
		"MAX_PICTURE_SIZE=5GiB":                 "MAX_DIRECT_UPLOAD_SIZE",
	} {
		name, _, _ := strings.Cut(setting, "=")
		_, err := parse(append(slices.Clone(good), setting))
		if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), also) {
			t.Errorf("%s: %v; want %s and %q in it", setting, err, name, also)
		}
	}
	for _, ok := range []string{"LISTEN_ADDRESS=[::1]:0", "LISTEN_ADDRESS=127.0.0.2:1", "LISTEN_ADDRESS=localhost:8081", "LINK_BASE_URL=http://127.0.0.1:8082/", "MAX_UPLOADS=1024", "MAX_PICTURE_SIZE=4000MiB"} {
		if _, err := parse(append(slices.Clone(good), ok)); err != nil {
			t.Errorf("%s: %v", ok, err)
		}
	}
}

func TestAllFaultsAreReportedTogether(t *testing.T) {
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

func TestAuthenticationIsChosen(t *testing.T) {
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

func TestIdentityIsValidatedAtStart(t *testing.T) {
	const id = "11111111-1111-4111-8111-111111111111"
	for _, c := range []struct{ setting, want string }{
		{"AZURE_CLIENT_ID=" + id, ""},
		{"AZURE_CLIENT_ID=ABCDEF01-1111-4111-8111-111111111111", ""},
		{"AZURE_TENANT_ID=contoso.onmicrosoft.com", ""},
		{"AZURE_CLIENT_ID=", "annotation azure.workload.identity/client-id"},
		{"AZURE_TENANT_ID=", "webhook"},
		{"AZURE_FEDERATED_TOKEN_FILE=", "CREDENTIAL=default"},
		{"AZURE_AUTHORITY_HOST=http://x", "https://"},
		{`AZURE_CLIENT_ID="` + id + `"`, `is "` + id + `", in quotes`},
		{"AZURE_CLIENT_ID='" + id + "'", "remove the quotes"},
		{"AZURE_CLIENT_ID=“" + id + "”", "remove the quotes"},
		{`AZURE_CLIENT_ID=""`, "remove the quotes"},
		{`AZURE_TENANT_ID="` + id + `"`, "annotation azure.workload.identity/tenant-id"},
		{`AZURE_FEDERATED_TOKEN_FILE="/f"`, "remove the quotes"},
		{`AZURE_AUTHORITY_HOST="https://login.microsoftonline.us/"`, "remove the quotes"},
		{`AZURE_CLIENT_ID="` + id, "want a GUID"},
		{"AZURE_CLIENT_ID= " + id, "want a GUID"},
		{"AZURE_CLIENT_ID=" + id + "\r", `\r`},
		{"AZURE_CLIENT_ID=CLIENT-ID", "want a GUID"},
		{"AZURE_CLIENT_ID=" + id + "0", "want a GUID"},
		{"AZURE_CLIENT_ID=00000000-0000-0000-0000-000000000000", "placeholder"},
		{"AZURE_TENANT_ID=contoso", "a GUID or a domain"},
		{"AZURE_TENANT_ID=../common", "a GUID or a domain"},
	} {
		name, _, _ := strings.Cut(c.setting, "=")
		settings, err := parse(append(slices.Clone(good), c.setting))
		if err != nil {
			t.Errorf("%s: %v; the signer must start, or nobody can run the doctor in its container", c.setting, err)
			continue
		}
		fault := settings.Identity.Validate()
		if c.want == "" {
			if fault != nil {
				t.Errorf("%s: %v", c.setting, fault)
			}
			continue
		}
		if fault == nil || !strings.Contains(fault.Error(), name) || !strings.Contains(fault.Error(), c.want) || !strings.Contains(fault.Error(), "; fix: ") {
			t.Errorf("%s: %v; want %q and a fix in it", c.setting, fault, c.want)
		}
	}
	if settings, err := parse([]string{good[0], good[4], "CREDENTIAL=default", `AZURE_TENANT_ID="x"`}); err != nil || settings.Identity.Validate() == nil {
		t.Errorf("a tenant in quotes with CREDENTIAL=default: %v", err)
	}
}
