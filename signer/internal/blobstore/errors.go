package blobstore

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"cats.example/shared/signerapi"
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
	code := r.Code
	if code == "" {
		code = "no error code"
	}
	said := fmt.Sprintf("storage answered %d %s (x-ms-request-id %q)", r.Status, code, r.RequestID)
	if r.Fix != "" {
		said += "; fix: " + r.Fix
	}
	return said
}

// fix says what to do about an answer of storage to a call that needs role.
func fix(resp *azcore.ResponseError, role string) string {
	switch {
	case bloberror.HasCode(resp, bloberror.AuthorizationFailure):
		return "the account's network rules refuse where this comes from: allow the cluster's subnet or outbound address (az storage account show --query networkRuleSet), or use a private endpoint"
	case bloberror.HasCode(resp, bloberror.CannotVerifyCopySource) && resp.StatusCode == http.StatusForbidden:
		return "storage must be let in to what it copies, by the account's network rules; until it is, set MAX_DIRECT_SIZE to 0"
	case bloberror.HasCode(resp, bloberror.AccountIsDisabled):
		return "the storage account is disabled"
	case bloberror.HasCode(resp, bloberror.ContainerNotFound, bloberror.ContainerBeingDeleted):
		return "create the container (az storage container create --auth-mode login), or set STORAGE_CONTAINER"
	case resp.StatusCode == http.StatusUnauthorized:
		return "storage does not take the identity's token: AZURE_TENANT_ID must be the tenant of the storage account"
	case resp.StatusCode == http.StatusForbidden:
		return "give the identity the role " + role + "; a new one takes minutes to be known"
	}
	return ""
}

// storageError is the only place that says what an error of storage means to a
// caller. ctx is that of the call to storage, doing what we were about.
func (s *Store) storageError(ctx context.Context, doing string, err error) error {
	if e, ok := errors.AsType[*signerapi.Error](err); ok { // the identity's, out of the SDK's pipeline
		return e
	}
	resp, ok := errors.AsType[*azcore.ResponseError](err)
	if !ok {
		if errors.Is(ctx.Err(), context.Canceled) {
			return signerapi.ErrIncomplete.Wrap(err)
		}
		return signerapi.ErrStorageUnavailable.Wrap(fmt.Errorf("%s: %w", doing, err))
	}
	err = fmt.Errorf("%s: %w", doing, brief(err, contributorRole))
	switch {
	case bloberror.HasCode(resp, bloberror.BlobNotFound):
		return signerapi.ErrNotFound
	case bloberror.HasCode(resp, bloberror.ContainerNotFound, bloberror.ContainerBeingDeleted):
		return signerapi.ErrInternal.Wrap(fmt.Errorf("the container %q is gone: %w", s.opts.Container, err))
	case bloberror.HasCode(resp, bloberror.BlobAlreadyExists): // to If-None-Match: *
		return signerapi.ErrPreconditionFailed
	case bloberror.HasCode(resp, bloberror.InvalidBlockList, bloberror.InvalidBlobOrBlock):
		// Another commit to the same name dropped our uncommitted blocks.
		s.metrics.conflicts.Inc()
		return signerapi.ErrConflict.Wrap(err)
	}
	switch resp.StatusCode {
	case http.StatusPreconditionFailed:
		return signerapi.ErrPreconditionFailed
	case http.StatusUnauthorized:
		s.opts.Credential.Renew()
		return signerapi.ErrIdentityUnavailable.Wrap(err)
	case http.StatusForbidden:
		return signerapi.ErrIdentityUnavailable.Wrap(err)
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		e := signerapi.ErrThrottled.Wrap(err)
		if after := retryAfter(resp.RawResponse); after > 0 {
			e = e.After(after)
		}
		return e
	case http.StatusConflict:
		s.metrics.conflicts.Inc()
		return signerapi.ErrConflict.Wrap(err)
	}
	if resp.StatusCode >= http.StatusInternalServerError || resp.StatusCode == http.StatusRequestTimeout {
		return signerapi.ErrStorageUnavailable.Wrap(err)
	}
	return signerapi.ErrInternal.Wrap(err) // we asked for something wrong
}

func isNoContainer(err error) bool {
	return bloberror.HasCode(err, bloberror.ContainerNotFound)
}

// explainKey adds what to do when storage refuses to give a key.
func explainKey(err error) error {
	if e, ok := errors.AsType[*signerapi.Error](err); ok && e.Unwrap() != nil {
		return e.Unwrap()
	}
	return brief(err, delegatorRole)
}

// brief keeps of an SDK error what a log line needs, as a *Refusal, where storage
// answered; other errors stay as they are. role is what the call needs.
func brief(err error, role string) error {
	resp, ok := errors.AsType[*azcore.ResponseError](err)
	if !ok {
		return err
	}
	r := &Refusal{Status: resp.StatusCode, Code: resp.ErrorCode, Fix: fix(resp, role)}
	if resp.RawResponse != nil {
		r.RequestID = resp.RawResponse.Header.Get("X-Ms-Request-Id")
	}
	return r
}

// withoutURL is err without the URL of the request, which may be a signed link.
func withoutURL(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

// retryAfter returns what the answer asks to wait, 0 when it does not.
func retryAfter(resp *http.Response) time.Duration {
	if resp == nil {
		return 0
	}
	seconds, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if err != nil || seconds < 0 || seconds > 3600 {
		return 0
	}
	return time.Duration(seconds) * time.Second
}
