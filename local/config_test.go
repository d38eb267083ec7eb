package main

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cats.example/local/stack"
	"cats.example/shared/config"
)

const account = "https://davydscats.blob.core.windows.net"

func TestSettingsAreReadFromHelp(t *testing.T) {
	var help strings.Builder
	if err := config.Help(&help, about, &settings{}); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n[ \"$1\" = --help ] && cat <<'END'\n"+help.String()+"END\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	got, err := settingsOf(t.Context(), program)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, s := range config.Describe(&settings{}) {
		want = append(want, s.Name)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := settingsOf(t.Context(), "/bin/false"); err == nil {
		t.Error("no error for a program that fails")
	}
}

func TestProcessesGetOnlyTheirSettings(t *testing.T) {
	t.Chdir(t.TempDir())
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	environ := []string{
		"LOG_LEVEL=debug", "LINK_TTL=", "OTEL_SDK_DISABLED=true", "MAX_DIRECT_UPLOAD_SIZE=1GiB", "OTHER=x",
		"LISTEN_ADDRESS=:1", "SIGNER_URL=http://other", "STORAGE_CONTAINER=dogs", "AZURE_CLIENT_ID=a", "AZURE_CLIENT_SECRET=mew",
		"SSL_CERT_FILE=ca.pem", "SSL_CERT_DIR=/etc/ssl/certs:own", "HOME=/home/mia",
	}
	names := []string{"LOG_LEVEL", "LINK_TTL", "MAX_DIRECT_UPLOAD_SIZE", "LISTEN_ADDRESS", "SIGNER_URL", "AZURE_CLIENT_ID", "CREDENTIAL"}
	signerNames := append(names, "STORAGE_CONTAINER")
	frontend := map[string]string{"LOG_LEVEL": "debug", "OTEL_SDK_DISABLED": "true", "MAX_DIRECT_UPLOAD_SIZE": "1GiB"}
	signer := maps.Clone(frontend)
	signer["SSL_CERT_FILE"], signer["SSL_CERT_DIR"] = here+"/ca.pem", "/etc/ssl/certs:"+here+"/own"
	real := maps.Clone(signer)
	maps.Copy(real, map[string]string{
		"STORAGE_CONTAINER": "dogs", "AZURE_CLIENT_ID": "a", "AZURE_CLIENT_SECRET": "mew", "HOME": "/home/mia", "CREDENTIAL": "default",
	})
	for what, c := range map[string]struct{ got, want map[string]string }{
		"frontend":               {frontendEnv(environ, names), frontend},
		"signer":                 {settings{}.signerEnv(environ, signerNames), signer},
		"signer, real account":   {settings{AccountURL: account}.signerEnv(environ, signerNames), real},
		"signer, no variables":   {settings{}.signerEnv(nil, names), map[string]string{"MAX_DIRECT_UPLOAD_SIZE": "5GiB"}},
		"signer, own credential": {settings{AccountURL: account}.signerEnv([]string{"CREDENTIAL=workload-identity"}, names), map[string]string{"CREDENTIAL": "workload-identity"}},
	} {
		if diff := cmp.Diff(c.want, c.got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
}

func TestParseChecksCertificateFile(t *testing.T) {
	dir := t.TempDir()
	ca, err := stack.OpenCA(dir, "localhost")
	if err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(dir, "broken.pem")
	if err := os.WriteFile(broken, []byte("-----BEGIN CERTIFICATE-----\nbWV3\n-----END CERTIFICATE-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"": "", ca.File: "", filepath.Join(dir, "nothing.pem"): "no such file", dir: "is a directory",
		os.DevNull: "contains no certificate", ca.KeyFile: "contains no certificate", broken: "contains no certificate",
	} {
		_, err := parse([]string{"SSL_CERT_FILE=" + file})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q", file, err, want)
		}
	}
}
