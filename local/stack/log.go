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

// Log stores the output of one process in a file, in whole lines. It is safe for concurrent use.
type Log struct {
	name   string
	file   *os.File
	follow func(name, line string)

	mu      sync.Mutex
	partial []byte
	size    int64         // bytes in the file
	grown   chan struct{} // closed and replaced when size grows
	failed  error         // first error of a write to the file
}

// newLog returns a log in the file at path, which it truncates. follow, unless nil, is called for each line.
func newLog(name, path string, follow func(name, line string)) (*Log, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the log of %s: %w", name, err)
	}
	return &Log{name: name, file: f, follow: follow, grown: make(chan struct{})}, nil
}

// Write adds output. It never fails: a process must not end because its log cannot be written. [Log.Since] returns the error.
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

// Path returns the name of the log's file.
func (l *Log) Path() string { return l.file.Name() }

// Mark returns the current end of the log, for [Log.Wait] and [Log.Since].
func (l *Log) Mark() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.size
}

// Since returns the lines after mark; mark 0 returns all.
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

// Wait waits for a line after mark that match accepts and returns it. If ctx ends first, the error contains the last lines.
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

// tail returns the last n lines for the end of an error text. Each begins with a newline.
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
