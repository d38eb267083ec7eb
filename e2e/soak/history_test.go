package soak

import (
	"crypto/md5"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"slices"
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

// newWrite returns a write of a new picture, which differs from all other pictures.
func (h *history) newWrite(size int) (*write, []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seq++
	content := make([]byte, size)
	_, _ = rand.NewChaCha8(sha256.Sum256(fmt.Append(nil, h.user, " ", h.seq))).Read(content) // never fails
	copy(content, harness.Cat[:64])
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
	result, info := porcupine.CheckOperationsVerbose(model, slices.Clone(h.events), 5*time.Minute)
	if result == porcupine.Ok {
		return
	}
	file := t.ArtifactDir() + "/" + h.user + ".html"
	if err := porcupine.VisualizePath(model, info, file); err != nil {
		t.Error(err)
	}
	t.Errorf("LOST: %s: the events are not linearizable (%s); see %s, with go test -artifacts", h.user, result, file)
}
