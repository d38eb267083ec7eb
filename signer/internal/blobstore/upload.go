package blobstore

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/minio/crc64nvme"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
	"cats.example/signer/internal/storage"
)

// Keys of a picture's metadata. The value is the mark of the write: by it the signer recognizes its own write if the response of
// storage is lost.
const (
	putKey  = "catsid"     // of a Put: a random ID
	copyKey = "catsupload" // of a CopyFrom: the version of the source
)

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
	key, mark  string // in the metadata of the picture
	info       signerapi.Info
	blocks     []string // IDs, in the order of the picture
}

// newUpload returns an upload of a picture of user. mark is that of a CopyFrom, "" for a Put.
func (s *Store) newUpload(user signerapi.User, preconditions signerapi.Preconditions, mark string) *upload {
	name, id, key := s.storage.PictureBlob(user), rand.Text(), copyKey
	if mark == "" {
		key, mark = putKey, id
	}
	return &upload{Store: s, blob: name, client: s.storage.BlobClient(name), conditions: storage.AccessConditions(preconditions), id: id, key: key, mark: mark}
}

// putBytes stores a picture that is in memory. The SDK can repeat the upload.
func (up *upload) putBytes(ctx context.Context, picture []byte) (signerapi.Info, error) {
	up.info.Size = int64(len(picture))
	sum := md5.Sum(picture)
	return up.putBlob(ctx, &storage.Operation{Name: storage.OpPut}, streaming.NopCloser(bytes.NewReader(picture)), sum[:])
}

// putStream stores a picture that is read from the client, whose MD5 is sum if that is not nil.
func (up *upload) putStream(ctx context.Context, picture *storage.Stream, sum []byte) (signerapi.Info, error) {
	return up.putBlob(ctx, &storage.Operation{Name: storage.OpPut, Body: picture}, picture, sum)
}

// putBlob stores body with one Put Blob. Storage verifies its MD5, sum, if that is not nil.
func (up *upload) putBlob(ctx context.Context, op *storage.Operation, body io.ReadSeekCloser, sum []byte) (signerapi.Info, error) {
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
		up.metrics.damaged.Inc()
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
	return up.stage(ctx, &storage.Operation{Name: storage.OpBlock}, streaming.NopCloser(bytes.NewReader(block)),
		blob.TransferValidationTypeCRC64(crc64nvme.Checksum(block)))
}

// stageStream stores the next block, which is read from the client.
func (up *upload) stageStream(ctx context.Context, block *storage.Stream) error {
	return up.stage(ctx, &storage.Operation{Name: storage.OpBlock, Body: block}, block, nil)
}

func (up *upload) stage(ctx context.Context, op *storage.Operation, block io.ReadSeekCloser, validation blob.TransferValidationType) error {
	id := up.nextBlock()
	err := up.storage.Call(ctx, op, func(ctx context.Context) error {
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
	err := up.storage.Call(ctx, op, do)
	switch {
	case err == nil:
		return up.info, nil
	case !op.Uncertain():
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
	info, metadata, err := up.storage.Head(ctx, up.blob)
	for name, value := range metadata {
		ok = ok || strings.EqualFold(name, up.key) && strings.HasPrefix(storage.Value(value), up.mark) // HTTP changes the case
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
