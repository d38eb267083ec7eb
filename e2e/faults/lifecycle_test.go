package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// slowUpload is a PUT whose body is still coming.
type slowUpload struct {
	body   *io.PipeWriter
	answer chan harness.Response // one, or closed when there was none
}

// begin starts a PUT for user that has sent content and then waits. size is its Content-Length, -1 for a chunked body. begin
// returns once the signer processes the upload. A large chunked one then has a block in storage.
func begin(t *testing.T, sys *stack.System, user string, content []byte, size int64) *slowUpload {
	t.Helper()
	r, w := io.Pipe()
	u := &slowUpload{w, make(chan harness.Response, 1)}
	blocks := harness.Series(t, sys.SignerOps, `cats_signer_storage_requests_total{code="201",operation="put_block"}`)
	go func() {
		defer close(u.answer)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, sys.URL+"/cat/"+user, r)
		if err != nil {
			t.Error(err)
			return
		}
		req.ContentLength = size
		if resp, err := harness.Client().Do(req); err == nil {
			defer resp.Body.Close()
			if said, err := io.ReadAll(resp.Body); err == nil {
				u.answer <- harness.Response{Response: resp, Body: said}
			}
		}
		_ = r.Close()
	}()
	t.Cleanup(func() { _ = w.CloseWithError(errors.New("the test is over")) })
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, func() error {
		switch {
		case size >= 0 && harness.Series(t, sys.SignerOps, "cats_signer_http_requests_in_flight") == 0:
			return errors.New("the signer never got an upload")
		case size >= 0:
		case harness.Series(t, sys.SignerOps, "cats_signer_upload_buffers_in_use") == 0:
			return errors.New("the signer never got an upload")
		case len(content) > 4<<20 && harness.Series(t, sys.SignerOps, `cats_signer_storage_requests_total{code="201",operation="put_block"}`) == blocks:
			return errors.New("the signer never stored a block")
		}
		return nil
	})
	return u
}

// trickle goes on sending, a little at a time, until nobody takes it any more.
func (u *slowUpload) trickle() {
	go func() {
		for piece := make([]byte, 1<<10); ; time.Sleep(10 * time.Millisecond) {
			if _, err := u.body.Write(piece); err != nil {
				return
			}
		}
	}()
}

// connects reports whether anyone listens at an address such as sys.URL.
func connects(ctx context.Context, url string) bool {
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// underWay are uploads amid which something happens.
func underWay() map[string][]byte {
	return map[string][]byte{"small": harness.Picture(100<<10, 's'), "large": harness.Picture(5<<20, 'l')}
}

func TestKilledProcessesLoseNoLogLine(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	harness.Put(t, sys, "u", harness.Cat)
	var ids []string
	for range 10 {
		ids = append(ids, harness.Send(t, http.MethodGet, sys.URL+"/cat/u", "").Want(t, http.StatusOK).Header.Get("X-Request-Id"))
	}
	sys.Signer.Signal(syscall.SIGKILL)
	sys.Frontend.Kill()
	sys.Signer.Kill()
	for _, p := range []*stack.Process{sys.Frontend, sys.Signer} {
		lines, err := p.Log.Since(0)
		if err != nil {
			t.Fatal(err)
		}
		log := strings.Join(lines, "\n")
		for i, id := range ids {
			if !strings.Contains(log, `"request_id":"`+id+`"`) {
				t.Errorf("%s has no line of request %d of %d", p.Log.Path(), i+1, len(ids))
			}
		}
	}
}

func TestASignerKilledAmidAnUploadLeavesTheOldPicture(t *testing.T) {
	harness.NeedOwnSystem(t)
	t.Parallel()
	for name, content := range underWay() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sys := harness.Start(t, stack.SystemOptions{})
			frontend := sys.Frontend.Pid()
			harness.Put(t, sys, "u", harness.Cat)
			u := begin(t, sys, "u", content, -1)
			u.trickle()
			sys.Signer.Kill()
			a, ok := <-u.answer
			if !ok {
				t.Fatal("the client got no answer")
			}
			a.WantProblem(t, http.StatusServiceUnavailable, "signer_unavailable")
			a.Outcome(t, "")
			began := time.Now()
			for _, method := range []string{http.MethodPut, http.MethodGet, http.MethodDelete} {
				harness.Do(t, method, sys.URL+"/cat/u", "", content).WantProblem(t, http.StatusServiceUnavailable, "signer_unavailable")
			}
			harness.Do(t, http.MethodGet, sys.URL+"/service", "", nil).Want(t, http.StatusOK)
			// The first of them waits for the signer to come back, and the rest no more.
			if took := time.Since(began); took < 4*time.Second || took > 12*time.Second {
				t.Errorf("it took %v to say so; want 5s and a little", took)
			}
			if ready, _ := harness.Readyz(t, sys.FrontendOps); ready {
				t.Error("the frontend is ready without a signer")
			}
			harness.Restart(t, sys.Signer)
			harness.WantRecovery(t, sys)
			if !bytes.Equal(harness.Served(t, sys, "u"), harness.Cat) {
				t.Error("the picture has changed")
			}
			if sys.Frontend.Pid() != frontend {
				t.Error("the frontend was restarted")
			}
		})
	}
}

func TestSIGTERMLetsAnUploadFinish(t *testing.T) {
	harness.NeedOwnSystem(t)
	t.Parallel()
	for _, name := range []string{"frontend", "signer"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sys := harness.Start(t, stack.SystemOptions{})
			stopped, url, pid := sys.Frontend, sys.URL, sys.Signer.Pid
			if name == "signer" {
				stopped, url, pid = sys.Signer, sys.SignerAPI, sys.Frontend.Pid
			}
			other := pid()
			uploads := underWay()
			uploads["streamed"] = uploads["large"]
			for user, content := range uploads {
				harness.Put(t, sys, user, harness.Cat)
				size := int64(-1)
				if user == "streamed" {
					size = int64(len(content) + len("the end"))
				}
				u := begin(t, sys, user, content, size)
				mark := stopped.Log.Mark()
				stopped.Signal(syscall.SIGTERM)
				harness.WaitForLog(t, stopped.Log, mark, `"msg":"draining"`)
				harness.Eventually(t, func() error {
					if connects(t.Context(), url) {
						return errors.New("new connections are taken while it drains")
					}
					return nil
				})
				if name == "signer" {
					harness.Do(t, http.MethodGet, sys.URL+"/cat/"+user, "", nil).WantProblem(t, http.StatusServiceUnavailable, "signer_unavailable")
				}
				if _, err := u.body.Write([]byte("the end")); err != nil {
					t.Fatal(err)
				}
				_ = u.body.Close()
				a, ok := <-u.answer
				if !ok {
					t.Fatal("the client got no answer")
				}
				a.Want(t, http.StatusOK)
				harness.WantCleanExit(t, stopped)
				harness.Restart(t, stopped) // on the same ports, at once
				harness.WantRecovery(t, sys)
				if !bytes.Equal(harness.Served(t, sys, user), append(bytes.Clone(content), "the end"...)) {
					t.Error("another picture is served than was stored")
				}
			}
			if pid() != other {
				t.Error("the other process was restarted")
			}
		})
	}
}

func TestAProcessThatDrainsIsNotReadyAndServes(t *testing.T) {
	t.Parallel()
	delay := map[string]string{"DRAIN_DELAY": "5s"}
	sys := harness.Start(t, stack.SystemOptions{FrontendEnv: delay, SignerEnv: delay})
	for p, ops := range map[*stack.Process]string{sys.Frontend: sys.FrontendOps, sys.Signer: sys.SignerOps} {
		harness.Put(t, sys, "u", harness.Cat)
		began := time.Now()
		p.Signal(syscall.SIGTERM)
		harness.Eventually(t, func() error {
			if ready, _ := harness.Readyz(t, ops); ready {
				return errors.New("it is ready after SIGTERM")
			}
			return nil
		})
		harness.Do(t, http.MethodGet, ops+"/livez", "", nil).Want(t, http.StatusOK)
		if !bytes.Equal(harness.Served(t, sys, "u"), harness.Cat) {
			t.Error("another picture is served than was stored")
		}
		harness.Put(t, sys, "u", harness.Cat)
		harness.WantCleanExit(t, p)
		if took := time.Since(began); took < 5*time.Second || took > 15*time.Second {
			t.Errorf("it ended after %v, want 5s and a little", took)
		}
		harness.Restart(t, p)
		harness.WantRecovery(t, sys)
	}
}

func TestAnUploadThatStallsAmidTheDrainIsCutOff(t *testing.T) {
	t.Parallel()
	limit := map[string]string{"DRAIN_TIMEOUT": "1s"}
	sys := harness.Start(t, stack.SystemOptions{FrontendEnv: limit, SignerEnv: limit})
	for _, p := range []*stack.Process{sys.Frontend, sys.Signer} {
		harness.Put(t, sys, "u", harness.Cat)
		u := begin(t, sys, "u", underWay()["large"], -1)
		p.Signal(syscall.SIGTERM)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if exit, ok := errors.AsType[*exec.ExitError](p.Wait(ctx)); !ok || exit.ExitCode() != 1 {
			t.Errorf("it ended with %v, want exit code 1", p.Ended())
		}
		harness.WaitForLog(t, p.Log, 0, `"level":"ERROR"`, "requests were cut off")
		u.trickle() // net/http's client sees the end of the connection only when it sends
		if a, ok := <-u.answer; ok {
			a.WantProblem(t, http.StatusServiceUnavailable, "signer_unavailable")
		}
		harness.Restart(t, p)
		harness.WantRecovery(t, sys)
		if !bytes.Equal(harness.Served(t, sys, "u"), harness.Cat) {
			t.Error("the picture has changed")
		}
	}
}

func TestTheFrontendMayStartBeforeTheSigner(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	for _, p := range []*stack.Process{sys.Frontend, sys.Signer} {
		p.Signal(os.Interrupt.(syscall.Signal))
		harness.WantCleanExit(t, p)
	}
	harness.Restart(t, sys.Frontend)
	if ready, _ := harness.Readyz(t, sys.FrontendOps); ready {
		t.Error("the frontend is ready without a signer")
	}
	harness.Do(t, http.MethodGet, sys.FrontendOps+"/livez", "", nil).Want(t, http.StatusOK)
	harness.Do(t, http.MethodGet, sys.URL+"/cat/u", "", nil).WantProblem(t, http.StatusServiceUnavailable, "signer_unavailable")
	harness.Restart(t, sys.Signer)
	harness.WantRecovery(t, sys)
}

// TestNoDiskIsNeeded runs both where nothing can be written: in no folder of
// theirs, with none for temporary files, and with no byte allowed in any file.
func TestNoDiskIsNeeded(t *testing.T) {
	harness.NeedStack(t)
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"frontend", "signer"} {
		script := fmt.Sprintf("#!/bin/sh\n{ cd /proc || cd /; } && ulimit -f 0 && exec '%s'\n", filepath.Join(harness.BinDir(t), name))
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	nowhere := map[string]string{"TMPDIR": filepath.Join(dir, "nowhere"), "HOME": ""}
	sys, err := harness.Stack(t).StartSystem(t.Context(), stack.SystemOptions{
		Container: "e2e-no-disk", Frontend: filepath.Join(dir, "frontend"), Signer: filepath.Join(dir, "signer"),
		FrontendEnv: nowhere, SignerEnv: nowhere,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := sys.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	}()
	for _, content := range underWay() {
		harness.Put(t, sys, "u", content)
		if !bytes.Equal(harness.Served(t, sys, "u"), content) {
			t.Error("another picture is served than was stored")
		}
	}
}
