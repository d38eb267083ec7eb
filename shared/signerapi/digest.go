package signerapi

import (
	"bytes"
	"crypto"
	_ "crypto/md5"
	_ "crypto/sha256"
	_ "crypto/sha512"
	"fmt"
	"hash"
	"io"
	"slices"

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
		if len(one.sum) != one.algorithm.Size() {
			return apierror.ErrInvalidArgument.WithDetail(fmt.Sprintf("digest: a digest with %v has %d bytes", one.algorithm, one.algorithm.Size()))
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
