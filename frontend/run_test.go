package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTheFrontendRefusesToStartBesideACredential(t *testing.T) {
	dir := t.TempDir()
	var files []string
	for _, name := range []string{"azure-identity-token", "token"} {
		files = append(files, filepath.Join(dir, name))
		if err := os.WriteFile(files[len(files)-1], []byte("secret-token"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		environ, files, endpoints []string
		names                     []string
	}{
		{[]string{"AZURE_FEDERATED_TOKEN_FILE=/secret-token"}, nil, nil, []string{"AZURE_FEDERATED_TOKEN_FILE"}},
		{[]string{"PATH=/bin", "AZURE_CLIENT_SECRET=secret-token"}, nil, nil, []string{"AZURE_CLIENT_SECRET"}},
		{[]string{"AZURE_CLIENT_ID="}, nil, nil, []string{"AZURE_CLIENT_ID"}},
		{[]string{"IDENTITY_ENDPOINT=http://secret-token", "IDENTITY_HEADER=secret-token"}, nil, nil, []string{"variable IDENTITY_ENDPOINT, variable IDENTITY_HEADER;"}},
		{[]string{"MSI_SECRET=secret-token", "MSI_ENDPOINT=http://secret-token"}, nil, nil, []string{"variable MSI_ENDPOINT, variable MSI_SECRET;"}},
		{[]string{"IMDS_ENDPOINT="}, nil, nil, []string{"IMDS_ENDPOINT"}},
		{[]string{"IDENTITY_SERVER_THUMBPRINT=secret-token"}, nil, nil, []string{"IDENTITY_SERVER_THUMBPRINT"}},
		{nil, files[:1], nil, files[:1]},
		{nil, append(files, dir+"/absent"), nil, files},
		{nil, nil, []string{"127.0.0.1:8000"}, []string{"token endpoint 127.0.0.1:8000;"}},
		{
			[]string{"AZURE_TENANT_ID=secret-token", "AZURE_CLIENT_ID=secret-token", "AZURE_CLIENT_ID=again", "MSI_ENDPOINT=secret-token"},
			files,
			[]string{"127.0.0.1:9", "[::1]:9"},
			append([]string{"variable AZURE_CLIENT_ID, variable AZURE_TENANT_ID, variable MSI_ENDPOINT;", "token endpoint 127.0.0.1:9, token endpoint [::1]:9, "}, files...),
		},
	} {
		err := checkSplit(c.environ, c.files, c.endpoints)
		if err == nil {
			t.Errorf("%v: no error", c)
			continue
		}
		for _, part := range append(c.names, "skip-containers", "automountServiceAccountToken", "inject-proxy-sidecar") {
			if strings.Count(err.Error(), part) != 1 {
				t.Errorf("%v: %v; want one %q", c, err, part)
			}
		}
		if strings.Contains(err.Error(), "secret-token") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %v; want one line without values", c, err)
		}
	}
	if err := checkSplit([]string{"PATH=/bin", "MY_AZURE_=1", "azure_client_id=1", "IDENTITY_ENDPOINTS=1", "MSI=1"}, []string{dir + "/absent"}, nil); err != nil {
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
	_, err := parse([]string{"MAX_PICTURE_SIZE=0", "STALL_TIMEOUT=0s", "ACCEPTED_TYPES=cat", "OIDC_ISSUER=login", "READ_ACCESS=all"})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"MAX_PICTURE_SIZE", "STALL_TIMEOUT", "ACCEPTED_TYPES", "OIDC_ISSUER", "READ_ACCESS"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not in: %v", want, err)
		}
	}
	if err := run(t.Context(), []string{"SIGNER_URL=https://elsewhere"}, &strings.Builder{}); err == nil || !strings.Contains(err.Error(), "http://HOST:PORT") {
		t.Errorf("a SIGNER_URL that is none: %v", err)
	}
}
