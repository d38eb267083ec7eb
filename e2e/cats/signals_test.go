package cats

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// interrupts sends Ctrl-C to a command once ready is closed, and returns what it said.
func (s *shell) interrupts(ready <-chan struct{}, stdin io.Reader, args ...string) printed {
	s.t.Helper()
	cmd := s.command(args...)
	cmd.Stdin = stdin
	return s.runs(cmd, syscall.SIGINT, ready)
}

func TestCtrlCLeavesTheOldPicture(t *testing.T) {
	t.Parallel()
	under := make(chan struct{})
	sys := harness.Start(t, stack.SystemOptions{})
	harness.Put(t, sys, "mia", harness.Cat)
	s := newShell(t, harness.FaultProxy(t, sys.URL, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		if r.Method == http.MethodPut {
			r.Body = struct {
				io.Reader
				io.Closer
			}{io.MultiReader(io.LimitReader(r.Body, 1<<20), hang{r.Context(), r.Body, under}), r.Body}
		}
		healthy.ServeHTTP(w, r)
	}))
	s.write("new.png", harness.Picture(8<<20, 'n'))
	s.interrupts(under, nil, "put", "mia", "new.png").want(t, bySignal, "interrupted", "begins anew")
	if !bytes.Equal(harness.Served(t, sys, "mia"), harness.Cat) {
		t.Error("the picture was changed")
	}
}

// A read of a pipe, and a write to one, cannot be broken off, and do not keep the command.
func TestCtrlCEndsACommandWhosePipeIsIdle(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	harness.Put(t, sys, "mia", harness.Cat)
	s := newShell(t, sys.URL)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	under := make(chan struct{})
	go func() {
		defer close(under)
		_, _ = w.Write(harness.Cat[:4<<10]) // which a pipe takes
		for harness.Sum(t, sys.FrontendOps, "cats_frontend_http_requests_in_flight") == 0 && t.Context().Err() == nil {
			time.Sleep(20 * time.Millisecond)
		}
	}()
	began := time.Now()
	s.interrupts(under, r, "put", "mia", "-").want(t, bySignal, "interrupted")
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
	if !bytes.Equal(harness.Served(t, sys, "mia"), harness.Cat) {
		t.Error("the picture was changed")
	}

	// Of 235 KB a pipe takes 64, and nobody reads more than the first.
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := s.command("get", "mia", "-")
	cmd.Stdout = in
	first := make(chan struct{})
	go func() {
		defer close(first)
		_, _ = out.Read(make([]byte, 1))
	}()
	s.runs(cmd, syscall.SIGTERM, first).want(t, bySignal, "interrupted")
	in.Close()
}

// What ignores a signal from the start, as nohup has it, goes on.
func TestTheCommandGoesOnWhenASignalIsIgnored(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	s := newShell(t, sys.URL)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cats := s.command("put", "mia", "-")
	cmd := exec.CommandContext(t.Context(), "sh", append([]string{"-c", `trap "" HUP; exec "$@"`, "sh"}, cats.Args...)...)
	cmd.Path, cmd.Dir, cmd.Env, cmd.Stdin = "/bin/sh", cats.Dir, cats.Env, r
	cmd.Args[4] = cats.Path
	under := make(chan struct{})
	go func() {
		defer w.Close()
		_, _ = w.Write(harness.Cat[:4<<10])
		for harness.Sum(t, sys.FrontendOps, "cats_frontend_http_requests_in_flight") == 0 && t.Context().Err() == nil {
			time.Sleep(20 * time.Millisecond)
		}
		close(under)
		time.Sleep(200 * time.Millisecond) // in which it would end
		_, _ = w.Write(harness.Cat[4<<10:])
	}()
	s.runs(cmd, syscall.SIGHUP, under).want(t, 0)
	if !bytes.Equal(harness.Served(t, sys, "mia"), harness.Cat) {
		t.Error("another picture is stored")
	}
}

// bySignal is the exit code of what a signal has ended.
const bySignal = -1

// hang is a reader that says that it is asked, and takes the rest without passing it on.
type hang struct {
	context.Context
	rest  io.Reader
	asked chan struct{}
}

func (h hang) Read([]byte) (int, error) {
	close(h.asked)
	_, _ = io.Copy(io.Discard, h.rest) // until whoever asked has gone
	<-h.Done()
	return 0, h.Err()
}
