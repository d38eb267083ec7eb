//go:build !linux

package stack

import "syscall"

// group puts a child into a process group of its own, out of the terminal's reach.
func group() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
