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

func (b *bench) startPipe(ctx context.Context, env ...string) (hops, string, error) {
	return startHops(ctx, "pipe", append(env, "SSL_CERT_FILE="+b.stand.CA.File, "BENCH_NEXT=https://"+b.sink.address)...)
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

// usage is what the kernel says of processes together.
type usage struct {
	cpu  time.Duration
	rss  int64 // bytes
	peak int64 // bytes: VmHWM, since resetPeak
}

// clockTick is USER_HZ, which is 100 on all that Go runs on.
const clockTick = 10 * time.Millisecond

// usageOf returns the sum over pids. It needs Linux.
func usageOf(pids ...int) (sum usage, err error) {
	for _, pid := range pids {
		dir := filepath.Join("/proc", strconv.Itoa(pid))
		stat, err := os.ReadFile(filepath.Join(dir, "stat")) //nolint:gosec // under /proc
		if err != nil {
			return sum, err
		}
		_, after, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(after)
		for _, i := range []int{11, 12} { // utime and stime
			n, err := strconv.ParseInt(fields[i], 10, 64)
			if err != nil {
				return sum, err
			}
			sum.cpu += time.Duration(n) * clockTick
		}
		status, err := os.ReadFile(filepath.Join(dir, "status")) //nolint:gosec // under /proc
		if err != nil {
			return sum, err
		}
		for line := range strings.Lines(string(status)) {
			name, value, _ := strings.Cut(line, ":")
			kib, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			switch name {
			case "VmRSS":
				sum.rss += kib << 10
			case "VmHWM":
				sum.peak += kib << 10
			}
		}
	}
	return sum, nil
}

// resetPeak has VmHWM begin anew.
func resetPeak(pids ...int) error {
	for _, pid := range pids {
		if err := os.WriteFile(filepath.Join("/proc", strconv.Itoa(pid), "clear_refs"), []byte("5"), 0); err != nil {
			return err
		}
	}
	return nil
}
