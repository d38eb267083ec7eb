package blobstore

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cats.example/shared/apierror"
)

func TestFormsLeaveTheSpareBuffer(t *testing.T) {
	b := newBuffers()
	var forms [][]byte
	for range bufferCount {
		buf := b.try()
		if len(buf) != bufferBytes {
			t.Fatalf("a buffer of %d bytes, %d taken", len(buf), b.taken())
		}
		forms = append(forms, buf)
	}
	if b.try() != nil {
		t.Error("a form takes the spare buffer")
	}
	spare, err := b.take(t.Context())
	if err != nil || len(spare) != spareBytes || b.taken() != bufferCount+1 {
		t.Errorf("the spare one: %v, %d bytes", err, len(spare))
	}
	b.give(spare)
	if b.try() != nil {
		t.Error("a form takes the spare buffer after it was returned")
	}
	b.give(forms[0])
	if b.try() == nil || b.taken() != bufferCount {
		t.Error("a returned buffer is not free")
	}
}

func TestTakeWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBuffers()
		var taken [][]byte
		for range bufferCount + 1 {
			buf, err := b.take(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			taken = append(taken, buf)
		}
		began := time.Now()
		if _, err := b.take(t.Context()); !errors.Is(err, apierror.ErrOverloaded) || apierror.AsError(err).RetryAfter == 0 || time.Since(began) != bufferWait {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.take(ctx); !errors.Is(err, apierror.ErrIncomplete) {
			t.Errorf("the client left: %v", err)
		}
		time.AfterFunc(time.Second, func() { b.give(taken[0]) })
		if _, err := b.take(t.Context()); err != nil {
			t.Errorf("one was returned: %v", err)
		}
	})
}

// trickle brings a byte each time.
type trickle struct{ each time.Duration }

func (r trickle) Read(p []byte) (int, error) {
	time.Sleep(r.each)
	return copy(p, "x"), nil
}

func TestSlowBodiesLoseTheirBuffer(t *testing.T) {
	for name, c := range map[string]struct {
		others int // buffers that are taken by others
		body   io.Reader
		slow   bool
	}{
		"slow, half of the buffers taken":      {bufferCount/2 - 1, io.LimitReader(trickle{time.Second}, 60), false},
		"slow, more than half taken":           {bufferCount / 2, io.LimitReader(trickle{time.Second}, 60), true},
		"silent, more than half taken":         {bufferCount / 2, trickle{time.Hour}, true},
		"fast enough, more than half taken":    {bufferCount / 2, io.LimitReader(trickle{time.Second / (minFill + 1000)}, 20*minFill), false},
		"slow at the end for less than window": {bufferCount / 2, io.MultiReader(strings.NewReader(strings.Repeat("x", minFill)), io.LimitReader(trickle{time.Second}, 4)), false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBuffers()
				for range c.others {
					if b.try() == nil {
						t.Fatal("no buffer")
					}
				}
				buf := b.try()
				f := b.filler(c.body)
				defer time.Sleep(2 * time.Hour) // until its goroutine has ended
				defer f.stop()
				_, err := f.fill(buf)
				if errors.Is(err, apierror.ErrStalled) != c.slow || !c.slow && err != io.EOF {
					t.Errorf("got %v", err)
				}
			})
		})
	}
}

// A chunked upload that has only the spare buffer is stored in small blocks.
func TestSpareBufferStoresLargePictures(t *testing.T) {
	s, back, _ := newStore(t, nil)
	for range bufferCount {
		s.buffers.try()
	}
	for _, size := range []int{spareBytes - 1, spareBytes, 3*spareBytes + 7} {
		content := pngOf(size)
		if _, err := s.Put(t.Context(), user(t, "x"), strings.NewReader(content), unknown); err != nil || back.blobs["/cats/x/cat"] != content {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// Chunked uploads wait for each other, forms do not wait, and all are stored.
func TestManyUploadsShareTheBuffers(t *testing.T) {
	s, back, _ := newStore(t, nil)
	s.buffers.wait = time.Minute
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			name, content := string(rune('a'+i)), pngOf(3*mib+i)
			opts := unknown
			if i%2 == 0 {
				opts = inForm(len(content), 50)
			}
			if _, err := s.Put(t.Context(), user(t, name), strings.NewReader(content), opts); err != nil {
				t.Error(err)
				return
			}
			back.mu.Lock()
			defer back.mu.Unlock()
			if back.blobs["/cats/"+name+"/cat"] != content {
				t.Errorf("%s: another picture is stored", name)
			}
		})
	}
	wg.Wait()
	if n := s.buffers.taken(); n > 0 {
		t.Errorf("%d buffers are taken", n)
	}
}

func TestReserveWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBuffers()
		all, err := b.reserve(t.Context(), heapTotal)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err := b.reserve(t.Context(), 1); !errors.Is(err, apierror.ErrOverloaded) || time.Since(began) != bufferWait {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.reserve(ctx, 1); !errors.Is(err, apierror.ErrIncomplete) {
			t.Errorf("the client left: %v", err)
		}
		time.AfterFunc(time.Second, all)
		if _, err := b.reserve(t.Context(), 1); err != nil {
			t.Errorf("some was returned: %v", err)
		}
	})
}

// Idle buffers are dropped when their memory is needed; those in use keep it.
func TestReserveDropsIdleBuffers(t *testing.T) {
	b := newBuffers()
	b.wait = time.Millisecond
	var taken [][]byte
	for range bufferCount {
		taken = append(taken, b.try())
	}
	if _, err := b.reserve(t.Context(), heapTotal-2*bufferBytes); !errors.Is(err, apierror.ErrOverloaded) {
		t.Errorf("while all are in use: %v", err)
	}
	b.give(taken[0])
	b.give(taken[1])
	release, err := b.reserve(t.Context(), heapTotal-2*bufferBytes)
	if err != nil {
		t.Fatalf("while two are idle: %v", err)
	}
	if b.try() != nil {
		t.Error("a buffer is allocated beyond the budget")
	}
	release()
	for i, free := range []bool{true, true, false} {
		if got := b.try() != nil; got != free {
			t.Errorf("buffer %d is free: %t; want %t", i, got, free)
		}
	}
}
