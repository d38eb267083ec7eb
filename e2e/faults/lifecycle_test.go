package faults

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// prepareChanges returns a function that sends one change of each kind at the same time, each for another user. check gets the
// responses; wait waits for them.
func prepareChanges(t *testing.T, sys *stack.System) (send func(check func(harness.Response)) (wait func())) {
	t.Helper()
	var requests []harness.RawUpload
	for i, c := range changes() {
		user := fmt.Sprint("user-", i)
		harness.Put(t, sys, user, harness.Cat)
		requests = append(requests, c.request(t, sys, user, c.content))
	}
	return func(check func(harness.Response)) func() {
		var wg sync.WaitGroup
		for _, u := range requests {
			conn := harness.Dial(t, sys)
			go func() { _, _ = io.WriteString(conn, u.Header+u.Body) }()
			wg.Go(func() {
				if a, ok := receive(conn, u); ok {
					check(a)
				} else {
					t.Errorf("no response to %.40q", u.Header)
				}
			})
		}
		return wg.Wait
	}
}

func TestKilledProcessesRestartInAnyOrder(t *testing.T) {
	t.Parallel()
	sys := harness.StartDirect(t, stack.SystemOptions{})
	send := prepareChanges(t, sys)
	var ids []string
	for range 10 {
		ids = append(ids, harness.Send(t, "GET", sys.URL+"/cat/user-0", "").Want(t, 200).Header.Get("X-Request-Id"))
	}
	sys.Signer.Kill()
	sys.Frontend.Kill()
	for _, p := range []*stack.Process{sys.Frontend, sys.Signer} {
		lines, err := p.Log.Since(0)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range ids {
			if !strings.Contains(strings.Join(lines, "\n"), `"request_id":"`+id+`"`) {
				t.Errorf("%s has no line of request %s", p.Log.Path(), id)
			}
		}
	}
	harness.Restart(t, sys.Frontend)
	if ready, _ := harness.Readyz(t, sys.FrontendOps); ready {
		t.Error("the frontend is ready without a signer")
	}
	harness.Do(t, "GET", sys.FrontendOps+"/livez", "", nil).Want(t, 200)
	harness.Do(t, "GET", sys.URL+"/cat/user-0", "", nil).WantProblem(t, 503, "signer_unavailable")
	send(func(a harness.Response) {
		a.WantProblem(t, 503, "signer_unavailable")
		a.Outcome(t, "")
	})()
	harness.Restart(t, sys.Signer)
	harness.WantRecovery(t, sys)
	for i := range changes() {
		harness.WantPicture(t, sys, fmt.Sprint("user-", i), harness.Cat)
	}
}

// Calls begin while the signer is paused, or while its port refuses connections. They succeed when it continues or is restarted.
func TestPausedAndRestartedSignersExecuteCallsOnce(t *testing.T) {
	t.Parallel()
	for name, mode := range map[string]struct {
		stop, start func(*testing.T, *stack.Process)
	}{
		"paused": {
			func(_ *testing.T, p *stack.Process) { p.Signal(syscall.SIGSTOP) },
			func(_ *testing.T, p *stack.Process) { p.Signal(syscall.SIGCONT) },
		},
		"restarted": {func(_ *testing.T, p *stack.Process) { p.Kill() }, harness.Restart},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storage := harness.NewStorageProxy(t)
			sys := harness.StartDirect(t, stack.SystemOptions{StorageURL: storage.URL})
			send := prepareChanges(t, sys)
			var executed atomic.Int64
			storage.SetAll(func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
				if harness.Changes(r) && strings.HasSuffix(r.URL.Path, "/cat") {
					executed.Add(1)
				}
				healthy.ServeHTTP(w, r)
			})
			mode.stop(t, sys.Signer)
			defer sys.Signer.Signal(syscall.SIGCONT)
			wait := send(func(a harness.Response) {
				if a.StatusCode/100 != 2 {
					t.Errorf("%d %s", a.StatusCode, a.Body)
				}
			})
			want := float64(len(changes()))
			harness.Eventually(t, func() error {
				if n := harness.Sum(t, sys.FrontendOps, "cats_frontend_http_requests_in_flight"); n < want {
					return fmt.Errorf("the frontend has received %v requests; want %v", n, want)
				}
				return nil
			})
			mode.start(t, sys.Signer)
			wait()
			if n := executed.Load(); n != int64(want) {
				t.Errorf("storage has carried out %d changes; want %v", n, want)
			}
		})
	}
}

// partialUpload is an upload of which the first half has been sent.
type partialUpload struct {
	user    string
	content []byte
	request harness.RawUpload
	conn    net.Conn
}

// beginUploads begins an upload of each kind.
func beginUploads(t *testing.T, sys *stack.System) (uploads []partialUpload) {
	t.Helper()
	for _, c := range changes()[:4] {
		user := strings.ReplaceAll(c.name, " ", "-")
		u := partialUpload{user, c.content, c.request(t, sys, user, c.content), harness.Dial(t, sys)}
		if _, err := io.WriteString(u.conn, u.request.Header+u.request.Body[:len(u.request.Body)/2]); err != nil {
			t.Fatal(err)
		}
		uploads = append(uploads, u)
	}
	harness.Eventually(t, func() error {
		if n := harness.Sum(t, sys.SignerOps, "cats_signer_http_requests_in_flight"); n < float64(len(uploads)) {
			return fmt.Errorf("the signer has received %v uploads", n)
		}
		return nil
	})
	return uploads
}

func TestSIGTERMLetsUploadsFinish(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"frontend", "signer"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			delay := map[string]string{"DRAIN_DELAY": "5s"}
			sys := harness.Start(t, stack.SystemOptions{FrontendEnv: delay, SignerEnv: delay})
			p, address, ops, signal := sys.Frontend, sys.URL, sys.FrontendOps, syscall.SIGTERM
			if name == "signer" {
				p, address, ops, signal = sys.Signer, sys.SignerAPI, sys.SignerOps, syscall.SIGINT
			}
			uploads, began := beginUploads(t, sys), time.Now()
			p.Signal(signal)
			harness.Eventually(t, func() error {
				if ready, _ := harness.Readyz(t, ops); ready {
					return errors.New("ready while it drains")
				}
				return nil
			})
			harness.Do(t, "GET", ops+"/livez", "", nil).Want(t, 200)
			harness.Put(t, sys, "other", harness.Cat) // during DRAIN_DELAY
			harness.Eventually(t, func() error {
				conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(t.Context(), "tcp", strings.TrimPrefix(address, "http://"))
				if err == nil {
					_ = conn.Close()
					return errors.New("new connections are accepted after DRAIN_DELAY")
				}
				return nil
			})
			if took := time.Since(began); took < 5*time.Second {
				t.Errorf("new connections are rejected after %v", took)
			}
			for _, u := range uploads {
				if _, err := io.WriteString(u.conn, u.request.Body[len(u.request.Body)/2:]); err != nil {
					t.Fatal(err)
				}
				if a, ok := receive(u.conn, u.request); !ok {
					t.Errorf("no response to %s", u.user)
				} else {
					a.Want(t, 200)
				}
			}
			harness.WantCleanExit(t, p)
			p.SetEnv("DRAIN_DELAY", "0s")
			p.SetEnv("DRAIN_TIMEOUT", "1s")
			harness.Restart(t, p)
			harness.WantRecovery(t, sys)
			for _, u := range uploads {
				harness.WantPicture(t, sys, u.user, u.content)
				harness.Put(t, sys, u.user, harness.Cat)
			}

			uploads = beginUploads(t, sys)
			mark := p.Log.Mark()
			p.Signal(signal)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if exit, ok := errors.AsType[*exec.ExitError](p.Wait(ctx)); !ok || exit.ExitCode() != 1 {
				t.Errorf("it ended with %v; want exit code 1", p.Ended())
			}
			harness.WaitForLog(t, p.Log, mark, `"level":"ERROR"`, "requests were cut off")
			harness.Restart(t, p)
			harness.WantRecovery(t, sys)
			for _, u := range uploads {
				if a, ok := receive(u.conn, u.request); ok {
					a.WantProblem(t, 503, "signer_unavailable")
				}
				harness.WantPicture(t, sys, u.user, harness.Cat)
			}
		})
	}
}
