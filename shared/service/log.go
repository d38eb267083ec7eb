package service

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"time"
)

// requestLine is the message of the line that every request has.
const requestLine = "request"

// Lines of requests that were answered by no 5xx are held back for so long, or until
// there are so many bytes of them: a write of its own for each costs as much as
// signing a link, here and once more in whoever collects the logs.
const (
	holdTime  = 20 * time.Millisecond
	holdBytes = 16 << 10
)

// NewLogger returns the logger of a process: JSON, a line an event, each written at
// once but for those of requests that were answered by no 5xx. Of these, what came in
// the last 20 ms is lost when the process is killed.
func NewLogger(w io.Writer, level slog.Level, name string) *slog.Logger {
	held := &heldLines{w: w}
	held.timer = time.AfterFunc(time.Hour, held.flush)
	held.timer.Stop()
	return slog.New(logHandler{slog.NewJSONHandler(held, &slog.HandlerOptions{Level: level}), held}).With("service", name)
}

// flush has all lines written, where log is one of [NewLogger].
func flush(log *slog.Logger) {
	if h, ok := log.Handler().(logHandler); ok {
		h.held.flush()
	}
}

// logHandler decides which lines can wait.
type logHandler struct {
	slog.Handler
	held *heldLines
}

// Handle implements [slog.Handler].
func (h logHandler) Handle(ctx context.Context, r slog.Record) error {
	err := h.Handler.Handle(ctx, r)
	if r.Level > slog.LevelInfo || r.Message != requestLine {
		h.held.flush()
	}
	return err
}

// WithAttrs implements [slog.Handler].
func (h logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return logHandler{h.Handler.WithAttrs(attrs), h.held}
}

// WithGroup implements [slog.Handler].
func (h logHandler) WithGroup(name string) slog.Handler {
	return logHandler{h.Handler.WithGroup(name), h.held}
}

// heldLines writes several lines at once, in their order.
type heldLines struct {
	w     io.Writer
	timer *time.Timer // of flush

	mu    sync.Mutex
	lines []byte
}

// Write takes whole lines. What cannot be written is lost, as a log's lines are.
func (l *heldLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.lines) == 0 {
		l.timer.Reset(holdTime)
	}
	if l.lines = append(l.lines, p...); len(l.lines) >= holdBytes {
		l.write()
	}
	return len(p), nil
}

func (l *heldLines) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.lines) > 0 {
		l.write()
	}
}

// write writes what is held. l.mu is held.
func (l *heldLines) write() {
	l.timer.Stop()
	_, _ = l.w.Write(l.lines)
	l.lines = l.lines[:0]
}
