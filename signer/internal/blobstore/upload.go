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
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/minio/crc64nvme"
	"golang.org/x/sync/semaphore"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
	"cats.example/signer/internal/storage"
)

// markKey is the key of a picture's metadata whose value is the mark of the write: a random ID, or the version that CopyFrom has
// copied. By it the signer recognizes its own write if the response of storage is lost.
const markKey = "catsid"

var (
	errWrongLength = apierror.ErrIncomplete.WithDetail("the picture is not as long as announced; nothing was stored")
	// errDamagedInTransit is returned before the picture is stored.
	errDamagedInTransit = apierror.ErrStorageUnavailable.Wrap(errors.New("storage received other bytes than were sent"))
)

// upload is one write of a picture.
type upload struct {
	*Store
	blob       string // name of the picture's blob
	client     *blockblob.Client
	conditions *blob.AccessConditions
	id         string // random, the same in all attempts
	mark       string // in the metadata of the picture
	info       signerapi.Info
	blocks     []string // IDs, in the order of the picture
}

// newUpload returns an upload of a picture of user. mark is that of a CopyFrom, "" for a Put.
func (s *Store) newUpload(user signerapi.User, preconditions signerapi.Preconditions, mark string) *upload {
	name, id := s.Storage.PictureBlob(user), rand.Text()
	return &upload{
		Store: s, blob: name, client: s.Storage.BlobClient(name), conditions: storage.AccessConditions(preconditions),
		id: id, mark: cmp.Or(mark, id),
	}
}

// putBytes stores a picture that is in memory. The SDK can repeat the upload.
func (up *upload) putBytes(ctx context.Context, picture []byte) (signerapi.Info, error) {
	up.info.Size = int64(len(picture))
	sum := md5.Sum(picture)
	return up.putBlob(ctx, streaming.NopCloser(bytes.NewReader(picture)), sum[:])
}

// putBlob stores body, which is in memory or a [*storage.Stream], with one Put Blob. Storage verifies its MD5, sum, if that is not
// nil.
func (up *upload) putBlob(ctx context.Context, body io.ReadSeekCloser, sum []byte) (signerapi.Info, error) {
	op := storage.NewOperation(storage.OpPut, body)
	info, err := up.write(ctx, op, func(ctx context.Context) error {
		done, err := up.client.Upload(ctx, body, &blockblob.UploadOptions{
			HTTPHeaders:             up.headers(),
			Metadata:                up.metadata(),
			AccessConditions:        up.conditions,
			TransactionalValidation: blob.TransferValidationTypeMD5(sum),
		})
		up.info.ETag, up.info.MD5 = string(storage.Value(done.ETag)), done.ContentMD5
		if op.Body == nil && bloberror.HasCode(err, bloberror.MD5Mismatch) { // the signer computed the MD5 itself
			err = errDamagedInTransit
		}
		return err
	})
	if err == nil && op.Damaged {
		up.damaged.Inc()
		up.log.Error("storage stored a damaged picture; the client was told to upload it again")
		return signerapi.Info{}, apierror.ErrDamaged
	}
	return info, err
}

// nextBlock returns the ID of the next block, which no other upload has. Azure requires IDs of equal length in a blob.
func (up *upload) nextBlock() string {
	id := base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32([]byte(up.id)[:16], uint32(len(up.blocks))))
	up.blocks = append(up.blocks, id)
	return id
}

// stageBytes stores the next block, which is in memory. The SDK can repeat the upload.
func (up *upload) stageBytes(ctx context.Context, block []byte) error {
	return up.stage(ctx, streaming.NopCloser(bytes.NewReader(block)), blob.TransferValidationTypeCRC64(crc64nvme.Checksum(block)))
}

// stage stores the next block, which is in memory or a [*storage.Stream].
func (up *upload) stage(ctx context.Context, block io.ReadSeekCloser, validation blob.TransferValidationType) error {
	op := storage.NewOperation(storage.OpBlock, block)
	id := up.nextBlock()
	err := up.Storage.Call(ctx, op, func(ctx context.Context) error {
		_, err := up.client.StageBlock(ctx, id, block, &blockblob.StageBlockOptions{TransactionalValidation: validation})
		return err
	})
	if err == nil && op.Damaged {
		err = errDamagedInTransit
	}
	return err
}

// commit makes the blocks the picture, of size bytes. Blocks that are not committed do not change the blob; storage deletes
// them at the next write to its name, or after a week.
func (up *upload) commit(ctx context.Context, size int64) (signerapi.Info, error) {
	up.info.Size = size
	return up.write(ctx, &storage.Operation{Name: storage.OpCommit}, func(ctx context.Context) error {
		done, err := up.client.CommitBlockList(ctx, up.blocks, &blockblob.CommitBlockListOptions{
			HTTPHeaders:      up.headers(),
			Metadata:         up.metadata(),
			AccessConditions: up.conditions,
		})
		up.info.ETag = string(storage.Value(done.ETag))
		return err
	})
}

// write makes the call do, which replaces the picture and completes up.info, and returns the new picture. It does not end with
// ctx: the picture is complete, so a client that disconnects now does not decide whether it is stored. If storage may have
// carried out an attempt that failed, write looks for the picture. If it does not find the picture, the outcome is unknown.
func (up *upload) write(ctx context.Context, op *storage.Operation, do func(context.Context) error) (signerapi.Info, error) {
	ctx = context.WithoutCancel(ctx)
	err := up.Storage.Call(ctx, op, do)
	switch {
	case err == nil:
		return up.info, nil
	case !op.Uncertain:
		return signerapi.Info{}, err
	}
	if info, ok, _ := up.find(ctx); ok {
		return info, nil
	}
	// Storage may still be writing, or another writer may have replaced the picture since.
	return signerapi.Info{}, unknownOutcome(err, apierror.MayBeStored, "upload")
}

// find returns the stored picture, and whether its mark begins with that of up. A missing picture is no error.
func (up *upload) find(ctx context.Context) (info signerapi.Info, ok bool, err error) {
	info, metadata, err := up.Storage.Head(ctx, up.blob)
	for name, value := range metadata {
		ok = ok || strings.EqualFold(name, markKey) && strings.HasPrefix(storage.Value(value), up.mark) // HTTP changes the case
	}
	if errors.Is(err, apierror.ErrNotFound) {
		err = nil
	}
	return info, ok, err
}

func (up *upload) headers() *blob.HTTPHeaders {
	return &blob.HTTPHeaders{BlobContentType: &up.info.ContentType, BlobContentMD5: up.info.MD5}
}

func (up *upload) metadata() map[string]*string { return map[string]*string{markKey: &up.mark} }

// unknownOutcome returns the error of a write that failed with err after an earlier attempt, which storage may have carried out.
// mayHave is apierror.MayBeStored or apierror.MayBeDeleted.
func unknownOutcome(err error, mayHave, write string) error {
	e := apierror.AsError(err)
	switch {
	case errors.Is(e, apierror.ErrPreconditionFailed), errors.Is(e, apierror.ErrConflict):
		e = e.WithDetail("storage rejected the repetition of this " + write)
	case errors.Is(e, apierror.ErrIncomplete):
		e = e.WithDetail("the client closed the connection")
	}
	return e.WithUnknownOutcome(mayHave)
}

const (
	// bufferCount buffers of bufferBytes each hold pictures of forms, and pictures or blocks of chunked uploads.
	bufferCount = 4
	bufferBytes = 4<<20 + signerapi.MaxSizeRange
	// spareBytes is the size of one more buffer, for chunked uploads only, so that forms do not keep them out.
	spareBytes = 512 << 10
	// heapTotal bounds the memory of all uploads in bytes, except the spare buffer. A stream takes streamBytes: net/http has 64
	// KiB of buffers for each, and three goroutines have stacks.
	heapTotal   = 24 << 20
	streamBytes = 128 << 10

	bufferWait    = 10 * time.Second // for memory, at most
	retryInterval = 100 * time.Millisecond

	// While more than half of the buffers are taken, each must be filled with minFill bytes per second in every window of
	// fillWindow, so that slow clients do not keep fast ones out.
	minFill    = 16 << 10
	fillWindow = 5 * time.Second
)

// errTooSlow is returned when a client fills its buffer too slowly while others wait for one.
var errTooSlow = apierror.ErrStalled.WithDetail("upload too slow while many uploads of unknown size were in progress; " +
	"nothing was stored; send the picture with PUT and a Content-Length")

// buffers is the memory of uploads: some large buffers, a spare one, and a budget for the large ones and everything else.
type buffers struct {
	large, spare *semaphore.Weighted // buffers that are not taken
	heap         *semaphore.Weighted // bytes of heapTotal
	taken        atomic.Int64        // buffers in use, including the spare one
}

func newBuffers() *buffers {
	return &buffers{large: semaphore.NewWeighted(bufferCount), spare: semaphore.NewWeighted(1), heap: semaphore.NewWeighted(heapTotal)}
}

// reserve waits for n bytes of the budget, which release returns. The errors are those of take.
func (b *buffers) reserve(ctx context.Context, n int64) (release func(), err error) {
	wait, cancel := context.WithTimeout(ctx, bufferWait)
	defer cancel()
	if b.heap.Acquire(wait, n) != nil {
		return nil, noMemory(ctx)
	}
	return func() { b.heap.Release(n) }, nil
}

// noMemory returns the error of an upload that got no memory in time, or whose ctx is done.
func noMemory(ctx context.Context) error {
	if ctx.Err() != nil {
		return apierror.ErrIncomplete.Wrap(context.Cause(ctx))
	}
	return apierror.ErrOverloaded.Wrap(errors.New("no memory for uploads became free"))
}

// try returns a buffer of bufferBytes, or nil if none is free.
func (b *buffers) try() []byte {
	if !b.large.TryAcquire(1) {
		return nil
	}
	if !b.heap.TryAcquire(bufferBytes) {
		b.large.Release(1)
		return nil
	}
	b.taken.Add(1)
	return make([]byte, bufferBytes)
}

// take waits for a buffer, which can be the spare one. It returns ErrOverloaded after bufferWait, and ErrIncomplete when ctx is
// done.
func (b *buffers) take(ctx context.Context) ([]byte, error) {
	wait, cancel := context.WithTimeout(ctx, bufferWait)
	defer cancel()
	for {
		if buf := b.try(); buf != nil {
			return buf, nil
		}
		if b.spare.TryAcquire(1) {
			b.taken.Add(1)
			return make([]byte, spareBytes), nil
		}
		select {
		case <-time.After(retryInterval):
		case <-wait.Done():
			return nil, noMemory(ctx)
		}
	}
}

// give returns a buffer.
func (b *buffers) give(buf []byte) {
	b.taken.Add(-1)
	if len(buf) == spareBytes {
		b.spare.Release(1)
		return
	}
	b.heap.Release(bufferBytes)
	b.large.Release(1)
}

// filler fills buffers from a request body. It gives up on a body that is too slow, even during a Read.
type filler struct {
	pool *buffers
	body net.Conn   // an end of a pipe, because its Read has a deadline
	end  chan error // of the body; nil is io.EOF
}

// filler returns a filler from body. Stop it before Put returns: its goroutine is then at most inside one Read of body.
func (b *buffers) filler(body io.Reader) filler {
	out, in := net.Pipe()
	end := make(chan error, 1)
	go func() {
		_, err := io.Copy(in, body) // of an error that wraps io.EOF it returns the error
		end <- err
		_ = in.Close()
	}()
	return filler{b, out, end}
}

func (f filler) stop() { _ = f.body.Close() }

// fill reads until buf is full, and then returns nil, or until the body ends. Its end is a bare io.EOF. Time between two calls
// does not count as slow.
func (f filler) fill(buf []byte) (n int, err error) {
	window, before := time.Now().Add(fillWindow), 0
	for n < len(buf) && err == nil {
		_ = f.body.SetReadDeadline(window)
		var k int
		k, err = f.body.Read(buf[n:])
		n += k
		switch {
		case err == io.EOF:
			err = cmp.Or(<-f.end, io.EOF)
		case errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(window):
			if f.pool.taken.Load() > bufferCount/2 && float64(n-before) < minFill*fillWindow.Seconds() {
				return n, errTooSlow
			}
			window, before, err = time.Now().Add(fillWindow), n, nil
		}
	}
	return n, err
}
