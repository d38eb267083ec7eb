package stack

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// serverScript announces LISTENERS at OPS_ADDRESS, by default the listener ops at an address of its own. It exits with code 0 on SIGTERM.
const serverScript = `trap 'exit 0' TERM
for listener in ${LISTENERS:-ops}; do
  echo "{\"msg\": \"listening\", \"listener\": \"$listener\", \"address\": \"${OPS_ADDRESS:-127.0.0.1:$$}\"}"
done
while :; do sleep 0.05; done`

// newProcess returns a shell that runs script when it is started.
func newProcess(t *testing.T, script string) *Process {
	t.Helper()
	dir := t.TempDir()
	log, err := newLog("test", dir+"/test.log", nil)
	if err != nil {
		t.Fatal(err)
	}
	p := &Process{
		Log: log, name: "test", path: "/bin/sh", args: []string{"-c", script}, dir: dir,
		listeners: map[string]string{"ops": "OPS_ADDRESS"}, listening: listeningJSON,
		env: map[string]string{}, addresses: map[string]string{},
	}
	t.Cleanup(func() {
		p.Kill()
		_ = log.close()
	})
	return p
}

func start(t *testing.T, p *Process) {
	t.Helper()
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// gone reports whether no process has the ID. A process that nobody has waited for counts as gone.
func gone(pid int) bool {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return true
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	name := bytes.LastIndexByte(b, ')') // the name may contain anything
	return err == nil && len(b) > name+2 && b[name+2] == 'Z'
}

func TestProcessRestartsOnTheSameAddress(t *testing.T) {
	p := newProcess(t, serverScript)
	start(t, p)
	address, pid := p.Address("ops"), p.Pid()
	if err := p.Start(t.Context()); err == nil {
		t.Error("a running process can be started")
	}
	p.Kill()
	if err := p.Wait(t.Context()); err == nil || !gone(pid) {
		t.Errorf("killed: %v", err)
	}
	start(t, p)
	if p.Address("ops") != address || p.Pid() == pid {
		t.Errorf("restarted at %s as %d; was at %s as %d", p.Address("ops"), p.Pid(), address, pid)
	}
	for range 2 {
		if err := p.Stop(t.Context()); err != nil {
			t.Errorf("stopping: %v", err)
		}
	}
}

func TestProcessInheritsNoEnvironment(t *testing.T) {
	t.Setenv("AZURE_CLIENT_SECRET", "mew")
	p := newProcess(t, "")
	p.path, p.args = "/usr/bin/env", nil
	p.SetEnv("COLOR", "red")
	p.SetEnv("SIZE", "1")
	p.SetEnv("SIZE", "")
	if err := p.Start(t.Context()); err == nil {
		t.Error("the start has found a listener")
	}
	got, err := p.Log.Since(0)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"COLOR=red"}, got); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
}

func TestProcessStartReportsTheExit(t *testing.T) {
	err := newProcess(t, "echo the setting COLOR is invalid >&2; exit 3").Start(t.Context())
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "COLOR is invalid") {
		t.Errorf("got %v; want the exit code and the last lines", err)
	}
}

func TestProcessWithoutListenerIsKilled(t *testing.T) {
	p := newProcess(t, serverScript)
	p.listeners = map[string]string{"other": ""}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Start(ctx); !errors.Is(err, context.Canceled) || !gone(p.Pid()) {
		t.Errorf("got %v; want that the context is canceled", err)
	}
}

func TestProcessThatIgnoresSIGTERMIsKilled(t *testing.T) {
	p := newProcess(t, "trap '' TERM; "+strings.TrimPrefix(serverScript, "trap 'exit 0' TERM"))
	start(t, p)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.Stop(ctx); err == nil || !strings.Contains(err.Error(), "killed") || !gone(p.Pid()) {
		t.Errorf("got %v; want that it was killed", err)
	}
	exit, ok := errors.AsType[*exec.ExitError](p.Wait(t.Context()))
	if !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("it ended with %v; want SIGKILL", exit)
	}
}

func TestLogWaitsForALineAfterTheMark(t *testing.T) {
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
		t.Errorf("got %q; want two", got)
	}
	if got, err := l.Since(mark); err != nil || !slices.Equal(got, []string{"two", "three"}) {
		t.Errorf("after the mark: %q, %v", got, err)
	}
	if !slices.Equal(followed, []string{"cat one", "cat two", "cat three"}) {
		t.Errorf("followed %q", followed)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Wait(ctx, 0, func(string) bool { return false }); err == nil || !strings.Contains(err.Error(), "three") {
		t.Errorf("got %v; want the last lines", err)
	}
}
