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

// secure serves h as the stand's servers are, until the test ends, and returns
// its URL.
func secure(t *testing.T, h http.Handler) string {
	t.Helper()
	server := httptest.NewUnstartedServer(h)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{harness.Stack(t).CA.Leaf}}
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.URL
}

// patient is what the doctor sees: an environment in which all is well, in the
// container of sys, with an Entra ID of its own.
func patient(t *testing.T, sys *stack.System) (env []string, tokenFile string) {
	t.Helper()
	entra, err := issuer.New(issuer.Config{
		Tenant: stack.TenantID, ClientID: stack.ClientID, ObjectID: "00000000-0000-4000-8000-0000000000d0",
		Issuer: harness.Stack(t).Cluster.URL(), Subject: stack.Subject, Client: harness.Stack(t).Client(),
	})
	if err != nil {
		t.Fatal(err)
	}
	tokenFile = filepath.Join(t.TempDir(), "token")
	harness.WriteToken(t, tokenFile, harness.FederatedToken(t, nil))
	return []string{
		"AZURE_CLIENT_ID=" + stack.ClientID,
		"AZURE_TENANT_ID=" + stack.TenantID,
		"AZURE_FEDERATED_TOKEN_FILE=" + tokenFile,
		"AZURE_AUTHORITY_HOST=" + secure(t, entra) + "/",
		"AZURE_STORAGE_ACCOUNT_URL=" + harness.Stack(t).Storage.URL,
		"DISABLE_INSTANCE_DISCOVERY=true",
		"LINK_BASE_URL=" + harness.Stack(t).FrontURL,
		"SSL_CERT_FILE=" + harness.Stack(t).CA.File,
		"STORAGE_CONTAINER=" + sys.Container,
		"ANONYMOUS_ACCESS=true",
		// The addresses of the signer that is running.
		"LISTEN_ADDRESS=" + strings.TrimPrefix(sys.SignerAPI, "http://"),
		"OPS_ADDRESS=" + strings.TrimPrefix(sys.SignerOps, "http://"),
	}, tokenFile
}

// examine runs the doctor, wants the exit code and the marks of its checks in
// their order, and that it keeps secrets.
func examine(t *testing.T, env []string, code int, marks string) (report string) {
	t.Helper()
	got, stdout, stderr := run(t, "signer", env, "doctor")
	var checks []string
	for _, m := range regexp.MustCompile(`(?m)^(ok|warn|fail|skip) +(\w+(?: \w+)*)  `).FindAllStringSubmatch(stdout, -1) {
		checks = append(checks, m[1]+" "+m[2])
	}
	if now := strings.Join(checks, ", "); got != code || now != marks || stderr != "" {
		t.Errorf("exit code %d, %s\nwant %d, %s\n%s%s", got, now, code, marks, stdout, stderr)
	}
	for _, secret := range []string{"sig=", "sig%3D", harness.JWTPrefix} {
		if strings.Contains(stdout, secret) {
			t.Errorf("%s is in\n%s", secret, stdout)
		}
	}
	return stdout
}

// leavesNothing checks that the container has no test picture at the end of the test.
func leavesNothing(t *testing.T, sys *stack.System) {
	t.Cleanup(func() {
		blobs, err := harness.Stack(t).Storage.Blobs(context.WithoutCancel(t.Context()), sys.Container)
		if err != nil {
			t.Error(err)
		}
		for _, b := range blobs {
			if strings.HasPrefix(b.Name, "cats-api-doctor-") {
				t.Errorf("%s was left in the container", b.Name)
			}
		}
	})
}

// holds wants each part in the report.
func holds(t *testing.T, report string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(report, part) {
			t.Errorf("%q is not in\n%s", part, report)
		}
	}
}

func TestTheDoctorFindsAllWellBesideTheRunningSigner(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	leavesNothing(t, sys)
	harness.Put(t, sys, "u", harness.Cat)
	env, _ := patient(t, sys)
	report := examine(t, append(env, "MAX_DIRECT_UPLOAD_SIZE=1GiB"), 0, "ok settings, ok token file, ok exchange, ok key, ok put, ok link, ok link base, ok copy, ok delete, ok clock")
	holds(t, report, stack.Subject, harness.Stack(t).Cluster.URL(), issuer.Audience, "all works", "authentication is off")
	if !regexp.MustCompile(`\Apod +none.*\nversion +.*\(revision .*\)\nclient ID +` + stack.ClientID + `\ntenant +` + stack.TenantID + `\n\n`).MatchString(report) {
		t.Errorf("the report begins with\n%s", report)
	}
	report = examine(t, append(env, "KUBERNETES_SERVICE_HOST=10.0.0.1", "AZURE_CLIENT_ID="), 1,
		"fail settings, ok token file, skip exchange, skip key, skip put, skip link, ok clock")
	host, _ := os.Hostname()
	holds(t, report, "pod         "+host+"\n", "client ID   not set\n", "fix: the workload identity webhook")
	report = examine(t, append(env, "ANONYMOUS_ACCESS="), 1,
		"fail settings, ok token file, ok exchange, ok key, ok put, ok link, ok link base, ok delete, ok clock")
	holds(t, report, "authentication is not configured", "OIDC_ISSUER", "ANONYMOUS_ACCESS=true")
	if string(harness.Served(t, sys, "u")) != string(harness.Cat) {
		t.Error("the picture has changed")
	}
}

func TestTheDoctorSaysWhatToDo(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	leavesNothing(t, sys)
	const refused = "ok settings, ok token file, fail exchange, skip key, skip put, skip link, ok clock"
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, tokenFile string)
		env   []string
		marks string
		says  []string
	}{
		{
			"token file missing", func(_ *testing.T, path string) { _ = os.Remove(path) }, nil,
			"ok settings, fail token file, skip exchange, skip key, skip put, skip link, ok clock",
			[]string{"no such file", "fix: mount the token's volume", "skipped: there is no federated token"},
		},
		{
			"wrong subject", harness.WrongToken(func(f *issuer.Federated) { f.Subject = "system:serviceaccount:cats:other" }), nil, refused,
			[]string{"system:serviceaccount:cats:other", "AADSTS700213:", "fix: compare issuer, subject and audience", "takes minutes"},
		},
		{
			"wrong audience", harness.WrongToken(func(f *issuer.Federated) { f.Audience = "api://other" }), nil,
			strings.Replace(refused, "ok token file", "warn token file", 1),
			[]string{"AADSTS700212:", "audience  api://other\n", "another audience than api://AzureADTokenExchange,"},
		},
		{
			"expired", harness.WrongToken(func(f *issuer.Federated) { f.IssuedAt = time.Now().Add(-time.Hour) }), nil,
			strings.Replace(refused, "ok token file", "fail token file", 1),
			[]string{"AADSTS700024:", "token is expired (exp)", "kubelet"},
		},
		{
			"garbage", func(t *testing.T, path string) { harness.WriteToken(t, path, "a cat walked over the keyboard") }, nil,
			strings.Replace(refused, "ok token file", "fail token file", 1),
			[]string{"AADSTS50027:", "signed JSON Web Token", "fix: AZURE_FEDERATED_TOKEN_FILE"},
		},
		{
			"wrong client", nil,
			[]string{"AZURE_CLIENT_ID=00000000-0000-4000-8000-00000000ffff"},
			refused,
			[]string{"AADSTS700016:", "azure.workload.identity/client-id"},
		},
		{
			"container missing", nil,
			[]string{"STORAGE_CONTAINER=no-such-container"},
			"ok settings, ok token file, ok exchange, ok key, fail put, skip link, ok clock",
			[]string{"404 ContainerNotFound", "fix: create the container", "STORAGE_CONTAINER"},
		},
		{
			"nobody there", nil,
			[]string{"AZURE_STORAGE_ACCOUNT_URL=https://davydscats.blob.localhost:1"},
			"ok settings, ok token file, ok exchange, fail key, skip put, skip link, skip clock",
			[]string{"no answer from davydscats.blob.localhost:1", "connection refused", "fix: nothing answers on this port", "skipped: storage does not answer"},
		},
		{
			"no such name", nil,
			[]string{"AZURE_STORAGE_ACCOUNT_URL=https://davydscats.blob.invalid"},
			"ok settings, ok token file, ok exchange, fail key, skip put, skip link, skip clock",
			[]string{"no answer from davydscats.blob.invalid", "fix: the name does not resolve"},
		},
		{
			"no trust", nil,
			[]string{"SSL_CERT_FILE=/dev/null"},
			"ok settings, ok token file, fail exchange, skip key, skip put, skip link, fail clock",
			[]string{"x509:", "SSL_CERT_FILE"},
		},
		{
			"link base down", nil,
			[]string{"LINK_BASE_URL=http://127.0.0.1:1"},
			"ok settings, ok token file, ok exchange, ok key, ok put, ok link, warn link base, ok delete, ok clock",
			[]string{"http://127.0.0.1:1", "connection refused", "try a link from outside", "all works; warnings: 1"},
		},
		{
			"some settings", nil,
			[]string{"LINK_TTL=soon", "AZURE_TENANT_ID="},
			"fail settings, fail settings, ok token file, skip exchange, skip key, skip put, skip link, ok clock",
			[]string{`LINK_TTL is "soon"`, "AZURE_TENANT_ID not set", "fix: the workload identity webhook", "the settings of the identity are not valid"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			env, tokenFile := patient(t, sys)
			if c.spoil != nil {
				c.spoil(t, tokenFile)
			}
			code := 1
			if !strings.Contains(c.marks, "fail") {
				code = 0
			}
			holds(t, examine(t, append(env, c.env...), code, c.marks), c.says...)
		})
	}
}

// TestADoctorThatIsSentAwayDeletesItsBlob stops it, as Ctrl-C and a closed
// terminal do, while it has a blob in the container.
func TestADoctorThatIsSentAwayDeletesItsBlob(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	leavesNothing(t, sys)
	for name, sendAway := range map[string]func(p *os.Process, stdout io.Closer){
		"interrupt": func(p *os.Process, _ io.Closer) { _ = p.Signal(os.Interrupt) },
		"SIGTERM":   func(p *os.Process, _ io.Closer) { _ = p.Signal(syscall.SIGTERM) },
		"hangup":    func(p *os.Process, _ io.Closer) { _ = p.Signal(syscall.SIGHUP) },
		"pipe":      func(_ *os.Process, stdout io.Closer) { _ = stdout.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// Whoever reads the link through its base comes by while it is there.
			var there atomic.Bool
			reading, goOn := make(chan struct{}), make(chan struct{})
			base := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				_, _, err := harness.Stack(t).Storage.Read(t.Context(), sys.Container, strings.TrimPrefix(r.URL.Path, "/"+sys.Container+"/"))
				there.Store(err == nil)
				close(reading)
				<-goOn
			}))
			defer base.Close()
			env, _ := patient(t, sys)
			cmd := exec.CommandContext(t.Context(), filepath.Join(harness.BinDir(t), "signer"), "doctor")
			cmd.Env = append(env, "LINK_BASE_URL="+base.URL)
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
				t.Error("the link was not read through its base")
			}
			sendAway(cmd.Process, stdout)
			report := ""
			if name == "pipe" {
				close(goOn)
			} else {
				b, _ := io.ReadAll(stdout)
				report = string(b)
				close(goOn)
			}
			err = cmd.Wait()
			if !there.Load() {
				t.Error("there was no test picture")
			}
			if name == "pipe" {
				if err != nil {
					t.Errorf("it ended with %v", err)
				}
				return
			}
			if cmd.ProcessState.ExitCode() != 1 {
				t.Errorf("it ended with %v; want exit code 1", err)
			}
			holds(t, report, "skip  clock       skipped: the doctor was interrupted", "ok    delete", "some checks were skipped")
		})
	}
}
