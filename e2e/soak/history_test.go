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

	"github.com/anishathalye/porcupine"

	"cats.example/e2e/harness"
)

// write is a change that a client has requested: a picture of size bytes, or a deletion if size is 0.
type write struct {
	seq, size int // seq is 0 for a deletion
	md5       []byte
	etag      string // set when it is acknowledged
}

// event is what a client has learned: the picture before, and what a write has changed. Pictures are numbers, 0 is none.
type event struct {
	what   string
	before func(picture int) bool // nil for any
	write  *write                 // nil for an observation
	maybe  bool                   // the outcome of the write is unknown
}

// model is the linearizable history of one user's picture. A rejected write is no event, so its picture must never be observed.
var model = (&porcupine.NondeterministicModel{
	Init: func() []any { return []any{0} },
	Step: func(picture, input, _ any) []any {
		e := input.(event)
		switch {
		case e.before != nil && !e.before(picture.(int)):
			return nil
		case e.write == nil:
			return []any{picture}
		case e.maybe:
			return []any{picture, e.write.seq}
		}
		return []any{e.write.seq}
	},
	DescribeOperation: func(input, _ any) string { return input.(event).what },
}).ToModel()

// history is the events of one user's picture. It is safe for concurrent use.
type history struct {
	user string

	mu     sync.Mutex
	seq    int
	writes []*write // acknowledged pictures
	sums   map[string]int
	events []porcupine.Operation
}

func newHistory(user string) *history { return &history{user: user, sums: map[string]int{}} }

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

// newWrite returns a write of a new picture.
func (h *history) newWrite(size int) (*write, []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seq++
	content := h.content(h.seq, size)
	sum := md5.Sum(content)
	h.sums[string(sum[:])] = h.seq
	return &write{seq: h.seq, size: size, md5: sum[:]}, content
}

// recent returns one of the last acknowledged pictures, nil if there is none.
func (h *history) recent(r *rand.Rand) *write {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := len(h.writes); n > 0 {
		return h.writes[n-1-r.IntN(min(n, 3))]
	}
	return nil
}

// add records an event that happened between two times.
func (h *history) add(e event, from, to time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e.write != nil && e.write.etag != "" {
		h.writes = append(h.writes, e.write)
	}
	if e.write != nil {
		e.what += fmt.Sprintf(" %d", e.write.seq)
	}
	h.events = append(h.events, porcupine.Operation{ClientId: len(h.events) % 4, Input: e, Call: from.UnixNano(), Return: to.UnixNano()})
}

// observed records that a client has seen a picture, or that there is none.
func (h *history) observed(picture int, from, to time.Time) {
	h.add(event{what: fmt.Sprint("observed ", picture), before: func(before int) bool { return before == picture }}, from, to)
}

// observedSum records that a client has seen the MD5 of a picture.
func (h *history) observedSum(sum []byte, from, to time.Time) error {
	h.mu.Lock()
	seq, ok := h.sums[string(sum)]
	h.mu.Unlock()
	if !ok {
		return fmt.Errorf("TORN: %s has a picture with MD5 %x, which is none of its pictures", h.user, sum)
	}
	h.observed(seq, from, to)
	return nil
}

// observedContent records that a client has seen a picture. It returns an error unless content is one whole picture.
func (h *history) observedContent(content []byte, from, to time.Time) error {
	if len(content) >= leastSize {
		if label := strings.SplitN(string(content[labelAt:leastSize]), "|", 5); len(label) == 5 && label[1] == h.user {
			seq, _ := strconv.Atoi(label[2])
			if size, _ := strconv.Atoi(label[3]); size == len(content) && bytes.Equal(content, h.content(seq, size)) {
				h.observed(seq, from, to)
				return nil
			}
		}
	}
	return fmt.Errorf("TORN: %s has %d bytes that are none of its pictures: %.80q", h.user, len(content), content)
}

// settle declares that no write takes effect from now on.
func (h *history) settle() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.events {
		h.events[i].Return = min(h.events[i].Return, time.Now().UnixNano())
	}
}

// check fails the test if no order of the events explains them. It writes a picture of the history.
func (h *history) check(t *testing.T) {
	t.Helper()
	result, info := porcupine.CheckOperationsVerbose(model, slices.Clone(h.events), time.Minute)
	if result == porcupine.Ok {
		return
	}
	file := t.ArtifactDir() + "/" + h.user + ".html"
	if err := porcupine.VisualizePath(model, info, file); err != nil {
		t.Error(err)
	}
	t.Errorf("LOST: %s: the events are not linearizable (%s); see %s, with go test -artifacts", h.user, result, file)
}
