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
	"slices"
	"sync/atomic"

	"cats.example/shared/apierror"
)

// Digests are digests of a picture that its sender knows. nil means unknown.
type Digests struct{ MD5, SHA256, SHA512 []byte }

type digest struct {
	algorithm crypto.Hash
	sum       []byte
}

// known returns the digests that are set.
func (d Digests) known() []digest {
	all := []digest{{crypto.MD5, d.MD5}, {crypto.SHA256, d.SHA256}, {crypto.SHA512, d.SHA512}}
	return slices.DeleteFunc(all, func(one digest) bool { return one.sum == nil })
}

// Validate returns ErrInvalidArgument if a digest has the wrong length.
func (d Digests) Validate() error {
	for _, one := range d.known() {
		if size := one.algorithm.Size(); len(one.sum) != size {
			return apierror.ErrInvalidArgument.WithDetail(fmt.Sprintf("digest: a digest with %v has %d bytes", one.algorithm, size))
		}
	}
	return nil
}

// Reader returns a reader of body that verifies the digests: if one does not match, it returns ErrDigestMismatch instead of
// io.EOF.
func (d Digests) Reader(body io.Reader) io.Reader {
	for _, one := range d.known() {
		body = &digestReader{body, one.algorithm.New(), one.sum}
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
