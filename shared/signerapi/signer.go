// Package signerapi is the contract between the two containers of a pod: the
// public frontend, which holds no credential, and the signer, which holds the
// workload identity. The frontend uses [Client], the signer serves [NewHandler];
// both are [Signer], so each can stand in for the other in a test.
//
// The contract is narrow on purpose. It can put, link and delete the one picture
// that belongs to one user name, and, where the signer's settings have it, have one
// sent straight to storage. It cannot list, name a container or a blob, choose a
// permission, a content type, or a lifetime beyond the signer's own limit. What a
// fully compromised frontend can do is what stands in this package.
//
// On the wire it is HTTP/1.1 on the loopback interface:
//
//	PUT    /v1/picture?user=U[&size=N | &min_size=N&max_size=N][&CONDITIONS][&DIGESTS]   body: the picture → 200 Info
//	GET    /v1/link?user=U[&ttl_seconds=N][&download=F]         → 200 Link
//	DELETE /v1/picture?user=U[&CONDITIONS]                      → 204
//	POST   /v1/uploads?user=U&size=N                             → 200 Ticket
//	POST   /v1/commit?user=U&ticket=T[&md5=H][&CONDITIONS]      → 200 Info
//	GET    /v1/about                                            → 200 About
//	GET    /v1/ready                                            → 204
//
// Each call has the header Cats-Contract: 1; a request without is refused with 403.
// Authorization: Bearer T passes on the token of the caller on whose behalf it is, see
// [WithToken]; the signer verifies it where callers must be known, and rejects the call
// with apierror.ErrMisconfigured elsewhere.
// CONDITIONS are if_match=E and if_none_match=E; DIGESTS are md5=H, sha256=H and
// sha512=H, in hexadecimal.
//
// Every error is a JSON object {"code": …, "detail": …, "outcome": …}; see errors.go.
// The user name travels in the query, never in the path, so that no path
// cleaning on either side can turn one name into another.
package signerapi

import (
	"context"
	"io"
	"log/slog"
	"regexp"
	"time"

	"cats.example/shared/apierror"
)

// Signer stores, links and deletes the one picture of a user. Implementations
// are safe for concurrent use. Where callers must be known, each call can be
// apierror.ErrUnauthenticated, apierror.ErrForbidden, apierror.ErrRateLimited or apierror.ErrIssuerUnavailable. Every error they return that a caller may branch
// on is, or wraps, one of the *apierror.Error values of this package.
type Signer interface {
	// Put stores body as the picture of user, in place of what was there. It
	// returns only once storage has acknowledged the whole of it. After an error
	// the old picture is still there, unless the error has an Outcome. apierror.ErrArchived,
	// apierror.ErrImmutable, apierror.ErrLeased and apierror.ErrRejectedByStorage mean that the state of the
	// stored picture does not allow it; of Delete and Commit as well.
	//
	// The end of the picture is io.EOF, exactly; any other error from body, io.EOF
	// wrapped in another error included, is a broken picture and stores nothing.
	// Put does not close body. body is not read after Put has returned, except
	// that an HTTP client may still be inside one Read.
	Put(ctx context.Context, user User, body io.Reader, opts PutOptions) (Info, error)

	// Link returns a signed URL that reads the picture of user, and nothing
	// else, until it expires. apierror.ErrNotFound means that storage said that there is
	// no such picture, and nothing less.
	Link(ctx context.Context, user User, opts LinkOptions) (Link, error)

	// Delete removes the picture of user, or returns apierror.ErrNotFound, or
	// apierror.ErrPreconditionFailed when the picture is not as the conditions say. After an
	// error the picture is still there, unless the error has an Outcome.
	Delete(ctx context.Context, user User, conditions Preconditions) error

	// UploadSession returns a signed URL by which a picture of size bytes can be sent
	// straight to storage, under a name that nobody reads. It changes nothing of the
	// picture of user; only Commit does. apierror.ErrTooLarge means as well that the signer
	// gives no tickets.
	StartUpload(ctx context.Context, user User, size int64) (UploadSession, error)

	// Commit makes what was sent under a ticket the picture of user, in place of what
	// was there, if it is all there and is a picture as Put wants it. After an error the
	// old picture is still there, unless the error has an Outcome. Asked
	// again after it has done so, it says the same again. apierror.ErrNoUpload means that there
	// is nothing of user's under that ticket, or not any more.
	CommitUpload(ctx context.Context, user User, ticket string, opts CommitOptions) (Info, error)

	// About returns what can be asked here. It makes no call to Azure.
	About(ctx context.Context) (About, error)

	// Ready returns nil when links can be signed now. It makes no call to Azure.
	Ready(ctx context.Context) error
}

// Info is what storage knows of a picture.
type Info struct {
	ETag        string `json:"etag"`         // as storage gives it, quotes included
	ContentType string `json:"content_type"` // decided by the signer from the first bytes
	Size        int64  `json:"size"`         // in bytes
	// MD5 of the picture, in base64 on the wire, as storage sends it along in
	// Content-MD5; nil where storage has none.
	MD5 []byte `json:"content_md5,omitempty"`
}

// MaxSizeRange is the largest difference between the bounds of a size, in bytes. The signer buffers so much of an upload.
const MaxSizeRange = 96 << 10

// PutOptions say what is known of a picture before it comes. There is no good
// zero value: Size is -1 where it is not known.
type PutOptions struct {
	// Size of the picture in bytes, -1 when it is not known. A body of another
	// length is apierror.ErrIncomplete or apierror.ErrTooLarge.
	Size int64
	// MinSize and MaxSize are bounds of the size in bytes if Size is -1; MaxSize is 0 if there are none. A body outside them is
	// apierror.ErrIncomplete. Bounds that are more than [MaxSizeRange] apart are apierror.ErrInvalidArgument.
	MinSize, MaxSize int64
	// Preconditions on the picture that is there; apierror.ErrPreconditionFailed otherwise.
	Preconditions
	// Digests of the picture; apierror.ErrDigestMismatch when one is not its own.
	Digests
}

// Preconditions are those of RFC 9110 section 13.1, on the picture that is there; the
// zero value is no condition. Each is an entity tag with its quotes, or "*" for
// any picture at all. Lists and weak tags are apierror.ErrInvalidArgument.
type Preconditions struct {
	IfMatch     string // only if this picture is there
	IfNoneMatch string // only if it is not; "*" creates and never replaces
}

// Evaluate returns apierror.ErrPreconditionFailed unless the conditions hold for the picture
// with the entity tag etag, "" for none.
func (c Preconditions) Evaluate(etag string) error {
	is := func(condition string) bool { return etag != "" && (condition == "*" || condition == etag) }
	if c.IfMatch != "" && !is(c.IfMatch) || c.IfNoneMatch != "" && is(c.IfNoneMatch) {
		return apierror.ErrPreconditionFailed
	}
	return nil
}

// conditionForm is * or an entity tag of RFC 9110 section 8.8.3 in ASCII, of at most 128 bytes, which is far more than those of
// storage have.
var conditionForm = regexp.MustCompile(`^(\*|"[!#-~]{0,126}")$`)

// Validate returns apierror.ErrInvalidArgument for conditions that cannot be asked.
func (c Preconditions) Validate() error {
	for _, field := range [][2]string{{"If-Match", c.IfMatch}, {"If-None-Match", c.IfNoneMatch}} {
		if field[1] != "" && !conditionForm.MatchString(field[1]) {
			return apierror.ErrInvalidArgument.WithDetail(field[0] + `: want * or one entity tag in quotes, such as "0x8DC"`)
		}
	}
	return nil
}

// LinkOptions are the wishes of the caller for one link; the zero value asks for
// the signer's defaults.
type LinkOptions struct {
	// TTL is the longest the link may live, in whole seconds; 0 for the signer's
	// default. Outside the signer's limits it is apierror.ErrInvalidArgument.
	TTL time.Duration
	// Download is the file name under which a browser saves the picture, with the
	// extension of its type added where it is missing; "" shows it in place. At most [MaxDownloadName] bytes of UTF-8, without control
	// characters, "/" or "\"; anything else is apierror.ErrInvalidArgument.
	Download string
}

// MaxDownloadName is the longest file name of a download, in bytes.
const MaxDownloadName = 255

// Link is a signed URL of a picture. The public API returns its fields, too.
type Link struct {
	URL       SignedURL `json:"picture_url"`
	ExpiresAt time.Time `json:"expires_at"` // UTC, whole seconds
	Info
}

// LogValue keeps a link out of the log but for when it ends.
func (l Link) LogValue() slog.Value { return slog.TimeValue(l.ExpiresAt) }

// UploadSession is an upload session: the right to upload one picture directly to storage. The public API returns its fields, too.
type UploadSession struct {
	// ID names the upload in Commit. It is of [ValidateUploadID]'s form, and unguessable.
	ID string `json:"id"`
	// URL can only write, and only the blob of this upload. Without BlockSize it
	// creates that, and does not replace it; with it, blocks can be put and put again.
	URL       SignedURL `json:"upload_url"`
	ExpiresAt time.Time `json:"expires_at"` // UTC, whole seconds
	// BlockSize is how large the blocks are to be that the picture is sent in, in
	// bytes; 0 for all of it in one piece.
	BlockSize int64 `json:"block_size,omitempty"`
}

// LogValue keeps a ticket out of the log but for when it ends.
func (t UploadSession) LogValue() slog.Value { return slog.TimeValue(t.ExpiresAt) }

// CommitOptions say what is known of an upload; the zero value knows nothing.
type CommitOptions struct {
	Preconditions // on the picture that is there
	// MD5 of what was sent; apierror.ErrDigestMismatch when it has another, and
	// apierror.ErrInvalidArgument where storage cannot tell.
	MD5 []byte
}

// uploadIDForm is the form of the ID of a ticket.
var uploadIDForm = regexp.MustCompile(`^[0-9A-Za-z-]{1,96}$`)

// ValidateUploadID returns apierror.ErrNoUpload unless id can be that of a ticket: letters of
// ASCII, digits and hyphens.
func ValidateUploadID(id string) error {
	if !uploadIDForm.MatchString(id) {
		return apierror.ErrNoUpload
	}
	return nil
}

// About is what can be asked of a signer.
type About struct {
	MaxDirectUploadSize int64  `json:"max_direct_upload_size"` // largest picture of a UploadSession, in bytes; 0 where there are none
	LinkTTL             int64  `json:"link_ttl_seconds"`       // of a link, unless asked otherwise
	LinkMaxTTL          int64  `json:"link_max_ttl_seconds"`
	LinkOrigin          string `json:"link_origin"` // scheme, host and port of links and tickets
	// UserClaim is the claim of a caller's token that is the name of their picture;
	// "" where callers are not known.
	UserClaim string `json:"user_claim,omitempty"`
	// SharedSettings has the signer's values of the settings that must be the same in both
	// containers, by name.
	SharedSettings map[string]string `json:"shared_settings,omitempty"`
}

// Secret is a credential, or has one in it. It prints and logs as a placeholder; string(s) is the secret itself, JSON carries it
// whole.
type Secret string

const redacted = "[secret]"

// String hides the secret from fmt.
func (Secret) String() string { return redacted }

// GoString hides the secret from %#v.
func (Secret) GoString() string { return redacted }

// LogValue hides the secret from slog.
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// SignedURL is a URL that carries a credential in its query string.
type SignedURL = Secret
