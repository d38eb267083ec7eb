package blobstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash"
	"io"
	"sync"

	"github.com/minio/crc64nvme"

	"cats.example/shared/signerapi"
)

var (
	errBegun   = errors.New("the body has been read and cannot be sent again")
	errRevoked = errors.New("this try has ended")
)

// stream is the body of a request to storage that is read from the client while it is sent. At most one try reads it.
//
// The SDK asks for its length with Seek, which works until the first Read.
type stream struct {
	r      io.Reader // the picture
	size   int64     // bytes of it that are sent
	commit bool      // hold the last byte back until r has ended

	source io.Reader // what views read: the stream itself, or a watchdog of it
	at     int64     // bytes returned by Read

	mu   sync.Mutex // guards the fields below; never held while r is read
	made progress
	crc  hash.Hash64
}

// progress is how far a stream has come.
type progress struct {
	begun bool  // a try has begun to read, so no other may
	whole bool  // all bytes were handed to the transport, so storage may have received them
	err   error // of the picture, which ended the stream
}

func newStream(r io.Reader, size int64, commit bool) *stream {
	s := &stream{r: r, size: size, commit: commit, crc: crc64nvme.New()} // the polynomial of x-ms-content-crc64
	s.source = s
	return s
}

// Read implements [io.Reader]. It returns io.EOF with the last byte.
//
// The last byte is the commit: storage carries out a Put Blob once all announced bytes have arrived. So it is returned only
// after r has ended without an error, which means that length and digests are right.
func (s *stream) Read(p []byte) (n int, err error) {
	limit := s.size - s.at
	switch {
	case limit == 0:
		return 0, io.EOF
	case s.commit && limit == 1:
		return s.last(p)
	case s.commit:
		limit--
	}
	n, err = s.r.Read(p[:min(int64(len(p)), limit)])
	s.at += int64(n)
	switch {
	case s.at == s.size && (err == nil || err == io.EOF): // not errors.Is: a wrapped io.EOF is a broken body, not its end
		return n, io.EOF
	case err == io.EOF:
		return 0, wrongLength(err)
	}
	return n, err
}

// last reads the last byte and the end behind it into p.
func (s *stream) last(p []byte) (int, error) {
	var last [2]byte // with room to see that r is too long
	n, err := fill(s.r, last[:])
	if n != 1 || err != io.EOF { //nolint:errorlint // a wrapped io.EOF is a broken body, not its end
		return 0, wrongLength(err)
	}
	s.at++
	return copy(p, last[:1]), io.EOF
}

// wrongLength returns the error of a body that has another length than its size, unless err says more.
func wrongLength(err error) error {
	if err == nil || err == io.EOF { //nolint:errorlint // as above
		return signerapi.ErrIncomplete.With("the picture is not as long as announced; nothing was stored")
	}
	return err
}

// Seek implements [io.Seeker] for the start and the end of a stream that was not read.
func (s *stream) Seek(offset int64, whence int) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.made.begun:
		return 0, errBegun
	case offset != 0:
		return 0, errors.ErrUnsupported
	case whence == io.SeekEnd:
		return s.size, nil
	}
	return 0, nil
}

// Close implements [io.Closer].
func (s *stream) Close() error { return nil }

// matches reports whether crc is the CRC64 of the bytes that were read, as storage returns it; true if storage returned none.
func (s *stream) matches(crc []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(crc) != crc64nvme.Size || binary.LittleEndian.Uint64(crc) == s.crc.Sum64()
}

func (s *stream) progress() progress {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.made
}

// view is the body of one try. [http.Transport.RoundTrip] can return while its write loop still reads the body. Once revoke
// has returned, a view reads nothing more of a buffer and hands out nothing more of a stream.
type view struct {
	stream *stream       // nil for a buffer
	buffer *bytes.Reader // nil for a stream

	mu      *sync.Mutex // that of the stream
	revoked bool
}

func viewOf(s *stream) *view { return &view{stream: s, mu: &s.mu} }

func viewOfBuffer(content []byte) *view {
	return &view{buffer: bytes.NewReader(content), mu: new(sync.Mutex)}
}

// Read implements [io.Reader].
func (v *view) Read(p []byte) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.revoked {
		return 0, errRevoked
	}
	if v.stream == nil {
		return v.buffer.Read(p)
	}
	s := v.stream
	s.made.begun = true
	v.mu.Unlock()
	n, err := s.source.Read(p)
	v.mu.Lock()
	if v.revoked {
		return 0, errRevoked
	}
	_, _ = s.crc.Write(p[:n])
	switch err { // not errors.Is: see above
	case nil:
	case io.EOF:
		s.made.whole = true
	default:
		s.made.err = err
	}
	return n, err
}

// Close implements [io.Closer].
func (v *view) Close() error {
	v.revoke()
	return nil
}

// revoke ends the use of the body by this try.
func (v *view) revoke() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.revoked = true
}
