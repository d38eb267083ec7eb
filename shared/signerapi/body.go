package signerapi

import (
	"bytes"
	"crypto"
	_ "crypto/md5"
	_ "crypto/sha256"
	_ "crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"sync/atomic"
	"time"

	"cats.example/shared/apierror"
)

// Digests are digests of a picture that its sender knows. nil means unknown.
type Digests struct{ MD5, SHA256, SHA512 []byte }

// known returns the digests that are set.
func (d Digests) known() map[crypto.Hash][]byte {
	all := map[crypto.Hash][]byte{crypto.MD5: d.MD5, crypto.SHA256: d.SHA256, crypto.SHA512: d.SHA512}
	maps.DeleteFunc(all, func(_ crypto.Hash, sum []byte) bool { return sum == nil })
	return all
}

// Validate returns ErrInvalidArgument if a digest has the wrong length.
func (d Digests) Validate() error {
	for algorithm, sum := range d.known() {
		if size := algorithm.Size(); len(sum) != size {
			return apierror.ErrInvalidArgument.WithDetail(fmt.Sprintf("digest: a digest with %v has %d bytes", algorithm, size))
		}
	}
	return nil
}

// Reader returns a reader of body that verifies the digests: if one does not match, it returns ErrDigestMismatch instead of
// io.EOF.
func (d Digests) Reader(body io.Reader) io.Reader {
	for algorithm, sum := range d.known() {
		body = &digestReader{body, algorithm.New(), sum}
	}
	return body
}

type digestReader struct {
	r    io.Reader
	hash hash.Hash
	want []byte
}

func (r *digestReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.hash.Write(p[:n])
	if err == io.EOF && !bytes.Equal(r.hash.Sum(nil), r.want) {
		err = apierror.ErrDigestMismatch
	}
	return n, err
}

// trackedBody is the body of a Put. It records the error that ended the body, and whether all of it was read.
//
// A body of a known size is complete with its last byte: the signer may store it then. The transport may still read after
// RoundTrip has returned, hence the atomic fields.
type trackedBody struct {
	r        io.Reader
	left     int64       // bytes to the end; negative if the size is unknown
	begun    atomic.Bool // a Read has begun: the body cannot be sent again
	complete atomic.Bool
	ended    atomic.Bool // later Reads fail
	err      atomic.Pointer[error]
}

// Read implements [io.Reader].
func (b *trackedBody) Read(p []byte) (int, error) {
	b.begun.Store(true)
	if b.ended.Load() {
		return 0, errors.New("the upload has ended")
	}
	n, err := b.r.Read(p)
	b.left -= int64(n)
	if err != nil && err != io.EOF { // a wrapped io.EOF is not the end of the body
		b.err.Store(&err)
	}
	if b.left == 0 || b.left < 0 && err == io.EOF {
		b.complete.Store(true)
	}
	return n, err
}

// outcome returns the error of the Put, whose call returned err. An error of the body is the cause of any other error that has no
// Outcome. The signer can only have stored a complete body.
func (b *trackedBody) outcome(err error) error {
	lost := errors.Is(err, errLost)
	if cause := b.err.Load(); cause != nil && (err == nil || apierror.AsError(err).Outcome == "") {
		lost, err = lost || err == nil, *cause
	}
	if lost && b.complete.Load() {
		return apierror.AsError(err).WithUnknownOutcome(apierror.MayBeStored)
	}
	return err
}

// WatchdogTimeout is the longest time in which storage may accept no byte of a picture. The signer has twice as much, so that its
// error response arrives before the frontend ends the call.
const WatchdogTimeout = 30 * time.Second

// ErrWatchdogExpired is the cause with which an upload is canceled.
var ErrWatchdogExpired = errors.New("the receiver accepted no byte in time")

// Watchdog is the body of an upload whose receiver may stop reading. Both hops of an upload have one: from the frontend to the
// signer, and from the signer to storage.
type Watchdog struct {
	r            io.Reader
	next, answer time.Duration
	timer        *time.Timer
}

// NewWatchdog returns a Watchdog of r. It calls expire with ErrWatchdogExpired if the receiver stops reading: no Read begins
// within next after a Read has returned. It also calls expire if Stop is not called within answer after the end of r.
//
// The time of a Read of r does not count, nor does the time before the first Read, nor the time after an error of r.
func NewWatchdog(r io.Reader, next, answer time.Duration, expire func(error)) *Watchdog {
	timer := time.AfterFunc(answer, func() { expire(ErrWatchdogExpired) })
	timer.Stop()
	return &Watchdog{r, next, answer, timer}
}

// Read implements [io.Reader].
func (w *Watchdog) Read(p []byte) (int, error) {
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
func (w *Watchdog) Stop() { w.timer.Stop() }
