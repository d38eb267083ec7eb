package blobstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"cats.example/shared/apierror"
	"cats.example/shared/watchdog"
)

// The roles that the identity needs, and where.
const (
	delegatorRole   = "Storage Blob Delegator on the storage account"
	contributorRole = "Storage Blob Data Contributor on the container"
)

// Refusal is an answer of storage other than the one that was hoped for. It
// prints as one line for the log; the SDK prints the whole exchange, URL included,
// over many lines.
type Refusal struct {
	Status    int
	Code      string // "" when storage gave none
	RequestID string
	Fix       string // what to do about it; "" when that is not known
}

// Error returns what storage answered and, behind "; fix: ", what to do.
func (r *Refusal) Error() string {
	said := fmt.Sprintf("storage answered %d %s (x-ms-request-id %q)", r.Status, cmp.Or(r.Code, "no error code"), r.RequestID)
	if r.Fix != "" {
		said += "; fix: " + r.Fix
	}
	return said
}

// fix returns what to do about the response of storage to a call that needs role. Like all functions here, it relies on the SDK:
// a ResponseError of it has a RawResponse with its Request.
func fix(resp *azcore.ResponseError, role string) string {
	switch {
	case bloberror.HasCode(resp, bloberror.AuthorizationFailure):
		return "the account's network rules refuse where this comes from: allow the cluster's subnet or outbound address (az storage account show --query networkRuleSet), or use a private endpoint"
	case bloberror.HasCode(resp, bloberror.CannotVerifyCopySource) && resp.StatusCode == http.StatusForbidden:
		return "storage must be let in to what it copies, by the account's network rules; until it is, set MAX_DIRECT_UPLOAD_SIZE to 0"
	case bloberror.HasCode(resp, bloberror.AccountIsDisabled):
		return "the storage account is disabled"
	case bloberror.HasCode(resp, bloberror.ContainerNotFound, bloberror.ContainerBeingDeleted):
		at := resp.RawResponse.Request.URL
		container, _, _ := strings.Cut(strings.TrimPrefix(at.Path, "/"), "/")
		account, _, _ := strings.Cut(at.Hostname(), ".")
		return fmt.Sprintf("create the container (az storage container create --auth-mode login --account-name %s --name %s) or set STORAGE_CONTAINER", account, container)
	case bloberror.HasCode(resp, bloberror.AuthenticationFailed): // to a signed URL
		return "nothing, if the keys were revoked on purpose: links of a new key follow; otherwise look at the clocks (cats_signer_clock_skew_seconds)"
	case resp.StatusCode == http.StatusUnauthorized:
		return "storage does not take the identity's token: AZURE_TENANT_ID must be the tenant of the storage account"
	case resp.StatusCode == http.StatusForbidden:
		return "give the identity the role " + role + "; a new one takes minutes to be known"
	}
	return ""
}

// storageError returns the apierror.Error that err, of a call to storage, means to a caller. ctx is the context of the call, doing
// is what the call was for, and role is the role that it needs.
func (s *Store) storageError(ctx context.Context, doing, role string, err error) error {
	if e, ok := errors.AsType[*apierror.Error](err); ok { // the identity's, out of the SDK's pipeline
		return e
	}
	resp, ok := errors.AsType[*azcore.ResponseError](err)
	err = fmt.Errorf("%s: %w", doing, brief(err, role))
	if !ok {
		if cause := context.Cause(ctx); errors.Is(cause, watchdog.ErrExpired) {
			return apierror.ErrStorageUnavailable.Wrap(fmt.Errorf("%s: %w", doing, cause))
		}
		if errors.Is(ctx.Err(), context.Canceled) {
			return apierror.ErrIncomplete.Wrap(err)
		}
		return apierror.ErrStorageUnavailable.Wrap(err)
	}
	switch {
	case bloberror.HasCode(resp, bloberror.BlobNotFound):
		return apierror.ErrNotFound
	case bloberror.HasCode(resp, bloberror.ContainerNotFound, bloberror.ContainerBeingDeleted):
		return apierror.ErrInternal.Wrap(err)
	case bloberror.HasCode(resp, bloberror.MD5Mismatch):
		return apierror.ErrDigestMismatch.Wrap(err)
	case bloberror.HasCode(resp, bloberror.BlobAlreadyExists) && conditional(resp): // to If-None-Match: *
		return apierror.ErrPreconditionFailed
	case bloberror.HasCode(resp, bloberror.InvalidBlockList, bloberror.InvalidBlobOrBlock, bloberror.BlobAlreadyExists):
		// Another commit to the same name dropped our uncommitted blocks.
		s.metrics.conflicts.Inc()
		return apierror.ErrConflict.Wrap(err)
	case s.rejectsName(resp):
		return apierror.ErrInvalidUser.WithDetail("storage does not accept this user name").Wrap(err)
	case resp.StatusCode == http.StatusConflict, resp.StatusCode == http.StatusPreconditionFailed:
		return stateError(resp.StatusCode, resp.ErrorCode, conditional(resp)).Wrap(err)
	case resp.StatusCode == http.StatusUnauthorized:
		s.opts.Credential.Renew()
		return apierror.ErrIdentityUnavailable.Wrap(err)
	case resp.StatusCode == http.StatusForbidden:
		return apierror.ErrIdentityUnavailable.Wrap(err)
	case resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode == http.StatusServiceUnavailable:
		throttled := apierror.ErrThrottled
		if seconds, err := strconv.ParseUint(resp.RawResponse.Header.Get("Retry-After"), 10, 12); err == nil && seconds > 0 { // about an hour at most
			throttled = throttled.WithRetryAfter(time.Duration(seconds) * time.Second)
		}
		return throttled.Wrap(err)
	case resp.StatusCode >= http.StatusInternalServerError, resp.StatusCode == http.StatusRequestTimeout:
		return apierror.ErrStorageUnavailable.Wrap(err)
	}
	return apierror.ErrInternal.Wrap(err) // we asked for something wrong
}

// stateError returns the error for a 409 or 412: what the state of the blob does not allow, or a precondition that failed.
// Storage's codes are at https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes.
func stateError(status int, code string, conditional bool) *apierror.Error {
	has := func(part string) bool { return strings.Contains(code, part) }
	switch {
	case code == string(bloberror.BlobArchived), has("Rehydrat"):
		return apierror.ErrArchived
	case has("Immutab"), has("LegalHold"):
		return apierror.ErrImmutable
	case has("Lease"):
		return apierror.ErrLeased
	case status == http.StatusPreconditionFailed && (has("ConditionNotMet") || conditional):
		return apierror.ErrPreconditionFailed
	}
	return apierror.ErrRejectedByStorage
}

// stagedError gives an error of storage the detail that is right if it is about the staged blob.
func stagedError(err error) error {
	switch {
	case errors.Is(err, apierror.ErrArchived):
		return apierror.AsError(err).WithDetail("the uploaded blob is in the archive tier, where it cannot be read; get a new upload URL, and upload the picture again without x-ms-access-tier")
	case errors.Is(err, apierror.ErrRejectedByStorage):
		return apierror.AsError(err).WithDetail("storage does not allow the uploaded blob to be read; get a new upload URL, and upload the picture again with no x-ms header besides x-ms-blob-type")
	}
	return err
}

// copyError translates the errors of storage that are about the source of a copy.
func copyError(err error) error {
	resp, ok := errors.AsType[*azcore.ResponseError](err)
	switch {
	case !ok:
		return err
	case bloberror.HasCode(err, bloberror.SourceConditionNotMet),
		bloberror.HasCode(err, bloberror.CannotVerifyCopySource) && (resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusPreconditionFailed):
		return errChanged.Wrap(brief(err, contributorRole))
	case resp.StatusCode == http.StatusConflict:
		source := resp.RawResponse.Header.Get("X-Ms-Copy-Source-Error-Code")
		if source == "" && bloberror.HasCode(err, bloberror.CannotVerifyCopySource) {
			source = string(bloberror.BlobArchived) // the state that is known to keep a blob from being read
		}
		if source != "" {
			return stagedError(stateError(resp.StatusCode, source, false).Wrap(brief(err, contributorRole)))
		}
	}
	return err
}

// conditional reports whether the request that resp answers had a precondition.
func conditional(resp *azcore.ResponseError) bool {
	header := resp.RawResponse.Request.Header
	return header.Get("If-Match") != "" || header.Get("If-None-Match") != "" || header.Get("If-Unmodified-Since") != ""
}

// rejectsName reports whether storage rejected the name of a picture's blob, and thus the user name, which is all of it that
// a client chooses. The front end of Azure answers such requests itself, without an error code.
func (s *Store) rejectsName(resp *azcore.ResponseError) bool {
	if resp.StatusCode != http.StatusBadRequest || !strings.HasSuffix(resp.RawResponse.Request.URL.Path, "/"+s.opts.BlobName) {
		return false
	}
	return resp.ErrorCode == "" || bloberror.HasCode(resp, bloberror.InvalidURI, bloberror.InvalidResourceName, bloberror.OutOfRangeInput, bloberror.RequestURLFailedToParse)
}

// brief keeps of an SDK error what a log line needs: a *Refusal if storage answered, otherwise the error without its URLs. No
// other error of the SDK or of a transport may leave this package, because the URLs hold user names and signatures. role is
// what the call needs.
func brief(err error, role string) error {
	if err == nil {
		return nil
	}
	resp, ok := errors.AsType[*azcore.ResponseError](err)
	if !ok {
		return withoutURL(err)
	}
	return &Refusal{Status: resp.StatusCode, Code: resp.ErrorCode, RequestID: resp.RawResponse.Header.Get("X-Ms-Request-Id"), Fix: fix(resp, role)}
}

// foreign matches what may be of a URL in the text of an error: net/http quotes request URLs and answers of the server.
var foreign = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|[A-Za-z][A-Za-z0-9+.-]*://\S+`)

// withoutURL returns err without the URL of the request and without what the server sent. It keeps the host.
func withoutURL(err error) error {
	host := ""
	for u, ok := errors.AsType[*url.Error](err); ok; u, ok = errors.AsType[*url.Error](err) {
		if at, parseErr := url.Parse(u.URL); parseErr == nil {
			host = cmp.Or(host, at.Host)
		}
		err = u.Err
	}
	if text := err.Error(); foreign.MatchString(text) {
		err = errors.New(foreign.ReplaceAllString(text, "…"))
	}
	if host == "" {
		return err
	}
	return fmt.Errorf("no answer from %s: %w", host, err)
}
