package stack

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

func TestChildEndsWithItsParent(t *testing.T) {
	if file := os.Getenv("CHILD_PID_FILE"); file != "" { // this is the parent
		child := newProcess(t, serverScript)
		if err := child.Start(context.Background()); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file+".new", []byte(strconv.Itoa(child.Pid())), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
		select {}
	}
	p, file := newProcess(t, ""), t.TempDir()+"/pid"
	p.path, p.args, p.listeners = os.Args[0], []string{"-test.run=^TestChildEndsWithItsParent$"}, nil
	p.SetEnv("CHILD_PID_FILE", file)
	p.SetEnv("TMPDIR", filepath.Dir(file)) // a killed test does not delete its folders
	start(t, p)
	var child int
	eventually(t, func() bool {
		b, err := os.ReadFile(file)
		if err != nil {
			return false
		}
		child, err = strconv.Atoi(string(b))
		return err == nil
	})
	if gone(child) {
		t.Fatal("the child does not run")
	}
	t.Cleanup(func() {
		if t.Failed() {
			_ = syscall.Kill(child, syscall.SIGKILL)
		}
	})
	p.Kill() // the child has another process group
	eventually(t, func() bool { return gone(child) })
}

// eventually waits until ok returns true.
func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("timeout")
		}
	}
}
