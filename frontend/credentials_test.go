package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFrontendRefusesToStartWithCredentials(t *testing.T) {
	dir := t.TempDir()
	files := []string{filepath.Join(dir, "azure-identity-token"), filepath.Join(dir, "token")}
	for _, name := range files {
		if err := os.WriteFile(name, []byte("secret-token"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		environ          string // separated by spaces
		files, endpoints []string
		want             string // in the error
	}{
		{"AZURE_FEDERATED_TOKEN_FILE=/secret-token", nil, nil, "variable AZURE_FEDERATED_TOKEN_FILE;"},
		{"PATH=/bin AZURE_CLIENT_SECRET=secret-token", nil, nil, "variable AZURE_CLIENT_SECRET;"},
		{"AZURE_CLIENT_ID=", nil, nil, "variable AZURE_CLIENT_ID;"},
		{"IDENTITY_ENDPOINT=http://secret-token IDENTITY_HEADER=secret-token", nil, nil, "variable IDENTITY_ENDPOINT, variable IDENTITY_HEADER;"},
		{"MSI_SECRET=secret-token MSI_ENDPOINT=http://secret-token", nil, nil, "variable MSI_ENDPOINT, variable MSI_SECRET;"},
		{"IMDS_ENDPOINT=", nil, nil, "variable IMDS_ENDPOINT;"},
		{"IDENTITY_SERVER_THUMBPRINT=secret-token", nil, nil, "variable IDENTITY_SERVER_THUMBPRINT;"},
		{"", files[:1], nil, "token file " + files[0] + ";"},
		{"", append(files, dir+"/absent"), nil, "token file " + files[0] + ", token file " + files[1] + ";"},
		{"", nil, []string{"127.0.0.1:8000"}, "token endpoint 127.0.0.1:8000;"},
		{
			"AZURE_TENANT_ID=secret-token AZURE_CLIENT_ID=secret-token AZURE_CLIENT_ID=again MSI_ENDPOINT=secret-token", files[:1],
			[]string{"127.0.0.1:9", "[::1]:9"},
			"token endpoint 127.0.0.1:9, token endpoint [::1]:9, token file " + files[0] + ", variable AZURE_CLIENT_ID, variable AZURE_TENANT_ID, variable MSI_ENDPOINT;",
		},
	} {
		err := checkNoCredentials(strings.Fields(c.environ), c.files, c.endpoints)
		if err == nil || !strings.Contains(err.Error(), "does not start: "+c.want+" "+credentialsFix) || strings.Contains(err.Error(), "secret-token") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v; want one line with %q and without values", c.environ, err, c.want)
		}
	}
	if err := checkNoCredentials(strings.Fields("PATH=/bin MY_AZURE_=1 azure_client_id=1 IDENTITY_ENDPOINTS=1 MSI=1"), []string{dir + "/absent"}, nil); err != nil {
		t.Errorf("without credentials: %v", err)
	}
}

func TestRunChecksCredentialsFirst(t *testing.T) {
	var log strings.Builder
	err := run(t.Context(), []string{"AZURE_FEDERATED_TOKEN_FILE=x", "MAX_PICTURE_SIZE=nonsense"}, &log)
	if err == nil || !strings.Contains(err.Error(), "AZURE_FEDERATED_TOKEN_FILE") || log.Len() > 0 {
		t.Errorf("run returned %v and logged %q", err, log.String())
	}
}

func TestInvalidSettingsAreReportedTogether(t *testing.T) {
	err := run(t.Context(), []string{"MAX_PICTURE_SIZE=0", "STALL_TIMEOUT=0s", "ACCEPTED_TYPES=cat", "OIDC_ISSUER=login", "READ_ACCESS=all", "SIGNER_URL=https://elsewhere"}, &strings.Builder{})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"MAX_PICTURE_SIZE", "STALL_TIMEOUT", "ACCEPTED_TYPES", "OIDC_ISSUER", "READ_ACCESS", "http://HOST:PORT"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not in: %v", want, err)
		}
	}
}
