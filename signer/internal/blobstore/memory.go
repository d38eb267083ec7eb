package blobstore

import (
	"context"
	"sync"
	"time"

	"cats.example/shared/signerapi"
)

const (
	// pageBytes is what an upload takes of the memory at once, and what one that
	// has hardly begun, or hardly comes along, holds.
	pageBytes = 32 << 10
	// PageBytes is that for whoever judges how much memory will do.
	PageBytes = pageBytes
	// slowPage is how long a page may take to be filled before what came of the
	// picture so far must make room, when room is wanted.
	slowPage = time.Second
	// soon is the longest that memory is kept free for an upload to come to its end,
	// or the end of a block. Others do not wait for one that takes longer.
	soon = 2 * time.Second
)

// memory is the upload memory of the process, in pages. There are never more
// pages than the limit it was made with; an upload that wants one waits. They are
// plain heap memory, which is kept for the next upload.
//
// Pages come back when a block has been stored, or has failed. So that they always
// do, and no slow client keeps any, a wait has others store what they hold as a
// smaller block: those whose clients are slow, and where all wait and nothing is
// being stored, the one that holds most.
type memory struct {
	limit int           // pages
	wait  time.Duration // for a page

	mu      sync.Mutex
	free    [][]byte
	made    int
	waiting []*waiter
	uploads map[*upload]struct{}
	entered int // uploads ever
	storing int // blocks and pictures on their way, whose pages will come back
}

// waiter waits for a page.
type waiter struct {
	up   *upload
	page chan []byte
}

func newMemory(bytes int64, wait time.Duration) *memory {
	return &memory{limit: max(int(bytes/pageBytes), 1), wait: wait, uploads: map[*upload]struct{}{}}
}

// inUse returns the memory that uploads hold, in bytes.
func (m *memory) inUse() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return (m.made - len(m.free)) * pageBytes
}

// take returns a page for up. The error is ErrOverloaded when none came in time,
// or ErrIncomplete when ctx is done first.
func (m *memory) take(ctx context.Context, up *upload) ([]byte, error) {
	w := &waiter{up, make(chan []byte, 1)}
	m.mu.Lock()
	m.waiting = append(m.waiting, w)
	m.serve()
	m.relieve()
	m.mu.Unlock()
	select {
	case page := <-w.page:
		return page, nil
	default:
	}

	timeout := time.NewTimer(m.wait)
	defer timeout.Stop()
	again := time.NewTicker(slowPage / 4) // clients become slow while we wait
	defer again.Stop()
	var err error
	for err == nil {
		select {
		case page := <-w.page:
			return page, nil
		case <-again.C:
			m.mu.Lock()
			m.serve()
			m.relieve()
			m.mu.Unlock()
		case <-timeout.C:
			err = signerapi.ErrOverloaded
		case <-ctx.Done():
			err = signerapi.ErrIncomplete.Wrap(context.Cause(ctx))
		case <-up.ctx.Done(): // a block of it has failed
			err = signerapi.ErrIncomplete.Wrap(context.Cause(up.ctx))
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, other := range m.waiting {
		if other == w {
			m.waiting = append(m.waiting[:i], m.waiting[i+1:]...)
		}
	}
	select {
	case page := <-w.page: // it came after all
		m.free = append(m.free, page)
		up.taken = false
		m.serve()
	default:
	}
	return nil, err
}

// serve gives pages to those who wait, as far as that is wise. m.mu is held.
func (m *memory) serve() {
	for len(m.waiting) > 0 && m.left() > 0 {
		first := 0
		for i, w := range m.waiting {
			if w.up.before(m.waiting[first].up) {
				first = i
			}
		}
		w := m.waiting[first]
		if !m.may(w.up) {
			return
		}
		w.page <- m.page()
		w.up.taken = true
		m.waiting = append(m.waiting[:first], m.waiting[first+1:]...)
	}
}

// left is how many pages can be had. m.mu is held.
func (m *memory) left() int { return len(m.free) + m.limit - m.made }

// may reports whether up may have a page now: not where what is then left would not
// do for all those that need fewer to have a block, or the picture, whole. So as
// many as the memory has room for come to their end together, pages come back as
// soon as can be, and pictures of up to 4 MiB go up in one piece, however many
// there are. m.mu is held.
func (m *memory) may(up *upload) bool {
	left := m.left()
	if left > len(m.uploads)*(blockPages+1) {
		return true
	}
	now := time.Now()
	for other := range m.uploads {
		if other != up && other.before(up) && other.comesAlong(now) {
			if left -= other.missing(); left <= 0 {
				return false
			}
		}
	}
	return true
}

// page returns a page that is left. m.mu is held.
func (m *memory) page() []byte {
	if n := len(m.free); n > 0 {
		page := m.free[n-1]
		m.free = m.free[:n-1]
		return page
	}
	m.made++
	return make([]byte, pageBytes)
}

// give takes pages back.
func (m *memory) give(pages ...[]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, page := range pages {
		m.free = append(m.free, page[:pageBytes])
	}
	m.serve()
}

// relieve has pages stored when somebody waits for one. m.mu is held.
func (m *memory) relieve() {
	if len(m.waiting) == 0 {
		return
	}
	now := time.Now()
	var most *upload
	stuck := m.storing == 0 && m.left() == 0
	for up := range m.uploads {
		stuck = stuck && !up.goesOn(now)
		switch {
		case !up.canStore():
		case up.slow(now):
			up.storeBlock()
		case most == nil || len(up.pages) > len(most.pages):
			most = up
		}
	}
	if stuck && most != nil {
		most.storeBlock()
	}
}

// enter and leave bound the time in which up may be asked to store what it holds.
func (m *memory) enter(up *upload) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entered++
	up.number = m.entered
	m.uploads[up] = struct{}{}
}

func (m *memory) leave(up *upload) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.uploads, up)
	m.serve()
}

// stored is called when one of storing has ended and its pages are back.
func (m *memory) stored() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.storing--
	m.relieve()
}
