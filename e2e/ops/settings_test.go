// Package ops tests logs, metrics, traces, settings, the start of the programs, and the doctor.
package ops

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// run runs a program to its end, with this environment only.
func run(t *testing.T, name string, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := program(t, name, env, args...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); cmd.ProcessState.ExitCode() < 0 { // not started, or killed
		t.Fatalf("%s: %v, %s%s", name, err, &out, &errs)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// program returns a program with this environment only. It is killed after [harness.Patience].
func program(t *testing.T, name string, env []string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, filepath.Join(harness.BinDir(t), name), args...)
	cmd.Env = append([]string{"TMPDIR=/", "GORACE=atexit_sleep_ms=0"}, env...)
	return cmd
}

// The first line has the version, whatever the settings are; an ERROR line for each fault follows.
func TestInvalidSettingsEndThePrograms(t *testing.T) {
	harness.NeedOwnSystem(t)
	t.Parallel()
	taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	signer := "AZURE_STORAGE_ACCOUNT_URL=https://davydscats.blob.localhost:1 AZURE_FEDERATED_TOKEN_FILE=/nowhere/token " +
		"AZURE_CLIENT_ID=" + stack.ClientID + " AZURE_TENANT_ID=" + stack.TenantID
	for _, row := range harness.Table(t, "settings.txt", "IN_USE", taken.Addr().String(), "SIGNER", signer) {
		env, errors := strings.Fields(row[0]), row[1:]
		name := env[0]
		code, stdout, stderr := run(t, name, append([]string{"LISTEN_ADDRESS=127.0.0.1:0", "OPS_ADDRESS=127.0.0.1:0"}, env[1:]...))
		_, version, _ := run(t, name, nil, "--version")
		var faults []string
		for i, line := range strings.Split(strings.TrimSpace(stderr), "\n") {
			var event struct {
				Level, Msg, Error, Revision string
				Service                     string `json:"service.name"`
				Version                     string `json:"service.version"`
			}
			if err := json.Unmarshal([]byte(line), &event); err != nil {
				t.Errorf("%s: not a JSON line: %s", env, line)
			}
			if i == 0 && (event.Msg != "starting" || event.Service != name || event.Version == "" || event.Revision == "" ||
				!strings.Contains(version, "revision: "+event.Revision+")")) {
				t.Errorf("%s: the first line is %s; --version prints %s", env, line, version)
			}
			if event.Level == "ERROR" {
				faults = append(faults, event.Error)
			}
		}
		if code != 1 || stdout != "" || len(faults) != len(errors) {
			t.Errorf("%s: exit code %d, %q, %q; want 1 and %q", env, code, stdout, stderr, errors)
			continue
		}
		for i, phrases := range errors {
			wantParts(t, faults[i], strings.Split(phrases, " & ")...)
		}
	}
	// Arguments come before settings.
	for _, name := range []string{"frontend", "signer"} {
		for arg, want := range map[string]string{
			"--help": "0 LISTEN_ADDRESS=", "--version": "0 cats-api " + name, "--verbose": "2 --help", "serve": "2 --help",
		} {
			code, stdout, stderr := run(t, name, []string{"AZURE_CLIENT_SECRET=x", "STALL_TIMEOUT=never"}, arg)
			wanted, part, _ := strings.Cut(want, " ")
			if fmt.Sprint(code) != wanted || !strings.Contains(map[int]string{0: stdout, 2: stderr}[code], part) {
				t.Errorf("%s %s: %d, %q, %q; want %s", name, arg, code, stdout, stderr, want)
			}
		}
	}
}

// The signer stays, so that the doctor can run beside it.
func TestSignerRunsWithoutIdentityOrContainer(t *testing.T) {
	harness.NeedStack(t)
	t.Parallel()
	for setting, parts := range map[string][]string{
		"STORAGE_CONTAINER=no-such-container":       {"--account-name davydscats --name no-such-container", "STORAGE_CONTAINER"},
		`AZURE_CLIENT_ID="` + stack.ClientID + `"`:  {"remove the quotes", "AZURE_CLIENT_ID"},
		"AZURE_FEDERATED_TOKEN_FILE=/nowhere/token": {"/nowhere/token", "AZURE_FEDERATED_TOKEN_FILE"},
	} {
		t.Run(setting, func(t *testing.T) {
			t.Parallel()
			name, value, _ := strings.Cut(setting, "=")
			sys := harness.Start(t, stack.SystemOptions{SignerEnv: map[string]string{name: value}, NotReady: true})
			harness.Eventually(t, func() error {
				ready, says := harness.Readyz(t, sys.SignerOps)
				if ready || !strings.Contains(says, parts[0]) || !strings.Contains(says, parts[1]) {
					return fmt.Errorf("ready: %v, %s; want %q", ready, says, parts)
				}
				return nil
			})
			harness.WaitForLog(t, sys.Signer.Log, 0, `"level":"ERROR"`, parts[1])
			harness.Do(t, http.MethodGet, sys.SignerOps+"/livez", "", nil).Want(t, http.StatusOK)
		})
	}
}

func TestDifferingSharedSettingsAreNamed(t *testing.T) {
	t.Parallel()
	sys := harness.StartDiffering(t, stack.SystemOptions{
		FrontendEnv: map[string]string{"OIDC_ISSUER": "https://localhost:1", "MAX_PICTURE_SIZE": "1MiB"},
		SignerEnv:   map[string]string{"ACCEPTED_TYPES": "image/png", "MAX_DIRECT_UPLOAD_SIZE": "1GiB"},
	})
	a := harness.Do(t, "GET", sys.FrontendOps+"/readyz", "", nil).Want(t, 503)
	wantParts(t, string(a.Body), "differ: ACCEPTED_TYPES, MAX_PICTURE_SIZE, OIDC_ISSUER;")
	harness.WaitForLog(t, sys.Frontend.Log, 0, `"level":"ERROR"`, `"setting":"OIDC_ISSUER"`)
	harness.Do(t, "GET", sys.FrontendOps+"/livez", "", nil).Want(t, 200) // a restart would not help

	// A signer without an issuer rejects tokens instead of ignoring them. See TestEveryCallIsAuthorized.
	harness.Send(t, "PUT", sys.SignerAPI+"/v1/picture?user=mia", string(harness.Cat), "Cats-Contract", "1").Want(t, 200)
	picture := sys.URL + "/cat/mia"
	for _, method := range []string{"PUT", "DELETE", "GET"} {
		harness.SendAs(t, "mew.mew.mew", method, picture, harness.OtherPicture).WantProblem(t, 503, "misconfigured")
	}
	harness.SendAs(t, "", "PUT", picture, harness.OtherPicture).WantProblem(t, 401, "unauthenticated")
	if _, stored, err := sys.Storage.Read(t.Context(), sys.Container, "mia/cat"); err != nil || !bytes.Equal(stored, harness.Cat) {
		t.Errorf("%d bytes are stored: %v", len(stored), err)
	}
}
