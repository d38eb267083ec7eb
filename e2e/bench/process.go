package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// peer is a yardstick or the sink, as a process.
type peer struct {
	address string
	cmd     *exec.Cmd
	stdin   io.Closer
	stdout  *bufio.Reader
}

// startPeer starts this program as role, with env besides what it needs itself.
func startPeer(ctx context.Context, role string, env ...string) (*peer, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self) //nolint:gosec // this program
	cmd.Env = append(env, roleVariable+"="+role)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &peer{cmd: cmd, stdin: stdin, stdout: bufio.NewReader(stdout)}
	if role == "flood" {
		return p, nil
	}
	line, err := p.stdout.ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("the peer %s did not start: %w", role, err)
	}
	p.address, err = hostOf(line)
	return p, err
}

// hops is a chain of peers.
type hops []*peer

// startPair and startPipe start the yardsticks and return where they begin.
func startPair(ctx context.Context) (hops, string, error) {
	return startHops(ctx, "pair", fmt.Sprint("BENCH_SIZE=", answers))
}

func (b *bench) startPipe(ctx context.Context) (hops, string, error) {
	return startHops(ctx, "pipe", "SSL_CERT_FILE="+b.stack.CA.File, "BENCH_NEXT=https://"+b.sink.address)
}

func startHops(ctx context.Context, kind string, env ...string) (h hops, url string, err error) {
	for _, role := range []string{kind + "-back", kind + "-front"} {
		p, err := startPeer(ctx, role, env...)
		if err != nil {
			h.stop()
			return nil, "", err
		}
		h, url = append(h, p), "http://"+p.address
		env = []string{"BENCH_NEXT=" + url}
	}
	return h, url, nil
}

func (h hops) pids() (pids []int) {
	for _, p := range h {
		pids = append(pids, p.cmd.Process.Pid)
	}
	return pids
}

func (h hops) stop() {
	for _, p := range h {
		p.stop()
	}
}

// flooded waits for the end of a flood and returns how long it took.
func (p *peer) flooded() (time.Duration, error) {
	line, err := p.stdout.ReadString('\n')
	if err != nil {
		return 0, fmt.Errorf("the uploads failed: %w", err)
	}
	return time.ParseDuration(strings.TrimSpace(line))
}

func (p *peer) stop() {
	_ = p.stdin.Close()
	_ = p.cmd.Wait() // it ends by our closing
}

// memory of a process, in MiB.
type memory struct {
	rss  float64
	peak float64 // VmHWM, since the start of the process
}

func memoryOf(pid int) (m memory, err error) {
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		kib, _ := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
		switch name {
		case "VmRSS":
			m.rss = kib / 1024
		case "VmHWM":
			m.peak = kib / 1024
		}
	}
	return m, nil
}

// cpuOf returns the CPU time of processes, summed up. It reads their CPU clocks, whose
// IDs clock_getcpuclockid(3) derives from the process IDs, since /proc counts in steps
// of 10 ms.
func cpuOf(pids ...int) (sum time.Duration, err error) {
	for _, pid := range pids {
		var t unix.Timespec
		if err := unix.ClockGettime(int32(^pid<<3|2), &t); err != nil { //nolint:gosec // process IDs have 22 bits
			return 0, fmt.Errorf("reading the CPU time of process %d: %w", pid, err)
		}
		sum += time.Duration(t.Nano())
	}
	return sum, nil
}
