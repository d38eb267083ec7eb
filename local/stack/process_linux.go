package stack

import "syscall"

// group gives a child its own process group, so that signals of the terminal do not reach it. The kernel kills the child when this
// process ends.
func group() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
