package signerapi

import (
	"errors"
	"io"
	"sync"

	"cats.example/shared/apierror"
)

// trackedBody is the body of a Put. It records the error that ended the body, and whether all of it was read.
//
// A body of a known size is complete with its last byte: the signer may store it then. The transport may still read after
// RoundTrip has returned, hence the lock.
type trackedBody struct {
	r        io.Reader
	mu       sync.Mutex
	begun    bool  // a Read has begun
	left     int64 // bytes to the end; negative if the size is unknown
	complete bool
	err      error
}

// Read implements [io.Reader].
func (b *trackedBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	b.begun = true
	err := b.err
	b.mu.Unlock()
	if err != nil {
		return 0, err
	}
	n, err := b.r.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left -= int64(n)
	if err != nil && err != io.EOF { // a wrapped io.EOF is not the end of the body
		b.err = err
	}
	b.complete = b.complete || b.left == 0 || b.left < 0 && err == io.EOF
	return n, err
}

// unread returns an error after the first Read has begun: the body cannot be sent again.
func (b *trackedBody) unread() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.begun {
		return errors.New("the signer closed the connection while it received the picture")
	}
	return nil
}

// end makes later Reads fail. A Read that has begun may still be in progress.
func (b *trackedBody) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = errors.New("the upload has ended")
}

// outcome returns the error of the Put, whose call returned err. An error of the body is the cause of any other error that has no
// Outcome. The signer can only have stored a complete body.
func (b *trackedBody) outcome(err error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, lost := errors.AsType[lostError](err)
	if b.err != nil && (err == nil || apierror.AsError(err).Outcome == "") {
		lost, err = lost || err == nil, b.err
	}
	if lost && b.complete {
		return apierror.AsError(err).WithUnknownOutcome(apierror.MayBeStored)
	}
	return err
}
