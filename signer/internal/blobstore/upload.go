package blobstore

import (
	"bytes"
	"cmp"
	"context"
	"crypto/md5"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/minio/crc64nvme"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
)

const (
	// smallBytes is the largest picture of a known size that is buffered, so that the SDK can repeat its upload.
	smallBytes = 64 << 10
	// MaxPicture is the largest picture that one Put Blob or Put Block can carry, in bytes (service version 2019-12-12).
	MaxPicture = 4000 << 20
	// uploadID and committedFrom are keys of a picture's metadata, the first of a Put and the second of a Commit. By the mark
	// under its key, the signer recognizes its own write when the response of storage is lost.
	uploadID      = "catsid"
	committedFrom = "catsupload"
)

// upload is a write of one picture, by Put or Commit.
type upload struct {
	store     *Store
	client    *blockblob.Client // of the picture
	opts      signerapi.PutOptions
	id        string // random, the same in all tries
	key, mark string // in the metadata of the picture
	info      signerapi.Info
	blocks    []string // IDs, in the order of the picture
}

// Put implements [signerapi.Signer].
//
// A picture of a known size is one Put Blob, whose body is read from the client while it is sent. A picture of at most
// smallBytes, and one whose size is not known but fits into a buffer, is buffered first. Others are sent as blocks and committed.
func (s *Store) Put(ctx context.Context, user signerapi.User, body io.Reader, opts signerapi.PutOptions) (signerapi.Info, error) {
	// Before the first byte of the body is requested:
	release, err := s.opts.Slots.Uploads.Take(signerapi.CallerFrom(ctx))
	if err != nil {
		return signerapi.Info{}, err
	}
	defer release()
	if err := errors.Join(s.opts.Limits.ValidateSize(opts.Size), s.checkBounds(opts), s.available(ctx, user)); err != nil {
		return signerapi.Info{}, err
	}
	small := opts.Size >= 0 && opts.Size <= smallBytes || opts.MaxSize > 0 && opts.MinSize <= smallBytes
	if opts.Preconditions != (signerapi.Preconditions{}) && !small {
		if err := s.hold(ctx, user, opts.Preconditions); err != nil { // storage would only say so at the end
			return signerapi.Info{}, err
		}
	}
	digests := opts.Digests
	if opts.Size > smallBytes {
		digests.MD5 = nil // storage verifies it
	}
	contentType, picture, err := s.opts.Limits.Inspect(digests.Reader(body), opts.Size)
	if err != nil {
		return signerapi.Info{}, err
	}
	s.known.forget(user)
	defer s.known.forget(user)
	up := s.newUpload(user, opts)
	up.key, up.mark = uploadID, up.id
	// Storage gets this MD5 only once the picture was compared with it, or compares it itself.
	up.info = signerapi.Info{ContentType: contentType, Size: opts.Size, MD5: opts.MD5}
	memory := int64(streamBytes) // that the upload takes of the budget, unless it has a buffer
	switch {
	case small:
		memory = max(opts.Size, opts.MaxSize)
	case opts.Size < 0 && opts.MaxSize == 0:
		memory = smallBytes
	case opts.Size < 0 && opts.MaxSize < bufferBytes:
		if buf := s.buffers.try(); buf != nil {
			return up.buffered(ctx, picture, buf, 0)
		}
	}
	free, err := s.buffers.reserve(ctx, memory)
	if err != nil {
		return signerapi.Info{}, err
	}
	defer free()
	switch {
	case small:
		content, err := readAll(picture, memory)
		if err != nil {
			return signerapi.Info{}, err
		}
		return up.put(ctx, content)
	case opts.Size >= 0:
		body := &stream{r: picture, size: opts.Size, commit: true}
		return up.putBlob(ctx, &operation{name: opPut, stream: body}, body, opts.MD5)
	case opts.MaxSize > 0:
		return up.bounded(ctx, picture)
	}
	return up.chunked(ctx, picture)
}

func (s *Store) newUpload(user signerapi.User, opts signerapi.PutOptions) *upload {
	return &upload{store: s, client: s.container.NewBlockBlobClient(s.blobName(user)), opts: opts, id: rand.Text()}
}

// checkBounds returns an error for bounds of a size that cannot be used.
func (s *Store) checkBounds(opts signerapi.PutOptions) error {
	switch {
	case opts.MinSize == 0 && opts.MaxSize == 0:
		return nil
	case opts.Size >= 0 || opts.MinSize < 0 || opts.MaxSize <= opts.MinSize || opts.MaxSize-opts.MinSize > signerapi.MaxSizeRange:
		return apierror.ErrInvalidArgument.WithDetail(fmt.Sprintf("min_size, max_size: want bounds of an unknown size that are at most %d bytes apart", signerapi.MaxSizeRange))
	}
	return s.opts.Limits.ValidateSize(max(opts.MinSize, 1))
}

// put stores a picture that is in memory. The SDK can repeat that.
func (up *upload) put(ctx context.Context, picture []byte) (signerapi.Info, error) {
	if int64(len(picture)) < up.opts.MinSize || up.opts.MaxSize > 0 && int64(len(picture)) > up.opts.MaxSize {
		return signerapi.Info{}, errWrongLength
	}
	sum := md5.Sum(picture)
	up.info.Size = int64(len(picture))
	return up.putBlob(ctx, &operation{name: opPut}, streaming.NopCloser(bytes.NewReader(picture)), sum[:])
}

// putBlob stores body, whose MD5 is sum, with one Put Blob. Storage verifies the MD5 if there is one.
func (up *upload) putBlob(ctx context.Context, op *operation, body io.ReadSeekCloser, sum []byte) (signerapi.Info, error) {
	info, err := up.write(ctx, op, "storing the picture", func(ctx context.Context) error {
		done, err := up.client.Upload(ctx, body, &blockblob.UploadOptions{
			HTTPHeaders:             up.headers(),
			Metadata:                up.metadata(),
			AccessConditions:        accessConditions(up.opts.Preconditions),
			TransactionalValidation: blob.TransferValidationTypeMD5(sum), // none if it is nil
		})
		up.info.ETag, up.info.MD5 = etag(done.ETag), done.ContentMD5
		if op.stream == nil && bloberror.HasCode(err, bloberror.MD5Mismatch) { // the signer computed the MD5 itself
			err = errReceivedOther
		}
		return err
	})
	if err == nil && op.damaged {
		up.store.metrics.damaged.Inc()
		up.store.log.Error("storage has stored a picture that differs from the upload; the client was told to upload it again")
		return signerapi.Info{}, apierror.ErrDamaged
	}
	return info, err
}

// bounded stores the file of a form, of which only bounds of the size are known, in two blocks: the first is streamed.
func (up *upload) bounded(ctx context.Context, picture io.Reader) (signerapi.Info, error) {
	var sum hash.Hash
	if up.opts.MaxSize < bufferBytes {
		sum = md5.New()
		picture = io.TeeReader(picture, sum)
	}
	first := &stream{r: picture, size: up.opts.MinSize}
	if err := up.stage(ctx, &operation{name: opBlock, stream: first}, first, nil); err != nil {
		return signerapi.Info{}, err
	}
	tail, err := readAll(picture, up.opts.MaxSize-up.opts.MinSize)
	if err == nil && len(tail) > 0 {
		err = up.stageBytes(ctx, tail)
	}
	if err != nil {
		return signerapi.Info{}, err
	}
	if sum != nil {
		up.info.MD5 = sum.Sum(nil)
	}
	return up.commit(ctx, up.opts.MinSize+int64(len(tail)))
}

// chunked stores a picture about whose size nothing is known.
func (up *upload) chunked(ctx context.Context, picture io.Reader) (signerapi.Info, error) {
	head, err := io.ReadAll(io.LimitReader(picture, smallBytes+1))
	switch {
	case err != nil:
		return signerapi.Info{}, err
	case len(head) <= smallBytes:
		return up.put(ctx, head)
	}
	leave, err := up.store.opts.Slots.Chunked.Take(cmp.Or(signerapi.CallerFrom(ctx), signerapi.ClientFrom(ctx)))
	if err != nil {
		return signerapi.Info{}, err
	}
	defer leave()
	buf, err := up.store.buffers.take(ctx)
	if err != nil {
		return signerapi.Info{}, err
	}
	return up.buffered(ctx, picture, buf, copy(buf, head))
}

// buffered stores the picture that begins with the first n bytes of buf, which it returns to the pool: with one Put Blob if it
// fits, and else as blocks.
func (up *upload) buffered(ctx context.Context, picture io.Reader, buf []byte, n int) (signerapi.Info, error) {
	defer up.store.buffers.give(buf)
	f := up.store.buffers.filler(picture)
	defer f.stop()
	for size := int64(0); ; n = 0 {
		more, err := f.fill(buf[n:])
		n += more
		switch {
		case err != nil && err != io.EOF:
			return signerapi.Info{}, err
		case err == nil && up.opts.MaxSize > 0: // the buffer is larger
			return signerapi.Info{}, errWrongLength
		case err != nil && size == 0:
			return up.put(ctx, buf[:n])
		}
		if n > 0 {
			if err := up.stageBytes(ctx, buf[:n]); err != nil {
				return signerapi.Info{}, err
			}
		}
		if size += int64(n); err != nil {
			return up.commit(ctx, size)
		}
	}
}

// nextBlock returns the ID of the next block. No other upload has the same. Azure wants IDs of one length in a blob.
func (up *upload) nextBlock() string {
	id := base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32([]byte(up.id)[:16], uint32(len(up.blocks))))
	up.blocks = append(up.blocks, id)
	return id
}

// stageBytes stores the next block, which is in memory. The SDK can repeat that.
func (up *upload) stageBytes(ctx context.Context, block []byte) error {
	crc := blob.TransferValidationTypeCRC64(crc64nvme.Checksum(block))
	return up.stage(ctx, &operation{name: opBlock}, streaming.NopCloser(bytes.NewReader(block)), &blockblob.StageBlockOptions{TransactionalValidation: crc})
}

// stage stores the next block.
func (up *upload) stage(ctx context.Context, op *operation, block io.ReadSeekCloser, options *blockblob.StageBlockOptions) error {
	id := up.nextBlock()
	err := up.store.call(ctx, op, "staging a block", func(ctx context.Context) error {
		_, err := up.client.StageBlock(ctx, id, block, options)
		return err
	})
	if err == nil && op.damaged {
		err = errReceivedOther
	}
	return err
}

// commit makes the blocks the picture, of size bytes. Blocks that are not committed do not change the blob; storage deletes
// them at the next write to its name, or after a week.
func (up *upload) commit(ctx context.Context, size int64) (signerapi.Info, error) {
	up.info.Size = size
	return up.write(ctx, &operation{name: opCommit}, "committing the blocks", func(ctx context.Context) error {
		done, err := up.client.CommitBlockList(ctx, up.blocks, &blockblob.CommitBlockListOptions{
			HTTPHeaders:      up.headers(),
			Metadata:         up.metadata(),
			AccessConditions: accessConditions(up.opts.Preconditions),
		})
		up.info.ETag = etag(done.ETag)
		return err
	})
}

// write makes the call do, which replaces the picture and completes up.info, and returns the new picture. It does not end with
// ctx: the picture has arrived whole, and a client that leaves now does not decide whether it is stored. If a try of do failed that
// storage may have carried out, write looks for the picture. If it does not find the picture, the outcome of the error is unknown.
func (up *upload) write(ctx context.Context, op *operation, doing string, do func(context.Context) error) (signerapi.Info, error) {
	err := up.store.call(context.WithoutCancel(ctx), op, doing, do)
	switch {
	case err == nil:
		return up.info, nil
	case op.unclear == 0:
		return signerapi.Info{}, err
	}
	if info, ok, _ := up.stored(context.WithoutCancel(ctx)); ok {
		return info, nil
	}
	// Storage may still be writing, or another writer may have replaced the picture since.
	return signerapi.Info{}, unknownOutcome(err, apierror.MayBeStored, "upload")
}

// unknownOutcome returns the error of a write that failed with err, and that storage may have carried out in an earlier try.
func unknownOutcome(err error, may, write string) error {
	e := apierror.AsError(err)
	switch {
	case errors.Is(e, apierror.ErrPreconditionFailed), errors.Is(e, apierror.ErrConflict):
		e = e.WithDetail("storage rejected the repetition of this " + write)
	case errors.Is(e, apierror.ErrIncomplete):
		e = e.WithDetail("the client closed the connection")
	}
	return e.WithUnknownOutcome(may)
}

// stored returns the stored picture, and whether its mark begins with that of up.
func (up *upload) stored(ctx context.Context) (info signerapi.Info, ok bool, err error) {
	info, metadata, err := up.store.head(ctx, up.client.BlobClient())
	for name, value := range metadata {
		ok = ok || strings.EqualFold(name, up.key) && value != nil && strings.HasPrefix(*value, up.mark) // HTTP changes the case
	}
	if errors.Is(err, apierror.ErrNotFound) {
		err = nil
	}
	return info, ok, err
}

func (up *upload) headers() *blob.HTTPHeaders {
	return &blob.HTTPHeaders{BlobContentType: &up.info.ContentType, BlobContentMD5: up.info.MD5}
}

func (up *upload) metadata() map[string]*string { return map[string]*string{up.key: &up.mark} }

func accessConditions(c signerapi.Preconditions) *blob.AccessConditions {
	modified := &blob.ModifiedAccessConditions{}
	if c.IfMatch != "" {
		modified.IfMatch = new(azcore.ETag(c.IfMatch))
	}
	if c.IfNoneMatch != "" {
		modified.IfNoneMatch = new(azcore.ETag(c.IfNoneMatch))
	}
	return &blob.AccessConditions{ModifiedAccessConditions: modified}
}

// deleteOptions returns the options of a deletion of the blob with its snapshots. A blob with snapshots would stay otherwise.
func deleteOptions(c signerapi.Preconditions) *blob.DeleteOptions {
	return &blob.DeleteOptions{
		DeleteSnapshots:  to.Ptr(blob.DeleteSnapshotsOptionTypeInclude),
		AccessConditions: accessConditions(c),
	}
}
