package signerapi

import (
	"errors"
	"net/http"
	"time"
)

// Error is a refusal that crosses the wire. Its code and detail do; the error
// that it wraps does not, so that nothing about the identity or the storage
// account reaches the frontend.
type Error struct {
	// Code is stable and what callers branch on.
	Code string
	// Detail is one sentence that may be shown to a stranger.
	Detail string
	// RetryAfter is how long to wait before trying again, in whole seconds; 0
	// when unknown.
	RetryAfter time.Duration
	// Outcome says what a failed write did. It is empty if the write changed nothing.
	Outcome Outcome

	cause error
}

// Outcome is what a failed write did to the stored picture.
type Outcome string

const (
	// OutcomeUnknown means that the write may have been carried out: the answer was lost.
	OutcomeUnknown Outcome = "unknown"
	// OutcomeStored means that the write was carried out, but the stored picture is damaged.
	OutcomeStored Outcome = "stored"
)

// The errors of the contract, compared with [errors.Is], which looks at the code
// alone. With and Wrap make others of the same code.
var (
	ErrInvalidUser          = &Error{Code: "invalid_user", Detail: "the user name is not valid"}
	ErrInvalidArgument      = &Error{Code: "invalid_argument", Detail: "an argument is not valid"}
	ErrUnauthenticated      = &Error{Code: "unauthenticated", Detail: "this needs a bearer token of a caller who is known here"}
	ErrForbidden            = &Error{Code: "forbidden", Detail: "the caller may not do this"}
	ErrNotFound             = &Error{Code: "not_found", Detail: "Cat not found"}
	ErrNoUpload             = &Error{Code: "no_such_upload", Detail: "there is nothing under this ticket: nothing was sent, its blocks were not made one, or it has expired"}
	ErrEmpty                = &Error{Code: "empty", Detail: "the picture is empty"}
	ErrIncomplete           = &Error{Code: "incomplete", Detail: "the picture broke off before its end; nothing was stored"}
	ErrStalled              = &Error{Code: "stalled", Detail: "the picture stopped coming; nothing was stored"}
	ErrDigestMismatch       = &Error{Code: "digest_mismatch", Detail: "the picture is not the one that its digest announced; nothing was stored"}
	ErrPreconditionFailed   = &Error{Code: "precondition_failed", Detail: "the picture that is there is not as the condition says; nothing was changed"}
	ErrTooLarge             = &Error{Code: "too_large", Detail: "the picture is too large"}
	ErrUnsupportedMediaType = &Error{Code: "unsupported_media_type", Detail: "the file is not a picture of an accepted type"}
	ErrConflict             = &Error{Code: "conflict", Detail: "another upload to the same name won; nothing of this one was stored"}
	ErrArchived             = &Error{Code: "archived", Detail: "the stored picture is in the archive tier, or is being rehydrated from it; until that has ended it cannot be changed"}
	ErrImmutable            = &Error{Code: "immutable", Detail: "an immutability policy or a legal hold protects the stored picture"}
	ErrLeased               = &Error{Code: "leased", Detail: "the stored picture is leased; it can be changed when the lease has ended"}
	ErrRejectedByStorage    = &Error{Code: "rejected_by_storage", Detail: "storage does not allow this in the current state of the blob; the operator can find the reason in the signer's log"}
	ErrRateLimited          = &Error{Code: "rate_limited", Detail: "too many requests from here; try again later", RetryAfter: time.Second}
	ErrMisconfigured        = &Error{Code: "misconfigured", Detail: "the containers of the service disagree about authentication; its operator can find the setting in the frontend's log", RetryAfter: 30 * time.Second}
	ErrIssuerUnavailable    = &Error{Code: "issuer_unavailable", Detail: "callers' tokens cannot be checked at the moment; try again later", RetryAfter: 5 * time.Second}
	ErrThrottled            = &Error{Code: "throttled", Detail: "storage is throttling requests; try again later", RetryAfter: 5 * time.Second}
	ErrOverloaded           = &Error{Code: "overloaded", Detail: "too much at once; try again later", RetryAfter: 2 * time.Second}
	ErrStorageUnavailable   = &Error{Code: "storage_unavailable", Detail: "storage is not answering; try again later", RetryAfter: 5 * time.Second}
	ErrDamaged              = &Error{Code: "damaged", Detail: "storage has stored other bytes than were sent; upload the picture again", Outcome: OutcomeStored}
	ErrIdentityUnavailable  = &Error{Code: "identity_unavailable", Detail: "the service's identity is not accepted at the moment; its operator can find the cause in the signer's log"}
	ErrInternal             = &Error{Code: "internal", Detail: "something went wrong here"}

	// ErrSignerUnavailable is the client's own: the signer could not be reached,
	// or went away before it had answered. It never crosses the wire.
	ErrSignerUnavailable = &Error{Code: "signer_unavailable", Detail: "the service is not ready; try again in a moment", RetryAfter: 2 * time.Second}
)

// What Unknown adds to the Detail of an error of Put or Commit, and of Delete.
const (
	MayBeStored  = "; the picture may have been stored"
	MayBeDeleted = "; the picture may have been deleted"
)

// wire is the one table of what crosses the wire: the errors a client accepts and
// the status that goes with each. A client goes by the code, never by the status.
var wire = []struct {
	err    *Error
	status int
}{
	{ErrIncomplete, http.StatusBadRequest},
	{ErrDigestMismatch, http.StatusBadRequest},
	{ErrUnauthenticated, http.StatusUnauthorized},
	{ErrForbidden, http.StatusForbidden},
	{ErrNotFound, http.StatusNotFound},
	{ErrNoUpload, http.StatusNotFound},
	{ErrStalled, http.StatusRequestTimeout},
	{ErrConflict, http.StatusConflict},
	{ErrArchived, http.StatusConflict},
	{ErrImmutable, http.StatusConflict},
	{ErrLeased, http.StatusConflict},
	{ErrRejectedByStorage, http.StatusConflict},
	{ErrPreconditionFailed, http.StatusPreconditionFailed},
	{ErrTooLarge, http.StatusRequestEntityTooLarge},
	{ErrUnsupportedMediaType, http.StatusUnsupportedMediaType},
	{ErrInvalidUser, http.StatusUnprocessableEntity},
	{ErrInvalidArgument, http.StatusUnprocessableEntity},
	{ErrEmpty, http.StatusUnprocessableEntity},
	{ErrRateLimited, http.StatusTooManyRequests},
	{ErrInternal, http.StatusInternalServerError},
	{ErrIdentityUnavailable, http.StatusBadGateway},
	{ErrDamaged, http.StatusBadGateway},
	{ErrMisconfigured, http.StatusServiceUnavailable},
	{ErrIssuerUnavailable, http.StatusServiceUnavailable},
	{ErrThrottled, http.StatusServiceUnavailable},
	{ErrOverloaded, http.StatusServiceUnavailable},
	{ErrStorageUnavailable, http.StatusServiceUnavailable},
}

// Error returns, for the log, the code and the cause, or the detail where there
// is no cause.
func (e *Error) Error() string {
	if e.cause != nil {
		return e.Code + ": " + e.cause.Error()
	}
	return e.Code + ": " + e.Detail
}

// Unwrap returns the cause, which stays inside the process.
func (e *Error) Unwrap() error { return e.cause }

// Is reports whether target is an *Error of the same code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// With returns an error of the same code with another detail.
func (e *Error) With(detail string) *Error {
	c := *e
	c.Detail = detail
	return &c
}

// Wrap returns an error of the same code and detail that has cause behind it.
func (e *Error) Wrap(cause error) *Error {
	c := *e
	c.cause = cause
	return &c
}

// Unknown returns an error of the same code whose Outcome is unknown, with may at the end of its Detail: [MayBeStored] or
// [MayBeDeleted].
func (e *Error) Unknown(may string) *Error {
	c := *e
	c.Outcome = OutcomeUnknown
	c.Detail += may
	return &c
}

// After returns an error of the same code that asks to wait for d.
func (e *Error) After(d time.Duration) *Error {
	c := *e
	c.RetryAfter = d
	return &c
}

// AsError returns the *Error that err is or wraps, and ErrInternal around err
// when there is none: an error without a case of its own tells a stranger nothing.
func AsError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return ErrInternal.Wrap(err)
}
