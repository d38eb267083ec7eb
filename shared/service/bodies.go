package service

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"cats.example/shared/signerapi"
)

const (
	bodyWait = 10 * time.Second // for a place among the bodies that are read
	// When all places are taken, the slowest body makes way, provided that for a
	// second at least it kept us waiting most of the time and brought less than
	// this, in bytes per second.
	slowRate = 16 << 10
	lookBack = time.Second

	perPlace = 3 // bodies under way in all; more are turned away

	// What has no body is turned away beyond so many for each place. Both together
	// leave an eighth of the connections for saying no, whatever is slow behind them.
	quickPerPlace = 2
	atWork        = 0.875 // of connectionsPerUpload
)

// underWay bounds how many requests are being answered, and so how many connections
// wait for what does not answer.
type underWay struct {
	all, quick         atomic.Int64
	mostAll, mostQuick int64
}

func newUnderWay(limit int) *underWay {
	return &underWay{mostAll: max(1, int64(atWork*connectionsPerUpload*float64(limit))), mostQuick: quickPerPlace * int64(limit)}
}

// begin counts a request until end, which always has to be called. It returns false
// for one too many, which is to be turned away. Of uploads, bodies counts those that
// are read.
func (u *underWay) begin(upload bool) (end func(), ok bool) {
	if upload {
		return func() { u.all.Add(-1) }, u.all.Add(1) <= u.mostAll
	}
	all, quick := u.all.Add(1), u.quick.Add(1)
	return func() { u.all.Add(-1); u.quick.Add(-1) }, all <= u.mostAll && quick <= u.mostQuick
}

// bodies bounds how many request bodies are read at once, and so the memory that
// they take. Slow ones do not keep fast ones out.
type bodies struct {
	places *semaphore.Weighted
	all    *semaphore.Weighted // who waits for a place, has one, or had one and has no answer yet
	mu     sync.Mutex
	open   map[*body]*pace
}

// pace is what a body had brought when it was last looked at.
type pace struct {
	at     time.Time
	n      int64
	waited time.Duration
}

func newBodies(limit int) *bodies {
	return &bodies{places: semaphore.NewWeighted(int64(limit)), all: semaphore.NewWeighted(perPlace * int64(limit)), open: map[*body]*pace{}}
}

// enter waits for a place, in turn, unless too many are under way. The error is
// ErrOverloaded, or ErrIncomplete when ctx is done first.
func (s *bodies) enter(ctx context.Context, b *body) error {
	if !s.begin(b) {
		return signerapi.ErrOverloaded
	}
	if !s.places.TryAcquire(1) {
		if err := s.waitFor(ctx); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.left {
		s.places.Release(1)
		return signerapi.ErrIncomplete
	}
	s.open[b] = &pace{at: time.Now(), n: b.n.Load(), waited: b.waitedFor()}
	return nil
}

// begin counts b until end, if there is room.
func (s *bodies) begin(b *body) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !b.begun && !b.ended {
		b.begun = s.all.TryAcquire(1)
	}
	return b.begun
}

// end is when the request of b has been answered.
func (s *bodies) end(b *body) {
	s.leave(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	b.ended = true
	if b.begun {
		s.all.Release(1)
	}
}

// waitFor is enter where all places are taken.
func (s *bodies) waitFor(ctx context.Context) error {
	limit, cancel := context.WithTimeout(ctx, bodyWait)
	defer cancel()
	entered := make(chan error, 1)
	go func() { entered <- s.places.Acquire(limit, 1) }()
	again := time.NewTicker(lookBack)
	defer again.Stop()
	for {
		s.makeRoom(time.Now())
		select {
		case err := <-entered:
			if err != nil && ctx.Err() != nil {
				return signerapi.ErrIncomplete.Wrap(context.Cause(ctx))
			}
			if err != nil {
				return signerapi.ErrOverloaded
			}
			return nil
		case <-again.C:
		}
	}
}

// leave gives the place of b back, if it has one. It gets no other.
func (s *bodies) leave(b *body) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b.left = true
	if _, ok := s.open[b]; ok {
		delete(s.open, b)
		s.places.Release(1)
	}
}

// makeRoom gives up the slowest body, if one is slow.
func (s *bodies) makeRoom(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var slowest *body
	least := float64(slowRate)
	for b, p := range s.open {
		passed := now.Sub(p.at)
		if passed < lookBack {
			continue
		}
		n, waited := b.n.Load(), b.waitedFor()
		rate := float64(n-p.n) / passed.Seconds()
		ours := waited-p.waited < passed/2 // it is we who are slow
		if !ours && rate < least && !b.gaveUp.Load() {
			slowest, least = b, rate
		}
		if passed > 5*lookBack || ours { // look at what comes from now on
			*p = pace{now, n, waited}
		}
	}
	if slowest != nil {
		slowest.giveUp()
	}
}
