// Package apierror defines the errors of the API: code, HTTP status, detail and outcome.
//
// The signer returns them to the frontend, and the frontend returns them to its clients. Code and detail cross the wire. The
// wrapped cause does not: it may name the identity or the storage account, and only the log of its own process has it.
package apierror

import (
	"errors"
	"iter"
	"maps"
	"net/http"
	"time"
)

// Error is an error of the API. Errors of this package are shared; its methods return changed copies. [errors.Is] compares the
// codes alone.
type Error struct {
	// Code identifies the kind of error. It is part of the API and does not change.
	Code string `json:"code"`
	// Status is the HTTP status of a response with the error, of the signer and of the frontend.
	Status int `json:"-"`
	// Detail is one sentence for the client. It must not contain anything secret.
	Detail string `json:"detail"`
	// RetryAfter is how long a client should wait before it repeats the request; 0 if that is not known.
	RetryAfter time.Duration `json:"-"`
	// Outcome says what a failed write did. It is empty if the write changed nothing.
	Outcome Outcome `json:"outcome,omitempty"`

	cause error
}

// Outcome is what a failed write did to the stored picture.
type Outcome string

const (
	// OutcomeUnknown means that the write may have been carried out: its response was lost.
	OutcomeUnknown Outcome = "unknown"
	// OutcomeStored means that the write was carried out, but the stored picture is damaged.
	OutcomeStored Outcome = "stored"
)

// byCode has the errors that cross the wire between the containers.
var byCode = map[string]*Error{}

// define adds e to byCode.
func define(e Error) *Error {
	byCode[e.Code] = &e
	return &e
}

// The errors that cross the wire between the containers.
var (
	ErrInvalidUser          = define(Error{Code: "invalid_user", Status: http.StatusUnprocessableEntity, Detail: "the user name is not valid"})
	ErrInvalidArgument      = define(Error{Code: "invalid_argument", Status: http.StatusUnprocessableEntity, Detail: "an argument is not valid"})
	ErrUnauthenticated      = define(Error{Code: "unauthenticated", Status: http.StatusUnauthorized, Detail: "this request needs a valid bearer token"})
	ErrForbidden            = define(Error{Code: "forbidden", Status: http.StatusForbidden, Detail: "the caller is not allowed to do this"})
	ErrNotFound             = define(Error{Code: "not_found", Status: http.StatusNotFound, Detail: "Cat not found"})
	ErrNoUpload             = define(Error{Code: "no_such_upload", Status: http.StatusNotFound, Detail: "no staged upload with this ID: it was never uploaded, its block list was not sent, its picture was replaced after the commit, or it has expired"})
	ErrEmpty                = define(Error{Code: "empty", Status: http.StatusUnprocessableEntity, Detail: "the picture is empty"})
	ErrIncomplete           = define(Error{Code: "incomplete", Status: http.StatusBadRequest, Detail: "the upload ended before the end of the picture; nothing was stored"})
	ErrStalled              = define(Error{Code: "stalled", Status: http.StatusRequestTimeout, Detail: "the upload was slower than the minimum rate; nothing was stored"})
	ErrDigestMismatch       = define(Error{Code: "digest_mismatch", Status: http.StatusBadRequest, Detail: "the picture does not match the digest in the request; nothing was stored"})
	ErrPreconditionFailed   = define(Error{Code: "precondition_failed", Status: http.StatusPreconditionFailed, Detail: "precondition failed: the stored picture does not satisfy If-Match or If-None-Match; nothing was changed"})
	ErrTooLarge             = define(Error{Code: "too_large", Status: http.StatusRequestEntityTooLarge, Detail: "the picture is too large"})
	ErrUnsupportedMediaType = define(Error{Code: "unsupported_media_type", Status: http.StatusUnsupportedMediaType, Detail: "the file is not a picture of an accepted type"})
	ErrConflict             = define(Error{Code: "conflict", Status: http.StatusConflict, Detail: "another upload for the same user was committed first; nothing of this upload was stored"})
	ErrArchived             = define(Error{Code: "archived", Status: http.StatusConflict, Detail: "the stored picture is in the archive tier; it can be changed after it has been rehydrated"})
	ErrImmutable            = define(Error{Code: "immutable", Status: http.StatusConflict, Detail: "an immutability policy or a legal hold protects the stored picture"})
	ErrLeased               = define(Error{Code: "leased", Status: http.StatusConflict, Detail: "the stored picture is leased; it can be changed after the lease has ended"})
	ErrRejectedByStorage    = define(Error{Code: "rejected_by_storage", Status: http.StatusConflict, Detail: "storage does not allow this in the current state of the blob; the signer's log has the reason"})
	ErrRateLimited          = define(Error{Code: "rate_limited", Status: http.StatusTooManyRequests, RetryAfter: time.Second, Detail: "too many requests; try again later"})
	ErrMisconfigured        = define(Error{Code: "misconfigured", Status: http.StatusServiceUnavailable, RetryAfter: 30 * time.Second, Detail: "the service is misconfigured: its containers have different authentication settings; the frontend's log names them"})
	ErrIssuerUnavailable    = define(Error{Code: "issuer_unavailable", Status: http.StatusServiceUnavailable, RetryAfter: 5 * time.Second, Detail: "bearer tokens cannot be verified at the moment; try again later"})
	ErrThrottled            = define(Error{Code: "throttled", Status: http.StatusServiceUnavailable, RetryAfter: 5 * time.Second, Detail: "storage is throttling requests; try again later"})
	ErrOverloaded           = define(Error{Code: "overloaded", Status: http.StatusServiceUnavailable, RetryAfter: 2 * time.Second, Detail: "too many requests are in progress; try again later"})
	ErrStorageUnavailable   = define(Error{Code: "storage_unavailable", Status: http.StatusServiceUnavailable, RetryAfter: 5 * time.Second, Detail: "storage does not respond; try again later"})
	ErrIdentityUnavailable  = define(Error{Code: "identity_unavailable", Status: http.StatusBadGateway, Detail: "Azure does not accept the identity of the service at the moment; the signer's log has the cause"})
	ErrInternal             = define(Error{Code: "internal", Status: http.StatusInternalServerError, Detail: "internal error; the log of the service has the cause"})
	ErrDamaged              = define(Error{Code: "damaged", Status: http.StatusBadGateway, Detail: "storage stored other bytes than were sent; upload the picture again", Outcome: OutcomeStored})
	// ErrSignerUnavailable means that the signer cannot be reached, closed the connection before it responded, or has no token or
	// user delegation key yet because it has just started.
	ErrSignerUnavailable = define(Error{Code: "signer_unavailable", Status: http.StatusServiceUnavailable, RetryAfter: 2 * time.Second, Detail: "the service is not ready; try again in a moment"})
)

// What [Error.WithUnknownOutcome] appends to the Detail of a failed upload or commit, and of a failed deletion.
const (
	MayBeStored  = "; the picture may have been stored"
	MayBeDeleted = "; the picture may have been deleted"
)

// Error returns the code and the cause, or the code and the detail if there is no cause. It is for the log only.
func (e *Error) Error() string {
	if e.cause != nil {
		return e.Code + ": " + e.cause.Error()
	}
	return e.Code + ": " + e.Detail
}

// Unwrap returns the cause, which does not cross the wire.
func (e *Error) Unwrap() error { return e.cause }

// Is reports whether target is an *Error with the same code.
func (e *Error) Is(target error) bool {
	//lint:ignore errorsis errors.Is calls this method for each wrapped error
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// All returns the errors that cross the wire, in no particular order.
func All() iter.Seq[*Error] { return maps.Values(byCode) }

// ByCode returns the error that crosses the wire with this code, or nil.
func ByCode(code string) *Error { return byCode[code] }

// WithDetail returns a copy of e with another detail.
func (e Error) WithDetail(detail string) *Error {
	e.Detail = detail
	return &e
}

// Wrap returns a copy of e with this cause.
func (e Error) Wrap(cause error) *Error {
	e.cause = cause
	return &e
}

// WithUnknownOutcome returns a copy of e whose Outcome is unknown. It appends suffix, which is [MayBeStored] or [MayBeDeleted],
// to the Detail.
func (e Error) WithUnknownOutcome(suffix string) *Error {
	e.Outcome = OutcomeUnknown
	e.Detail += suffix
	return &e
}

// WithRetryAfter returns a copy of e with this RetryAfter.
func (e Error) WithRetryAfter(d time.Duration) *Error {
	e.RetryAfter = d
	return &e
}

// AsError returns the *Error that err is or wraps. If there is none, or if it has no Status, AsError returns ErrInternal with err
// as its cause; it keeps the Outcome. So a response never shows an error that was not meant for clients.
func AsError(err error) *Error {
	e, ok := errors.AsType[*Error](err)
	if ok && e.Status != 0 {
		return e
	}
	internal := ErrInternal.Wrap(err)
	if ok {
		internal.Outcome = e.Outcome
	}
	return internal
}
