//go:build cluster

package cluster

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestItIsAppliedWithoutAWarningAndRuns(t *testing.T) {
	t.Logf("kubectl apply\n%s", applied)
	if strings.Contains(strings.ToLower(applied), "warn") {
		t.Error("the API server warns")
	}
	var ns struct {
		Metadata struct{ Labels map[string]string }
	}
	if err := json.Unmarshal([]byte(do(t, "get", "namespace", namespace, "-o", "json")), &ns); err != nil {
		t.Fatal(err)
	}
	if level := ns.Metadata.Labels["pod-security.kubernetes.io/enforce"]; level != "restricted" {
		t.Errorf("the namespace enforces %q", level)
	}
	settled(t)
	shown := do(t, "get", "pods")
	t.Logf("kubectl get pods\n%s", shown)
	if running := lines(shown, "cats-api-", "2/2", "Running"); len(running) != 2 {
		t.Errorf("%d pods are 2/2 Running", len(running))
	}
}

func TestTheSuiteOfThePublicAPIPassesThroughTheService(t *testing.T) {
	environ := []string{"CATS_API_URL=" + api, "CATS_STORAGE_URL=" + account}
	if err := run(t, environ, "go", "test", "-count=1", "./e2e"); err != nil {
		t.Error(err)
	}
}

func TestTheDoctorFindsNothing(t *testing.T) {
	t.Logf("\n%s", do(t, "exec", "deployment/cats-api", "-c", "signer", "--", "/signer", "doctor"))
}
