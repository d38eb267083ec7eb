package faults

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestKilledProcessesRestartInAnyOrder(t *testing.T) {
	t.Parallel()
	sys := harness.StartDirect(t, stack.SystemOptions{})
	harness.Put(t, sys, "user", harness.Cat)
	var requests []harness.RawUpload
	for _, c := range changes() {
		requests = append(requests, c.request(t, sys, "user", c.content))
	}
	sys.Signer.Kill()
	sys.Frontend.Kill()
	harness.Restart(t, sys.Frontend)
	if ready, _ := harness.Readyz(t, sys.FrontendOps); ready {
		t.Error("the frontend is ready without a signer")
	}
	harness.Do(t, "GET", sys.FrontendOps+"/livez", "", nil).Want(t, 200)
	for _, u := range requests {
		a := cutoff{share: 1}.send(t, change{}, sys, u, nil)
		a.WantProblem(t, 503, "signer_unavailable")
		a.Outcome(t, "")
	}
	harness.Restart(t, sys.Signer)
	harness.WantRecovery(t, sys)
	harness.WantPicture(t, sys, "user", harness.Cat)
}

// A busy machine may need longer for a restart than the frontend waits, hence several attempts.
func TestRequestWaitsForTheRestartOfTheSigner(t *testing.T) {
	t.Parallel()
	sys := harness.StartDirect(t, stack.SystemOptions{})
	harness.Put(t, sys, "user", harness.Cat)
	response := make(chan harness.Response, 1)
	for range 5 {
		sys.Signer.Kill()
		go func() {
			a, _ := harness.Try(t.Context(), "GET", sys.URL+"/cat/user", "", nil) // an error is a response with status 0
			response <- a
		}()
		harness.Eventually(t, func() error {
			if n := harness.Series(t, sys.FrontendOps, "cats_frontend_http_requests_in_flight"); n != 1 {
				return fmt.Errorf("%v requests wait for the signer", n)
			}
			return nil
		})
		harness.Restart(t, sys.Signer)
		if a := <-response; a.StatusCode == 200 {
			return
		}
	}
	t.Error("no request was answered after the signer was restarted")
}

// upload is an upload of which the first half has been sent.
type upload struct {
	change
	user    string
	request harness.RawUpload
	conn    net.Conn
}

// beginUploads begins an upload of each kind.
func beginUploads(t *testing.T, sys *stack.System) (uploads []upload) {
	t.Helper()
	for _, c := range changes()[:4] {
		user := strings.ReplaceAll(c.name, " ", "-")
		u := upload{c, user, c.request(t, sys, user, c.content), harness.Dial(t, sys)}
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

func TestTerminationLetsUploadsFinish(t *testing.T) {
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
			uploads := beginUploads(t, sys)
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
				if _, err := harness.Try(t.Context(), "GET", address, "", nil); !errors.Is(err, syscall.ECONNREFUSED) {
					return fmt.Errorf("a new connection after DRAIN_DELAY: %w", err)
				}
				return nil
			})
			for _, u := range uploads {
				if _, err := io.WriteString(u.conn, u.request.Body[len(u.request.Body)/2:]); err != nil {
					t.Fatal(err)
				}
				receive(u.conn, u.request).Want(t, 200)
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
			ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
			defer cancel()
			if exit, ok := errors.AsType[*exec.ExitError](p.Wait(ctx)); !ok || exit.ExitCode() != 1 {
				t.Errorf("it ended with %v; want exit code 1", p.Ended())
			}
			harness.WaitForLog(t, p.Log, mark, `"level":"ERROR"`, "requests were cut off")
			harness.Restart(t, p)
			harness.WantRecovery(t, sys)
			for _, u := range uploads {
				if a := receive(u.conn, u.request); a.StatusCode != 0 {
					a.WantProblem(t, 503, "signer_unavailable")
				}
				harness.WantPicture(t, sys, u.user, harness.Cat)
			}
		})
	}
}
