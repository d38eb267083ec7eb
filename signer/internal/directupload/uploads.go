// Package directupload lets clients upload pictures directly to storage, by signed URLs, and commits these uploads.
package directupload

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/lease"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"cats.example/shared/apierror"
	"cats.example/shared/config"
	"cats.example/shared/picture"
	"cats.example/shared/ratelimit"
	"cats.example/shared/signerapi"
	"cats.example/shared/telemetry"
	"cats.example/signer/internal/blobstore"
	"cats.example/signer/internal/refresh"
	"cats.example/signer/internal/signing"
	"cats.example/signer/internal/storage"
)

const (
	// MaxSize is the largest MAX_DIRECT_UPLOAD_SIZE: storage copies such a picture at 70 MiB/s within the time limit of a commit.
	MaxSize = 16 << 30

	maxPutBlob = 64 << 20 // the largest picture that a client uploads with one request, in bytes
	blockSize  = 8 << 20  // of larger pictures
)

// Settings are the settings of direct uploads.
type Settings struct {
	MaxDirectUploadSize picture.Size `env:"MAX_DIRECT_UPLOAD_SIZE" envDefault:"0" help:"largest picture that clients may upload directly to storage by a signed URL, such as 5GiB, at most 16GiB; 0 turns direct uploads off. Browsers need a CORS rule of the account"`
}

// Validate returns the validation errors of the settings, joined.
func (s Settings) Validate() error {
	return config.Require(0 <= s.MaxDirectUploadSize && s.MaxDirectUploadSize <= MaxSize,
		"MAX_DIRECT_UPLOAD_SIZE is %v: want 0 to %v", s.MaxDirectUploadSize, picture.Size(MaxSize))
}

// Options are the settings, which the caller has validated, and what the uploads work with.
type Options struct {
	Settings
	Limits  picture.Limits
	Storage *storage.Client
	Keys    *signing.Keys
	Store   *blobstore.Store
	Commits *ratelimit.Pool // counted by authenticated caller
}

// Uploads starts, commits and deletes direct uploads. Its methods are those of [signerapi.Signer]. It is safe for concurrent use.
type Uploads struct {
	Options
	log        *slog.Logger
	deleted    *prometheus.CounterVec // staged blobs, by outcome
	committing sync.Map               // names of the staged blobs that are being committed
}

// New returns Uploads. It makes no call.
func New(opts Options, log *slog.Logger, reg prometheus.Registerer) *Uploads {
	return &Uploads{Options: opts, log: log, deleted: telemetry.NewCounterVec(reg, "cats_signer_staged_blobs_deleted_total",
		"Deleted staged blobs by the outcome of their upload.", "outcome", "committed", "rejected", "expired")}
}

// StartUpload implements [signerapi.Signer].
func (u *Uploads) StartUpload(_ context.Context, user signerapi.User, size int64) (started signerapi.UploadSession, err error) {
	switch {
	case u.MaxDirectUploadSize == 0:
		return signerapi.UploadSession{}, apierror.ErrTooLarge.WithDetail("direct uploads are off")
	case size > int64(u.MaxDirectUploadSize):
		return signerapi.UploadSession{}, apierror.ErrTooLarge.WithDetail(fmt.Sprintf("the picture is larger than %v", u.MaxDirectUploadSize))
	case size <= 0:
		return signerapi.UploadSession{}, apierror.ErrEmpty
	}
	s := newSession(time.Now(), size)
	started.ID, started.ExpiresAt = s.id, s.end
	// Blocks need the permission to write, with which the client can upload them again. A blob that is uploaded with one request
	// needs only the permission to create it: the client cannot change it afterwards. No upload URL permits to read the blob,
	// whose content is not checked yet.
	permissions := sas.BlobPermissions{Create: true}
	if size > maxPutBlob {
		permissions = sas.BlobPermissions{Write: true}
		started.BlockSize = blockSize
	}
	started.URL, err = u.Keys.UploadURL(s.blobName(user), permissions, s.end)
	return started, err
}

// stagedPrefix begins the name of every staged blob. The name has two slashes, and a picture's blob always has one. So an upload
// URL never writes a picture, and no picture is taken for a staged blob.
const stagedPrefix = "cats-api/upload/"

// SessionTTL is the lifetime of an upload session and its upload URL.
const SessionTTL = time.Hour

// session is an upload session. Its ID holds all its properties, so that no replica has to remember it. A changed ID belongs to
// another staged blob, which does not exist.
type session struct {
	id   string
	end  time.Time
	size int64 // of the picture, in bytes
}

func newSession(now time.Time, size int64) session {
	end := now.Add(SessionTTL).UTC().Truncate(time.Second)
	return session{fmt.Sprintf("%d-%d-%s", end.Unix(), size, rand.Text()), end, size}
}

// sessionForm is the form of the IDs that newSession makes: end, size and 26 random characters.
var sessionForm = regexp.MustCompile(`^([0-9]{1,10})-([0-9]{1,15})-[A-Z2-7]{26}$`)

// parseSession returns ErrNoUpload for an ID that newSession cannot have made.
func parseSession(id string) (session, error) {
	m := sessionForm.FindStringSubmatch(id)
	if m == nil {
		return session{}, apierror.ErrNoUpload
	}
	return session{id, time.Unix(number(m[1]), 0).UTC(), number(m[2])}, nil
}

// number returns the value of at most 18 digits.
func number(digits string) int64 {
	n, _ := strconv.ParseInt(digits, 10, 64)
	return n
}

// blobName returns the name of the staged blob. Nobody can guess it without the ID, and it differs for each user. It begins with
// the end of the session, so a listing begins with the expired uploads.
func (s session) blobName(user signerapi.User) string {
	sum := sha256.Sum256([]byte(user.String() + "\n" + s.id)) // no name holds a line end
	return fmt.Sprintf("%s%010d-%s", stagedPrefix, s.end.Unix(), hex.EncodeToString(sum[:16]))
}

var stagedName = regexp.MustCompile(`^` + stagedPrefix + `([0-9]{10})-[0-9a-f]{32}$`)

// sessionEnd returns when the session of the staged blob name ends. It returns false for other blobs.
func sessionEnd(name string) (time.Time, bool) {
	m := stagedName.FindStringSubmatch(name)
	if m == nil {
		return time.Time{}, false
	}
	return time.Unix(number(m[1]), 0), true
}

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
	for u.MaxDirectUploadSize > 0 && ctx.Err() == nil {
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
	pages := u.Storage.ContainerClient().NewListBlobsFlatPager(&container.ListBlobsFlatOptions{
		Prefix:     new(stagedPrefix),
		MaxResults: new(int32(500)),
		Include:    container.ListBlobsInclude{UncommittedBlobs: true},
	})
	var deletes errgroup.Group
	deletes.SetLimit(parallelDeletes)
	for done := false; !done && pages.More(); {
		var page container.ListBlobsFlatResponse
		err := u.Storage.Call(ctx, &storage.Operation{Name: storage.OpList}, func(ctx context.Context) (err error) {
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
				deletes.Go(func() error { return u.removeStaged(ctx, name, etag, "expired") })
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
	if outcome == "expired" && (errors.Is(err, apierror.ErrNotFound) || errors.Is(err, apierror.ErrPreconditionFailed)) {
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
		return u.Storage.Call(ctx, &storage.Operation{Name: storage.OpPut}, func(ctx context.Context) error {
			done, err := u.Storage.BlobClient(name).Upload(ctx, streaming.NopCloser(strings.NewReader("")), &blockblob.UploadOptions{
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
		return u.Storage.Delete(ctx, &storage.Operation{Name: storage.OpDelete}, name, version)
	}
	err := remove()
	if !errors.Is(err, apierror.ErrLeased) {
		return err
	}
	err = u.Storage.Call(ctx, &storage.Operation{Name: storage.OpDelete}, func(ctx context.Context) error {
		leased, err := lease.NewBlobClient(u.Storage.BlobClient(name), nil)
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
