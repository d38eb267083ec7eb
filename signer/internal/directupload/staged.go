package directupload

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/lease"
	"golang.org/x/sync/errgroup"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
	"cats.example/signer/internal/refresh"
	"cats.example/signer/internal/storage"
)

const (
	sweepInterval = 10 * time.Minute
	// sweepGrace is how long after the end of its session a staged blob is deleted. A request that began before that end can
	// last.
	sweepGrace = time.Hour
	// parallelDeletes of 100 ms each delete 10,000 expired uploads in two minutes.
	parallelDeletes = 8
)

// Run deletes expired uploads until ctx is done, if direct uploads are on.
func (u *Uploads) Run(ctx context.Context) {
	for u.opts.MaxDirectUploadSize > 0 && ctx.Err() == nil {
		if err := u.sweep(ctx); err != nil && ctx.Err() == nil {
			u.log.Warn("expired uploads not deleted; the sweeper will retry", "error", err.Error())
		}
		select {
		case <-ctx.Done():
		case <-time.After(refresh.Jitter(sweepInterval)):
		}
	}
}

// sweep deletes the expired uploads, several at once. It goes on after errors.
func (u *Uploads) sweep(ctx context.Context) error {
	pages := u.opts.Storage.ContainerClient().NewListBlobsFlatPager(&container.ListBlobsFlatOptions{
		Prefix:     new(stagedPrefix),
		MaxResults: new(int32(500)),
		Include:    container.ListBlobsInclude{UncommittedBlobs: true},
	})
	var deletes errgroup.Group
	deletes.SetLimit(parallelDeletes)
	for done := false; !done && pages.More(); {
		var page container.ListBlobsFlatResponse
		err := u.opts.Storage.Call(ctx, &storage.Operation{Name: storage.OpList}, func(ctx context.Context) (err error) {
			page, err = pages.NextPage(ctx)
			return err
		})
		if err != nil {
			return errors.Join(err, deletes.Wait())
		}
		if page.Segment == nil { // a response without a listing
			continue
		}
		for _, item := range page.Segment.BlobItems {
			name, etag := storage.Value(item.Name), string(storage.Value(storage.Value(item.Properties).ETag))
			if etag != "" {
				etag = `"` + strings.Trim(etag, `"`) + `"` // listings omit the quotes
			}
			end, ok := sessionEnd(name)
			if done = ok && time.Now().Before(end.Add(sweepGrace)); done {
				break // the names are in the order of their sessions' ends
			}
			if ok {
				deletes.Go(func() error {
					if ctx.Err() != nil {
						return nil
					}
					return u.removeStaged(ctx, name, etag, deletedExpired)
				})
			}
		}
	}
	return deletes.Wait()
}

// removeStaged deletes the version of a staged blob with that ETag and counts it under outcome. A blob that was uploaded again
// since is another version: it stays, and is not counted. A missing blob is no error. Blocks that were never committed have no
// ETag.
func (u *Uploads) removeStaged(ctx context.Context, name, etag, outcome string) error {
	var err error = apierror.ErrNotFound
	if etag != "" {
		err = u.removeVersion(ctx, name, etag)
	}
	if outcome == deletedExpired && (errors.Is(err, apierror.ErrNotFound) || errors.Is(err, apierror.ErrPreconditionFailed)) {
		err = u.removeBlocks(ctx, name)
	}
	switch {
	case errors.Is(err, apierror.ErrPreconditionFailed):
		return nil
	case err != nil && !errors.Is(err, apierror.ErrNotFound):
		return err
	}
	u.deleted.WithLabelValues(outcome).Inc()
	return nil
}

// removeBlocks deletes uncommitted blocks, for which storage has no request: an empty blob replaces them, and is deleted. It
// returns ErrPreconditionFailed if there is a blob now.
func (u *Uploads) removeBlocks(ctx context.Context, name string) error {
	created := ""
	create := func(condition *blob.ModifiedAccessConditions) error {
		return u.opts.Storage.Call(ctx, &storage.Operation{Name: storage.OpPut}, func(ctx context.Context) error {
			done, err := u.opts.Storage.BlobClient(name).Upload(ctx, streaming.NopCloser(strings.NewReader("")), &blockblob.UploadOptions{
				AccessConditions: &blob.AccessConditions{ModifiedAccessConditions: condition},
			})
			created = string(storage.Value(done.ETag))
			return err
		})
	}
	err := create(&blob.ModifiedAccessConditions{IfNoneMatch: new(azcore.ETagAny)})
	if errors.Is(err, apierror.ErrPreconditionFailed) {
		// Azurite takes uncommitted blocks for a blob here. It does not with this precondition, which no blob fulfills either.
		err = create(&blob.ModifiedAccessConditions{IfUnmodifiedSince: new(time.Unix(0, 0))})
	}
	if err != nil {
		return err
	}
	return u.removeVersion(ctx, name, created)
}

// removeVersion deletes a blob that has that ETag. It breaks a lease on the blob, which the upload URL of blocks permits. It
// returns ErrPreconditionFailed if the blob has another ETag.
func (u *Uploads) removeVersion(ctx context.Context, name, etag string) error {
	version := signerapi.Preconditions{IfMatch: etag}
	remove := func() error {
		return u.opts.Storage.Delete(ctx, &storage.Operation{Name: storage.OpDelete}, name, version)
	}
	err := remove()
	if !errors.Is(err, apierror.ErrLeased) {
		return err
	}
	err = u.opts.Storage.Call(ctx, &storage.Operation{Name: storage.OpDelete}, func(ctx context.Context) error {
		leased, err := lease.NewBlobClient(u.opts.Storage.BlobClient(name), nil)
		if err != nil {
			return err
		}
		_, err = leased.BreakLease(ctx, &lease.BlobBreakOptions{
			BreakPeriod: new(int32(0)), ModifiedAccessConditions: storage.AccessConditions(version).ModifiedAccessConditions,
		})
		return err
	})
	if err != nil {
		return err
	}
	return remove()
}
