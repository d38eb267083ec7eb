package blobstore

import (
	"cmp"
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"golang.org/x/sync/errgroup"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
	"cats.example/signer/internal/storage"
)

// MaxPicture is the largest picture that one Put Blob or Put Block can carry, in bytes (service version 2019-12-12).
const MaxPicture = 4000 << 20

// smallBytes is the largest picture of a known size that is buffered, so that the SDK can repeat its upload.
const smallBytes = storage.SmallBody

// Put implements [signerapi.Signer].
//
// A picture of a known size is one Put Blob, whose body is read from the client while it is sent. A picture of at most
// smallBytes, and one of unknown size that fits into a buffer, is buffered first. Others are sent as blocks and committed.
func (s *Store) Put(ctx context.Context, user signerapi.User, body io.Reader, opts signerapi.PutOptions) (signerapi.Info, error) {
	// Before the first byte of the body is requested:
	release, err := s.Uploads.Take(signerapi.CallerFrom(ctx))
	if err != nil {
		return signerapi.Info{}, err
	}
	defer release()
	if err := errors.Join(s.Limits.ValidateSize(opts.Size), s.checkBounds(opts), s.Storage.Available(ctx, s.Storage.PictureBlob(user))); err != nil {
		return signerapi.Info{}, err
	}
	small := opts.Size >= 0 && opts.Size <= smallBytes || opts.MaxSize > 0 && opts.MinSize <= smallBytes
	if opts.Preconditions != (signerapi.Preconditions{}) && !small {
		stored, _, err := s.Storage.Head(ctx, s.Storage.PictureBlob(user))
		if err == nil || errors.Is(err, apierror.ErrNotFound) {
			err = opts.Evaluate(stored.ETag) // storage does so only after the upload
		}
		if err != nil {
			return signerapi.Info{}, err
		}
	}
	digests := opts.Digests
	if opts.Size > smallBytes {
		digests.MD5 = nil // storage verifies it
	}
	contentType, picture, err := s.Limits.Inspect(digests.Reader(body), opts.Size)
	if err != nil {
		return signerapi.Info{}, err
	}
	s.forget(user)
	defer s.forget(user)
	up := s.newUpload(user, opts.Preconditions, "")
	// Storage gets this MD5 only after the picture was compared with it, or compares it itself.
	up.info = signerapi.Info{ContentType: contentType, Size: opts.Size, MD5: opts.MD5}
	p := put{up, opts, picture}
	if !small && 0 < opts.MaxSize && opts.MaxSize < bufferBytes {
		if buf := s.buffers.try(); buf != nil {
			return p.buffered(ctx, buf, 0)
		}
	}
	memory, store := int64(streamBytes), p.bounded
	switch {
	case small:
		memory, store = max(opts.Size, opts.MaxSize), p.small
	case opts.Size >= 0:
		store = p.streamed
	case opts.MaxSize == 0:
		memory, store = smallBytes, p.chunked
	}
	free, err := s.buffers.reserve(ctx, memory)
	if err != nil {
		return signerapi.Info{}, err
	}
	defer free()
	return store(ctx)
}

// checkBounds returns an error for bounds of the size that cannot be used.
func (s *Store) checkBounds(opts signerapi.PutOptions) error {
	switch {
	case opts.MinSize == 0 && opts.MaxSize == 0:
		return nil
	case opts.Size >= 0 || opts.MinSize < 0 || opts.MaxSize <= opts.MinSize || opts.MaxSize-opts.MinSize > signerapi.MaxSizeRange:
		return apierror.ErrInvalidArgument.WithDetail(fmt.Sprintf("min_size, max_size: want bounds of an unknown size that are at most %d bytes apart", signerapi.MaxSizeRange))
	}
	return s.Limits.ValidateSize(max(opts.MinSize, 1))
}

// put is one Put.
type put struct {
	*upload
	opts    signerapi.PutOptions
	picture io.Reader
}

// small buffers the picture, whose size is at most smallBytes, or whose bounds are close to that.
func (p put) small(ctx context.Context) (signerapi.Info, error) {
	content, err := readAll(p.picture, max(p.opts.Size, p.opts.MaxSize))
	if err == nil && int64(len(content)) < p.opts.MinSize {
		err = errWrongLength
	}
	if err != nil {
		return signerapi.Info{}, err
	}
	return p.putBytes(ctx, content)
}

// streamed stores a picture of a known size.
func (p put) streamed(ctx context.Context) (signerapi.Info, error) {
	return p.putBlob(ctx, storage.NewStream(heldBack(p.picture, p.opts.Size), p.opts.Size), p.opts.MD5)
}

// bounded stores the file of a form, of which only bounds of the size are known, in two blocks. The first one is streamed.
func (p put) bounded(ctx context.Context) (signerapi.Info, error) {
	picture := p.picture
	var sum hash.Hash
	if p.opts.MaxSize < bufferBytes {
		sum = md5.New()
		picture = io.TeeReader(picture, sum)
	}
	if err := p.stage(ctx, storage.NewStream(picture, p.opts.MinSize), nil); err != nil {
		return signerapi.Info{}, err
	}
	tail, err := readAll(picture, p.opts.MaxSize-p.opts.MinSize)
	if err == nil && len(tail) > 0 {
		err = p.stageBytes(ctx, tail)
	}
	if err != nil {
		return signerapi.Info{}, err
	}
	if sum != nil {
		p.info.MD5 = sum.Sum(nil)
	}
	return p.commit(ctx, p.opts.MinSize+int64(len(tail)))
}

// chunked stores a picture of unknown size.
func (p put) chunked(ctx context.Context) (signerapi.Info, error) {
	head, err := io.ReadAll(io.LimitReader(p.picture, smallBytes+1))
	switch {
	case err != nil:
		return signerapi.Info{}, err
	case len(head) <= smallBytes:
		return p.putBytes(ctx, head)
	}
	leave, err := p.Chunked.Take(cmp.Or(signerapi.CallerFrom(ctx), signerapi.ClientFrom(ctx)))
	if err != nil {
		return signerapi.Info{}, err
	}
	defer leave()
	buf, err := p.buffers.take(ctx)
	if err != nil {
		return signerapi.Info{}, err
	}
	return p.buffered(ctx, buf, copy(buf, head))
}

// buffered stores the picture that begins with the first n bytes of buf, which it returns to the pool: with one Put Blob if it
// fits, otherwise as blocks.
func (p put) buffered(ctx context.Context, buf []byte, n int) (signerapi.Info, error) {
	defer p.buffers.give(buf)
	f := p.buffers.filler(p.picture)
	defer f.stop()
	for size := int64(0); ; n = 0 {
		more, err := f.fill(buf[n:])
		n += more
		switch {
		case err != nil && err != io.EOF:
			return signerapi.Info{}, err
		case p.opts.MaxSize > 0 && (err == nil || int64(n) < p.opts.MinSize || int64(n) > p.opts.MaxSize):
			return signerapi.Info{}, errWrongLength
		case err != nil && size == 0:
			return p.putBytes(ctx, buf[:n])
		}
		if n > 0 {
			if err := p.stageBytes(ctx, buf[:n]); err != nil {
				return signerapi.Info{}, err
			}
		}
		if size += int64(n); err != nil {
			return p.commit(ctx, size)
		}
	}
}

// Delete implements [signerapi.Signer].
func (s *Store) Delete(ctx context.Context, user signerapi.User, preconditions signerapi.Preconditions) error {
	s.forget(user)
	defer s.forget(user)
	op := &storage.Operation{Name: storage.OpDelete}
	err := s.Storage.Delete(ctx, op, s.Storage.PictureBlob(user), preconditions)
	switch {
	case err == nil || !op.Uncertain:
		return err
	case errors.Is(err, apierror.ErrNotFound): // an earlier attempt or another client has deleted it
		return nil
	}
	return unknownOutcome(err, apierror.MayBeDeleted, "deletion")
}

const (
	// copyBlock is what storage copies in one request, in bytes.
	copyBlock = 64 << 20
	// MaxVerifiedCopy is the largest blob, in bytes, that storage copies in one request, so that it can verify the MD5.
	MaxVerifiedCopy = 256 << 20

	parallelCopies = 4 // of one picture
)

// CopyFrom makes a copy of the blob at url the picture of user. It copies only the version with the ETag of source, and stores it
// with the ContentType and the MD5 of source. Storage verifies the MD5 unless it is nil; it must be nil if the blob is larger
// than MaxVerifiedCopy. mark identifies the version, for [Store.Find]. Errors about the blob have a storage.ResponseError with
// a code of its own. Otherwise the errors are those of Put.
//
// Storage copies the blob into blocks of the picture, which one request commits. The Copy Blob operation would not do: with more
// than 256 MiB it first empties the picture that is stored.
func (s *Store) CopyFrom(ctx context.Context, user signerapi.User, url signerapi.SignedURL, source signerapi.Info, mark string,
	preconditions signerapi.Preconditions,
) (signerapi.Info, error) {
	s.forget(user)
	defer s.forget(user)
	up := s.newUpload(user, preconditions, mark)
	up.info = signerapi.Info{ContentType: source.ContentType, MD5: source.MD5}
	var validation blob.SourceContentValidationType
	size := int64(copyBlock)
	if source.MD5 != nil {
		validation, size = blob.SourceContentValidationTypeMD5(source.MD5), MaxVerifiedCopy
	}
	copies, copying := errgroup.WithContext(ctx)
	copies.SetLimit(parallelCopies)
	for at := int64(0); at < source.Size; at += size {
		id := up.nextBlock()
		copies.Go(func() error {
			return s.Storage.Call(copying, &storage.Operation{Name: storage.OpCopy}, func(ctx context.Context) error {
				_, err := up.client.StageBlockFromURL(ctx, id, string(url), &blockblob.StageBlockFromURLOptions{
					Range:                          blob.HTTPRange{Offset: at, Count: min(size, source.Size-at)},
					SourceModifiedAccessConditions: &blob.SourceModifiedAccessConditions{SourceIfMatch: new(azcore.ETag(source.ETag))},
					SourceContentValidation:        validation,
				})
				return err
			})
		})
	}
	if err := copies.Wait(); err != nil {
		return signerapi.Info{}, err
	}
	return up.commit(ctx, source.Size)
}

// Find returns the picture of user, and whether CopyFrom stored it with a mark that begins with mark. A missing picture is no
// error. Find removes the picture from the existence cache: another replica may have stored it.
func (s *Store) Find(ctx context.Context, user signerapi.User, mark string) (info signerapi.Info, ok bool, err error) {
	s.forget(user)
	defer s.forget(user) // a lookup that began before
	return s.newUpload(user, signerapi.Preconditions{}, mark).find(ctx)
}

// heldBack returns r, a picture of size bytes, whose last byte is returned only after r has ended without an error. This means that
// length and digests are right. The last byte is the commit: storage carries out a Put Blob as soon as all announced bytes have
// arrived.
func heldBack(r io.Reader, size int64) io.Reader {
	return io.MultiReader(io.LimitReader(r, size-1), lastByte{r})
}

// lastByte reads the last byte of r, and its end.
type lastByte struct{ r io.Reader }

// Read implements [io.Reader].
func (l lastByte) Read(p []byte) (int, error) {
	last, err := readAll(l.r, 1)
	if err == nil && len(last) == 0 {
		err = errWrongLength
	}
	if err != nil {
		return 0, err
	}
	return copy(p, last), io.EOF
}

// readAll reads r, which must end after at most limit bytes. Its memory grows with the bytes that have arrived.
func readAll(r io.Reader, limit int64) ([]byte, error) {
	content, err := io.ReadAll(io.LimitReader(r, limit+1)) // of an error that wraps io.EOF it returns the error
	if err == nil && int64(len(content)) > limit {
		err = errWrongLength
	}
	return content, err
}
