package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTheFrontendRefusesToStartBesideACredential(t *testing.T) {
	file := filepath.Join(t.TempDir(), "azure-identity-token")
	if err := os.WriteFile(file, []byte("secret-token"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		environ, files []string
		names          string
	}{
		{[]string{"AZURE_FEDERATED_TOKEN_FILE=/secret-token"}, nil, "AZURE_FEDERATED_TOKEN_FILE"},
		{[]string{"PATH=/bin", "AZURE_CLIENT_SECRET=secret-token"}, nil, "AZURE_CLIENT_SECRET"},
		{[]string{"AZURE_CLIENT_ID="}, nil, "AZURE_CLIENT_ID"},
		{nil, []string{file}, file},
	} {
		err := checkSplit(c.environ, c.files)
		if err == nil || !strings.Contains(err.Error(), c.names) || !strings.Contains(err.Error(), "skip-containers") {
			t.Errorf("%v: %v; want an error that names %s and what to do", c, err, c.names)
		} else if strings.Contains(strings.ReplaceAll(err.Error(), file, ""), "secret-token") {
			t.Errorf("the error shows the value: %v", err)
		}
	}
	if err := checkSplit([]string{"PATH=/bin", "MY_AZURE_=1"}, []string{file + ".absent"}); err != nil {
		t.Errorf("without a credential: %v", err)
	}
}

func TestRunChecksTheSplitBeforeAnythingElse(t *testing.T) {
	var log strings.Builder
	err := run(t.Context(), []string{"AZURE_FEDERATED_TOKEN_FILE=x", "MAX_PICTURE_SIZE=nonsense"}, &log)
	if err == nil || !strings.Contains(err.Error(), "AZURE_FEDERATED_TOKEN_FILE") || log.Len() > 0 {
		t.Errorf("run returned %v and logged %q", err, log.String())
	}
}

func TestFaultySettingsAreReportedTogether(t *testing.T) {
	_, err := parse([]string{"MAX_PICTURE_SIZE=0", "STALL_TIMEOUT=0s", "PICTURE_TYPES=cat", "OIDC_ISSUER=login", "READ_ACCESS=all"})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"MAX_PICTURE_SIZE", "STALL_TIMEOUT", "PICTURE_TYPES", "OIDC_ISSUER", "READ_ACCESS"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not in: %v", want, err)
		}
	}
	if err := run(t.Context(), []string{"SIGNER_URL=https://elsewhere"}, &strings.Builder{}); err == nil || !strings.Contains(err.Error(), "http://HOST:PORT") {
		t.Errorf("a SIGNER_URL that is none: %v", err)
	}
}
