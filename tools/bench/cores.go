package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// isolate pins Azurite to one core, and this process and its children to the others, until unpin is called. In production,
// storage runs on other machines, so the client must not slow it down.
func isolate(azurite int) (unpin func(), err error) {
	n := runtime.NumCPU()
	if n < 2 {
		return func() {}, fmt.Errorf("storage needs a core of its own; this machine has %d", n)
	}
	unpin = func() { _ = pin(os.Getpid(), cores(0, n)) }
	return unpin, errors.Join(pin(azurite, cores(0, 1)), pin(os.Getpid(), cores(1, n)))
}

func cores(from, to int) (set unix.CPUSet) {
	for i := from; i < to; i++ {
		set.Set(i)
	}
	return set
}

// pin pins all threads of a process to set. Their new threads and child processes inherit it.
func pin(pid int, set unix.CPUSet) error {
	threads, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task", "*"))
	if err != nil {
		return err
	}
	for _, thread := range threads {
		id, err := strconv.Atoi(filepath.Base(thread))
		if err != nil {
			return err
		}
		if err := unix.SchedSetaffinity(id, &set); err != nil && err != unix.ESRCH {
			return fmt.Errorf("pinning thread %d: %w", id, err)
		}
	}
	return nil
}
