package ops

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"cats.example/e2e/harness"
	"cats.example/local/issuer"
	"cats.example/local/stack"
)

// doctorEnv returns the environment of the doctor, which runs beside the signer, with a federated token after change.
func doctorEnv(t *testing.T, sys *stack.System, change func(*issuer.Federated)) []string {
	t.Helper()
	token := filepath.Join(t.TempDir(), "token")
	harness.WriteToken(t, token, harness.FederatedToken(t, change))
	return append(sys.Signer.Environ(), "AZURE_FEDERATED_TOKEN_FILE="+token)
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
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer("$SUBJECT", stack.Subject, "$ISSUER", harness.Stack(t).Cluster.URL(), "$CLIENT", stack.ClientID,
		"$TENANT", stack.TenantID).Replace(string(table))
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
			if regexp.MustCompile("sig=|sig%3D|" + harness.JWTPrefix).MatchString(report) {
				t.Errorf("a secret is in\n%s", report)
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
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			var cmd *exec.Cmd
			goOn := make(chan struct{})
			base := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				_, _, err := sys.Storage.Read(t.Context(), sys.Container, strings.TrimPrefix(r.URL.Path, "/"+sys.Container+"/"))
				if err := errors.Join(err, cmd.Process.Signal(signal)); err != nil {
					t.Error(err)
				}
				<-goOn
			}))
			defer base.Close()
			defer close(goOn)
			cmd = program(t, "signer", append(doctorEnv(t, sys, nil), "LINK_BASE_URL="+base.URL), "doctor")
			report, _ := cmd.Output()
			wantParts(t, string(report), "skip  clock       skipped: the doctor was interrupted", "ok    delete", "some checks were skipped")
			if got := cmd.ProcessState.ExitCode(); got != 1 {
				t.Errorf("exit code %d", got)
			}
		})
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	_ = r.Close() // which changes the output only
	cmd := program(t, "signer", doctorEnv(t, sys, nil), "doctor")
	cmd.Stdout = w
	if err := cmd.Run(); err != nil {
		t.Errorf("with a closed pipe: %v", err)
	}
}
