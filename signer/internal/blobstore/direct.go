package blobstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
	"golang.org/x/sync/errgroup"

	"cats.example/shared/apierror"
	"cats.example/shared/picture"
	"cats.example/shared/signerapi"
)

// StagedPrefix begins the name of every blob that is sent straight to storage. Its
// name has two slashes; a picture's has one always, so that no ticket is for a picture,
// and no picture is taken for what was sent.
const StagedPrefix = "cats-api/upload/"

const (
	ticketLife = time.Hour
	// commitLate is how long after the end of a ticket what was sent under it can
	// still become a picture.
	commitLate = 15 * time.Minute
	// sweepLate is how long after the end of a ticket its blob is removed. A request
	// that began before that end can last.
	sweepLate = time.Hour

	onePiece    = 64 << 20 // the largest that is sent in one request, which replaces nothing
	directBlock = 8 << 20

	// copyBlock is what storage copies in one call, and copyWhole the largest picture
	// that it copies in one, so that it can compare the MD5 while it does so.
	copyBlock = 64 << 20
	copyWhole = 256 << 20
	// MaxDirectUploadSize is the largest picture that can be sent straight to storage: at 70 MiB/s
	// it is copied in the time that a commit has.
	MaxDirectUploadSize = 16 << 30

	sourceTTL = 5 * time.Minute // of a link by which storage copies, asked for once a commit

	parallel = 4 // copies of one commit at once
)

// ticket is what the ID of one says. Where it does not say what the signer wrote, it
// is that of another blob, which does not exist: so no replica has to remember any.
type ticket struct {
	id   string
	end  time.Time
	size int64
}

func newTicket(now time.Time, size int64) ticket {
	end := now.Add(ticketLife).UTC().Truncate(time.Second)
	return ticket{fmt.Sprintf("%d-%d-%s", end.Unix(), size, rand.Text()), end, size}
}

// parseTicket returns ErrNoUpload for what newTicket cannot have made.
func parseTicket(id string) (ticket, error) {
	end, rest, _ := strings.Cut(id, "-")
	size, _, ok := strings.Cut(rest, "-")
	seconds, err1 := strconv.ParseUint(end, 10, 33) // ten digits at most
	n, err2 := strconv.ParseUint(size, 10, 62)
	if err := errors.Join(signerapi.ValidateUploadID(id), err1, err2); err != nil || !ok {
		return ticket{}, apierror.ErrNoUpload
	}
	return ticket{id, time.Unix(int64(seconds), 0).UTC(), int64(n)}, nil
}

// blobName is that of the blob that is sent, unguessable for who does not know the
// ticket, and another for each user. It begins with when the ticket ends, so that
// those that were abandoned are the first in a listing.
func (t ticket) blobName(user signerapi.User) string {
	sum := sha256.Sum256([]byte(user.String() + "\n" + t.id)) // no name holds a line end
	return fmt.Sprintf("%s%010d-%s", StagedPrefix, t.end.Unix(), hex.EncodeToString(sum[:16]))
}

var stagedName = regexp.MustCompile(`^` + StagedPrefix + `([0-9]{10})-[0-9a-f]{32}$`)

// endOf returns when the ticket of the blob name ends; false for other blobs.
func endOf(name string) (time.Time, bool) {
	m := stagedName.FindStringSubmatch(name)
	if m == nil {
		return time.Time{}, false
	}
	seconds, err := strconv.ParseInt(m[1], 10, 64)
	return time.Unix(seconds, 0), err == nil
}

// Ticket implements [signerapi.Signer].
func (s *Store) StartUpload(_ context.Context, user signerapi.User, size int64) (signerapi.UploadSession, error) {
	switch {
	case s.opts.MaxDirectUploadSize == 0:
		return signerapi.UploadSession{}, apierror.ErrTooLarge.WithDetail("pictures cannot be sent straight to storage here")
	case size > int64(s.opts.MaxDirectUploadSize):
		return signerapi.UploadSession{}, apierror.ErrTooLarge.WithDetail(fmt.Sprintf("the picture is larger than %v", s.opts.MaxDirectUploadSize))
	case size <= 0:
		return signerapi.UploadSession{}, apierror.ErrEmpty
	}
	now := s.now()
	t := newTicket(now, size)
	key, err := s.keyCovering(t.end)
	if err != nil {
		return signerapi.UploadSession{}, err
	}
	given := signerapi.UploadSession{ID: t.id, ExpiresAt: t.end}
	// Blocks need the permission to write, with which the client can upload them again. A blob that is uploaded with one request
	// needs only the permission to create it: the client cannot change it afterwards. No upload URL permits to read the blob,
	// whose content was not inspected yet.
	permissions := sas.BlobPermissions{Create: true}
	if size > onePiece {
		permissions = sas.BlobPermissions{Write: true}
		given.BlockSize = directBlock
	}
	given.URL, err = s.signed(key, s.opts.LinkBaseURL, t.blobName(user), sas.BlobSignatureValues{
		StartTime: now.UTC().Truncate(time.Second).Add(-LinkSkew), ExpiryTime: t.end, Permissions: permissions.String(),
	})
	if err != nil {
		return signerapi.UploadSession{}, err
	}
	s.metrics.signed.WithLabelValues("upload").Inc()
	return given, nil
}

// Commit implements [signerapi.Signer]. The client can upload another version of the staged blob at the same time. So all
// requests for the blob have its ETag as precondition.
//
// Storage copies the staged blob into blocks of the picture, which one call commits. Copy Blob would not do: with more than
// 256 MiB it first empties the picture that is stored.
func (s *Store) CommitUpload(ctx context.Context, user signerapi.User, id string, opts signerapi.CommitOptions) (signerapi.Info, error) {
	t, err := parseTicket(id)
	if err != nil {
		return signerapi.Info{}, err
	}
	if s.now().After(t.end.Add(commitLate)) {
		return signerapi.Info{}, apierror.ErrNoUpload
	}
	name := t.blobName(user)
	if _, busy := s.committing.LoadOrStore(name, nil); busy { // one upload must not take several slots
		return signerapi.Info{}, apierror.ErrOverloaded.Wrap(errors.New("the same upload is being committed"))
	}
	defer s.committing.Delete(name)
	release, err := s.opts.Slots.Commits.Take(signerapi.CallerFrom(ctx))
	if err != nil {
		return signerapi.Info{}, err
	}
	defer release()

	if err := s.available(ctx, user); err != nil {
		return signerapi.Info{}, err
	}
	c := commit{
		upload: s.newUpload(user, signerapi.PutOptions{Preconditions: opts.Preconditions, Digests: signerapi.Digests{MD5: opts.MD5}}),
		name:   name, staged: s.container.NewBlockBlobClient(name),
	}
	c.key, c.mark = committedFrom, name
	s.known.forget(user)
	defer s.known.forget(user)
	sent, _, err := s.head(ctx, c.staged.BlobClient())
	err = stagedError(err)
	switch {
	case errors.Is(err, apierror.ErrNotFound):
		info, ok, err := c.stored(ctx) // an earlier Commit may have stored any version of the blob
		if err == nil && !ok {
			err = apierror.ErrNoUpload
		}
		return info, err
	case err != nil:
		return signerapi.Info{}, err
	case sent.Size != t.size:
		return signerapi.Info{}, apierror.ErrIncomplete.WithDetail(fmt.Sprintf("%d bytes of %d were sent; nothing was stored", sent.Size, t.size))
	}
	c.mark += " " + sent.ETag // the client may upload and commit several versions
	info, ok, err := c.stored(ctx)
	if err == nil && !ok {
		info, err = c.run(ctx, sent, info.ETag)
	}
	if status := apierror.AsError(err).Status; status == http.StatusConflict || status == http.StatusPreconditionFailed {
		if there, ok, _ := c.stored(ctx); ok { // another replica has done it, and so changed the state of the blob
			info, err = there, nil
		}
	}
	outcome := removedCommitted
	switch {
	case errors.Is(err, apierror.ErrUnsupportedMediaType), errors.Is(err, apierror.ErrTooLarge):
		outcome = removedRefused // another try would have the same result
	case err != nil:
		return signerapi.Info{}, err
	}
	if failed := s.unstage(context.WithoutCancel(ctx), name, sent.ETag, outcome); failed != nil {
		s.log.Warn("staged blob not deleted; the next sweep after its end deletes it", "error", failed.Error())
	}
	return info, err
}

// commit is one Commit.
type commit struct {
	*upload
	name   string // of staged
	staged *blockblob.Client
}

// errChanged is returned when the client uploads another version of the staged blob during the commit.
var errChanged = apierror.ErrConflict.WithDetail("what was sent changed while it was being stored; nothing was stored, and it can be asked for again")

// run stores the version of the staged blob that sent describes as the picture. The stored picture has the ETag before, "" for
// none.
func (c *commit) run(ctx context.Context, sent signerapi.Info, before string) (signerapi.Info, error) {
	if err := c.opts.Evaluate(before); err != nil { // storage would only say so at the end
		return signerapi.Info{}, err
	}
	// The MD5 of a staged blob is what the client claimed, so it is verified like the one of the commit.
	switch c.info.MD5 = sent.MD5; {
	case sent.Size > copyWhole && c.opts.MD5 != nil:
		return signerapi.Info{}, apierror.ErrInvalidArgument.WithDetail(fmt.Sprintf(
			"content_md5: storage can check it of pictures of up to %v; send one with each block instead", picture.Size(copyWhole)))
	case sent.Size > copyWhole:
		c.info.MD5 = nil
	case c.opts.MD5 != nil && sent.MD5 != nil && !bytes.Equal(c.opts.MD5, sent.MD5):
		return signerapi.Info{}, apierror.ErrDigestMismatch
	case c.opts.MD5 != nil:
		c.info.MD5 = c.opts.MD5
	}
	var err error
	if c.info.ContentType, err = c.inspect(ctx, sent.ETag); err != nil {
		return signerapi.Info{}, err
	}
	if err := c.copyBlocks(ctx, sent); err != nil {
		return signerapi.Info{}, err
	}
	return c.commit(ctx, sent.Size)
}

// inspect reads the beginning of the staged blob and returns its media type.
func (c *commit) inspect(ctx context.Context, etag string) (mediaType string, err error) {
	s := c.store
	err = s.call(ctx, &operation{name: opGet}, "reading the staged blob", func(ctx context.Context) error {
		resp, err := c.staged.DownloadStream(ctx, &blob.DownloadStreamOptions{
			Range:            blob.HTTPRange{Count: picture.HeadBytes},
			AccessConditions: accessConditions(signerapi.Preconditions{IfMatch: etag}),
		})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		mediaType, err = s.opts.Limits.InspectHead(resp.Body)
		return err
	})
	if errors.Is(err, apierror.ErrPreconditionFailed) || errors.Is(err, apierror.ErrNotFound) {
		err = errChanged
	}
	return mediaType, stagedError(err)
}

// copyBlocks lets storage copy the staged blob into blocks of the picture.
func (c *commit) copyBlocks(ctx context.Context, sent signerapi.Info) error {
	source, err := c.store.readURL(c.store.opts.AccountURL, c.name, sourceTTL, "")
	if err != nil {
		return err
	}
	var validation blob.SourceContentValidationType
	size := int64(copyBlock)
	if c.info.MD5 != nil {
		validation, size = blob.SourceContentValidationTypeMD5(c.info.MD5), copyWhole
	}
	copies, ctx := errgroup.WithContext(ctx)
	copies.SetLimit(parallel)
	for at := int64(0); at < sent.Size; at += size {
		id := c.nextBlock()
		copies.Go(func() error {
			return c.store.call(ctx, &operation{name: opCopy}, "copying the staged blob", func(ctx context.Context) error {
				_, err := c.client.StageBlockFromURL(ctx, id, string(source), &blockblob.StageBlockFromURLOptions{
					Range:                          blob.HTTPRange{Offset: at, Count: min(size, sent.Size-at)},
					SourceModifiedAccessConditions: &blob.SourceModifiedAccessConditions{SourceIfMatch: new(azcore.ETag(sent.ETag))},
					SourceContentValidation:        validation,
				})
				return copyError(err)
			})
		})
	}
	return copies.Wait()
}

// About implements [signerapi.Signer].
func (s *Store) About(context.Context) (signerapi.About, error) {
	base, err := url.Parse(s.opts.LinkBaseURL)
	if err != nil {
		return signerapi.About{}, err
	}
	return signerapi.About{
		MaxDirectUploadSize: int64(s.opts.MaxDirectUploadSize),
		LinkTTL:             int64(s.opts.LinkTTL / time.Second),
		LinkMaxTTL:          int64(s.opts.LinkMaxTTL / time.Second),
		LinkOrigin:          base.Scheme + "://" + base.Host,
	}, nil
}
