package e2e

import (
	"errors"
	"net/http"
	"sync/atomic"
	"syscall"
	"testing"

	"cats.example/local/stack"
)

// A call begins while the signer is paused, or while its port refuses connections. It succeeds once the signer continues or is
// restarted, and storage sees each change once.
func TestPausedAndRestartedSignersExecuteCallsOnce(t *testing.T) {
	own(t)
	t.Parallel()
	storage := newAccount(t)
	sys := direct(t, stack.SystemOptions{StorageURL: storage.URL})
	var seen atomic.Int64
	storage.set("u", func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		if changes(r) {
			seen.Add(1)
		}
		healthy.ServeHTTP(w, r)
	})
	for _, mode := range []struct {
		name          string
		before, after func(*testing.T)
	}{
		{"paused", func(*testing.T) { sys.Signer.Signal(syscall.SIGSTOP) }, func(*testing.T) { sys.Signer.Signal(syscall.SIGCONT) }},
		{"restarted", func(*testing.T) { sys.Signer.Kill() }, func(t *testing.T) { again(t, sys.Signer) }},
	} {
		calls := changesOf(t, sys, "u")
		calls["GET"] = apiCall{"GET", "/cat/u", nil, nil}
		calls["upload URL"] = apiCall{"POST", "/cat/u/upload?size=7", nil, nil}
		for name, call := range calls {
			t.Run(name+", "+mode.name, func(t *testing.T) {
				put(t, sys, "u", cat)
				seen.Store(0)
				mode.before(t)
				defer sys.Signer.Signal(syscall.SIGCONT)
				answered := make(chan answer, 1)
				go func() { answered <- call.do(t, sys) }()
				eventually(t, func() error {
					if metric(t, sys.FrontendOps, "cats_frontend_http_requests_in_flight") == 0 {
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
					t.Errorf("%d, storage saw %d changes; want %d: %s", a.StatusCode, seen.Load(), want, a.body)
				}
			})
		}
	}
}
