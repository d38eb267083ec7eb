package signerapi

import (
	"bytes"
	"crypto"
	_ "crypto/md5" //nolint:gosec // against faults of memory and network, not against people
	_ "crypto/sha256"
	_ "crypto/sha512"
	"fmt"
	"hash"
	"io"

	"cats.example/shared/apierror"
)

// Digests are those that the sender of a body knows of it; the zero value knows
// none.
type Digests struct{ MD5, SHA256, SHA512 []byte }

type digest struct {
	kind crypto.Hash
	sum  []byte // nil if it is not known
}

func (d Digests) all() [3]digest {
	return [3]digest{{crypto.MD5, d.MD5}, {crypto.SHA256, d.SHA256}, {crypto.SHA512, d.SHA512}}
}

// Validate returns apierror.ErrInvalidArgument when a digest is not as long as its kind is.
func (d Digests) Validate() error {
	for _, one := range d.all() {
		if one.sum != nil && len(one.sum) != one.kind.Size() {
			return apierror.ErrInvalidArgument.WithDetail(fmt.Sprintf("digest: a digest of the kind %v has %d bytes", one.kind, one.kind.Size()))
		}
	}
	return nil
}

// Reader returns body, which ends in apierror.ErrDigestMismatch in place of io.EOF when it
// was not the one that was announced.
func (d Digests) Reader(body io.Reader) io.Reader {
	for _, one := range d.all() {
		if one.sum != nil {
			body = &digestReader{body, one.kind.New(), one.sum}
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
		err = apierror.ErrDigestMismatch
	}
	return n, err
}
