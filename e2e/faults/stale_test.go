package faults

import (
	"errors"
	"net/http"
	"sync/atomic"
	"syscall"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// A call begins while the signer is paused, or while its port refuses connections. It succeeds once the signer continues or is
// restarted, and storage sees each change once.
func TestPausedAndRestartedSignersExecuteCallsOnce(t *testing.T) {
	harness.NeedOwnSystem(t)
	t.Parallel()
	storage := harness.NewStorageProxy(t)
	sys := harness.StartDirect(t, stack.SystemOptions{StorageURL: storage.URL})
	var seen atomic.Int64
	storage.Set("u", func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		if harness.Changes(r) {
			seen.Add(1)
		}
		healthy.ServeHTTP(w, r)
	})
	for _, mode := range []struct {
		name          string
		before, after func(*testing.T)
	}{
		{"paused", func(*testing.T) { sys.Signer.Signal(syscall.SIGSTOP) }, func(*testing.T) { sys.Signer.Signal(syscall.SIGCONT) }},
		{"restarted", func(*testing.T) { sys.Signer.Kill() }, func(t *testing.T) { harness.Restart(t, sys.Signer) }},
	} {
		calls := changesOf(t, sys, "u")
		calls["GET"] = harness.Call{Method: "GET", Target: "/cat/u", Body: nil, Header: nil}
		calls["upload URL"] = harness.Call{Method: "POST", Target: "/cat/u/upload?size=7", Body: nil, Header: nil}
		for name, call := range calls {
			t.Run(name+", "+mode.name, func(t *testing.T) {
				harness.Put(t, sys, "u", harness.Cat)
				seen.Store(0)
				mode.before(t)
				defer sys.Signer.Signal(syscall.SIGCONT)
				answered := make(chan harness.Response, 1)
				go func() { answered <- call.Do(t, sys) }()
				harness.Eventually(t, func() error {
					if harness.Series(t, sys.FrontendOps, "cats_frontend_http_requests_in_flight") == 0 {
						return errors.New("the frontend never got the request")
					}
					return nil
				})
				mode.after(t)
				a, want := <-answered, int64(1)
				if name == "GET" || name == "upload URL" {
					want = 0
				}
				if a.StatusCode/100 > 3 || seen.Load() != want {
					t.Errorf("%d, storage saw %d changes; want %d: %s", a.StatusCode, seen.Load(), want, a.Body)
				}
			})
		}
	}
}
