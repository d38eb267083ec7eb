package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestFaultsOfTheClock(t *testing.T) {
	harness.NeedStack(t)
	t.Parallel()
	st, err := stack.New(t.Context(), stack.Options{Root: harness.Root(), Dir: t.TempDir(), Clock: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	sys := harness.StartOn(t, st, stack.SystemOptions{})
	// set sets the signer's clock ahead of storage's clock.
	set := func(ahead time.Duration) func() {
		return func() {
			if err := errors.Join(sys.Signer.Stop(t.Context()), st.SetClock(-ahead), sys.Token.Reset()); err != nil {
				t.Fatal(err)
			}
			harness.Restart(t, sys.Signer)
			harness.WantRecovery(t, sys)
		}
	}
	for _, c := range []struct {
		ahead time.Duration
		where string
		short int // status of a signed URL with a lifetime of 5 minutes
	}{
		{10 * time.Minute, "ahead of", 200},
		{-10 * time.Minute, "behind", 403},
	} {
		(&incident{
			name: "clock: 10 minutes " + c.where + " storage's", sys: sys,
			inject: set(c.ahead), remove: set(0),
			check: func() {
				if skew := harness.Series(t, sys.SignerOps, "cats_signer_clock_skew_seconds") - c.ahead.Seconds(); skew < -30 || skew > 30 {
					t.Errorf("the measured skew is wrong by %v s", skew)
				}
				link, _ := harness.Link(t, sys, "recovered", "?ttl=5m")
				harness.Do(t, "GET", link, "", nil).Want(t, c.short)
			},
		}).run(t)
	}
}

// takeDescriptors prevents that a process opens files. It returns a function that ends this.
func takeDescriptors(t *testing.T, p *stack.Process) (restore func()) {
	t.Helper()
	var old unix.Rlimit
	if err := errors.Join(
		unix.Prlimit(p.Pid(), unix.RLIMIT_NOFILE, nil, &old),
		unix.Prlimit(p.Pid(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: old.Max}, nil), // stdin, stdout and stderr
	); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Prlimit(p.Pid(), unix.RLIMIT_NOFILE, &old, nil); err != nil {
			t.Error(err)
		}
	}
}

func TestFaultsOfFileDescriptors(t *testing.T) {
	harness.NeedStack(t)
	t.Parallel()
	p := newTCPProxy(t, harness.Stack(t).Storage.URL)
	sys := harness.Start(t, stack.SystemOptions{StorageURL: p.url()})
	var restore func()
	(&incident{
		name: "file descriptors: none left in the signer", sys: sys, inTurn: true,
		inject: func() {
			p.down() // so that the signer needs new connections
			p.up()
			restore = takeDescriptors(t, sys.Signer)
		},
		remove: func() { restore() },
	}).run(t)
	(&incident{
		name: "file descriptors: none left in the frontend", sys: sys, inTurn: true, logger: sys.Frontend.Log,
		inject: func() {
			restore = takeDescriptors(t, sys.Frontend)
			harness.Dial(t, sys)
		},
		remove: func() { restore() },
	}).run(t)
}

// TestFaultsOfTheFileSystem runs both programs without a working folder, without temporary files and with a file size limit of 0.
func TestFaultsOfTheFileSystem(t *testing.T) {
	harness.NeedStack(t)
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"frontend", "signer"} {
		script := fmt.Sprintf("#!/bin/sh\n{ cd /proc || cd /; } && ulimit -f 0 && exec '%s'\n", filepath.Join(harness.BinDir(t), name))
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	env := map[string]string{"TMPDIR": filepath.Join(dir, "missing"), "HOME": ""}
	sys := harness.Start(t, stack.SystemOptions{
		Frontend: filepath.Join(dir, "frontend"), Signer: filepath.Join(dir, "signer"), FrontendEnv: env, SignerEnv: env,
	})
	(&incident{name: "file system: nothing can be written", sys: sys, inject: func() {}, remove: func() {}}).run(t)
}
