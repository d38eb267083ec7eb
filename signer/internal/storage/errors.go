package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
)

// translate returns the error of the API for err, which op returned. ctx is the context of the call, and blobName the last
// segment of the name of each picture's blob.
//
// No other error of the SDK or of a transport may leave this package: their URLs hold user names and signatures.
func translate(ctx context.Context, op *Operation, blobName string, err error) error {
	if e, ok := errors.AsType[*apierror.Error](err); ok { // of the identity or of the media type, through the SDK's pipeline
		return e
	}
	if raw, ok := errors.AsType[*azcore.ResponseError](err); ok {
		r := &ResponseError{raw.StatusCode, raw.ErrorCode, op.Name, raw}
		return r.apiError(blobName, fmt.Errorf("%s: %w", op.Name, r))
	}
	err = fmt.Errorf("%s: %w", op.Name, withoutURL(err))
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, signerapi.ErrWatchdogExpired):
		return apierror.ErrStorageUnavailable.Wrap(fmt.Errorf("%s: %w", op.Name, cause))
	case errors.Is(ctx.Err(), context.Canceled):
		return apierror.ErrIncomplete.Wrap(err)
	}
	return apierror.ErrStorageUnavailable.Wrap(err)
}

// ResponseError is an error response of storage. It prints as one line without the URL, unlike the SDK's error.
type ResponseError struct {
	Status int
	Code   string // "" if storage gave none
	op     string
	raw    *azcore.ResponseError
}

// Error returns the response and, behind "; fix: ", what to do.
func (r *ResponseError) Error() string {
	text := fmt.Sprintf("storage answered %d %s (x-ms-request-id %q)", r.Status, cmp.Or(r.Code, "no error code"), r.header("X-Ms-Request-Id"))
	if fix := r.fix(r.raw.RawResponse.Request.URL); fix != "" {
		text += "; fix: " + fix
	}
	return text
}

func (r *ResponseError) header(name string) string { return r.raw.RawResponse.Header.Get(name) }

// SourceCode returns storage's error code for the source of a copy, "" if there is none.
func (r *ResponseError) SourceCode() string { return r.header("X-Ms-Copy-Source-Error-Code") }

// HasCode reports whether r has one of codes.
func (r *ResponseError) HasCode(codes ...bloberror.Code) bool {
	return slices.Contains(codes, bloberror.Code(r.Code))
}

// fix returns what to do about r, the response to a request for the URL at.
func (r *ResponseError) fix(at *url.URL) string {
	switch {
	case r.HasCode(bloberror.AuthorizationFailure):
		return "the account's network rules reject this client: allow the cluster's subnet or outbound address (az storage account show --query networkRuleSet), or use a private endpoint"
	case r.HasCode(bloberror.CannotVerifyCopySource) && r.Status == http.StatusForbidden:
		return "the account's network rules must let storage read the source of a copy; until they do, set MAX_DIRECT_UPLOAD_SIZE to 0"
	case r.HasCode(bloberror.AccountIsDisabled):
		return "the storage account is disabled"
	case r.HasCode(bloberror.ContainerNotFound, bloberror.ContainerBeingDeleted):
		container, _, _ := strings.Cut(strings.TrimPrefix(at.Path, "/"), "/")
		account, _, _ := strings.Cut(at.Hostname(), ".")
		return fmt.Sprintf("create the container (az storage container create --auth-mode login --account-name %s --name %s) or set STORAGE_CONTAINER", account, container)
	case r.HasCode(bloberror.AuthenticationFailed): // of a signed URL
		return "nothing, if the keys were revoked on purpose: the signer fetches a new key; otherwise look at the clocks (cats_signer_clock_skew_seconds)"
	case r.Status == http.StatusUnauthorized:
		return "storage does not accept the identity's token: AZURE_TENANT_ID must be the tenant of the storage account"
	case r.Status == http.StatusForbidden && r.op == OpKey:
		return "give the identity the role Storage Blob Delegator on the storage account; a new role assignment takes effect after minutes"
	case r.Status == http.StatusForbidden:
		return "give the identity the role Storage Blob Data Contributor on the container; a new role assignment takes effect after minutes"
	}
	return ""
}

// apiError returns the error of the API for r. It wraps err, which wraps r.
func (r *ResponseError) apiError(blobName string, err error) error {
	request := r.raw.RawResponse.Request
	conditional := cmp.Or(request.Header.Get("If-Match"), request.Header.Get("If-None-Match"), request.Header.Get("If-Unmodified-Since")) != ""
	switch {
	case r.HasCode(bloberror.BlobNotFound):
		return apierror.ErrNotFound
	case r.HasCode(bloberror.ContainerNotFound, bloberror.ContainerBeingDeleted):
		return apierror.ErrInternal.Wrap(err)
	case r.HasCode(bloberror.MD5Mismatch):
		return apierror.ErrDigestMismatch.Wrap(err)
	case r.HasCode(bloberror.BlobAlreadyExists) && conditional: // If-None-Match: *
		return apierror.ErrPreconditionFailed
	case r.HasCode(bloberror.InvalidBlockList, bloberror.InvalidBlobOrBlock, bloberror.BlobAlreadyExists):
		// Another commit to the same name dropped our uncommitted blocks.
		return apierror.ErrConflict.Wrap(err)
	case r.Status == http.StatusBadRequest && strings.HasSuffix(request.URL.Path, "/"+blobName) && r.rejectsName():
		return apierror.ErrInvalidUser.WithDetail("storage does not accept this user name").Wrap(err)
	case r.Status == http.StatusConflict, r.Status == http.StatusPreconditionFailed:
		return StateError(r.Code, r.Status == http.StatusPreconditionFailed && (conditional || strings.Contains(r.Code, "ConditionNotMet"))).Wrap(err)
	case r.Status == http.StatusUnauthorized, r.Status == http.StatusForbidden:
		return apierror.ErrIdentityUnavailable.Wrap(err)
	case r.Status == http.StatusTooManyRequests, r.Status == http.StatusServiceUnavailable:
		seconds, _ := strconv.ParseUint(r.header("Retry-After"), 10, 12) // about an hour at most
		return apierror.ErrThrottled.WithRetryAfter(cmp.Or(time.Duration(seconds)*time.Second, apierror.ErrThrottled.RetryAfter)).Wrap(err)
	case r.Status >= http.StatusInternalServerError, r.Status == http.StatusRequestTimeout:
		return apierror.ErrStorageUnavailable.Wrap(err)
	}
	return apierror.ErrInternal.Wrap(err)
}

// StateError returns the error of the API for a blob whose state does not allow an operation, by storage's error code
// (https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes). precondition tells that a precondition of
// the request failed.
func StateError(code string, precondition bool) *apierror.Error {
	has := func(part string) bool { return strings.Contains(code, part) }
	switch {
	case code == string(bloberror.BlobArchived), has("Rehydrat"):
		return apierror.ErrArchived
	case has("Immutab"), has("LegalHold"):
		return apierror.ErrImmutable
	case has("Lease"):
		return apierror.ErrLeased
	case precondition:
		return apierror.ErrPreconditionFailed
	}
	return apierror.ErrRejectedByStorage
}

// rejectsName reports whether r, a response with status 400, is about the name of the blob. For a picture's blob, clients choose
// the user name in it. The front end of Azure answers some such requests itself, without an error code.
func (r *ResponseError) rejectsName() bool {
	return r.Code == "" || r.HasCode(bloberror.InvalidURI, bloberror.InvalidResourceName, bloberror.OutOfRangeInput, bloberror.RequestURLFailedToParse)
}

// urlOrQuote matches what may be a URL in the text of an error: net/http quotes request URLs and responses of the server.
var urlOrQuote = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|[A-Za-z][A-Za-z0-9+.-]*://\S+`)

// withoutURL returns err without the URL of the request and without text of the server. It keeps the host.
func withoutURL(err error) error {
	host := ""
	for u, ok := errors.AsType[*url.Error](err); ok; u, ok = errors.AsType[*url.Error](err) {
		if at, parseErr := url.Parse(u.URL); parseErr == nil {
			host = cmp.Or(host, at.Host)
		}
		err = u.Err
	}
	if text := err.Error(); urlOrQuote.MatchString(text) {
		err = errors.New(urlOrQuote.ReplaceAllString(text, "…"))
	}
	if host == "" {
		return err
	}
	return fmt.Errorf("no answer from %s: %w", host, err)
}
