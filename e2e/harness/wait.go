package harness

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"cats.example/local/stack"
)

// Patience is how long tests wait for what has no bound of its own. It is many times what an idle machine needs, because CI compiles
// the next tests at the same time.
const Patience = 2 * time.Minute

// Eventually calls f until it returns nil, for at most Patience.
func Eventually(t *testing.T, f func() error) {
	t.Helper()
	deadline := time.Now().Add(Patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Readyz returns the response of /readyz at the ops URL base.
func Readyz(t *testing.T, base string) (ready bool, says string) {
	t.Helper()
	a := Do(t, http.MethodGet, base+"/readyz", "", nil)
	if a.StatusCode != http.StatusOK && a.StatusCode != http.StatusServiceUnavailable {
		t.Fatalf("%s/readyz: %d %s", base, a.StatusCode, a.Body)
	}
	return a.StatusCode == http.StatusOK, string(a.Body)
}

// WantNotReady fails the test unless both programs are live and not ready.
func WantNotReady(t *testing.T, sys *stack.System) {
	t.Helper()
	for _, base := range []string{sys.SignerOps, sys.FrontendOps} {
		if ready, _ := Readyz(t, base); ready {
			t.Errorf("%s is ready", base)
		}
		Do(t, http.MethodGet, base+"/livez", "", nil).Want(t, http.StatusOK)
	}
}

// WantRecovery waits until both programs are ready, and fails the test unless uploads and signed URLs work.
func WantRecovery(t *testing.T, sys *stack.System) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), Patience, errors.New("not ready again"))
	defer cancel()
	if err := sys.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	Put(t, sys, "recovered", Cat)
	WantPicture(t, sys, "recovered", Cat)
}

// WantCleanExit waits for the end of a process and fails the test unless its exit code is 0.
func WantCleanExit(t *testing.T, p *stack.Process) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), Patience, errors.New("it does not end"))
	defer cancel()
	if err := p.Wait(ctx); err != nil {
		t.Fatal(err)
	}
}

// Restart starts a process that has ended.
func Restart(t *testing.T, p *stack.Process) {
	t.Helper()
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}
