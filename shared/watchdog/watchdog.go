// Package watchdog ends uploads whose receiver does not read any more. Both hops of an upload use it: from the frontend to the
// signer, and from the signer to storage. The timeout of the first hop follows from that of the second.
package watchdog

import (
	"errors"
	"io"
	"time"
)

// Timeout is the maximum time between two reads of a body, in which the receiver accepts no byte.
const Timeout = 30 * time.Second

// ErrExpired is the cause with which an upload is canceled.
var ErrExpired = errors.New("the receiver accepted no byte in time")

// Reader is the body of an upload.
type Reader struct {
	r            io.Reader
	next, answer time.Duration
	timer        *time.Timer
}

// NewReader returns a Reader of r. It calls expire with ErrExpired if the receiver stops reading: no Read begins within next
// after a Read has returned. It also calls expire if Stop is not called within answer after the end of r.
//
// The time of a Read of r does not count, nor does the time before the first Read, nor the time after an error of r.
func NewReader(r io.Reader, next, answer time.Duration, expire func(error)) *Reader {
	timer := time.AfterFunc(answer, func() { expire(ErrExpired) })
	timer.Stop()
	return &Reader{r, next, answer, timer}
}

// Read implements [io.Reader].
func (w *Reader) Read(p []byte) (int, error) {
	w.timer.Stop()
	n, err := w.r.Read(p)
	switch {
	case err == nil:
		w.timer.Reset(w.next)
	case err == io.EOF: // a wrapped io.EOF is not the end of the body
		w.timer.Reset(w.answer)
	}
	return n, err
}

// Stop ends the watch. A Read that returns later starts it again, so expire must have no effect then.
func (w *Reader) Stop() { w.timer.Stop() }
