package stack

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
)

// Log is what one process wrote, kept in a file, whole lines at a time. It is an
// [io.Writer] for the process's output.
type Log struct {
	name   string
	file   *os.File
	follow func(name, line string)

	mu      sync.Mutex
	partial []byte
	size    int64         // of the whole lines in the file
	grown   chan struct{} // closed, and replaced, when size grows
	failed  error         // of the first write to the file
}

// newLog empties the file at path. follow, which may be nil, gets each line.
func newLog(name, path string, follow func(name, line string)) (*Log, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600) //nolint:gosec // in the stack's folder
	if err != nil {
		return nil, fmt.Errorf("opening the log of %s: %w", name, err)
	}
	return &Log{name: name, file: f, follow: follow, grown: make(chan struct{})}, nil
}

// Write takes output as it comes. It never fails: a process must not end because
// its log cannot be kept.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.partial = append(l.partial, p...)
	end := bytes.LastIndexByte(l.partial, '\n') + 1
	if end == 0 {
		return len(p), nil
	}
	n, err := l.file.WriteAt(l.partial[:end], l.size)
	if err != nil && l.failed == nil {
		l.failed = err
	}
	l.size += int64(n)
	if l.follow != nil {
		for line := range strings.Lines(string(l.partial[:end])) {
			l.follow(l.name, strings.TrimRight(line, "\r\n"))
		}
	}
	l.partial = append(l.partial[:0], l.partial[end:]...)
	close(l.grown)
	l.grown = make(chan struct{})
	return len(p), nil
}

// Path is the log's file.
func (l *Log) Path() string { return l.file.Name() }

// Mark is where the log ends now, for [Log.Wait] and [Log.Since].
func (l *Log) Mark() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.size
}

// Since returns the lines written after mark, 0 for all.
func (l *Log) Since(mark int64) ([]string, error) {
	lines, _, _, err := l.read(mark)
	return lines, err
}

func (l *Log) read(mark int64) (lines []string, end int64, grown <-chan struct{}, err error) {
	l.mu.Lock()
	end, grown, err = l.size, l.grown, l.failed
	l.mu.Unlock()
	if err != nil {
		return nil, end, grown, fmt.Errorf("writing the log of %s: %w", l.name, err)
	}
	b := make([]byte, end-mark)
	if _, err := l.file.ReadAt(b, mark); err != nil && err != io.EOF {
		return nil, end, grown, fmt.Errorf("reading the log of %s: %w", l.name, err)
	}
	for line := range strings.Lines(string(b)) {
		lines = append(lines, strings.TrimRight(line, "\r\n"))
	}
	return lines, end, grown, nil
}

// Wait returns the first line after mark that match accepts, as soon as there is
// one. When ctx ends first, the error holds the last lines.
func (l *Log) Wait(ctx context.Context, mark int64, match func(line string) bool) (string, error) {
	for {
		lines, end, grown, err := l.read(mark)
		if err != nil {
			return "", err
		}
		for _, line := range lines {
			if match(line) {
				return line, nil
			}
		}
		mark = end
		select {
		case <-grown:
		case <-ctx.Done():
			return "", fmt.Errorf("waiting for a line of %s: %w%s", l.name, context.Cause(ctx), l.tail(10))
		}
	}
}

// tail returns the last n lines, each after a line end, for the end of an error.
func (l *Log) tail(n int) string {
	lines, err := l.Since(0)
	if err != nil {
		return ""
	}
	var b strings.Builder
	for _, line := range lines[max(0, len(lines)-n):] {
		fmt.Fprintf(&b, "\n  %s | %s", l.name, line)
	}
	return b.String()
}

func (l *Log) close() error { return l.file.Close() }
