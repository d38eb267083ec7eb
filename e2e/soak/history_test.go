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

// write is one that was asked for: of a picture, or, with size 0, of its absence.
type write struct {
	seq, size int
	md5       []byte
	etag      string // once it is acknowledged

	begun time.Time // it takes no effect before
	done  time.Time // it has taken effect by then: acknowledged, or seen; zero while neither
	last  time.Time // it takes no effect later; zero while it is under way
}

// history is what was asked of one name, and so what may be seen there. Any number
// may write and look at once.
type history struct {
	user string

	mu     sync.Mutex
	seq    int
	writes []*write // that are under way, or may still be seen
}

func newHistory(user string) *history {
	now := time.Now()
	return &history{user: user, writes: []*write{{begun: now, done: now, last: now}}}
}

// content is the picture that a write stores. It tells by itself whose it is.
func (h *history) content(seq, size int) []byte {
	label := fmt.Sprintf("|%s|%d|%d|", h.user, seq, size)
	b := make([]byte, size)
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte(label))).Read(b) // never fails
	copy(b[copy(b, harness.Cat[:labelAt]):], label)
	return b
}

const (
	labelAt   = 64  // behind the first bytes of a PNG
	leastSize = 256 // of a picture with its label, in bytes
)

// begin is before a write is asked for; one of the three that follow ends it.
func (h *history) begin(size int) (*write, []byte) {
	h.mu.Lock()
	h.seq++
	w := &write{seq: h.seq, size: size}
	h.mu.Unlock()
	var content []byte
	if size > 0 {
		content = h.content(w.seq, size)
		sum := md5.Sum(content)
		w.md5 = sum[:]
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	w.begun = time.Now()
	h.writes = append(h.writes, w)
	return w, content
}

// stored is when w was acknowledged.
func (h *history) stored(w *write, etag string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	w.etag, w.last = etag, now
	if w.done.IsZero() {
		w.done = now
	}
	// What was replaced before the longest look began will not be looked at again.
	h.writes = slices.DeleteFunc(h.writes, func(v *write) bool { return h.replaced(v, now.Add(-5*time.Minute)) != nil })
}

// refused is when w was said to have changed nothing.
func (h *history) refused(w *write) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.writes = slices.DeleteFunc(h.writes, func(v *write) bool { return v == w })
	if !w.done.IsZero() {
		return fmt.Errorf("%s: picture %d was seen, and then said to have changed nothing", h.user, w.seq)
	}
	return nil
}

// unclear is when nobody said what became of w. It may take effect until the given time.
func (h *history) unclear(w *write, until time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	w.last = until
}

// settle has nothing take effect any more after now.
func (h *history) settle() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, w := range h.writes {
		if now := time.Now(); w.last.IsZero() || w.last.After(now) {
			w.last = now
		}
	}
}

// replaced returns a write that had certainly replaced v at the given time.
func (h *history) replaced(v *write, by time.Time) *write {
	if v.last.IsZero() {
		return nil
	}
	for _, w := range h.writes {
		if !w.done.IsZero() && w.done.Before(by) && w.begun.After(v.last) {
			return w
		}
	}
	return nil
}

// possible returns what may be seen by who looks from one time to another.
func (h *history) possible(from, to time.Time) (found []*write) {
	for _, w := range h.writes {
		if w.begun.Before(to) && h.replaced(w, from) == nil {
			found = append(found, w)
		}
	}
	return found
}

// sawNothing returns an error unless the name may have been without a picture at some
// time between from and to, whatever except does.
func (h *history) sawNothing(from, to time.Time, except *write) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var absent []*write
	for _, w := range h.possible(from, to) {
		if w.size == 0 && w != except {
			absent = append(absent, w)
		}
	}
	switch {
	case len(absent) == 0:
		return fmt.Errorf("LOST: %s has no picture; possible were %s", h.user, h.list(from, to))
	case len(absent) == 1 && absent[0].done.IsZero():
		absent[0].done = to
	}
	return nil
}

// saw returns an error unless the picture of w may have been there at some time
// between from and to.
func (h *history) saw(w *write, from, to time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Contains(h.possible(from, to), w) {
		return fmt.Errorf("LOST: %s has picture %d; possible were %s", h.user, w.seq, h.list(from, to))
	}
	if w.done.IsZero() {
		w.done = to
	}
	return nil
}

// sawContent is saw, of what was fetched, which must be one picture and whole.
func (h *history) sawContent(content []byte, from, to time.Time) error {
	var label []string
	if len(content) >= leastSize {
		label = strings.SplitN(string(content[labelAt:leastSize]), "|", 5)
	}
	if len(label) != 5 || label[1] != h.user {
		return fmt.Errorf("TORN: %s has %d bytes that were never its picture", h.user, len(content))
	}
	seq, _ := strconv.Atoi(label[2])
	size, _ := strconv.Atoi(label[3])
	if size != len(content) || !bytes.Equal(content, h.content(seq, size)) {
		return fmt.Errorf("TORN: %s has %d bytes that begin as picture %d of %d bytes", h.user, len(content), seq, size)
	}
	w := h.find(func(w *write) bool { return w.seq == seq })
	if w == nil {
		return fmt.Errorf("LOST: %s has picture %d, which was refused or replaced", h.user, seq)
	}
	return h.saw(w, from, to)
}

// sawMD5 returns an error unless a picture with this MD5 may have been there.
func (h *history) sawMD5(sum []byte, from, to time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, w := range h.possible(from, to) {
		if bytes.Equal(w.md5, sum) {
			return nil
		}
	}
	return fmt.Errorf("LOST: %s has a picture with the MD5 %x; possible were %s", h.user, sum, h.list(from, to))
}

func (h *history) find(which func(*write) bool) *write {
	h.mu.Lock()
	defer h.mu.Unlock()
	if i := slices.IndexFunc(h.writes, which); i >= 0 {
		return h.writes[i]
	}
	return nil
}

// others reports whether anything but w may have been there.
func (h *history) others(w *write, from, to time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.possible(from, to), func(v *write) bool { return v != w })
}

func (h *history) list(from, to time.Time) string {
	var b strings.Builder
	for _, w := range h.possible(from, to) {
		what := "picture"
		if w.size == 0 {
			what = "deletion"
		}
		state := "acknowledged"
		if w.last.IsZero() || w.done.IsZero() {
			state = "unclear"
		}
		fmt.Fprintf(&b, "%s %d (%s, begun %v ago) ", what, w.seq, state, time.Since(w.begun).Round(time.Millisecond))
	}
	return b.String()
}

// What the soak finds is only as good as this.
func TestTheHistoryKnowsLostFromPossible(t *testing.T) {
	harness.NeedOwnSystem(t)
	t.Parallel()
	h := newHistory("x")
	nothing := func() error { now := time.Now(); return h.sawNothing(now, now, nil) }
	sees := func(content []byte) error { now := time.Now(); return h.sawContent(content, now, now) }
	check := func(what string, err error, bad string) {
		t.Helper()
		time.Sleep(time.Microsecond) // so that times differ
		if bad == "" && err != nil || bad != "" && (err == nil || !strings.HasPrefix(err.Error(), bad)) {
			t.Errorf("%s: %v; want %q", what, err, bad)
		}
	}
	check("nothing at first", nothing(), "")
	first, one := h.begin(1000)
	check("nothing yet", nothing(), "")
	check("an upload under way", sees(one), "")
	h.stored(first, "1")
	check("nothing once it is stored", nothing(), "LOST")
	check("it is there", sees(one), "")
	check("a part", sees(one[:999]), "TORN")
	check("with a byte changed", sees(append(bytes.Clone(one[:999]), one[999]+1)), "TORN")
	check("somebody else's", sees(newHistory("y").content(1, 1000)), "TORN")
	failed, two := h.begin(2000)
	check("an end", h.refused(failed), "")
	check("one that was refused", sees(two), "LOST")
	lost, three := h.begin(3000)
	h.unclear(lost, time.Now().Add(time.Hour))
	check("the one before one that is unclear", sees(one), "")
	check("one that is unclear", sees(three), "")
	check("the one before one that was seen", sees(one), "LOST")
	deleted, _ := h.begin(0)
	h.stored(deleted, "")
	check("a deletion", nothing(), "")
	check("one that comes late", sees(three), "")
	h.settle()
	time.Sleep(time.Microsecond)
	last, four := h.begin(4000)
	h.stored(last, "4")
	check("one that comes too late", sees(three), "LOST")
	check("a deletion that was followed", nothing(), "LOST")
	check("the last", sees(four), "")
	check("the MD5 of the last", h.sawMD5(last.md5, time.Now(), time.Now()), "")
	check("the MD5 of the first", h.sawMD5(first.md5, time.Now(), time.Now()), "LOST")
}
