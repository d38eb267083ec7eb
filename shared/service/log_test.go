package service

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// writes keeps each write by itself.
type writes struct {
	mu  sync.Mutex
	all []string
}

func (w *writes) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, string(p))
	return len(p), nil
}

func (w *writes) get() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all
}

func TestLinesOfRequestsAreHeldForAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out writes
		log := NewLogger(&out, slog.LevelInfo, "test").With("a", 1).WithGroup("b")
		log.Info(requestLine, "n", 1)
		log.Info(requestLine, "n", 2)
		if len(out.get()) != 0 {
			t.Fatalf("written at once: %q", out.get())
		}
		time.Sleep(holdTime)
		synctest.Wait()
		if len(out.get()) != 1 || strings.Count(out.get()[0], "\n") != 2 {
			t.Fatalf("after %v: %q; want two lines in one write", holdTime, out.get())
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(out.get()) != 1 {
			t.Errorf("written again: %q", out.get())
		}
	})
}

func TestOtherLinesAreWrittenAtOnceAndInOrder(t *testing.T) {
	for what, say := range map[string]func(*slog.Logger){
		"a request that failed": func(log *slog.Logger) { log.Warn(requestLine, "n", 2) },
		"an event":              func(log *slog.Logger) { log.Info("event", "n", 2) },
		"the end":               func(log *slog.Logger) { flush(log) },
	} {
		var out bytes.Buffer
		log := NewLogger(&out, slog.LevelInfo, "test")
		log.Info(requestLine, "n", 1)
		say(log)
		if got := out.String(); !strings.Contains(got, `"n":1`) || strings.Index(got, `"n":1`) > strings.Index(got+`"n":2`, `"n":2`) {
			t.Errorf("%s: the log is %q", what, got)
		}
	}
}

func TestHeldLinesAreBounded(t *testing.T) {
	var out writes
	log := NewLogger(&out, slog.LevelInfo, "test")
	for range 4 {
		log.Info(requestLine, "much", strings.Repeat("x", holdBytes/2))
	}
	if len(out.get()) < 2 {
		t.Errorf("%d writes of %d KiB", len(out.get()), 2*holdBytes>>10)
	}
	for i, w := range out.get() {
		if !strings.HasSuffix(w, "\n") {
			t.Error(fmt.Sprint("write ", i, " does not end with a line"))
		}
	}
}
