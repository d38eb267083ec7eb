package ops

import (
	"context"
	"crypto/tls"
	"errors"
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
	table, err := os.ReadFile("testdata/doctor.txt")
	host, hostErr := os.Hostname()
	if err := errors.Join(err, hostErr); err != nil {
		t.Fatal(err)
	}
	names := map[string]string{
		"HOST": host, "SUBJECT": stack.Subject, "ISSUER": harness.Stack(t).Cluster.URL(),
		"CLIENT": stack.ClientID, "TENANT": stack.TenantID,
	}
	text := os.Expand(string(table), func(name string) string { return names[name] })
	changes := map[string]func(*issuer.Federated){
		"subject":  func(f *issuer.Federated) { f.Subject = "system:serviceaccount:cats:other" },
		"audience": func(f *issuer.Federated) { f.Audience = "api://other" },
		"expired":  func(f *issuer.Federated) { f.IssuedAt = time.Now().Add(-time.Hour) },
	}
	for _, c := range strings.Split(strings.TrimSpace(text), "\n\n")[1:] { // the first paragraph is a comment
		lines := strings.Split(c, "\n")
		t.Run(lines[0], func(t *testing.T) {
			t.Parallel()
			var change func(*issuer.Federated)
			var env, parts []string
			var want string
			for _, line := range lines[1:] {
				switch key, value, _ := strings.Cut(line, ": "); key {
				case "token":
					change = changes[value]
				case "env":
					env = strings.Fields(value)
				case "says":
					parts = append(parts, value)
				default:
					want = line
				}
			}
			code, report, stderr := run(t, "signer", append(doctorEnv(t, sys, change), env...), "doctor")
			var checks []string
			for _, m := range regexp.MustCompile(`(?m)^(ok|warn|fail|skip) +(\w+(?: \w+)*)  `).FindAllStringSubmatch(report, -1) {
				checks = append(checks, m[1]+" "+m[2])
			}
			if got := strings.Join(checks, ", "); got != want || (code != 0) != strings.Contains(got, "fail") || stderr != "" {
				t.Errorf("exit code %d, %s; want %s\n%s%s", code, got, want, report, stderr)
			}
			wantParts(t, report, parts...)
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
