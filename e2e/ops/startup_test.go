package ops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// run runs a binary to its end, with that environment and no other.
func run(t *testing.T, name string, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(harness.BinDir(t), name), args...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr, cmd.Env = &out, &errs, append([]string{"TMPDIR=/"}, env...)
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || ctx.Err() != nil) {
		t.Fatalf("%s: %v, %s%s", name, err, &out, &errs)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

func TestAFaultOfTheSettingsIsOneLineThatNamesIt(t *testing.T) {
	harness.NeedStack(t)
	t.Parallel()
	taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().String()
	anywhere := []string{"LISTEN_ADDRESS=127.0.0.1:0", "OPS_ADDRESS=127.0.0.1:0"}
	signer := []string{
		"LISTEN_ADDRESS=127.0.0.1:0", "OPS_ADDRESS=127.0.0.1:0", "AZURE_STORAGE_ACCOUNT_URL=" + harness.Stack(t).Storage.URL,
		"ANONYMOUS_ACCESS=true",
		"AZURE_CLIENT_ID=" + stack.ClientID, "AZURE_TENANT_ID=" + stack.TenantID, "AZURE_FEDERATED_TOKEN_FILE=/nowhere/token",
	}
	for _, c := range []struct {
		name  string
		env   []string
		lines [][]string // what each line must hold
	}{
		{"frontend", append(anywhere, "AZURE_FEDERATED_TOKEN_FILE=/nowhere/token"), [][]string{{"AZURE_FEDERATED_TOKEN_FILE", "skip-containers"}}},
		{"frontend", append(anywhere, "MAX_PICTURE_SIZE=large", "STALL_TIMEOUT=never"), [][]string{{"MAX_PICTURE_SIZE", "large"}, {"STALL_TIMEOUT", "never"}}},
		{"frontend", append(anywhere, "MAX_PICTURE_SIZE=0", "ACCEPTED_TYPES=cat"), [][]string{{"MAX_PICTURE_SIZE"}, {"ACCEPTED_TYPES", "cat"}}},
		{"frontend", append(anywhere, "LISTEN_ADDRESS="+port), [][]string{{port, "address already in use"}}},
		{"frontend", append(anywhere, "OPS_ADDRESS="+port), [][]string{{port, "address already in use"}}},
		{"signer", nil, [][]string{{"AZURE_STORAGE_ACCOUNT_URL"}}},
		{"signer", signer[:3], [][]string{{"OIDC_ISSUER", "ANONYMOUS_ACCESS=true"}}},
		{"signer", append(signer, "ANONYMOUS_ACCESS=false"), [][]string{{"OIDC_ISSUER", "ANONYMOUS_ACCESS=true"}}},
		{"signer", append(signer, "ANONYMOUS_ACCESS=perhaps"), [][]string{{"ANONYMOUS_ACCESS", "perhaps"}}},
		{"signer", append(signer, "OIDC_ISSUER=https://localhost:1", "OIDC_AUDIENCE=cats"), [][]string{{"OIDC_ISSUER", "ANONYMOUS_ACCESS=true"}}},
		{"signer", append(signer, `LINK_TTL="1h"`, `OIDC_AUDIENCE='cats'`), [][]string{{"LINK_TTL", "remove the quotes"}, {"OIDC_AUDIENCE", "remove the quotes"}}},
		{"signer", append(signer, "LISTEN_ADDRESS=0.0.0.0:0"), [][]string{{"LISTEN_ADDRESS", "loopback"}}},
		{"signer", append(signer, "LISTEN_ADDRESS=:0", "LINK_TTL=1ms"), [][]string{{"LINK_TTL"}, {"LISTEN_ADDRESS", "loopback"}}},
		{"signer", append(signer, "LISTEN_ADDRESS="+port), [][]string{{port, "address already in use"}}},
	} {
		code, stdout, stderr := run(t, c.name, c.env)
		var faults []string
		for line := range strings.Lines(stderr) {
			var event struct{ Level, Msg, Error string }
			if err := json.Unmarshal([]byte(line), &event); err != nil {
				t.Errorf("%s %v: not a JSON line: %s", c.name, c.env, line)
			}
			if event.Level == "ERROR" {
				faults = append(faults, event.Error)
			}
		}
		if code != 1 || stdout != "" || len(faults) != len(c.lines) {
			t.Errorf("%s %v: exit code %d, %q, %q; want 1, nothing and %d faults", c.name, c.env, code, stdout, stderr, len(c.lines))
			continue
		}
		for i, want := range c.lines {
			for _, part := range want {
				if !strings.Contains(faults[i], part) {
					t.Errorf("%s %v: %q is not in %q", c.name, c.env, part, faults[i])
				}
			}
		}
	}
}

// TestSignerWithoutIdentityRunsAndIsNotReady starts signers with an identity or a container that cannot be used: they stay, so
// that the doctor can run beside them.
func TestSignerWithoutIdentityRunsAndIsNotReady(t *testing.T) {
	harness.NeedStack(t)
	t.Parallel()
	for _, c := range []struct {
		name, value string
		says        []string // in the log, in /readyz and in the doctor's report
	}{
		{"STORAGE_CONTAINER", "no-such-container", []string{"no-such-container", "--account-name davydscats --name no-such-container", "STORAGE_CONTAINER"}},
		{"AZURE_CLIENT_ID", "", []string{"AZURE_CLIENT_ID not set", "azure.workload.identity/client-id"}},
		{"AZURE_CLIENT_ID", `"` + stack.ClientID + `"`, []string{"AZURE_CLIENT_ID", "remove the quotes"}},
		{"AZURE_TENANT_ID", "TENANT", []string{"AZURE_TENANT_ID", "want a GUID"}},
		{"AZURE_FEDERATED_TOKEN_FILE", "", []string{"AZURE_FEDERATED_TOKEN_FILE not set", "webhook"}},
		{"AZURE_FEDERATED_TOKEN_FILE", "/nowhere/token", []string{"AZURE_FEDERATED_TOKEN_FILE", "/nowhere/token"}},
	} {
		t.Run(c.name+"="+c.value, func(t *testing.T) {
			t.Parallel()
			sys := harness.Start(t, stack.SystemOptions{SignerEnv: map[string]string{c.name: c.value}, NotReady: true})
			harness.Eventually(t, func() error {
				ready, said := harness.Readyz(t, sys.SignerOps)
				if ready {
					t.Fatal("the signer is ready")
				}
				for _, part := range c.says {
					if !strings.Contains(said, part) {
						return fmt.Errorf("/readyz says %q; want %q in it", said, part)
					}
				}
				return nil
			})
			harness.WaitForLog(t, sys.Signer.Log, 0, append([]string{`"level":"ERROR"`}, c.says[len(c.says)-1])...)
			harness.Do(t, http.MethodGet, sys.SignerOps+"/livez", "", nil).Want(t, http.StatusOK)
			env, _ := patient(t, sys)
			code, report, _ := run(t, "signer", append(env, c.name+"="+c.value), "doctor")
			for _, part := range c.says {
				if code != 1 || !strings.Contains(report, part) {
					t.Errorf("exit code %d; want 1 and %q in\n%s", code, part, report)
				}
			}
		})
	}
}

func TestFlags(t *testing.T) {
	harness.NeedOwnSystem(t)
	t.Parallel()
	for name, setting := range map[string]string{"frontend": "LISTEN_ADDRESS=:8080", "signer": "LISTEN_ADDRESS=127.0.0.1:8081"} {
		for _, c := range []struct {
			args           []string
			code           int
			stdout, stderr string
		}{
			{[]string{"--help"}, 0, setting, ""},
			{[]string{"--version"}, 0, "cats-api " + name, ""},
			{[]string{"--verbose"}, 2, "", "--help"},
			{[]string{"serve"}, 2, "", "--help"},
		} {
			// Whatever the settings are.
			code, stdout, stderr := run(t, name, []string{"AZURE_CLIENT_SECRET=x", "STALL_TIMEOUT=never"}, c.args...)
			if code != c.code || !strings.Contains(stdout, c.stdout) || !strings.Contains(stderr, c.stderr) ||
				(c.stdout == "") != (stdout == "") || (c.stderr == "") != (stderr == "") {
				t.Errorf("%s %q: %d, %q, %q; want %d, %q, %q", name, c.args, code, stdout, stderr, c.code, c.stdout, c.stderr)
			}
		}
	}
}
