package ops

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cats.example/e2e/harness"
	"cats.example/local/issuer"
	"cats.example/local/stack"
)

// doctorEnv returns a valid environment for the doctor in the container of sys, with an Entra ID of its own, which gets a federated
// token after change.
func doctorEnv(t *testing.T, sys *stack.System, change func(*issuer.Federated)) []string {
	t.Helper()
	st := harness.Stack(t)
	entra, err := issuer.New(issuer.Config{
		Tenant: stack.TenantID, ClientID: stack.ClientID, ObjectID: "00000000-0000-4000-8000-0000000000d0",
		Issuer: st.Cluster.URL(), Subject: stack.Subject, Client: st.Client(),
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(entra)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{st.CA.Leaf}}
	server.StartTLS()
	t.Cleanup(server.Close)
	token := filepath.Join(t.TempDir(), "token")
	harness.WriteToken(t, token, harness.FederatedToken(t, change))
	return []string{
		"AZURE_CLIENT_ID=" + stack.ClientID, "AZURE_TENANT_ID=" + stack.TenantID, "AZURE_FEDERATED_TOKEN_FILE=" + token,
		"AZURE_AUTHORITY_HOST=" + server.URL + "/", "DISABLE_INSTANCE_DISCOVERY=true", "SSL_CERT_FILE=" + st.CA.File,
		"AZURE_STORAGE_ACCOUNT_URL=" + st.Storage.URL, "LINK_BASE_URL=" + st.FrontURL, "STORAGE_CONTAINER=" + sys.Container,
		"ANONYMOUS_ACCESS=true",
		// The doctor runs beside the signer, which has these addresses.
		"LISTEN_ADDRESS=" + strings.TrimPrefix(sys.SignerAPI, "http://"), "OPS_ADDRESS=" + strings.TrimPrefix(sys.SignerOps, "http://"),
	}
}

// wantParts fails the test unless text contains all parts.
func wantParts(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q is not in\n%s", part, text)
		}
	}
}

func TestDoctorReportsCausesAndFixes(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	harness.Put(t, sys, "u", harness.Cat)
	wantBlobs(t, sys, 1)
	const (
		begin       = "ok settings, ok token file, ok exchange, "
		storage     = "ok key, ok put, ok link, ok link base, ok delete, ok clock"
		noExchange  = "fail exchange, skip key, skip put, skip link, ok clock"
		noIdentity  = "ok token file, skip exchange, skip key, skip put, skip link, ok clock"
		unreachable = begin + "fail key, skip put, skip link, skip clock"
	)
	host, _ := os.Hostname()
	for name, c := range map[string]struct {
		change            func(*issuer.Federated)
		env, checks, says string // env is separated by spaces, says by |
	}{
		"healthy": {
			nil, "MAX_DIRECT_UPLOAD_SIZE=1GiB", begin + strings.Replace(storage, "ok delete", "ok copy, ok delete", 1),
			stack.Subject + "|" + harness.Stack(t).Cluster.URL() + "|" + issuer.Audience + "|client ID   " + stack.ClientID +
				"\n|tenant      " + stack.TenantID + "\n|(revision |all works|authentication is off",
		},
		"pod without a client ID": {
			nil, "KUBERNETES_SERVICE_HOST=10.0.0.1 AZURE_CLIENT_ID=", "fail settings, " + noIdentity,
			"pod         " + host + "\n|client ID   not set\n|fix: the workload identity webhook",
		},
		"no choice of authentication": {
			nil, "ANONYMOUS_ACCESS=", strings.Replace(begin, "ok", "fail", 1) + storage,
			"authentication is not configured|OIDC_ISSUER|ANONYMOUS_ACCESS=true",
		},
		"invalid settings": {
			nil, "LINK_TTL=soon AZURE_TENANT_ID=", "fail settings, fail settings, " + noIdentity,
			`LINK_TTL is "soon"|AZURE_TENANT_ID not set|the settings of the identity are not valid`,
		},
		"no token file": {
			nil, "AZURE_FEDERATED_TOKEN_FILE=/nowhere/token", "ok settings, " + strings.Replace(noIdentity, "ok", "fail", 1),
			"no such file|fix: mount the token's volume|skipped: there is no federated token",
		},
		"another subject": {
			func(f *issuer.Federated) { f.Subject = "system:serviceaccount:cats:other" }, "", "ok settings, ok token file, " + noExchange,
			"system:serviceaccount:cats:other|AADSTS700213:|fix: compare issuer, subject and audience|takes minutes",
		},
		"another audience": {
			func(f *issuer.Federated) { f.Audience = "api://other" }, "", "ok settings, warn token file, " + noExchange,
			"AADSTS700212:|audience  api://other\n|another audience than api://AzureADTokenExchange,",
		},
		"expired token": {
			func(f *issuer.Federated) { f.IssuedAt = time.Now().Add(-time.Hour) }, "", "ok settings, fail token file, " + noExchange,
			"AADSTS700024:|token is expired (exp)|kubelet",
		},
		"another client": {
			nil, "AZURE_CLIENT_ID=00000000-0000-4000-8000-00000000ffff", "ok settings, ok token file, " + noExchange,
			"AADSTS700016:|azure.workload.identity/client-id",
		},
		"unknown CA": {
			nil, "SSL_CERT_FILE=/dev/null", "ok settings, ok token file, " + strings.Replace(noExchange, "ok", "fail", 1),
			"x509:|SSL_CERT_FILE",
		},
		"no container": {
			nil, "STORAGE_CONTAINER=no-such-container", begin + "ok key, fail put, skip link, ok clock",
			"404 ContainerNotFound|fix: create the container|STORAGE_CONTAINER",
		},
		"closed port": {
			nil, "AZURE_STORAGE_ACCOUNT_URL=https://davydscats.blob.localhost:1", unreachable,
			"no answer from davydscats.blob.localhost:1|connection refused|fix: nothing answers on this port|skipped: storage does not answer",
		},
		"unknown host": {
			nil, "AZURE_STORAGE_ACCOUNT_URL=https://davydscats.blob.invalid", unreachable,
			"no answer from davydscats.blob.invalid|fix: the name does not resolve",
		},
		"closed link base": {
			nil, "LINK_BASE_URL=http://127.0.0.1:1", begin + strings.Replace(storage, "ok link base", "warn link base", 1),
			"http://127.0.0.1:1|connection refused|try a link from outside|all works; warnings: 1",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, report, stderr := run(t, "signer", append(doctorEnv(t, sys, c.change), strings.Fields(c.env)...), "doctor")
			var checks []string
			for _, m := range regexp.MustCompile(`(?m)^(ok|warn|fail|skip) +(\w+(?: \w+)*)  `).FindAllStringSubmatch(report, -1) {
				checks = append(checks, m[1]+" "+m[2])
			}
			if got := strings.Join(checks, ", "); got != c.checks || (code != 0) != strings.Contains(got, "fail") || stderr != "" {
				t.Errorf("exit code %d, %s; want %s\n%s%s", code, got, c.checks, report, stderr)
			}
			wantParts(t, report, strings.Split(c.says, "|")...)
			for _, secret := range []string{"sig=", "sig%3D", harness.JWTPrefix} {
				if strings.Contains(report, secret) {
					t.Errorf("%s is in\n%s", secret, report)
				}
			}
		})
	}
}

// wantBlobs fails the test unless the container has n blobs after the last subtest.
func wantBlobs(t *testing.T, sys *stack.System, n int) {
	t.Cleanup(func() {
		if blobs, err := sys.Blobs(context.WithoutCancel(t.Context())); err != nil || len(blobs) != n {
			t.Errorf("the container has %v: %v; want %d blobs", blobs, err, n)
		}
	})
}

// The signal arrives while the doctor has a blob in the container and checks it by the link base.
func TestInterruptedDoctorDeletesItsBlob(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	wantBlobs(t, sys, 0)
	for name, interrupt := range map[string]func(p *os.Process, stdout io.Closer){
		"SIGINT":      func(p *os.Process, _ io.Closer) { _ = p.Signal(os.Interrupt) },
		"SIGTERM":     func(p *os.Process, _ io.Closer) { _ = p.Signal(syscall.SIGTERM) },
		"SIGHUP":      func(p *os.Process, _ io.Closer) { _ = p.Signal(syscall.SIGHUP) },
		"closed pipe": func(_ *os.Process, stdout io.Closer) { _ = stdout.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var stored atomic.Bool
			reading, goOn := make(chan struct{}), make(chan struct{})
			base := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				_, _, err := sys.Storage.Read(t.Context(), sys.Container, strings.TrimPrefix(r.URL.Path, "/"+sys.Container+"/"))
				stored.Store(err == nil)
				close(reading)
				<-goOn
			}))
			defer base.Close()
			cmd := exec.CommandContext(t.Context(), filepath.Join(harness.BinDir(t), "signer"), "doctor")
			cmd.Env = append(doctorEnv(t, sys, nil), "LINK_BASE_URL="+base.URL)
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			select {
			case <-reading:
			case <-time.After(20 * time.Second):
				t.Error("the doctor has not used the link base")
			}
			interrupt(cmd.Process, stdout)
			var report []byte
			code, parts := 0, []string(nil)
			if name != "closed pipe" { // which changes the output only
				report, _ = io.ReadAll(stdout)
				code, parts = 1, []string{"skip  clock       skipped: the doctor was interrupted", "ok    delete", "some checks were skipped"}
			}
			close(goOn)
			_ = cmd.Wait()
			wantParts(t, string(report), parts...)
			if got := cmd.ProcessState.ExitCode(); got != code || !stored.Load() {
				t.Errorf("exit code %d, blob stored: %v; want %d and true", got, stored.Load(), code)
			}
		})
	}
}
