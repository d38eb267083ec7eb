package harness

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"

	"cats.example/local/stack"
)

// StartPrometheus starts a Prometheus for the ops ports of sys and returns its URL. It has the shipped rules, and the labels of a
// cluster.
func StartPrometheus(t *testing.T, sys *stack.System) string {
	t.Helper()
	if _, err := exec.LookPath("prometheus"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("prometheus is missing: it is Debian's package of that name")
		}
		t.Skip("prometheus is missing: it is Debian's package of that name")
	}
	p, err := stack.StartPrometheus(t.Context(), stack.PrometheusOptions{
		Root: root, Dir: t.TempDir(), Interval: 250 * time.Millisecond,
		Frontend: sys.Frontend.Address("ops"), Signer: sys.Signer.Address("ops"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return "http://" + p.Address("web")
}
