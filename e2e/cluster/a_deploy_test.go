//go:build cluster

package cluster

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestOverlayIsAppliedWithoutWarnings(t *testing.T) {
	if strings.Contains(strings.ToLower(applied), "warn") {
		t.Errorf("the API server warns:\n%s", applied)
	}
	const enforced = `jsonpath={.metadata.labels.pod-security\.kubernetes\.io/enforce}`
	if level := do(t, "get", "namespace", namespace, "-o", enforced); level != "restricted" {
		t.Errorf("the namespace enforces %q", level)
	}
	settled(t)
}

func TestPublicAPIPassesItsTests(t *testing.T) {
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, []byte(do(t, "exec", "deployment/azure", "-c", "azurite", "--", "cat", "/state/ca.pem")), 0o600); err != nil {
		t.Fatal(err)
	}
	environ := []string{"CATS_API_URL=" + api, "CATS_STORAGE_URL=" + account, "CATS_AZURITE_URL=https://davydscats.blob:" + azurite(t), "CATS_CA_FILE=" + ca}
	run(t, environ, "go", "test", "-count=1", "./e2e/api")
}

var forwarding = regexp.MustCompile(`^Forwarding from 127\.0\.0\.1:(\d+)`)

// azurite forwards a local port to Azurite during the test and returns it. The account's node port serves signed URLs only.
func azurite(t *testing.T) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "kubectl", "--context="+kubeContext, "--namespace="+namespace,
		"port-forward", "deployment/azure", ":10000")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if m := forwarding.FindStringSubmatch(lines.Text()); m != nil {
			//lint:ignore errcheck the copy ends with the process
			go io.Copy(io.Discard, out)
			return m[1]
		}
	}
	t.Fatal("kubectl port-forward ended before it forwarded a port")
	return ""
}

func TestDoctorReportsNoFailure(t *testing.T) {
	run(t, nil, "k8s/doctor.sh", "--context", kubeContext, "--namespace", namespace)
}
