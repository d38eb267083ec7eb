//go:build cluster

package cluster

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// No request may fail while a pod is replaced.
func TestReplacedPodsFailNoRequest(t *testing.T) {
	for name, replace := range map[string]func(t *testing.T, old map[string]pod) (gone []string){
		"rollout": func(t *testing.T, old map[string]pod) []string {
			do(t, "rollout", "restart", "deployment/cats-api")
			if err := rolledOut(t.Context(), namespace, "cats-api"); err != nil {
				t.Fatal(err)
			}
			return slices.Collect(maps.Keys(old))
		},
		"deleted pod": func(t *testing.T, old map[string]pod) []string {
			victim := slices.Collect(maps.Keys(old))[0]
			t.Log(do(t, "delete", "pod", victim))
			return []string{victim}
		},
	} {
		t.Run(name, func(t *testing.T) {
			old := settled(t)
			l := startLoad(t, 8, 4)
			time.Sleep(5 * time.Second)
			gone := replace(t, old)
			eventually(t, func() error {
				for _, p := range ourPods(t) {
					if slices.Contains(gone, p.Metadata.Name) {
						return fmt.Errorf("pod %s still exists", p.Metadata.Name)
					}
				}
				return nil
			})
			settled(t)
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
	_, frontendBefore := containerOf(t, victim, "frontend")
	_, signerBefore := containerOf(t, victim, "signer")
	l := startLoad(t, 8, 8)
	time.Sleep(5 * time.Second)
	output := inside(t, victim, "signer", "date +%s%N; kill -QUIT 1; date +%s%N")
	times := strings.Fields(output)
	nanoseconds, err := strconv.ParseInt(times[len(times)-1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	crash := time.Unix(0, nanoseconds)
	eventually(t, func() error {
		if _, s := containerOf(t, get[pod](t, "pod", victim.Metadata.Name), "signer"); s.RestartCount == signerBefore.RestartCount {
			return fmt.Errorf("the signer of %s was not restarted", victim.Metadata.Name)
		}
		return nil
	})
	t.Logf("after the crash\n%s", do(t, "get", "pods"))
	after, ok := settled(t)[victim.Metadata.Name]
	if !ok {
		t.Fatalf("pod %s was replaced", victim.Metadata.Name)
	}
	t.Logf("%.1f s after the crash\n%s", time.Since(crash).Seconds(), do(t, "get", "pods"))
	time.Sleep(5 * time.Second)
	answered, failures := l.finish()

	for _, f := range failures {
		t.Log(f)
		if f.answer.Response == nil {
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
	_, frontend := containerOf(t, after, "frontend")
	_, signer := containerOf(t, after, "signer")
	if frontend.RestartCount != frontendBefore.RestartCount {
		t.Error("the frontend was restarted")
	}
	if ended := signer.LastState.Terminated; ended == nil || ended.ExitCode != 2 {
		t.Errorf("the signer ended with %+v; want the exit code 2 of a crash", ended)
	}
}
