package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// apart gives Azurite a core of its own, and everything else the others, until
// back is called: storage is elsewhere in real life, and what it answers at most
// must not depend on who asks. What is started in between stays there.
func (b *bench) apart() (back func(), err error) {
	n := runtime.NumCPU()
	if n < 2 {
		return nil, fmt.Errorf("storage needs a core of its own, and there are %d", n)
	}
	own, others, all := cores(0, 1), cores(1, n), cores(0, n)
	azurite := b.stand.Storage.Process.Pid()
	back = func() {
		_, _ = pin(azurite, all), pin(os.Getpid(), all) // as good as can be: what follows says how fast it is
	}
	if err := pin(azurite, own); err != nil {
		return nil, err
	}
	if err := pin(os.Getpid(), others); err != nil {
		back()
		return nil, err
	}
	return back, nil
}

func cores(from, to int) (set unix.CPUSet) {
	for i := from; i < to; i++ {
		set.Set(i)
	}
	return set
}

// pin has all threads of a process run on set. Those that they start do so too.
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
			return fmt.Errorf("pinning a thread to its cores: %w", err)
		}
	}
	return nil
}
