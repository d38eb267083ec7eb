package stack

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func start(t *testing.T, p *Process) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := p.Start(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestProcessListensWhereItDidBefore(t *testing.T) {
	p := newStub(t, "good")
	start(t, p)
	address, pid := p.Address("ops"), p.Pid()
	if err := p.Start(t.Context()); err == nil {
		t.Error("started twice")
	}
	p.Kill()
	if err := p.Wait(t.Context()); err == nil {
		t.Error("killed, and no error")
	}
	if err := probe(t.Context(), "http://"+address+"/readyz"); err == nil {
		t.Error("answers though killed")
	}
	start(t, p)
	if p.Address("ops") != address || p.Pid() == pid {
		t.Errorf("started at %s as %d, was at %s as %d", p.Address("ops"), p.Pid(), address, pid)
	}
	if err := p.Stop(t.Context()); err != nil {
		t.Errorf("stopping: %v", err)
	}
	if err := p.Stop(t.Context()); err != nil {
		t.Errorf("stopping again: %v", err)
	}
}

func TestProcessGetsNothingOfOurEnvironment(t *testing.T) {
	t.Setenv("AZURE_CLIENT_SECRET", "mew")
	p := newStub(t, "good")
	p.SetEnv("COLOUR", "red")
	p.SetEnv("SIZE", "1")
	p.SetEnv("SIZE", "")
	start(t, p)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+p.Address("ops")+"/env", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got []string
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	want := []string{"COLOUR=red", "OPS_ADDRESS=127.0.0.1:0", "STUB=good"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
}

func TestProcessThatEndsAtOnceSaysWhy(t *testing.T) {
	err := newStub(t, "broken").Start(t.Context())
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "COLOUR is wrong") {
		t.Errorf("got %v, want the code and the last lines", err)
	}
}

func TestProcessThatDoesNotListenIsKilled(t *testing.T) {
	p := newStub(t, "good")
	p.listeners = map[string]string{"never": ""}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if err := p.Start(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want that time is up", err)
	}
	<-p.Done()
}

func TestProcessThatDoesNotStopIsKilled(t *testing.T) {
	p := newStub(t, "stubborn")
	start(t, p)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := p.Stop(ctx); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("got %v, want that it was killed", err)
	}
	if err := syscall.Kill(p.Pid(), 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the process is still there: %v", err)
	}
	exit, ok := errors.AsType[*exec.ExitError](p.Wait(t.Context()))
	if !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("it ended with %v, want SIGKILL", exit)
	}
}

func TestLogIsReadFromAMark(t *testing.T) {
	var followed []string
	l, err := newLog("cat", t.TempDir()+"/cat.log", func(name, line string) { followed = append(followed, name+" "+line) })
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.close() }()
	_, _ = l.Write([]byte("one\ntw"))
	mark := l.Mark()
	done := make(chan string)
	go func() {
		line, err := l.Wait(t.Context(), mark, func(line string) bool { return strings.HasPrefix(line, "t") })
		if err != nil {
			t.Error(err)
		}
		done <- line
	}()
	_, _ = l.Write([]byte("o\r\nthree\nfo"))
	if got := <-done; got != "two" {
		t.Errorf("got %q, want two", got)
	}
	got, err := l.Since(mark)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"two", "three"}, got); diff != "" {
		t.Errorf("since the mark (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"cat one", "cat two", "cat three"}, followed); diff != "" {
		t.Errorf("followed (-want +got):\n%s", diff)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := l.Wait(ctx, 0, func(string) bool { return false }); err == nil || !strings.Contains(err.Error(), "three") {
		t.Errorf("got %v, want the last lines", err)
	}
}
