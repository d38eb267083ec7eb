package stack

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"
)

func TestChildDiesWithAKilledParent(t *testing.T) {
	p := newStub(t, "parent") // starts a stub of its own
	dir := t.TempDir()
	p.SetEnv("DIR", dir)
	start(t, p)
	b, err := os.ReadFile(dir + "/pid")
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(string(b))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(child, 0); err != nil {
		t.Fatalf("the child does not run: %v", err)
	}
	p.Kill() // the parent alone: the child has a group of its own
	for deadline := time.Now().Add(10 * time.Second); !errors.Is(syscall.Kill(child, 0), syscall.ESRCH); time.Sleep(10 * time.Millisecond) {
		if zombie(child) {
			return // nobody reaps it where process 1 does not
		}
		if time.Now().After(deadline) {
			t.Fatal("the child is still there")
		}
	}
}

// zombie reports whether the process is dead but for its entry in the table.
func zombie(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	name := bytes.LastIndexByte(b, ')') // the name may hold anything
	return len(b) > name+2 && b[name+2] == 'Z'
}
