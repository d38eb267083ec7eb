package soak

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"cats.example/e2e/harness"
)

// write is a change that a client has requested: a picture of size bytes, or a deletion if size is 0.
type write struct {
	seq, size int
	md5       []byte
	etag      string // set when it is acknowledged

	begun time.Time // it has no effect before
	done  time.Time // its effect was acknowledged or observed by then; zero if neither
	last  time.Time // it takes no effect later; zero while it is in progress
}

// history is the list of the writes of one user, from which follow the pictures that a client may observe. It is safe for
// concurrent use.
type history struct {
	user string

	mu     sync.Mutex
	seq    int
	writes []*write // in progress, or still observable
}

func newHistory(user string) *history {
	now := time.Now()
	return &history{user: user, writes: []*write{{begun: now, done: now, last: now}}}
}

const (
	labelAt   = 64  // after the signature of a PNG
	leastSize = 256 // of a picture with a label
)

// content returns the picture of a write. It contains the user, the number and the size.
func (h *history) content(seq, size int) []byte {
	label := fmt.Sprintf("|%s|%d|%d|", h.user, seq, size)
	b := make([]byte, size)
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte(label))).Read(b) // never fails
	copy(b[copy(b, harness.Cat[:labelAt]):], label)
	return b
}

// begin adds a write. One of acknowledged, rejected and unclear ends it.
func (h *history) begin(size int) (*write, []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seq++
	w := &write{seq: h.seq, size: size, begun: time.Now()}
	h.writes = append(h.writes, w)
	if size == 0 {
		return w, nil
	}
	content := h.content(w.seq, size)
	sum := md5.Sum(content)
	w.md5 = sum[:]
	return w, content
}

func (h *history) acknowledged(w *write, etag string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	w.etag, w.last = etag, time.Now()
	if w.done.IsZero() {
		w.done = w.last
	}
	oldest := w.last.Add(-5 * time.Minute) // of the observations in progress
	h.writes = slices.DeleteFunc(h.writes, func(v *write) bool { return h.replaced(v, oldest) })
}

// rejected removes w, which must have had no effect.
func (h *history) rejected(w *write) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.writes = slices.DeleteFunc(h.writes, func(v *write) bool { return v == w })
	if !w.done.IsZero() {
		return fmt.Errorf("%s: picture %d was observed, and its upload was rejected", h.user, w.seq)
	}
	return nil
}

// unclear ends w with an unknown outcome. It may take effect until the given time.
func (h *history) unclear(w *write, until time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	w.last = until
}

// settle declares that no write takes effect from now on.
func (h *history) settle() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, w := range h.writes {
		if now := time.Now(); w.last.IsZero() || w.last.After(now) {
			w.last = now
		}
	}
}

// replaced reports whether another write had certainly replaced v at the given time.
func (h *history) replaced(v *write, by time.Time) bool {
	return !v.last.IsZero() && slices.ContainsFunc(h.writes, func(w *write) bool {
		return !w.done.IsZero() && w.done.Before(by) && w.begun.After(v.last)
	})
}

// possible returns the writes whose result a client may observe between from and to.
func (h *history) possible(from, to time.Time) (found []*write) {
	for _, w := range h.writes {
		if w.begun.Before(to) && !h.replaced(w, from) {
			found = append(found, w)
		}
	}
	return found
}

// others reports whether the result of another write than w may have been observable.
func (h *history) others(w *write, from, to time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.possible(from, to), func(v *write) bool { return v != w })
}

// find returns a write that which selects, nil if there is none.
func (h *history) find(which func(*write) bool) *write {
	h.mu.Lock()
	defer h.mu.Unlock()
	if i := slices.IndexFunc(h.writes, which); i >= 0 {
		return h.writes[i]
	}
	return nil
}

// observed returns an error unless the result of a write that which selects was possible. If there is one such write, it is done.
func (h *history) observed(what string, which func(*write) bool, from, to time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	possible := h.possible(from, to)
	matching := slices.DeleteFunc(slices.Clone(possible), func(w *write) bool { return !which(w) })
	if len(matching) == 0 {
		var list strings.Builder
		for _, w := range possible {
			fmt.Fprintf(&list, " %+v", *w)
		}
		return fmt.Errorf("LOST: %s has %s; possible are%s", h.user, what, &list)
	}
	if len(matching) == 1 && matching[0].done.IsZero() {
		matching[0].done = to
	}
	return nil
}

func (h *history) observedWrite(w *write, from, to time.Time) error {
	return h.observed(fmt.Sprint("picture ", w.seq), func(v *write) bool { return v == w }, from, to)
}

// observedNothing is for a user without a picture; the deletion except is not the reason.
func (h *history) observedNothing(from, to time.Time, except *write) error {
	return h.observed("no picture", func(w *write) bool { return w.size == 0 && w != except }, from, to)
}

func (h *history) observedMD5(sum []byte, from, to time.Time) error {
	return h.observed(fmt.Sprintf("a picture with MD5 %x", sum), func(w *write) bool { return bytes.Equal(w.md5, sum) }, from, to)
}

// observedContent returns an error unless content is one whole picture that was possible.
func (h *history) observedContent(content []byte, from, to time.Time) error {
	if len(content) >= leastSize {
		if label := strings.SplitN(string(content[labelAt:leastSize]), "|", 5); len(label) == 5 && label[1] == h.user {
			seq, _ := strconv.Atoi(label[2])
			if size, _ := strconv.Atoi(label[3]); size == len(content) && bytes.Equal(content, h.content(seq, size)) {
				return h.observed(fmt.Sprint("picture ", seq), func(w *write) bool { return w.seq == seq }, from, to)
			}
		}
	}
	return fmt.Errorf("TORN: %s has %d bytes that are none of its pictures: %.80q", h.user, len(content), content)
}

// The result of the soak depends on the history.
func TestHistoryDetectsLostAndTornPictures(t *testing.T) {
	if harness.Elsewhere != nil {
		t.Skip("needs no system")
	}
	h := newHistory("x")
	check := func(name, want string, err error) {
		t.Helper()
		time.Sleep(time.Microsecond) // so that times differ
		if want == "" && err != nil || want != "" && (err == nil || !strings.HasPrefix(err.Error(), want)) {
			t.Errorf("%s: %v; want %q", name, err, want)
		}
	}
	nothing := func() error { now := time.Now(); return h.observedNothing(now, now, nil) }
	observe := func(content []byte) error { now := time.Now(); return h.observedContent(content, now, now) }
	check("nothing before the first upload", "", nothing())
	first, one := h.begin(1000)
	check("nothing during an upload", "", nothing())
	check("upload in progress", "", observe(one))
	h.acknowledged(first, "1")
	check("nothing after an upload", "LOST", nothing())
	check("acknowledged", "", observe(one))
	check("truncated", "TORN", observe(one[:999]))
	check("changed byte", "TORN", observe(append(bytes.Clone(one[:999]), one[999]+1)))
	check("picture of another user", "TORN", observe(newHistory("y").content(1, 1000)))
	failed, two := h.begin(2000)
	check("rejection", "", h.rejected(failed))
	check("rejected", "LOST", observe(two))
	lost, three := h.begin(3000)
	h.unclear(lost, time.Now().Add(time.Hour))
	check("before an unknown outcome", "", observe(one))
	check("unknown outcome", "", observe(three))
	check("before an observed picture", "LOST", observe(one))
	deleted, _ := h.begin(0)
	h.acknowledged(deleted, "")
	check("deleted", "", nothing())
	check("late effect", "", observe(three))
	h.settle()
	time.Sleep(time.Microsecond)
	last, four := h.begin(4000)
	h.acknowledged(last, "4")
	check("too late effect", "LOST", observe(three))
	check("replaced deletion", "LOST", nothing())
	check("last", "", observe(four))
	check("MD5 of the last", "", h.observedMD5(last.md5, time.Now(), time.Now()))
	check("MD5 of the first", "LOST", h.observedMD5(first.md5, time.Now(), time.Now()))
}
