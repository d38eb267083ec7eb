package faults

import (
	"bytes"
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
	harness.Do(t, "GET", sys.URL+"/cat/user-0", "", nil).WantProblem(t, 503, signerDown)
	send(func(a harness.Response) {
		a.WantProblem(t, 503, signerDown)
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
		"paused":    {func(_ *testing.T, p *stack.Process) { p.Signal(syscall.SIGSTOP) }, func(_ *testing.T, p *stack.Process) { p.Signal(syscall.SIGCONT) }},
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

// slowUpload is a PUT whose body is not complete.
type slowUpload struct {
	body     *io.PipeWriter
	response chan harness.Response // closed without a value if there is none
}

// beginUpload starts a PUT that has sent content. size is its Content-Length, -1 for a chunked body.
func beginUpload(t *testing.T, sys *stack.System, user string, content []byte, size int64) *slowUpload {
	t.Helper()
	r, w := io.Pipe()
	u := &slowUpload{w, make(chan harness.Response, 1)}
	go func() {
		defer close(u.response)
		req, err := http.NewRequestWithContext(t.Context(), "PUT", sys.URL+"/cat/"+user, r)
		if err != nil {
			t.Error(err)
			return
		}
		req.ContentLength = size
		if resp, err := harness.Client().Do(req); err == nil {
			defer resp.Body.Close()
			if body, err := io.ReadAll(resp.Body); err == nil {
				u.response <- harness.Response{Response: resp, Body: body}
			}
		}
		_ = r.Close()
	}()
	t.Cleanup(func() { _ = w.CloseWithError(errors.New("the test is over")) })
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	return u
}

func TestSIGTERMLetsUploadsFinish(t *testing.T) {
	t.Parallel()
	small, large, end := harness.Picture(100<<10, 's'), harness.Picture(5<<20, 'l'), []byte("the end")
	for _, name := range []string{"frontend", "signer"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			delay := map[string]string{"DRAIN_DELAY": "5s"}
			sys := harness.Start(t, stack.SystemOptions{FrontendEnv: delay, SignerEnv: delay})
			p, address, ops, signal := sys.Frontend, sys.URL, sys.FrontendOps, syscall.SIGTERM
			if name == "signer" {
				p, address, ops, signal = sys.Signer, sys.SignerAPI, sys.SignerOps, syscall.SIGINT
			}
			contents := map[string][]byte{"small": small, "large": large, "streamed": large}
			uploads := map[string]*slowUpload{}
			for user, content := range contents {
				size := int64(-1)
				if user == "streamed" {
					size = int64(len(content) + len(end))
				}
				uploads[user] = beginUpload(t, sys, user, content, size)
			}
			harness.Eventually(t, func() error {
				if n := harness.Sum(t, sys.SignerOps, "cats_signer_http_requests_in_flight"); n < 3 {
					return fmt.Errorf("the signer has received %v uploads", n)
				}
				return nil
			})
			began := time.Now()
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
			for user, u := range uploads {
				if _, err := u.body.Write(end); err != nil {
					t.Fatal(err)
				}
				_ = u.body.Close()
				if a, ok := <-u.response; !ok {
					t.Errorf("no response to %s", user)
				} else {
					a.Want(t, 200)
				}
			}
			harness.WantCleanExit(t, p)
			p.SetEnv("DRAIN_DELAY", "0s")
			p.SetEnv("DRAIN_TIMEOUT", "1s")
			harness.Restart(t, p)
			harness.WantRecovery(t, sys)
			for user, content := range contents {
				harness.WantPicture(t, sys, user, append(bytes.Clone(content), end...))
			}

			stalled := beginUpload(t, sys, "other", large, -1)
			mark := p.Log.Mark()
			p.Signal(signal)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if exit, ok := errors.AsType[*exec.ExitError](p.Wait(ctx)); !ok || exit.ExitCode() != 1 {
				t.Errorf("it ended with %v; want exit code 1", p.Ended())
			}
			harness.WaitForLog(t, p.Log, mark, `"level":"ERROR"`, "requests were cut off")
			_ = stalled.body.Close()
			if a, ok := <-stalled.response; ok {
				a.WantProblem(t, 503, signerDown)
			}
			harness.Restart(t, p)
			harness.WantRecovery(t, sys)
			harness.WantPicture(t, sys, "other", harness.Cat)
		})
	}
}

// TestWaitingForStorageIsBounded sends 300 requests at once while storage is slow or broken. It runs beside no other test of the
// package, which would share the processor.
func TestWaitingForStorageIsBounded(t *testing.T) {
	for name, fault := range map[string]harness.Fault{
		"slow": func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
			select {
			case <-time.After(time.Second):
				healthy.ServeHTTP(w, r)
			case <-r.Context().Done():
			}
		},
		"throttles": harness.Reject(503, "ServerBusy", "Retry-After", "1"),
		"resets":    harness.Reset,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storage := harness.NewStorageProxy(t)
			sys := harness.Start(t, stack.SystemOptions{StorageURL: storage.URL})
			harness.Put(t, sys, "warm", harness.Cat)
			before := harness.Sum(t, sys.SignerOps, "go_goroutines")
			var requests atomic.Int64
			storage.SetAll(func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
				requests.Add(1)
				fault(w, r, healthy)
			})
			const each = 150
			var wg sync.WaitGroup
			for i := range each {
				for method, body := range map[string][]byte{"GET": nil, "PUT": harness.Picture(50<<10, 'w')} {
					wg.Go(func() {
						a, err := harness.Try(t.Context(), method, fmt.Sprintf("%s/cat/waits-%d", sys.URL, i), "", bytes.NewReader(body))
						if err != nil || a.StatusCode != 503 && (name != "slow" || a.StatusCode != 200 && a.StatusCode != 404) {
							t.Errorf("%s: %v %s", method, err, a.Body)
						}
					})
				}
			}
			most := before
			done := make(chan struct{})
			go func() { wg.Wait(); close(done) }()
			for sampling := true; sampling; {
				most = max(most, harness.Sum(t, sys.SignerOps, "go_goroutines"))
				select {
				case <-done:
					sampling = false
				case <-time.After(200 * time.Millisecond):
				}
			}
			if n := requests.Load(); most > before+16*each || n == 0 || n > 16*each {
				t.Errorf("%v goroutines, %v before, and %d requests to storage", most, before, n)
			}
			storage.SetAll(nil)
			harness.Eventually(t, func() error { // when the circuit breaker closes
				a, err := harness.Try(t.Context(), "PUT", sys.URL+"/cat/warm", "", bytes.NewReader(harness.Cat))
				if err != nil || a.StatusCode != 200 {
					return fmt.Errorf("PUT: %w %s", err, a.Body)
				}
				// One for each connection of the frontend, two for each to storage, which stay open for a while.
				if n := harness.Sum(t, sys.SignerOps, "go_goroutines"); n > before+2*each+2*128+20 {
					return fmt.Errorf("%v goroutines remain, %v before", n, before)
				}
				return nil
			})
		})
	}
}
