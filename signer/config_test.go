package main

import (
	"slices"
	"strings"
	"testing"
	"time"
)

var good = []string{
	"AZURE_STORAGE_ACCOUNT_URL=https://davydscats.blob.core.windows.net/",
	"AZURE_CLIENT_ID=c", "AZURE_TENANT_ID=t", "AZURE_FEDERATED_TOKEN_FILE=/f",
}

func TestTheWebhooksVariablesAndTheAccountAreEnough(t *testing.T) {
	c, err := parse(good)
	if err != nil {
		t.Fatal(err)
	}
	if c.AccountURL != "https://davydscats.blob.core.windows.net" || c.Container != "cats" || c.BlobName != "cat" || c.LinkTTL != time.Hour || c.APIAddress != "127.0.0.1:8081" {
		t.Errorf("%+v", c)
	}
	if _, err := parse([]string{good[0], "CREDENTIAL=default"}); err != nil {
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
		"AZURE_CLIENT_ID=":                      "webhook",
		"AZURE_TENANT_ID=":                      "webhook",
		"AZURE_FEDERATED_TOKEN_FILE=":           "CREDENTIAL=default",
		"AZURE_AUTHORITY_HOST=http://x":         "https://",
		"CREDENTIAL=secret":                     "workload-identity",
		"STORAGE_CONTAINER=Cats":                "a-z",
		"STORAGE_CONTAINER=a--b":                "hyphens",
		"BLOB_NAME=a/b":                         "segment",
		"API_ADDRESS=:8081":                     "loopback",
		"API_ADDRESS=0.0.0.0:8081":              "loopback",
		"API_ADDRESS=10.0.0.1:8081":             "loopback",
		"API_ADDRESS=[::]:8081":                 "loopback",
		"API_ADDRESS=example.com:8081":          "loopback",
		"API_ADDRESS=8081":                      "loopback",
		"LINK_TTL=25h":                          "LINK_MAX_TTL",
		"LINK_TTL=1s":                           "LINK_MAX_TTL",
		"LINK_MAX_TTL=100h":                     "72h",
		"LINK_MAX_TTL=1m":                       "LINK_TTL",
		"LINK_BASE_URL=cdn.example.com":         "want a URL",
		"LINK_BASE_URL=https://c.com?a=":        "want a URL",
		"UPLOAD_MEMORY=1MiB":                    "at least 8MiB",
		"UPLOAD_WAIT=0s":                        "above zero",
		"EXISTENCE_TTL=-1s":                     "not below",
		"MAX_PICTURE_SIZE=0":                    "above zero",
		"DRAIN_TIMEOUT=0s":                      "above zero",
		"OIDC_ISSUER=http://login.example.com":  "in iss",
		"OIDC_ISSUER=https://login.example.com": "OIDC_AUDIENCE",
		"OIDC_AUDIENCE=cats":                    "OIDC_ISSUER",
		"READ_ACCESS=everybody":                 "anyone",
		"MAX_UPLOADS=1025":                      "at most 1024", // 64 MiB in pages of 32 KiB, two for each
	} {
		name, _, _ := strings.Cut(setting, "=")
		_, err := parse(append(slices.Clone(good), setting))
		if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), also) {
			t.Errorf("%s: %v; want %s and %q in it", setting, err, name, also)
		}
	}
	for _, ok := range []string{"API_ADDRESS=[::1]:0", "API_ADDRESS=127.0.0.2:1", "API_ADDRESS=localhost:8081", "LINK_BASE_URL=http://127.0.0.1:8082/", "MAX_UPLOADS=1024", "UPLOAD_MEMORY=8MiB"} {
		if _, err := parse(append(slices.Clone(good), ok)); err != nil {
			t.Errorf("%s: %v", ok, err)
		}
	}
}

func TestAllFaultsAreReportedTogether(t *testing.T) {
	_, err := parse([]string{"AZURE_STORAGE_ACCOUNT_URL=https://10.0.0.1", "API_ADDRESS=:1", "LINK_TTL=0s", "STALL_TIMEOUT=-1s"})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"AZURE_STORAGE_ACCOUNT_URL", "AZURE_CLIENT_ID", "API_ADDRESS", "LINK_TTL", "STALL_TIMEOUT"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not in: %v", want, err)
		}
	}
}
