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

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
	"github.com/prometheus/client_golang/prometheus"

	"cats.example/shared/apierror"
	"cats.example/shared/config"
	"cats.example/shared/picture"
	"cats.example/shared/ratelimit"
	"cats.example/shared/signerapi"
	"cats.example/shared/telemetry"
	"cats.example/signer/internal/blobstore"
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

// URLTTL returns the lifetime of upload URLs, 0 if direct uploads are off.
func (s Settings) URLTTL() time.Duration {
	if s.MaxDirectUploadSize == 0 {
		return 0
	}
	return sessionTTL
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
	opts       Options
	log        *slog.Logger
	deleted    *prometheus.CounterVec // staged blobs, by outcome
	committing sync.Map               // names of the staged blobs that are being committed
}

// New returns Uploads. It makes no call.
func New(opts Options, log *slog.Logger, reg prometheus.Registerer) *Uploads {
	return &Uploads{opts: opts, log: log, deleted: telemetry.NewCounterVec(reg, "cats_signer_staged_blobs_deleted_total",
		"Deleted staged blobs by the outcome of their upload.", "outcome", deletedCommitted, deletedRejected, deletedExpired)}
}

// StartUpload implements [signerapi.Signer].
func (u *Uploads) StartUpload(_ context.Context, user signerapi.User, size int64) (signerapi.UploadSession, error) {
	switch {
	case u.opts.MaxDirectUploadSize == 0:
		return signerapi.UploadSession{}, apierror.ErrTooLarge.WithDetail("direct uploads are off")
	case size > int64(u.opts.MaxDirectUploadSize):
		return signerapi.UploadSession{}, apierror.ErrTooLarge.WithDetail(fmt.Sprintf("the picture is larger than %v", u.opts.MaxDirectUploadSize))
	case size <= 0:
		return signerapi.UploadSession{}, apierror.ErrEmpty
	}
	s := newSession(time.Now(), size)
	started := signerapi.UploadSession{ID: s.id, ExpiresAt: s.end}
	// Blocks need the permission to write, with which the client can upload them again. A blob that is uploaded with one request
	// needs only the permission to create it: the client cannot change it afterwards. No upload URL permits to read the blob,
	// whose content is not checked yet.
	permissions := sas.BlobPermissions{Create: true}
	if size > maxPutBlob {
		permissions = sas.BlobPermissions{Write: true}
		started.BlockSize = blockSize
	}
	var err error
	started.URL, err = u.opts.Keys.UploadURL(s.blobName(user), permissions, s.end)
	if err != nil {
		return signerapi.UploadSession{}, err
	}
	return started, nil
}

// Outcomes of uploads whose staged blob was deleted, as labels of metrics.
const (
	deletedCommitted = "committed"
	deletedRejected  = "rejected"
	deletedExpired   = "expired"
)

// stagedPrefix begins the name of every staged blob. The name has two slashes, and a picture's blob always has one. So an upload
// URL never writes a picture, and no picture is taken for a staged blob.
const stagedPrefix = "cats-api/upload/"

const sessionTTL = time.Hour

// session is an upload session. Its ID holds all its properties, so that no replica has to remember it. A changed ID belongs to
// another staged blob, which does not exist.
type session struct {
	id   string
	end  time.Time
	size int64 // of the picture, in bytes
}

func newSession(now time.Time, size int64) session {
	end := now.Add(sessionTTL).UTC().Truncate(time.Second)
	return session{fmt.Sprintf("%d-%d-%s", end.Unix(), size, rand.Text()), end, size}
}

// parseSession returns ErrNoUpload for an ID that newSession cannot have made.
func parseSession(id string) (session, error) {
	end, rest, _ := strings.Cut(id, "-")
	size, _, ok := strings.Cut(rest, "-")
	seconds, err1 := strconv.ParseUint(end, 10, 33) // ten digits at most
	n, err2 := strconv.ParseUint(size, 10, 62)
	if err := errors.Join(signerapi.ValidateUploadID(id), err1, err2); err != nil || !ok {
		return session{}, apierror.ErrNoUpload
	}
	return session{id, time.Unix(int64(seconds), 0).UTC(), int64(n)}, nil
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
	seconds, err := strconv.ParseInt(m[1], 10, 64)
	return time.Unix(seconds, 0), err == nil
}
