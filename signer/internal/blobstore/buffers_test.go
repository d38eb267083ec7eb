package blobstore

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"cats.example/shared/apierror"
)

// trickle returns a byte each time.
type trickle struct{ each time.Duration }

func (r trickle) Read(p []byte) (int, error) {
	time.Sleep(r.each)
	return copy(p, "x"), nil
}

func TestSlowBodyLosesItsBuffer(t *testing.T) {
	for name, c := range map[string]struct {
		others int // buffers taken by others
		body   io.Reader
		slow   bool
	}{
		"slow, half of the buffers taken":      {bufferCount/2 - 1, io.LimitReader(trickle{time.Second}, 60), false},
		"slow, more than half taken":           {bufferCount / 2, io.LimitReader(trickle{time.Second}, 60), true},
		"silent, more than half taken":         {bufferCount / 2, trickle{time.Hour}, true},
		"fast enough, more than half taken":    {bufferCount / 2, io.LimitReader(trickle{time.Second / (minFill + 1000)}, 6*minFill), false},
		"slow at the end for less than window": {bufferCount / 2, io.MultiReader(strings.NewReader(strings.Repeat("x", minFill)), io.LimitReader(trickle{time.Second}, 4)), false},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := newBuffers()
			for range c.others {
				b.try()
			}
			f := b.filler(c.body)
			defer time.Sleep(2 * time.Hour) // until its goroutine has ended
			defer f.stop()
			if _, err := f.fill(b.try()); errors.Is(err, apierror.ErrStalled) != c.slow || !c.slow && err != io.EOF {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
}

// Forms leave the spare buffer, and all buffers but that one count against the budget.
func TestFormsLeaveTheSpareBuffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBuffers()
		var forms [][]byte
		for range bufferCount {
			forms = append(forms, b.try())
		}
		if len(forms[bufferCount-1]) != bufferBytes || b.try() != nil {
			t.Error("a form takes the spare buffer")
		}
		spare, err := b.take(t.Context())
		if err != nil || len(spare) != spareBytes || b.taken.Load() != bufferCount+1 {
			t.Errorf("the spare buffer: %v, %d bytes", err, len(spare))
		}
		if _, err := b.reserve(t.Context(), heapTotal-2*bufferBytes); !errors.Is(err, apierror.ErrOverloaded) {
			t.Errorf("more than is left of the budget: %v", err)
		}
		for _, buf := range [][]byte{spare, forms[0], forms[1]} {
			b.give(buf)
		}
		release, err := b.reserve(t.Context(), heapTotal-2*bufferBytes)
		if err != nil || b.try() != nil || b.taken.Load() != bufferCount-2 {
			t.Errorf("with two buffers returned: %v, or a buffer beyond the budget", err)
		}
		release()
		if b.try() == nil {
			t.Error("a buffer that was returned is not free")
		}
	})
}

func TestUploadsWaitForMemory(t *testing.T) {
	for name, acquire := range map[string]func(b *buffers, ctx context.Context) (release func(), err error){
		"take": func(b *buffers, ctx context.Context) (func(), error) {
			buf, err := b.take(ctx)
			return func() { b.give(buf) }, err
		},
		"reserve": func(b *buffers, ctx context.Context) (func(), error) {
			return b.reserve(ctx, heapTotal/(bufferCount+1))
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := newBuffers()
			var release func()
			for range bufferCount + 1 {
				var err error
				if release, err = acquire(b, t.Context()); err != nil {
					t.Fatal(name, err)
				}
			}
			began := time.Now()
			if _, err := acquire(b, t.Context()); !errors.Is(err, apierror.ErrOverloaded) || apierror.AsError(err).RetryAfter == 0 || time.Since(began) != bufferWait {
				t.Errorf("%s: %v after %v", name, err, time.Since(began))
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := acquire(b, ctx); !errors.Is(err, apierror.ErrIncomplete) {
				t.Errorf("%s: the client disconnected: %v", name, err)
			}
			time.AfterFunc(time.Second, release)
			if _, err := acquire(b, t.Context()); err != nil {
				t.Errorf("%s: memory was released: %v", name, err)
			}
		})
	}
}
