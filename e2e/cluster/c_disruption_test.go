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

// No request may fail while a pod is replaced.
func TestReplacedPodsFailNoRequest(t *testing.T) {
	for _, name := range []string{"rollout", "deleted pod"} {
		t.Run(name, func(t *testing.T) {
			victim := onePod(t).Metadata.Name
			l := startLoad(t, 8, 4)
			time.Sleep(5 * time.Second)
			if name == "deleted pod" {
				do(t, "delete", "pod", victim)
			} else {
				do(t, "rollout", "restart", "deployment/cats-api")
				if err := rolledOut(t.Context(), namespace, "cats-api"); err != nil {
					t.Fatal(err)
				}
			}
			if _, ok := settled(t)[victim]; ok {
				t.Errorf("pod %s was not replaced", victim)
			}
			time.Sleep(5 * time.Second)
			answered, failures := l.finish()
			for _, f := range failures {
				t.Error(f)
			}
			if answered < 2000 {
				t.Errorf("%d requests are too few; want 2,000", answered)
			}
		})
	}
}

// The first process of a container ignores SIGKILL from inside. SIGQUIT ends a Go program at once.
func TestSignerCrashFailsOnlyRequestsInProgress(t *testing.T) {
	victim := onePod(t)
	before := status(t, victim, "signer")
	l := startLoad(t, 8, 8)
	time.Sleep(5 * time.Second)
	nanoseconds, err := strconv.ParseInt(strings.TrimSpace(inside(t, victim, "signer", "kill -QUIT 1; date +%s%N")), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	crash := time.Unix(0, nanoseconds)
	eventually(t, func() error {
		if status(t, get[pod](t, "pod", victim.Metadata.Name), "signer").RestartCount == before.RestartCount {
			return fmt.Errorf("the signer of %s was not restarted", victim.Metadata.Name)
		}
		return nil
	})
	after, ok := settled(t)[victim.Metadata.Name]
	if !ok || status(t, after, "frontend").RestartCount != status(t, victim, "frontend").RestartCount {
		t.Errorf("pod %s was replaced, or its frontend restarted", victim.Metadata.Name)
	}
	time.Sleep(5 * time.Second)
	answered, failures := l.finish()

	for _, f := range failures {
		t.Log(f)
		if f.answer.StatusCode == 0 {
			t.Errorf("no response: %v", f)
			continue
		}
		f.answer.WantProblem(t, http.StatusServiceUnavailable, "signer_unavailable")
		if late := f.began.Sub(crash); late > 100*time.Millisecond { // until the process is gone
			t.Errorf("it began %v after the crash: %v", late, f)
		}
	}
	if len(failures) == 0 || answered < 200 { // few on a slow machine
		t.Errorf("%d failed, %d were answered: the crash was not under load", len(failures), answered)
	}
}
