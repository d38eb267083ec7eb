package blobstore

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash"
	"io"
	"sync"

	"cats.example/shared/apierror"
)

var (
	errRevoked = errors.New("this try has ended")
	// errReceivedOther is returned before a picture is stored.
	errReceivedOther = apierror.ErrStorageUnavailable.Wrap(errors.New("storage received other bytes than were sent"))
	errWrongLength   = apierror.ErrIncomplete.WithDetail("the picture is not as long as announced; nothing was stored")
)

// stream is the body of a request to storage that is read from the client while it is sent. At most one try reads it.
type stream struct {
	r      io.Reader // the picture
	size   int64     // bytes of it that are sent
	commit bool      // hold the last byte back until r has ended

	source io.Reader // what views read: a watchdog of the stream
	at     int64     // bytes returned by Read

	// The view of a try writes these until it is revoked.
	begun bool  // a try has begun to read, so no other may
	whole bool  // all bytes were handed to the transport, so storage may have received them
	err   error // of the picture, which ended the stream
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
		return 0, errWrongLength
	}
	return n, err
}

// last reads the last byte and the end behind it into p.
func (s *stream) last(p []byte) (int, error) {
	last, err := readAll(s.r, 1)
	if err == nil && len(last) == 0 {
		err = errWrongLength
	}
	if err != nil {
		return 0, err
	}
	s.at++
	return copy(p, last), io.EOF
}

// Seek implements [io.Seeker] as far as the SDK needs it, which asks for the length and rewinds the body before each try.
// Nothing reads the stream after it was rewound: see [tries.Do].
func (s *stream) Seek(_ int64, whence int) (int64, error) {
	if whence == io.SeekEnd {
		return s.size, nil
	}
	return 0, nil
}

// Close implements [io.Closer].
func (s *stream) Close() error { return nil }

// view is the body of one try. [http.Transport.RoundTrip] can return while its write loop still reads the body. Once revoke
// has returned, a view reads nothing more of a body in memory and hands out nothing more of a stream.
type view struct {
	body   io.Reader // in memory
	stream *stream   // in its place, or nil

	mu      sync.Mutex // never held while the stream is read
	revoked bool
	crc     hash.Hash64 // of the bytes that were read, as in x-ms-content-crc64
}

// Read implements [io.Reader].
func (v *view) Read(p []byte) (n int, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.revoked {
		return 0, errRevoked
	}
	if v.stream == nil {
		n, err = v.body.Read(p)
		_, _ = v.crc.Write(p[:n])
		return n, err
	}
	v.stream.begun = true
	v.mu.Unlock()
	n, err = v.stream.source.Read(p)
	v.mu.Lock()
	if v.revoked {
		return 0, errRevoked
	}
	_, _ = v.crc.Write(p[:n])
	switch err { // not errors.Is: see above
	case nil:
	case io.EOF:
		v.stream.whole = true
	default:
		v.stream.err = err
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

// differs reports whether crc, in Base64, differs from the CRC64 of the bytes that were read. Storage may return none.
func (v *view) differs(crc string) bool {
	return crc != "" && crc != base64.StdEncoding.EncodeToString(binary.LittleEndian.AppendUint64(nil, v.crc.Sum64()))
}
