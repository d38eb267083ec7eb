//go:build !linux

package stack

import "syscall"

// group gives a child its own process group, so that signals of the terminal do not reach it.
func group() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
