package blobstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"

	"cats.example/shared/signerapi"
)

// bufferBytes is a byte more than the largest picture that goes up in one Put
// Blob, 4 MiB, so that one pass sees the end of it.
const bufferBytes = 4<<20 + 1

// buffers are the upload buffers of the process. There are never more than the
// number it was made with, and that number bounds the uploads under way. They
// are plain heap memory, which the Go runtime counts and may give back.
type buffers struct {
	free  chan []byte // nil stands for one that is not made yet
	wait  time.Duration
	inUse atomic.Int64
}

func newBuffers(n int, wait time.Duration) *buffers {
	b := &buffers{free: make(chan []byte, n), wait: wait}
	for range n {
		b.free <- nil
	}
	return b
}

// take returns a buffer, or ErrOverloaded when none was given back in time.
func (b *buffers) take(ctx context.Context) ([]byte, error) {
	timeout := time.NewTimer(b.wait)
	defer timeout.Stop()
	select {
	case buf := <-b.free:
		if buf == nil {
			buf = make([]byte, bufferBytes)
		}
		b.inUse.Add(bufferBytes)
		return buf, nil
	case <-timeout.C:
		return nil, signerapi.ErrOverloaded
	case <-ctx.Done():
		return nil, signerapi.ErrIncomplete.Wrap(context.Cause(ctx))
	}
}

func (b *buffers) give(buf []byte) {
	b.inUse.Add(-bufferBytes)
	b.free <- buf
}

// fill reads until buf is full, and then returns nil, or until r ends. Unlike
// io.ReadFull it returns the error of r as it came: io.EOF, bare, is the end of
// the picture and nothing else is.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var k int
		k, err = r.Read(buf[n:])
		n += k
	}
	return n, err
}

// lent is a body over a buffer that will be used again. An HTTP transport may go
// on reading the body of a request that was cancelled or answered early; once
// takeBack has returned, it reads nothing of the buffer any more.
type lent struct {
	mu sync.Mutex
	r  *bytes.Reader // nil once it is back
}

func lend(buf []byte) *lent { return &lent{r: bytes.NewReader(buf)} }

func (l *lent) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.r == nil {
		return 0, io.ErrClosedPipe
	}
	return l.r.Read(p)
}

func (l *lent) Seek(offset int64, whence int) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.r == nil {
		return 0, io.ErrClosedPipe
	}
	return l.r.Seek(offset, whence)
}

// takeBack ends every use of the buffer.
func (l *lent) takeBack() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.r = nil
}

// small stores a picture that is in memory whole: one round trip, which storage
// does wholly or not at all, and which the SDK can repeat.
func (u upload) small(ctx context.Context, content []byte) (signerapi.Info, error) {
	ctx, cancel := u.deadline(ctx, opPut)
	defer cancel()
	body := lend(content)
	defer body.takeBack()
	done, err := u.client.Upload(ctx, streaming.NopCloser(body), &blockblob.UploadOptions{
		HTTPHeaders: &blob.HTTPHeaders{BlobContentType: &u.contentType},
	})
	if err != nil {
		return signerapi.Info{}, u.store.storageError(ctx, "storing the picture", err)
	}
	return signerapi.Info{ETag: etag(done.ETag), ContentType: u.contentType, Size: int64(len(content))}, nil
}

// large stages buf, which is full, and then what rest still gives, block after
// block, and commits them once rest has come to its end. Blocks that are never
// committed do not change the blob; storage drops them after a week.
func (u upload) large(ctx context.Context, buf []byte, rest io.Reader) (signerapi.Info, error) {
	var (
		prefix [16]byte // of this upload: another's blocks must not be taken for ours
		ids    []string
		size   int64
		n      = len(buf)
		end    error
	)
	_, _ = rand.Read(prefix[:]) // never fails
	for n > 0 {
		id := base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(prefix[:], uint32(len(ids)))) //nolint:gosec // storage takes 50,000 blocks
		if err := u.stage(ctx, id, buf[:n]); err != nil {
			return signerapi.Info{}, err
		}
		ids, size, n = append(ids, id), size+int64(n), 0
		if end == nil {
			n, end = fill(rest, buf)
		}
		if end != nil && end != io.EOF { //nolint:errorlint // a wrapped io.EOF is a broken body, not its end
			return signerapi.Info{}, end
		}
	}
	ctx, cancel := u.deadline(ctx, opCommit)
	defer cancel()
	done, err := u.client.CommitBlockList(ctx, ids, &blockblob.CommitBlockListOptions{
		HTTPHeaders: &blob.HTTPHeaders{BlobContentType: &u.contentType},
	})
	if err != nil {
		return signerapi.Info{}, u.store.storageError(ctx, "committing the blocks", err)
	}
	return signerapi.Info{ETag: etag(done.ETag), ContentType: u.contentType, Size: size}, nil
}

func (u upload) stage(ctx context.Context, id string, block []byte) error {
	ctx, cancel := context.WithTimeout(withOp(ctx, opBlock), writeTimeout)
	defer cancel()
	body := lend(block)
	defer body.takeBack()
	_, err := u.client.StageBlock(ctx, id, streaming.NopCloser(body), nil)
	if err != nil {
		return u.store.storageError(ctx, "staging a block", err)
	}
	return nil
}

// deadline returns the context of the call that makes the picture visible. It
// does not end with the request: the picture is here whole by then, and a client
// that leaves now has no say in whether it is stored.
func (u upload) deadline(ctx context.Context, op string) (context.Context, context.CancelFunc) {
	return context.WithTimeout(withOp(context.WithoutCancel(ctx), op), writeTimeout)
}
