package main

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRunRejectsInvalidInput(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, c := range []struct{ args, environ, want string }{ // want is in the error; "" for none
		{"--help", "", ""},
		{"--version", "", ""},
		{"--fast", "", "--fast"},
		{"", "SIGNER_PORT=mew", "SIGNER_PORT"},
		{"", "SSL_CERT_FILE=/nowhere", "no such file"},
		{"", "SSL_CERT_FILE=/dev/null", "contains no certificate"},
		{"", "", "not in a checkout"},
	} {
		var out bytes.Buffer
		err := run(t.Context(), strings.Fields(c.args), []string{c.environ}, &out)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) || c.want == "" && out.Len() == 0 {
			t.Errorf("%v: %v, output %q", c, err, &out)
		}
	}
}

func TestProcessesGetOnlyTheirSettings(t *testing.T) {
	t.Chdir(t.TempDir())
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	environ := strings.Fields(`LOG_LEVEL=debug LINK_TTL= OTEL_SDK_DISABLED=true MAX_DIRECT_UPLOAD_SIZE=1GiB OTHER=x
		LISTEN_ADDRESS=:1 SIGNER_URL=http://other STORAGE_CONTAINER=dogs AZURE_CLIENT_ID=a AZURE_CLIENT_SECRET=mew
		SSL_CERT_FILE=ca.pem SSL_CERT_DIR=/etc/ssl/certs:own HOME=/home/mia`)
	names := strings.Fields(`LOG_LEVEL LINK_TTL MAX_DIRECT_UPLOAD_SIZE LISTEN_ADDRESS SIGNER_URL AZURE_CLIENT_ID CREDENTIAL
		STORAGE_CONTAINER`)
	account := settings{AccountURL: "https://davydscats.blob.core.windows.net"}
	frontend := map[string]string{"LOG_LEVEL": "debug", "OTEL_SDK_DISABLED": "true", "MAX_DIRECT_UPLOAD_SIZE": "1GiB"}
	signer := maps.Clone(frontend)
	signer["SSL_CERT_FILE"], signer["SSL_CERT_DIR"] = here+"/ca.pem", "/etc/ssl/certs:"+here+"/own"
	real := maps.Clone(signer)
	maps.Copy(real, map[string]string{
		"STORAGE_CONTAINER": "dogs", "AZURE_CLIENT_ID": "a", "AZURE_CLIENT_SECRET": "mew", "HOME": "/home/mia", "CREDENTIAL": "default",
	})
	own := map[string]string{"CREDENTIAL": "workload-identity"}
	for what, c := range map[string]struct{ got, want map[string]string }{
		"frontend":               {frontendEnv(environ, names[:7]), frontend},
		"signer":                 {settings{}.signerEnv(environ, names), signer},
		"signer, real account":   {account.signerEnv(environ, names), real},
		"signer, no variables":   {settings{}.signerEnv(nil, names), map[string]string{"MAX_DIRECT_UPLOAD_SIZE": "5GiB"}},
		"signer, own credential": {account.signerEnv([]string{"CREDENTIAL=workload-identity"}, names), own},
	} {
		if diff := cmp.Diff(c.want, c.got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
}

func TestPrometheusIsOptional(t *testing.T) {
	used := freePort(t)
	listen(t, "127.0.0.1", used)
	check := func(port int, want string) {
		t.Helper()
		var out bytes.Buffer
		l := &local{out: &out, cfg: settings{PrometheusPort: port}}
		l.startPrometheus(t.Context())
		if l.prometheus != nil || !strings.Contains(out.String(), want) || (want == "") != (out.Len() == 0) {
			t.Errorf("port %d: output %q; want %q", port, &out, want)
		}
	}
	check(0, "")
	if _, err := exec.LookPath("prometheus"); err == nil {
		check(used, "is in use; continuing without it")
	}
	t.Setenv("PATH", t.TempDir())
	check(used, "not in PATH")
}
