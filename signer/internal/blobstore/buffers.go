package blobstore

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sync/semaphore"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
)

const (
	// bufferCount buffers of bufferBytes each hold pictures of forms, and pictures or blocks of chunked uploads.
	bufferCount = 4
	bufferBytes = 4<<20 + signerapi.MaxSizeRange
	// spareBytes is the size of one more buffer, for chunked uploads only, so that forms do not keep them out.
	spareBytes = 512 << 10
	// heapTotal bounds the memory of all uploads in bytes, except the spare buffer. A stream takes streamBytes: net/http has 64
	// KiB of buffers for each, and three goroutines have stacks.
	heapTotal   = 24 << 20
	streamBytes = 128 << 10

	bufferWait    = 10 * time.Second // for memory, at most
	retryInterval = 100 * time.Millisecond

	// While more than half of the buffers are taken, each must be filled with minFill bytes per second in every window of
	// fillWindow, so that slow clients do not keep fast ones out.
	minFill    = 16 << 10
	fillWindow = 5 * time.Second
)

// errTooSlow is returned when a client fills its buffer too slowly while others wait for one.
var errTooSlow = apierror.ErrStalled.WithDetail("upload too slow while many uploads of unknown size were in progress; " +
	"nothing was stored; send the picture with PUT and a Content-Length")

// buffers is the memory of uploads: a buffer pool, and a budget for the pool and everything else. A buffer is allocated when it
// is first needed, and kept until the budget is needed for something else.
type buffers struct {
	free, spare chan []byte         // nil for a buffer that is not allocated
	heap        *semaphore.Weighted // bytes of heapTotal; an allocated buffer of free has its share, in use or not
}

func newBuffers() *buffers {
	b := &buffers{free: make(chan []byte, bufferCount), spare: make(chan []byte, 1), heap: semaphore.NewWeighted(heapTotal)}
	for range bufferCount {
		b.free <- nil
	}
	b.spare <- nil
	return b
}

// reserve waits for n bytes of the budget, which release returns. The errors are those of take.
func (b *buffers) reserve(ctx context.Context, n int64) (release func(), err error) {
	if !b.heap.TryAcquire(n) {
		b.dropIdle()
		wait, cancel := context.WithTimeout(ctx, bufferWait)
		defer cancel()
		if b.heap.Acquire(wait, n) != nil {
			return nil, noMemory(ctx)
		}
	}
	return func() { b.heap.Release(n) }, nil
}

// noMemory returns the error of an upload that got no memory in time, or whose ctx is done.
func noMemory(ctx context.Context) error {
	if ctx.Err() != nil {
		return apierror.ErrIncomplete.Wrap(context.Cause(ctx))
	}
	return apierror.ErrOverloaded.Wrap(errors.New("no memory for uploads became free"))
}

// dropIdle leaves the buffers that are not in use to the garbage collector.
func (b *buffers) dropIdle() {
	for range bufferCount {
		select {
		case buf := <-b.free:
			if buf != nil {
				b.heap.Release(bufferBytes)
			}
			b.free <- nil
		default:
			return
		}
	}
}

// try returns a buffer of bufferBytes, or nil if none is free.
func (b *buffers) try() []byte {
	select {
	case buf := <-b.free:
		switch {
		case buf != nil:
			return buf
		case b.heap.TryAcquire(bufferBytes):
			return make([]byte, bufferBytes)
		}
		b.free <- nil
	default:
	}
	return nil
}

// take waits for a buffer, which can be the spare one. It returns ErrOverloaded after bufferWait, and ErrIncomplete when ctx is
// done.
func (b *buffers) take(ctx context.Context) ([]byte, error) {
	wait, cancel := context.WithTimeout(ctx, bufferWait)
	defer cancel()
	for {
		if buf := b.try(); buf != nil {
			return buf, nil
		}
		select {
		case buf := <-b.spare:
			if buf == nil {
				buf = make([]byte, spareBytes)
			}
			return buf, nil
		case <-time.After(retryInterval):
		case <-wait.Done():
			return nil, noMemory(ctx)
		}
	}
}

// give returns a buffer to the pool. Nothing may use it any more.
func (b *buffers) give(buf []byte) {
	if len(buf) == spareBytes {
		b.spare <- buf
		return
	}
	b.free <- buf
}

// taken returns the number of buffers in use, including the spare one.
func (b *buffers) taken() int { return bufferCount + 1 - len(b.free) - len(b.spare) }

// filler fills buffers from a request body. It gives up on a body that is too slow, even during a Read.
type filler struct {
	pool *buffers
	body net.Conn   // an end of a pipe, because its Read has a deadline
	end  chan error // of the body; nil is io.EOF
}

// filler returns a filler from body. Stop it before Put returns: its goroutine is then at most inside one Read of body.
func (b *buffers) filler(body io.Reader) filler {
	out, in := net.Pipe()
	end := make(chan error, 1)
	go func() {
		_, err := io.Copy(in, body) // of an error that wraps io.EOF it returns the error
		end <- err
		_ = in.Close()
	}()
	return filler{b, out, end}
}

func (f filler) stop() { _ = f.body.Close() }

// fill reads until buf is full, and then returns nil, or until the body ends. Its end is a bare io.EOF. Time between two calls
// does not count as slow.
func (f filler) fill(buf []byte) (n int, err error) {
	window, before := time.Now().Add(fillWindow), 0
	for n < len(buf) && err == nil {
		_ = f.body.SetReadDeadline(window)
		var k int
		k, err = f.body.Read(buf[n:])
		n += k
		switch {
		case err == io.EOF:
			err = cmp.Or(<-f.end, io.EOF)
		case errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(window):
			if f.pool.taken() > bufferCount/2 && float64(n-before) < minFill*fillWindow.Seconds() {
				return n, errTooSlow
			}
			window, before, err = time.Now().Add(fillWindow), n, nil
		}
	}
	return n, err
}
