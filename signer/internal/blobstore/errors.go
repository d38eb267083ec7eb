package blobstore

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"cats.example/shared/signerapi"
)

const (
	delegatorRole   = "give the identity the role Storage Blob Delegator on the storage account"
	contributorRole = "give the identity the role Storage Blob Data Contributor on the container"
)

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
	err = fmt.Errorf("%s: %w", doing, brief(err))
	switch {
	case bloberror.HasCode(resp, bloberror.BlobNotFound):
		return signerapi.ErrNotFound
	case bloberror.HasCode(resp, bloberror.ContainerNotFound, bloberror.ContainerBeingDeleted):
		return signerapi.ErrInternal.Wrap(fmt.Errorf("the container %q is gone: %w", s.opts.Container, err))
	case bloberror.HasCode(resp, bloberror.InvalidBlockList, bloberror.InvalidBlobOrBlock):
		// Another commit to the same name dropped our uncommitted blocks.
		s.metrics.conflicts.Inc()
		return signerapi.ErrConflict.Wrap(err)
	}
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		s.opts.Credential.Renew()
		return signerapi.ErrIdentityUnavailable.Wrap(err)
	case http.StatusForbidden:
		return signerapi.ErrIdentityUnavailable.Wrap(fmt.Errorf("%w; fix: %s", err, contributorRole))
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
	if resp, ok := errors.AsType[*azcore.ResponseError](err); ok && resp.StatusCode == http.StatusForbidden {
		return fmt.Errorf("%w; fix: %s", brief(err), delegatorRole)
	}
	return brief(err)
}

// brief keeps of an SDK error what a log line needs. The SDK prints the whole
// exchange, URL included, over many lines.
func brief(err error) error {
	resp, ok := errors.AsType[*azcore.ResponseError](err)
	if !ok {
		return err
	}
	code := resp.ErrorCode
	if code == "" {
		code = "no error code"
	}
	id := ""
	if resp.RawResponse != nil {
		id = resp.RawResponse.Header.Get("X-Ms-Request-Id")
	}
	return fmt.Errorf("storage answered %d %s (x-ms-request-id %q)", resp.StatusCode, code, id)
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
