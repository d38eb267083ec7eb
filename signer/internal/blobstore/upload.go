package blobstore

import (
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // it is what storage keeps of a blob, against faults and not against people
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash"
	"io"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/minio/crc64nvme"

	"cats.example/shared/signerapi"
)

const (
	// blockPages is the size of a block, and of the largest picture that goes up in
	// one Put Blob: 4 MiB.
	blockPages = 4 << 20 / pageBytes
	// maxBlocks is how many blocks storage takes for one blob.
	maxBlocks = 50_000
	// parallel is how many blocks of one picture are on their way at once.
	parallel = 4
)

// upload is one Put on its way.
type upload struct {
	store       *Store
	client      *blockblob.Client
	contentType string
	opts        signerapi.PutOptions
	fewest      int       // pages in a block at least, or a picture of the largest size would have too many blocks
	md5         hash.Hash // of what was read

	// For the blocks on their way. The first that fails ends it all.
	ctx  context.Context //nolint:containedctx // theirs, who may be sent by another's wait for memory
	fail context.CancelCauseFunc

	// Guarded by store.memory.mu:

	number  int           // of those that entered memory
	taken   bool          // a page that is being filled
	pages   [][]byte      // full, or the last, and on no way yet
	size    int64         // of what was read, in bytes
	filling time.Time     // since when a page is; zero when none is
	pace    time.Duration // that the last page took to be filled; 0 before the first
	prefix  [16]byte      // of the block's names: another upload's must not be taken for ours
	blocks  []string      // names, in the picture's order
	under   int           // blocks on their way
	ended   sync.Cond     // of under
	closed  bool          // no more blocks
}

func (s *Store) newUpload(ctx context.Context, user signerapi.User, contentType string, opts signerapi.PutOptions) *upload {
	up := &upload{
		store: s, client: s.container.NewBlockBlobClient(s.blobName(user)), contentType: contentType, opts: opts,
		fewest: int(int64(s.opts.Limits.MaxSize)/(maxBlocks-1)/pageBytes) + 1,
		md5:    md5.New(), //nolint:gosec // see the import
		ended:  sync.Cond{L: &s.memory.mu},
	}
	// Once the body has ended, a client that leaves has no say in what is stored.
	up.ctx, up.fail = context.WithCancelCause(context.WithoutCancel(ctx))
	_, _ = rand.Read(up.prefix[:]) // never fails
	return up
}

// run reads body to its end and stores it. Blocks that are never committed do not
// change the blob; storage drops them after a week.
func (up *upload) run(ctx context.Context, body io.Reader) (signerapi.Info, error) {
	m := up.store.memory
	m.enter(up)
	defer up.end()
	if err := up.read(ctx, body); err != nil {
		return signerapi.Info{}, err
	}
	sum := up.md5.Sum(nil)
	if want := up.opts.MD5; want != nil && !bytes.Equal(want, sum) {
		return signerapi.Info{}, signerapi.ErrDigestMismatch
	}
	m.mu.Lock()
	small := len(up.blocks) == 0
	up.closed = small // its pages are the picture now
	m.mu.Unlock()
	if small {
		return up.put(ctx, sum)
	}
	return up.commit(ctx, sum)
}

// read reads body to its end, and has each block stored as soon as it is whole and
// not the last.
func (up *upload) read(ctx context.Context, body io.Reader) error {
	m := up.store.memory
	for {
		page, err := m.take(ctx, up)
		if err != nil {
			return up.cause(err)
		}
		n, err := up.fill(body, page)
		if err != nil && err != io.EOF { //nolint:errorlint // as below
			m.give(page)
			return up.cause(err)
		}
		if n > 0 {
			up.store.hashing <- struct{}{}
			up.md5.Write(page[:n])
			<-up.store.hashing
			if werr := up.add(page[:n]); werr != nil {
				return werr
			}
		} else {
			m.give(page)
		}
		if err == io.EOF { //nolint:errorlint // a wrapped io.EOF is a broken body, not its end
			return nil
		}
	}
}

// fill reads until page is full, and then returns nil, or until r ends. Unlike
// io.ReadFull it returns the error of r as it came: io.EOF, bare, is the end of
// the picture and nothing else is.
func (up *upload) fill(r io.Reader, page []byte) (n int, err error) {
	began := time.Now()
	up.fills(began, 0)
	for n < len(page) && err == nil {
		var k int
		k, err = r.Read(page[n:])
		n += k
	}
	up.fills(time.Time{}, time.Since(began))
	return n, err
}

func (up *upload) fills(since time.Time, took time.Duration) {
	up.store.memory.mu.Lock()
	up.filling = since
	if took > 0 {
		up.pace = took
	}
	up.store.memory.mu.Unlock()
}

// slow reports whether the client fills no page in due time. store.memory.mu is held.
func (up *upload) slow(now time.Time) bool {
	return !up.filling.IsZero() && now.Sub(up.filling) > slowPage
}

// add keeps a page that has something in it. When a whole block is there already,
// that is stored first, which waits while parallel others are on their way.
func (up *upload) add(page []byte) error {
	m := up.store.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(up.pages) >= blockPages {
		for up.under >= parallel && up.ctx.Err() == nil {
			up.ended.Wait()
		}
		if len(up.pages) >= blockPages && up.ctx.Err() == nil {
			up.storeBlock()
		}
	}
	up.taken = false
	up.pages = append(up.pages, page)
	up.size += int64(len(page))
	if up.ctx.Err() != nil {
		return up.cause(up.ctx.Err())
	}
	return nil
}

// cause is why the upload failed, if it did before err.
func (up *upload) cause(err error) error {
	if up.ctx.Err() != nil {
		if e, ok := errors.AsType[*signerapi.Error](context.Cause(up.ctx)); ok {
			return e
		}
	}
	return err
}

// missing is how many pages it takes at least until those of the upload can be
// stored and come back: one more than it lacks, to see the end with.
// store.memory.mu is held.
func (up *upload) missing() int {
	missing := blockPages - len(up.pages)
	if up.opts.Size >= 0 {
		missing = min(missing, int((up.opts.Size-up.size+pageBytes-1)/pageBytes))
	}
	if !up.taken {
		missing++
	}
	return missing
}

// goesOn reports whether the upload will give pages back soon and needs none for
// that now. store.memory.mu is held.
func (up *upload) goesOn(now time.Time) bool { return up.closed || up.taken && up.comesAlong(now) }

// before reports whether up should have pages before other: when it needs fewer,
// or came first. store.memory.mu is held.
func (up *upload) before(other *upload) bool {
	mine, theirs := up.missing(), other.missing()
	return mine < theirs || mine == theirs && up.number < other.number
}

// comesAlong reports whether the upload will have a block, or the picture, whole
// soon, if it gets the pages. store.memory.mu is held.
func (up *upload) comesAlong(now time.Time) bool {
	return !up.closed && up.under < parallel && up.ctx.Err() == nil && !up.slow(now) &&
		up.pace*time.Duration(up.missing()) < soon
}

// canStore reports whether the pages at hand can be stored as a block now.
// store.memory.mu is held.
func (up *upload) canStore() bool {
	return !up.closed && len(up.pages) >= up.fewest && up.under < parallel && up.ctx.Err() == nil
}

// storeBlock sends all pages at hand on their way as the next block.
// store.memory.mu is held.
func (up *upload) storeBlock() {
	m := up.store.memory
	id := base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(up.prefix[:], uint32(len(up.blocks)))) //nolint:gosec // at most maxBlocks
	pages := up.pages
	up.pages = nil
	up.blocks = append(up.blocks, id)
	up.under++
	m.storing++
	go func() {
		if err := up.stage(id, pages); err != nil {
			up.fail(err)
			m.mu.Lock()
			pages, up.pages = append(pages, up.pages...), nil // its client may not send the rest for long
			m.mu.Unlock()
		}
		m.give(pages...)
		m.mu.Lock()
		up.under--
		up.ended.Broadcast()
		m.mu.Unlock()
		m.stored()
	}()
}

func (up *upload) stage(id string, pages [][]byte) error {
	crc := crc64nvme.New() // the polynomial of x-ms-content-crc64
	for _, page := range pages {
		_, _ = crc.Write(page) // never fails
	}
	op := &operation{name: opBlock, body: pages}
	return up.store.call(up.ctx, op, "staging a block", func(ctx context.Context) error {
		_, err := up.client.StageBlock(ctx, id, lend(pages), &blockblob.StageBlockOptions{
			TransactionalValidation: blob.TransferValidationTypeCRC64(crc.Sum64()),
		})
		return err
	})
}

// put stores a picture that is in memory whole: one round trip, which storage
// does wholly or not at all, and which the SDK can repeat.
func (up *upload) put(ctx context.Context, sum []byte) (signerapi.Info, error) {
	m := up.store.memory
	m.mu.Lock()
	m.storing++
	m.mu.Unlock()
	defer func() {
		up.end()
		m.stored()
	}()
	op := &operation{name: opPut, body: up.pages}
	return up.store.visible(ctx, up.info(sum), op, "storing the picture", func(ctx context.Context) (*azcore.ETag, error) {
		done, err := up.client.Upload(ctx, lend(up.pages), &blockblob.UploadOptions{
			HTTPHeaders:             up.headers(sum),
			AccessConditions:        accessConditions(up.opts.Conditions),
			TransactionalValidation: blob.TransferValidationTypeMD5(sum),
		})
		return done.ETag, err
	}, up.stored(sum))
}

// commit stores what is left, waits for all blocks, and makes them the picture.
func (up *upload) commit(ctx context.Context, sum []byte) (signerapi.Info, error) {
	m := up.store.memory
	m.mu.Lock()
	if len(up.pages) > 0 && up.ctx.Err() == nil {
		up.storeBlock()
	}
	up.closed = true
	for up.under > 0 {
		up.ended.Wait()
	}
	m.mu.Unlock()
	if err := up.ctx.Err(); err != nil {
		return signerapi.Info{}, up.cause(signerapi.ErrIncomplete.Wrap(err))
	}
	return up.store.visible(ctx, up.info(sum), &operation{name: opCommit}, "committing the blocks", func(ctx context.Context) (*azcore.ETag, error) {
		done, err := up.client.CommitBlockList(ctx, up.blocks, &blockblob.CommitBlockListOptions{
			HTTPHeaders:      up.headers(sum),
			AccessConditions: accessConditions(up.opts.Conditions),
		})
		return done.ETag, err
	}, up.stored(sum))
}

func (up *upload) info(sum []byte) signerapi.Info {
	return signerapi.Info{ContentType: up.contentType, Size: up.size, MD5: sum}
}

// stored returns what reports whether the picture that is there has our MD5: then it
// is ours, or is the same.
func (up *upload) stored(sum []byte) func(context.Context) (signerapi.Info, bool) {
	return func(ctx context.Context) (signerapi.Info, bool) {
		there, err := up.store.head(ctx, up.client.BlobClient())
		return there, err == nil && bytes.Equal(there.MD5, sum) && there.Size == up.size
	}
}

// visible is the call, made by do, that makes the picture of info visible. It does not
// end with the request: the picture is here whole by then, and a client that leaves
// now has no say in whether it is stored.
//
// Where storage did not say what became of it, or refused a repetition because of
// what our own first try had stored, stored looks at the picture that is there.
func (s *Store) visible(ctx context.Context, info signerapi.Info, op *operation, doing string, do func(context.Context) (*azcore.ETag, error), stored func(context.Context) (signerapi.Info, bool)) (signerapi.Info, error) {
	ctx = context.WithoutCancel(ctx)
	err := s.call(ctx, op, doing, func(ctx context.Context) error {
		tag, err := do(ctx)
		info.ETag = etag(tag)
		return err
	})
	if err == nil {
		return info, nil
	}
	if op.unclear == 0 {
		return signerapi.Info{}, err
	}
	if there, ok := stored(ctx); ok {
		return there, nil
	}
	e := signerapi.AsError(err)
	if errors.Is(e, signerapi.ErrPreconditionFailed) || errors.Is(e, signerapi.ErrConflict) {
		return signerapi.Info{}, e.With("storage refused to repeat this upload, after its first try may have been stored for a while")
	}
	return signerapi.Info{}, e.Unknown(signerapi.MayBeStored)
}

func (up *upload) headers(sum []byte) *blob.HTTPHeaders {
	return &blob.HTTPHeaders{BlobContentType: &up.contentType, BlobContentMD5: sum}
}

// end gives back what the upload still holds, once no block of it is on its way.
func (up *upload) end() {
	m := up.store.memory
	m.leave(up)
	up.fail(context.Canceled)
	m.mu.Lock()
	up.closed = true
	for up.under > 0 {
		up.ended.Wait()
	}
	pages := up.pages
	up.pages = nil
	m.mu.Unlock()
	m.give(pages...)
}

func accessConditions(c signerapi.Conditions) *blob.AccessConditions {
	if c == (signerapi.Conditions{}) {
		return nil
	}
	conditions := &blob.ModifiedAccessConditions{}
	if c.IfMatch != "" {
		conditions.IfMatch = new(azcore.ETag(c.IfMatch))
	}
	if c.IfNoneMatch != "" {
		conditions.IfNoneMatch = new(azcore.ETag(c.IfNoneMatch))
	}
	return &blob.AccessConditions{ModifiedAccessConditions: conditions}
}
