// Package watchdog ends a transfer whose receiver has stopped reading. Both hops of an upload use it: the frontend towards the
// signer, and the signer towards storage.
package watchdog

import (
	"errors"
	"io"
	"time"
)

// Timeout is the longest time between two reads of a body: the receiver has then accepted nothing for so long.
const Timeout = 30 * time.Second

// ErrExpired is the reason for which a transfer is cancelled.
var ErrExpired = errors.New("the receiver accepted no byte in time")

// Reader is a body that is sent to a receiver.
type Reader struct {
	r            io.Reader
	next, answer time.Duration
	timer        *time.Timer
}

// NewReader returns a Reader of r. It calls expire with ErrExpired in two cases. The next Read does not begin within next after a
// Read has returned. Or Stop is not called within answer after a Read has returned io.EOF.
//
// Time in which a Read waits for r does not count, nor does the time before the first Read and after another error of r.
func NewReader(r io.Reader, next, answer time.Duration, expire func(error)) *Reader {
	timer := time.AfterFunc(answer, func() { expire(ErrExpired) })
	timer.Stop()
	return &Reader{r, next, answer, timer}
}

// Read implements [io.Reader].
func (w *Reader) Read(p []byte) (int, error) {
	w.timer.Stop()
	n, err := w.r.Read(p)
	switch err { // not errors.Is: a wrapped io.EOF is a broken body, not its end
	case nil:
		w.timer.Reset(w.next)
	case io.EOF:
		w.timer.Reset(w.answer)
	}
	return n, err
}

// Stop ends the watch. A Read that returns later starts it again, so expire must be harmless then.
func (w *Reader) Stop() { w.timer.Stop() }
