//go:build cluster

package cluster

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cats.example/e2e/harness"
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
	// Azurite itself: the account's node port serves signed URLs only.
	port := harness.FreePort(t)
	forward := exec.CommandContext(t.Context(), "kubectl", "--context="+kubeContext, "--namespace="+namespace,
		"port-forward", "deployment/azure", port+":10000")
	if err := forward.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = forward.Process.Kill()
		_ = forward.Wait()
	}()
	eventually(t, func() error {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", "127.0.0.1:"+port)
		if err == nil {
			err = conn.Close()
		}
		return err
	})
	run(t, []string{
		"CATS_API_URL=" + api, "CATS_STORAGE_URL=" + account, "CATS_AZURITE_URL=https://davydscats.blob:" + port, "CATS_CA_FILE=" + ca,
	}, "go", "test", "-count=1", "./e2e/api")
}

func TestDoctorReportsNoFailure(t *testing.T) {
	run(t, nil, "k8s/doctor.sh", "--context", kubeContext, "--namespace", namespace)
}
