package directupload

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"cats.example/shared/apierror"
	"cats.example/shared/picture"
	"cats.example/shared/signerapi"
	"cats.example/signer/internal/blobstore"
	"cats.example/signer/internal/storage"
)

const (
	// commitGrace is how long after the end of its session an upload can be committed.
	commitGrace = 15 * time.Minute
	// sourceTTL is the lifetime of the signed URL from which storage copies. The signer makes one for each commit.
	sourceTTL = 5 * time.Minute
)

// CommitUpload implements [signerapi.Signer]. The client can replace the staged blob during a commit, so all requests for the
// blob have its ETag as a precondition.
func (u *Uploads) CommitUpload(ctx context.Context, user signerapi.User, id string, opts signerapi.CommitOptions) (signerapi.Info, error) {
	s, err := parseSession(id)
	if err != nil || time.Now().After(s.end.Add(commitGrace)) {
		return signerapi.Info{}, apierror.ErrNoUpload
	}
	name := s.blobName(user)
	if _, busy := u.committing.LoadOrStore(name, nil); busy { // one upload must not take several slots
		return signerapi.Info{}, apierror.ErrOverloaded.Wrap(errors.New("the same upload is being committed"))
	}
	defer u.committing.Delete(name)
	release, err := u.Commits.Take(signerapi.CallerFrom(ctx))
	if err != nil {
		return signerapi.Info{}, err
	}
	defer release()
	if err := u.Storage.Available(ctx, name); err != nil {
		return signerapi.Info{}, err
	}
	return commit{Uploads: u, user: user, name: name, wanted: opts}.run(ctx, s.size)
}

// commit is one CommitUpload.
type commit struct {
	*Uploads
	user   signerapi.User
	name   string // of the staged blob
	wanted signerapi.CommitOptions
}

// run stores the staged blob, which must have size bytes, as the picture, and deletes it.
func (c commit) run(ctx context.Context, size int64) (signerapi.Info, error) {
	staged, _, err := c.Storage.Head(ctx, c.name)
	err = stagedError(err)
	switch {
	case errors.Is(err, apierror.ErrNotFound):
		info, ok, err := c.Store.Find(ctx, c.user, c.name) // an earlier commit may have stored any version of the blob
		if err == nil && !ok {
			err = apierror.ErrNoUpload
		}
		return info, err
	case err != nil:
		return signerapi.Info{}, err
	case staged.Size != size:
		return signerapi.Info{}, apierror.ErrIncomplete.WithDetail(fmt.Sprintf("%d bytes of %d were uploaded; nothing was stored", staged.Size, size))
	}
	mark := c.name + " " + staged.ETag // the client may upload and commit several versions
	info, ok, err := c.Store.Find(ctx, c.user, mark)
	if err == nil && !ok {
		info, err = c.store(ctx, staged, mark, info.ETag)
	}
	if status := apierror.AsError(err).Status; status == http.StatusConflict || status == http.StatusPreconditionFailed {
		if stored, ok, _ := c.Store.Find(ctx, c.user, mark); ok { // another replica has committed, and so changed the picture
			info, err = stored, nil
		}
	}
	outcome := "committed"
	switch {
	case errors.Is(err, apierror.ErrUnsupportedMediaType), errors.Is(err, apierror.ErrTooLarge):
		outcome = "rejected" // another commit would have the same result
	case err != nil:
		return signerapi.Info{}, err
	}
	if failed := c.removeStaged(context.WithoutCancel(ctx), c.name, staged.ETag, outcome); failed != nil {
		c.log.Warn("staged blob not deleted; the sweeper will retry", "error", failed.Error())
	}
	return info, err
}

// errChanged is returned when the client replaces the staged blob during the commit.
var errChanged = apierror.ErrConflict.WithDetail("the uploaded blob changed during the commit; nothing was stored; commit it again")

// store makes the version of the staged blob that staged describes the picture. The stored picture has the ETag before, "" for
// none.
func (c commit) store(ctx context.Context, staged signerapi.Info, mark, before string) (signerapi.Info, error) {
	if err := c.wanted.Evaluate(before); err != nil { // storage checks it only after the copy
		return signerapi.Info{}, err
	}
	// The client claims the MD5 of a staged blob, so storage verifies it like the one of the commit.
	sum := staged.MD5
	switch {
	case staged.Size > blobstore.MaxVerifiedCopy && c.wanted.MD5 != nil:
		return signerapi.Info{}, apierror.ErrInvalidArgument.WithDetail(fmt.Sprintf(
			"content_md5: storage verifies it for pictures of up to %v; send one with each block instead", picture.Size(blobstore.MaxVerifiedCopy)))
	case staged.Size > blobstore.MaxVerifiedCopy:
		sum = nil
	case c.wanted.MD5 != nil && sum != nil && !bytes.Equal(c.wanted.MD5, sum):
		return signerapi.Info{}, apierror.ErrDigestMismatch
	case c.wanted.MD5 != nil:
		sum = c.wanted.MD5
	}
	mediaType, err := c.inspect(ctx, staged.ETag)
	if err != nil {
		return signerapi.Info{}, err
	}
	url, err := c.Keys.ReadURL(c.Storage.AccountURL, c.name, sourceTTL)
	if err != nil {
		return signerapi.Info{}, err
	}
	staged.ContentType, staged.MD5 = mediaType, sum
	info, err := c.Store.CopyFrom(ctx, c.user, url, staged, mark, c.wanted.Preconditions)
	return info, copyError(err)
}

// inspect reads the beginning of the staged blob and returns its media type.
func (c commit) inspect(ctx context.Context, etag string) (mediaType string, err error) {
	err = c.Storage.Call(ctx, &storage.Operation{Name: storage.OpGet}, func(ctx context.Context) error {
		resp, err := c.Storage.BlobClient(c.name).DownloadStream(ctx, &blob.DownloadStreamOptions{
			Range:            blob.HTTPRange{Count: picture.HeadBytes},
			AccessConditions: storage.AccessConditions(signerapi.Preconditions{IfMatch: etag}),
		})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		mediaType, err = c.Limits.InspectHead(resp.Body)
		return err
	})
	if errors.Is(err, apierror.ErrPreconditionFailed) || errors.Is(err, apierror.ErrNotFound) {
		err = errChanged
	}
	return mediaType, stagedError(err)
}

// copyError translates an error of CopyFrom that is about the staged blob, and returns other errors as they are.
func copyError(err error) error {
	r, ok := errors.AsType[*storage.ResponseError](err)
	if !ok {
		return err
	}
	unverified := r.HasCode(bloberror.CannotVerifyCopySource)
	switch {
	case r.HasCode(bloberror.SourceConditionNotMet), unverified && (r.Status == http.StatusNotFound || r.Status == http.StatusPreconditionFailed):
		return errChanged.Wrap(err)
	case r.Status == http.StatusConflict && r.SourceCode() != "":
		return stagedError(storage.StateError(r.SourceCode(), false).Wrap(err))
	case r.Status == http.StatusConflict && unverified: // the only known state in which a blob cannot be read
		return stagedError(apierror.ErrArchived.Wrap(err))
	}
	return err
}

// stagedError gives an error of storage the detail that is right if the error is about the staged blob.
func stagedError(err error) error {
	switch {
	case errors.Is(err, apierror.ErrArchived):
		return apierror.AsError(err).WithDetail("the uploaded blob is in the archive tier, where it cannot be read; get a new upload URL, and upload the picture again without x-ms-access-tier")
	case errors.Is(err, apierror.ErrRejectedByStorage):
		return apierror.AsError(err).WithDetail("storage does not allow the uploaded blob to be read; get a new upload URL, and upload the picture again with no x-ms header besides x-ms-blob-type")
	}
	return err
}
