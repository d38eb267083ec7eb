package blobstore

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/lease"
	"golang.org/x/sync/errgroup"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
)

const (
	sweepEvery = 10 * time.Minute
	// sweepParallel is how many expired uploads are deleted at once. At 100 ms each, 10,000 of them take two minutes.
	sweepParallel = 8
)

// Outcomes of uploads whose staged blob was deleted, as labels of metrics.
const (
	removedCommitted = "committed"
	removedRefused   = "rejected"
	removedAbandoned = "expired"
)

// unstage deletes a version of a staged blob and counts it under outcome. A blob that was uploaded again since is another version:
// it stays, and is not counted. A blob that is gone is no error. Blocks that were never committed have no ETag.
func (s *Store) unstage(ctx context.Context, name, etag, outcome string) error {
	client := s.container.NewBlockBlobClient(name)
	var err error = apierror.ErrNotFound
	if etag != "" {
		err = s.deleteVersion(ctx, client, etag)
	}
	if outcome == removedAbandoned && (errors.Is(err, apierror.ErrNotFound) || errors.Is(err, apierror.ErrPreconditionFailed)) {
		err = s.deleteBlocks(ctx, client)
	}
	switch {
	case errors.Is(err, apierror.ErrPreconditionFailed):
		return nil
	case err != nil && !errors.Is(err, apierror.ErrNotFound):
		return err
	}
	s.metrics.unstaged.WithLabelValues(outcome).Inc()
	return nil
}

// deleteBlocks deletes uncommitted blocks, for which storage has no request: an empty blob replaces them, and is deleted. If
// there is a blob by now, deleteBlocks returns ErrPreconditionFailed.
func (s *Store) deleteBlocks(ctx context.Context, client *blockblob.Client) error {
	created := ""
	create := func(condition *blob.ModifiedAccessConditions) error {
		return s.call(ctx, &operation{name: opPut}, "replacing uncommitted blocks", func(ctx context.Context) error {
			done, err := client.Upload(ctx, streaming.NopCloser(strings.NewReader("")), &blockblob.UploadOptions{
				AccessConditions: &blob.AccessConditions{ModifiedAccessConditions: condition},
			})
			created = etag(done.ETag)
			return err
		})
	}
	err := create(&blob.ModifiedAccessConditions{IfNoneMatch: new(azcore.ETagAny)})
	if errors.Is(err, apierror.ErrPreconditionFailed) {
		// Azurite takes uncommitted blocks for a blob here. It does not for this condition, which no blob fulfills either.
		err = create(&blob.ModifiedAccessConditions{IfUnmodifiedSince: new(time.Unix(0, 0))})
	}
	if err != nil {
		return err
	}
	return s.deleteVersion(ctx, client, created)
}

// deleteVersion deletes a blob that has that ETag. It breaks a lease on the blob. Otherwise it returns
// ErrPreconditionFailed.
func (s *Store) deleteVersion(ctx context.Context, client *blockblob.Client, etag string) error {
	opts := deleteOptions(signerapi.Preconditions{IfMatch: etag})
	return s.call(ctx, &operation{name: opDelete}, "deleting a staged blob", func(ctx context.Context) error {
		_, err := client.Delete(ctx, opts)
		if !bloberror.HasCode(err, bloberror.LeaseIDMissing) {
			return err
		}
		leased, err := lease.NewBlobClient(client, nil) // the upload URL of blocks permits leases
		if err != nil {
			return err
		}
		if _, err = leased.BreakLease(ctx, &lease.BlobBreakOptions{BreakPeriod: new(int32(0)), ModifiedAccessConditions: opts.AccessConditions.ModifiedAccessConditions}); err != nil {
			return err
		}
		_, err = client.Delete(ctx, opts)
		return err
	})
}

// sweep deletes expired uploads until ctx is done.
func (s *Store) sweep(ctx context.Context) {
	for {
		if err := s.removeAbandoned(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("expired uploads not deleted; the next sweep tries again", "error", err.Error())
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(jittered(sweepEvery)):
		}
	}
}

// removeAbandoned deletes the uploads that have expired, several at once. The failure of one does not stop the others.
func (s *Store) removeAbandoned(ctx context.Context) error {
	pages := s.container.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{
		Prefix:     new(StagedPrefix),
		MaxResults: new(int32(500)),
		Include:    container.ListBlobsInclude{UncommittedBlobs: true},
	})
	var deletes errgroup.Group
	deletes.SetLimit(sweepParallel)
	for done := false; !done && pages.More(); {
		var page container.ListBlobsFlatResponse
		err := s.call(ctx, &operation{name: opList}, "listing uploads", func(ctx context.Context) (err error) {
			page, err = pages.NextPage(ctx)
			return err
		})
		if err != nil {
			return errors.Join(err, deletes.Wait())
		}
		if page.Segment == nil { // an answer without a listing
			continue
		}
		for _, item := range page.Segment.BlobItems {
			name, version := value(item.Name), ""
			if tag := etag(value(item.Properties).ETag); tag != "" {
				version = `"` + strings.Trim(tag, `"`) + `"` // a listing has it without quotes
			}
			end, ok := endOf(name)
			if done = ok && s.now().Before(end.Add(sweepLate)); done {
				break // the names are in the order of their expiry
			}
			if ok {
				deletes.Go(func() error {
					if ctx.Err() != nil {
						return nil
					}
					return s.unstage(ctx, name, version, removedAbandoned)
				})
			}
		}
	}
	return deletes.Wait()
}
