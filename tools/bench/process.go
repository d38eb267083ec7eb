package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// peer is a child process: the sink, the flooder or a part of a yardstick.
type peer struct {
	address string
	cmd     *exec.Cmd
	stdin   io.Closer
	stdout  *bufio.Reader
}

// startPeer starts this program in the given role, with only env as its environment.
func startPeer(ctx context.Context, role string, env ...string) (*peer, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self)
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
		return nil, fmt.Errorf("peer %s did not start: %w", role, err)
	}
	p.address = strings.TrimSpace(line)
	return p, nil
}

// hops is a yardstick of peers, of which each forwards to the next.
type hops []*peer

// startPair starts the yardstick of GETs: a proxy and a responder. It returns the proxy's URL.
func startPair(ctx context.Context) (hops, string, error) {
	return startHops(ctx, "responder", fmt.Sprint("BENCH_SIZE=", bodySize))
}

// startPipe starts the yardstick of uploads: two proxies to the sink, of which the second connects over TLS as the signer does.
func (b *bench) startPipe(ctx context.Context) (hops, string, error) {
	return startHops(ctx, "proxy", "SSL_CERT_FILE="+b.stack.CA.File, "BENCH_NEXT=https://"+b.sink.address)
}

func startHops(ctx context.Context, last string, env ...string) (h hops, url string, err error) {
	for _, role := range []string{last, "proxy"} {
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

// floodTime waits for the end of a flood and returns its duration.
func (p *peer) floodTime() (time.Duration, error) {
	line, err := p.stdout.ReadString('\n')
	if err != nil {
		return 0, fmt.Errorf("the uploads failed: %w", err)
	}
	return time.ParseDuration(strings.TrimSpace(line))
}

func (p *peer) stop() {
	_ = p.stdin.Close()
	_ = p.cmd.Wait() // the peer exits at the end of its standard input
}

// memory is the resident memory of a process, in MiB: now, and its peak since the start of the process.
type memory struct{ rss, peak float64 }

func memoryOf(pid int) (memory, error) {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return memory{}, err
	}
	status, err := p.NewStatus()
	return memory{rss: float64(status.VmRSS) / mib, peak: float64(status.VmHWM) / mib}, err
}

// cpuOf returns the total CPU time of processes. It reads their CPU clocks (clock_getcpuclockid(3) derives the clock's ID from
// the process ID), because /proc has a resolution of only 10 ms.
func cpuOf(pids ...int) (sum time.Duration, err error) {
	for _, pid := range pids {
		var t unix.Timespec
		if err := unix.ClockGettime(int32(^pid<<3|2), &t); err != nil {
			return 0, fmt.Errorf("reading the CPU time of process %d: %w", pid, err)
		}
		sum += time.Duration(t.Nano())
	}
	return sum, nil
}
