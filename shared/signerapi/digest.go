package signerapi

import (
	"bytes"
	"crypto/md5" //nolint:gosec // against faults of memory and network, not against people
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"
	"io"
)

// Digests are those that the sender of a body knows of it; the zero value knows
// none.
type Digests struct{ MD5, SHA256, SHA512 []byte }

// digest is one that is known, and how to find it.
type digest struct {
	name string
	want *[]byte
	new  func() hash.Hash
	size int // in bytes
}

func (d *Digests) all() []digest {
	return []digest{
		{"md5", &d.MD5, md5.New, md5.Size},
		{"sha256", &d.SHA256, sha256.New, sha256.Size},
		{"sha512", &d.SHA512, sha512.New, sha512.Size},
	}
}

// Check returns ErrInvalidArgument when a digest is not as long as its kind is.
func (d Digests) Check() error {
	for _, one := range d.all() {
		if *one.want != nil && len(*one.want) != one.size {
			return ErrInvalidArgument.With(fmt.Sprintf("digest: a digest of the kind %s has %d bytes", one.name, one.size))
		}
	}
	return nil
}

// Reader returns body, which ends in ErrDigestMismatch in place of io.EOF when it
// was not the one that was announced.
func (d Digests) Reader(body io.Reader) io.Reader {
	for _, one := range d.all() {
		if want := *one.want; want != nil {
			body = &digestReader{body, one.new(), want}
		}
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
		err = ErrDigestMismatch
	}
	return n, err
}
