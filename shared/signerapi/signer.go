// Package signerapi is the contract between the two containers of a pod.
//
// The public frontend holds no credential. The private signer holds the workload identity, and is the only one of the two that
// can reach storage. The frontend calls the signer through [Client]; the signer serves [NewHandler]. Client, handler and the
// signer's store all implement or use one interface, [Signer].
//
// # What the contract allows
//
// A call can store, link or delete the one picture of one user, and can upload one picture directly to storage. No call can list
// users, choose the name of a container or blob, a permission or a content type, or exceed the signer's limits on size and
// lifetime. An attacker who controls the frontend can make these calls, and nothing else.
//
// # Wire format
//
// The contract is HTTP/1.1 over the loopback interface:
//
//	PUT    /v1/picture?user=U[&size=N | &min_size=N&max_size=N][&CONDITIONS][&DIGESTS]  → 200 Info; the body is the picture
//	GET    /v1/link?user=U[&ttl_seconds=N][&download=F]                                 → 200 Link
//	DELETE /v1/picture?user=U[&CONDITIONS]                                              → 204
//	POST   /v1/uploads?user=U&size=N                                                    → 200 UploadSession
//	POST   /v1/commit?user=U&upload_id=I[&md5=H][&CONDITIONS]                           → 200 Info
//	GET    /v1/about                                                                    → 200 About
//	GET    /v1/ready                                                                    → 204
//
// CONDITIONS are if_match=E and if_none_match=E. DIGESTS are md5=H, sha256=H and sha512=H, in hexadecimal. Sizes are in bytes.
// Arguments are in the query, never in the path: so no path normalization can turn one user name into another. Unknown arguments
// are ignored; an argument that is given twice is an error.
//
// Header fields of a request:
//
//   - Cats-Contract: 1 is required; without it the response is 403. It protects the signer against requests that a browser or
//     another process in the pod was made to send: their senders can rarely set a header field.
//   - Authorization: Bearer T is the bearer token of the caller; see [WithToken]. If authentication is on, the signer verifies it.
//     If authentication is off, the signer rejects the call with ErrMisconfigured.
//   - Cats-Client: K is the key of the client, by which the signer limits concurrency; see [WithClient].
//
// The body of an error response is {"code": …, "detail": …, "outcome": …}; see package apierror. Responses may have Retry-After.
package signerapi

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"cats.example/shared/apierror"
)

// Signer stores, links and deletes pictures. Each user has at most one picture.
//
// Implementations are safe for concurrent use. All errors that a caller can branch on are or wrap an [apierror.Error]; another
// error means ErrInternal. Besides the errors that a method names, each method can return ErrOverloaded, ErrRateLimited,
// ErrThrottled, ErrStorageUnavailable, ErrIdentityUnavailable, ErrSignerUnavailable, ErrInternal, and ErrInvalidUser if storage
// does not accept the name. If authentication is on, all methods except About and Ready can also return ErrUnauthenticated,
// ErrForbidden and ErrIssuerUnavailable.
//
// A failed write changed nothing, unless its error has an Outcome; see [apierror.Outcome]. If the caller cancels ctx, the error
// is ErrIncomplete.
type Signer interface {
	// Put stores body as the picture of user, replaces the one that is stored, and returns the new metadata.
	//
	// The upload is atomic: storage holds either the whole new picture or still the old one. Put returns after storage has
	// acknowledged the write. The signer determines the content type from the first bytes of body.
	//
	// Only io.EOF itself ends the picture. Any other error of body, a wrapped io.EOF included, means that the picture is
	// incomplete: nothing is stored. Put does not close body. After Put has returned, body is not read any more, except for a
	// Read that had begun before.
	//
	// Put returns ErrEmpty, ErrTooLarge, ErrUnsupportedMediaType, ErrIncomplete, ErrStalled, ErrDigestMismatch,
	// ErrPreconditionFailed or ErrInvalidArgument. ErrConflict means that another upload for user was committed first.
	// ErrArchived, ErrImmutable, ErrLeased and ErrRejectedByStorage mean that the state of the stored picture does not allow the
	// write. ErrDamaged has the Outcome stored.
	Put(ctx context.Context, user User, body io.Reader, opts PutOptions) (Info, error)

	// Link returns a signed URL that permits to read the picture of user, and nothing else, until it expires.
	//
	// Link returns ErrNotFound only if storage reports that user has no picture. After another replica has replaced or deleted
	// the picture, Link can return the old metadata until EXISTENCE_CACHE_TTL has passed. It returns ErrInvalidArgument for a TTL
	// outside the signer's limits.
	Link(ctx context.Context, user User, opts LinkOptions) (Link, error)

	// Delete deletes the picture of user. It returns ErrNotFound if user has no picture, ErrPreconditionFailed, or an error
	// for the state of the stored picture as Put does.
	Delete(ctx context.Context, user User, conditions Preconditions) error

	// StartUpload starts an upload session for a picture of size bytes that the client uploads directly to storage. It does not
	// change the picture of user; only CommitUpload does.
	//
	// It returns ErrEmpty if size is not positive. It returns ErrTooLarge if size exceeds MAX_DIRECT_UPLOAD_SIZE, or if direct
	// uploads are off.
	StartUpload(ctx context.Context, user User, size int64) (UploadSession, error)

	// CommitUpload makes the staged blob of an upload session the picture of user, and replaces the one that is stored. The
	// staged blob must have the announced size, an accepted type and at most MAX_PIXELS pixels.
	//
	// It can be repeated: after a successful commit it returns the same Info, as long as the picture is not replaced. It returns
	// the errors of Put, or ErrNoUpload if user has no staged blob with this ID. ErrConflict also means that the client changed
	// the staged blob during the commit.
	CommitUpload(ctx context.Context, user User, uploadID string, opts CommitOptions) (Info, error)

	// About returns the settings of the signer. It sends no request to Azure.
	About(ctx context.Context) (About, error)

	// Ready returns nil if the signer can sign a URL of the default lifetime now, and, if authentication is on, can verify
	// tokens. It sends no request to Azure.
	Ready(ctx context.Context) error
}

// Maximum lengths, in bytes of UTF-8.
const (
	MaxUserName     = 128
	MaxDownloadName = 255
)

// User is a validated user name. Only [ParseUser] makes one; the zero value is no user. Each process parses a name once, where it
// enters the process, so that a function with a User need not validate it.
type User struct{ name string }

// ParseUser returns name as a User if it can be one path segment of a blob name and of a URL without being changed: 1 to 128
// bytes of valid UTF-8, in any script. Case and spaces are kept. It returns ErrInvalidUser, whose detail names the rule, for:
//
//   - "/" and "\", because Blob Storage treats both as separators;
//   - control characters and line separators;
//   - private-use characters and Unicode noncharacters, which Blob Storage answers with 400;
//   - a dot at the end, "." and ".." included, because Blob Storage drops it.
//
// Source: https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata
func ParseUser(name string) (User, error) {
	fault := nameFault(name, MaxUserName)
	switch {
	case fault != "":
	case name == "":
		fault = "is empty"
	case strings.ContainsFunc(name, func(r rune) bool { return unicode.In(r, unicode.Co, unicode.Noncharacter_Code_Point) }):
		fault = "must not contain private-use characters or Unicode noncharacters"
	case strings.HasSuffix(name, "."):
		fault = "must not end with a dot"
	default:
		return User{name}, nil
	}
	return User{}, apierror.ErrInvalidUser.WithDetail("the user name " + fault)
}

// String returns the name as it was parsed.
func (u User) String() string { return u.name }

// ValidateDownloadName returns ErrInvalidArgument unless name is valid UTF-8 of at most 255 bytes without "/", "\" and control
// characters. "" is valid.
func ValidateDownloadName(name string) error {
	if fault := nameFault(name, MaxDownloadName); fault != "" {
		return apierror.ErrInvalidArgument.WithDetail("download: the file name " + fault)
	}
	return nil
}

// nameFault returns the rule of all names that name breaks, or "". Two separators that some programs treat as the end of a line
// count as control characters.
func nameFault(name string, maxBytes int) string {
	switch {
	case len(name) > maxBytes:
		return fmt.Sprintf("is longer than %d bytes of UTF-8", maxBytes)
	case !utf8.ValidString(name):
		return "is not valid UTF-8"
	case strings.ContainsAny(name, `/\`):
		return `must not contain "/" or "\"`
	case strings.ContainsFunc(name, func(r rune) bool { return unicode.IsControl(r) || r == '\u2028' || r == '\u2029' }):
		return "must not contain control characters"
	}
	return ""
}

// Info is the metadata of a stored picture.
type Info struct {
	ETag        string `json:"etag"`         // as storage returns it, with its quotes
	ContentType string `json:"content_type"` // determined by the signer from the first bytes
	Size        int64  `json:"size"`         // in bytes
	// MD5 is the MD5 of the picture, which storage returns as Content-MD5; nil if storage has none. In JSON it is base64.
	MD5 []byte `json:"content_md5,omitempty"`
}

// MaxSizeRange is the largest difference between MaxSize and MinSize in [PutOptions], in bytes. The signer buffers so much of an
// upload.
const MaxSizeRange = 96 << 10

// PutOptions describe a picture before it is uploaded. The zero value means a size of 0; use Size: -1 if the size is unknown.
type PutOptions struct {
	// Size is the size of the picture in bytes, or -1 if it is unknown. A body of another length is ErrIncomplete or ErrTooLarge.
	Size int64
	// MinSize and MaxSize are bounds of an unknown size, in bytes; a MaxSize of 0 means no bounds. A body outside the bounds is
	// ErrIncomplete. Bounds that differ by more than [MaxSizeRange] are ErrInvalidArgument.
	MinSize, MaxSize int64
	// Preconditions are preconditions on the stored picture.
	Preconditions
	// Digests are digests of the picture. If one does not match, the error is ErrDigestMismatch.
	Digests
}

// Preconditions are the preconditions of RFC 9110 section 13.1 on the stored picture. Each is one strong entity tag with its
// quotes, or "*" for any picture, or "" for no precondition.
type Preconditions struct {
	IfMatch     string // "*" requires that a picture is stored
	IfNoneMatch string // "*" requires that no picture is stored: the call creates, and never replaces
}

// Evaluate returns ErrPreconditionFailed unless a picture with this entity tag satisfies the preconditions. etag is "" if there
// is no picture.
func (c Preconditions) Evaluate(etag string) error {
	matches := func(condition string) bool { return etag != "" && (condition == "*" || condition == etag) }
	if c.IfMatch != "" && !matches(c.IfMatch) || c.IfNoneMatch != "" && matches(c.IfNoneMatch) {
		return apierror.ErrPreconditionFailed
	}
	return nil
}

// preconditionForm accepts * and strong entity tags (RFC 9110 section 8.8.3) in ASCII, of at most 128 bytes. Those of storage are
// shorter.
var preconditionForm = regexp.MustCompile(`^(\*|"[!#-~]{0,126}")$`)

// Validate returns ErrInvalidArgument for lists of entity tags, weak entity tags, and anything else that is not supported.
func (c Preconditions) Validate() error {
	for _, field := range [][2]string{{"If-Match", c.IfMatch}, {"If-None-Match", c.IfNoneMatch}} {
		if field[1] != "" && !preconditionForm.MatchString(field[1]) {
			return apierror.ErrInvalidArgument.WithDetail(field[0] + `: want * or one entity tag in quotes, such as "0x8DC"`)
		}
	}
	return nil
}

// LinkOptions are the options of a signed URL. The zero value selects the defaults of the signer.
type LinkOptions struct {
	// TTL is the maximum lifetime, in whole seconds; 0 selects LINK_TTL.
	TTL time.Duration
	// Download is the file name under which browsers save the picture; "" lets them show it. The signer appends the extension of
	// the content type if it is missing. See [ValidateDownloadName] for its form.
	Download string
}

// Link is a signed URL of a picture, with the picture's metadata. The public API returns its fields as they are.
type Link struct {
	URL       SignedURL `json:"picture_url"`
	ExpiresAt time.Time `json:"expires_at"` // UTC, whole seconds
	Info
}

// LogValue logs when the link expires, and nothing else.
func (l Link) LogValue() slog.Value { return slog.TimeValue(l.ExpiresAt) }

// UploadSession permits to upload one picture directly to storage. The public API returns its fields as they are.
type UploadSession struct {
	// ID identifies the upload in CommitUpload. It cannot be guessed. See [ValidateUploadID] for its form.
	ID string `json:"id"`
	// URL permits to write the staged blob of this session, and nothing else. If BlockSize is 0, it can only create the blob with
	// one request. Otherwise the client can also replace blocks.
	URL       SignedURL `json:"upload_url"`
	ExpiresAt time.Time `json:"expires_at"` // UTC, whole seconds
	// BlockSize is the size of the blocks of the upload, in bytes, or 0 if the client uploads the picture with one request.
	BlockSize int64 `json:"block_size,omitempty"`
}

// LogValue logs when the session expires, and nothing else.
func (u UploadSession) LogValue() slog.Value { return slog.TimeValue(u.ExpiresAt) }

// CommitOptions are the options of a commit. The zero value sets none.
type CommitOptions struct {
	Preconditions // on the stored picture
	// MD5 is the MD5 of the staged blob. If it does not match, the error is ErrDigestMismatch. If the blob is too large for
	// storage to verify the MD5, the error is ErrInvalidArgument.
	MD5 []byte
}

var uploadIDForm = regexp.MustCompile(`^[0-9A-Za-z-]{1,96}$`)

// ValidateUploadID returns ErrNoUpload unless id consists of 1 to 96 ASCII letters, digits and hyphens.
func ValidateUploadID(id string) error {
	if !uploadIDForm.MatchString(id) {
		return apierror.ErrNoUpload
	}
	return nil
}

// About describes a signer.
type About struct {
	MaxDirectUploadSize int64  `json:"max_direct_upload_size"` // in bytes; 0 if direct uploads are off
	LinkTTL             int64  `json:"link_ttl_seconds"`       // the default
	LinkMaxTTL          int64  `json:"link_max_ttl_seconds"`
	LinkOrigin          string `json:"link_origin"` // scheme, host and port of signed URLs
	// UserClaim is the claim of a token that holds the caller's user name; "" if authentication is off.
	UserClaim string `json:"user_claim,omitempty"`
	// SharedSettings has the signer's values of the settings that must be equal in both containers, by name.
	SharedSettings map[string]string `json:"shared_settings,omitempty"`
}

// Secret is a string with a credential. It prints and logs as a placeholder. string(s) is the secret itself, and so is its JSON.
type Secret string

const redacted = "[secret]"

// String returns a placeholder, for fmt.
func (Secret) String() string { return redacted }

// GoString returns a placeholder, for %#v of fmt.
func (Secret) GoString() string { return redacted }

// LogValue returns a placeholder, for slog.
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// SignedURL is a URL with a signature in its query. Each client that has it can use it.
type SignedURL = Secret
