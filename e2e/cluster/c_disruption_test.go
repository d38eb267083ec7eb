//go:build cluster

package cluster

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// noneFails ends the load and checks that no request has failed, of at least 2,000.
func noneFails(t *testing.T, l *load) {
	t.Helper()
	answered, failures := l.finish(t)
	for _, f := range failures {
		t.Error(f)
	}
	if answered < 2000 {
		t.Errorf("%d requests are too few; want 2,000", answered)
	}
}

// replaced waits until the pods old are gone and two others are ready.
func replaced(t *testing.T, old ...pod) {
	t.Helper()
	eventually(t, func() error {
		for _, now := range pods(t, ourPods) {
			for _, o := range old {
				if now.Metadata.Name == o.Metadata.Name {
					return fmt.Errorf("pod %s still exists", o.Metadata.Name)
				}
			}
		}
		return nil
	})
	settled(t)
}

func TestRolloutFailsNoRequest(t *testing.T) {
	old := settled(t)
	l := startLoad(t, 8, 4)
	time.Sleep(5 * time.Second)
	do(t, "rollout", "restart", "deployment/cats-api")
	if err := rolledOut(t.Context(), namespace, "cats-api"); err != nil {
		t.Fatal(err)
	}
	replaced(t, old...)
	time.Sleep(3 * time.Second)
	noneFails(t, l)
}

func TestDeletedPodFailsNoRequest(t *testing.T) {
	old := settled(t)
	l := startLoad(t, 8, 4)
	time.Sleep(5 * time.Second)
	t.Log(do(t, "delete", "pod", old[0].Metadata.Name))
	replaced(t, old[0])
	time.Sleep(5 * time.Second)
	noneFails(t, l)
}

// The first process of a container ignores SIGKILL from inside. SIGQUIT ends a Go program at once.
func TestSignerCrashFailsOnlyRequestsInProgress(t *testing.T) {
	victim := settled(t)[0]
	_, frontendBefore := victim.container(t, "frontend")
	_, signerBefore := victim.container(t, "signer")
	l := startLoad(t, 8, 8)
	time.Sleep(5 * time.Second)
	said := inside(t, victim, "signer", "date +%s%N; kill -QUIT 1; date +%s%N")
	times := strings.Fields(said)
	nanoseconds, err := strconv.ParseInt(times[len(times)-1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	crash := time.Unix(0, nanoseconds)
	eventually(t, func() error {
		for _, p := range pods(t, ourPods) {
			if p.Metadata.Name != victim.Metadata.Name {
				continue
			}
			if _, s := p.container(t, "signer"); s.RestartCount == signerBefore.RestartCount {
				return fmt.Errorf("the signer of %s was not restarted", p.Metadata.Name)
			}
		}
		return nil
	})
	t.Logf("after the crash\n%s", do(t, "get", "pods"))
	after := settled(t)
	t.Logf("%.1f s after the crash\n%s", time.Since(crash).Seconds(), do(t, "get", "pods"))
	time.Sleep(5 * time.Second)
	answered, failures := l.finish(t)

	for _, f := range failures {
		t.Log(f)
		if f.status != http.StatusServiceUnavailable || f.retryAfter == "" || !strings.Contains(f.body, `"signer_unavailable"`) {
			t.Errorf("not a 503 with Retry-After: %v", f)
		}
		if late := f.began.Sub(crash); late > 100*time.Millisecond { // until the process is gone
			t.Errorf("it began %v after the crash: %v", late, f)
		}
	}
	if len(failures) == 0 || answered < 200 { // few on a slow machine
		t.Errorf("%d failed, %d were answered: the crash was not under load", len(failures), answered)
	}
	for _, p := range after {
		if p.Metadata.Name != victim.Metadata.Name {
			continue
		}
		_, frontend := p.container(t, "frontend")
		_, signer := p.container(t, "signer")
		if frontend.RestartCount != frontendBefore.RestartCount {
			t.Error("the frontend was restarted")
		}
		if signer.LastState.Terminated == nil || signer.LastState.Terminated.ExitCode != 2 {
			t.Errorf("the signer ended with %+v; want the exit code 2 of a crash", signer.LastState.Terminated)
		}
		return
	}
	t.Errorf("pod %s is missing", victim.Metadata.Name)
}
