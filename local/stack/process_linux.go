package stack

import "syscall"

// group puts a child into a process group of its own, out of the terminal's
// reach, and has the kernel kill it when this process dies without a word.
func group() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
