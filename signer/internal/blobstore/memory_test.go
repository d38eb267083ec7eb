package blobstore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"cats.example/shared/signerapi"
)

// peak notes the most that was ever made, which is never given back.
func peak(s *Store) int {
	s.memory.mu.Lock()
	defer s.memory.mu.Unlock()
	return s.memory.made
}

func TestNoUploadGoesBeyondTheMemory(t *testing.T) {
	const pages = 300 // two blocks and some
	s, back, _ := newStore(t, func(o *Options) { o.Memory, o.MemoryWait = pages*pageBytes, 30*time.Second })
	var wg sync.WaitGroup
	sizes := []int{1, pageBytes, 100_000, 4 << 20, 4<<20 + 1, 9 << 20}
	for i := range 24 {
		wg.Go(func() {
			name, content := string(rune('a'+i)), pngOf(max(sizes[i%len(sizes)], 24))
			if _, err := s.Put(t.Context(), user(t, name), strings.NewReader(content), unknown); err != nil {
				t.Errorf("%d bytes: %v", len(content), err)
				return
			}
			back.mu.Lock()
			defer back.mu.Unlock()
			if back.blobs["/cats/"+name+"/cat"] != content {
				t.Errorf("%d bytes: others are stored", len(content))
			}
		})
	}
	wg.Wait()
	if peak(s) > pages || s.memory.inUse() != 0 {
		t.Errorf("%d pages were made of %d, and %d bytes are in use at the end", peak(s), pages, s.memory.inUse())
	}
}

// Many pictures of 4 MiB at once are more than the memory holds, and go up in one
// piece each all the same: those that need the fewest pages get them first.
func TestPicturesThatCompeteForMemoryStayWhole(t *testing.T) {
	s, back, _ := newStore(t, func(o *Options) { o.Memory, o.MemoryWait = 3*blockPages*pageBytes, 30*time.Second })
	content := pngOf(4 << 20)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			opts := signerapi.PutOptions{Size: int64(len(content))}
			if _, err := s.Put(t.Context(), user(t, string(rune('a'+i))), strings.NewReader(content), opts); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, call := range back.called() {
		if call != "PUT" {
			t.Errorf("%s: a picture went up in pieces", call)
		}
	}
}

// trickle gives its first bytes at once and then, when it is told to, the rest.
func trickle(t *testing.T, content string, first int) (body io.Reader, goOn func()) {
	t.Helper()
	r, w := io.Pipe()
	more := make(chan struct{})
	go func() {
		_, _ = io.WriteString(w, content[:first])
		<-more
		_, _ = io.WriteString(w, content[first:])
		_ = w.Close()
	}()
	return r, sync.OnceFunc(func() { close(more) })
}

// A client that stands still with nearly all of the memory must not keep it: what
// came of its picture is stored as a smaller block when another needs the pages.
func TestASlowUploadMakesRoom(t *testing.T) {
	s, back, _ := newStore(t, func(o *Options) { o.Memory, o.MemoryWait = 10*pageBytes, 20*time.Second })
	slow := pngOf(12 * pageBytes)
	body, goOn := trickle(t, slow, 9*pageBytes+100)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := s.Put(t.Context(), user(t, "slow"), body, unknown); err != nil {
			t.Errorf("the slow one: %v", err)
		}
	})
	for s.memory.inUse() < 10*pageBytes {
		time.Sleep(time.Millisecond)
	}
	fast := pngOf(3 * pageBytes)
	if _, err := s.Put(t.Context(), user(t, "fast"), strings.NewReader(fast), signerapi.PutOptions{Size: int64(len(fast))}); err != nil {
		t.Fatalf("the fast one: %v", err)
	}
	if held := s.memory.inUse(); held > pageBytes {
		t.Errorf("the slow one still holds %d bytes", held)
	}
	goOn()
	wg.Wait()
	back.mu.Lock()
	defer back.mu.Unlock()
	if back.blobs["/cats/slow/cat"] != slow || back.blobs["/cats/fast/cat"] != fast {
		t.Error("what is stored is not what was sent")
	}
	if peak(s) > 10 {
		t.Errorf("%d pages were made", peak(s))
	}
}

// paced gives a page at a time, and takes its time over each.
type paced struct {
	io.Reader
	each time.Duration
}

func (p paced) Read(b []byte) (int, error) {
	time.Sleep(p.each)
	n, err := io.ReadFull(p.Reader, b[:min(len(b), pageBytes)])
	if err == io.ErrUnexpectedEOF {
		err = nil
	}
	return n, err
}

// Clients that are not slow, but need minutes for a block, have no memory kept free
// for them: others would be refused while most of it is unused.
func TestMemoryIsNotKeptFreeForLong(t *testing.T) {
	s, back, _ := newStore(t, func(o *Options) { o.Memory, o.MemoryWait = 2*blockPages*pageBytes, time.Second })
	content := pngOf(32 * pageBytes)
	var wg sync.WaitGroup
	for i := range 7 {
		wg.Go(func() {
			body := paced{strings.NewReader(content), 60 * time.Millisecond}
			if _, err := s.Put(t.Context(), user(t, string(rune('a'+i))), body, unknown); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(back.called()); n != 7 {
		t.Errorf("storage was called %d times for 7 pictures", n)
	}
}

// stores puts body, which is content, and looks at what came of it.
func stores(t *testing.T, s *Store, back *storage, name string, body io.Reader, content string) {
	t.Helper()
	if _, err := s.Put(t.Context(), user(t, name), body, unknown); err != nil {
		t.Error(err)
		return
	}
	back.mu.Lock()
	defer back.mu.Unlock()
	if back.blobs["/cats/"+name+"/cat"] != content {
		t.Errorf("%s: others are stored", name)
	}
}

// When memory runs out, clients that need minutes for a block make room for each
// other, and none is refused.
func TestClientsOfMiddlingSpeedShareTheMemory(t *testing.T) {
	s, back, _ := newStore(t, func(o *Options) { o.Memory, o.MemoryWait = blockPages*pageBytes, 3*time.Second })
	content := pngOf(32*pageBytes + 7)
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			name := string(rune('a' + i))
			body := paced{strings.NewReader(content), 60 * time.Millisecond}
			stores(t, s, back, name, body, content)
		})
	}
	wg.Wait()
}

// Clients that all stand still with no block whole do not lock each other out.
func TestUploadsThatHoldAllMemoryTogetherGoOn(t *testing.T) {
	s, back, _ := newStore(t, func(o *Options) { o.Memory, o.MemoryWait = 8*pageBytes, 20*time.Second })
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			name, content := string(rune('a'+i)), pngOf(6*pageBytes+i)
			stores(t, s, back, name, strings.NewReader(content), content)
		})
	}
	wg.Wait()
}

func TestAWaitForMemoryEndsWithTheRequest(t *testing.T) {
	s, _, _ := newStore(t, func(o *Options) { o.Memory, o.MemoryWait = pageBytes, time.Minute })
	body, goOn := trickle(t, pngOf(5000), 4000)
	defer goOn()
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = s.Put(t.Context(), user(t, "first"), body, unknown) })
	for s.memory.inUse() == 0 {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.Put(ctx, user(t, "x"), strings.NewReader(pngOf(100)), unknown); !errors.Is(err, signerapi.ErrIncomplete) {
		t.Errorf("got %v; want ErrIncomplete", err)
	}
	goOn()
	wg.Wait()
	if n := len(s.memory.waiting); n > 0 || s.memory.inUse() > 0 {
		t.Errorf("%d still wait, %d bytes are in use", n, s.memory.inUse())
	}
}

// Bodies that break off, at any place, and storage that fails now and then, leave
// no page behind.
func TestNothingIsLeftBehind(t *testing.T) {
	s, back, _ := newStore(t, func(o *Options) { o.Memory, o.MemoryWait = 200*pageBytes, 30*time.Second })
	s.retries = -1
	back.fault = func(w http.ResponseWriter, _ *http.Request) bool {
		if rand.IntN(8) > 0 {
			return false
		}
		refuse(w, 409, "Whatever")
		return true
	}
	content := pngOf(6 << 20)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 4 {
				body := io.Reader(strings.NewReader(content[:rand.IntN(len(content))+1]))
				if rand.IntN(2) == 0 {
					body = io.MultiReader(body, broken{})
				}
				_, _ = s.Put(t.Context(), user(t, "x"), body, unknown)
			}
		})
	}
	wg.Wait()
	m := s.memory
	if m.inUse() != 0 || len(m.uploads) != 0 || len(m.waiting) != 0 || m.storing != 0 || peak(s) > 200 {
		t.Errorf("%d bytes, %d uploads, %d waiting, %d on their way, %d pages made", m.inUse(), len(m.uploads), len(m.waiting), m.storing, peak(s))
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, signerapi.ErrIncomplete }

func TestASeekOfALentBodyTellsTheLength(t *testing.T) {
	l := lend([][]byte{bytes.Repeat([]byte("a"), 10), []byte("bc")})
	if n, err := l.Seek(0, io.SeekEnd); n != 12 || err != nil {
		t.Errorf("the end is at %d, %v", n, err)
	}
	if n, err := l.Seek(0, io.SeekStart); n != 0 || err != nil {
		t.Errorf("the begin is at %d, %v", n, err)
	}
	if b, err := io.ReadAll(l); string(b) != "aaaaaaaaaabc" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
}
