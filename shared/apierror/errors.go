// Package apierror has the errors of the API: code, HTTP status, detail, outcome.
//
// The signer returns them to the frontend, and the frontend to its clients.
package apierror

import (
	"errors"
	"iter"
	"maps"
	"net/http"
	"time"
)

// Error is a refusal that crosses the wire. Its code and detail do; the error
// that it wraps does not, so that nothing about the identity or the storage
// account reaches the frontend.
type Error struct {
	// Code is stable and what callers branch on.
	Code string `json:"code"`
	// Status is the HTTP status of a response with the error, of the signer and of the frontend.
	Status int `json:"-"`
	// Detail is one sentence that may be shown to a stranger.
	Detail string `json:"detail"`
	// RetryAfter is how long to wait before trying again, in whole seconds; 0
	// when unknown.
	RetryAfter time.Duration `json:"-"`
	// Outcome says what a failed write did. It is empty if the write changed nothing.
	Outcome Outcome `json:"outcome,omitempty"`

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

// wire has the errors that the client accepts from the signer, by code. The client ignores the status of the response.
var wire = map[string]*Error{}

// onWire returns e and adds it to wire.
func onWire(e Error) *Error {
	wire[e.Code] = &e
	return &e
}

// The errors of the contract, compared with [errors.Is], which looks at the code
// alone. With and Wrap make others of the same code.
var (
	ErrInvalidUser          = onWire(Error{Code: "invalid_user", Status: http.StatusUnprocessableEntity, Detail: "the user name is not valid"})
	ErrInvalidArgument      = onWire(Error{Code: "invalid_argument", Status: http.StatusUnprocessableEntity, Detail: "an argument is not valid"})
	ErrUnauthenticated      = onWire(Error{Code: "unauthenticated", Status: http.StatusUnauthorized, Detail: "this needs a bearer token of a caller who is known here"})
	ErrForbidden            = onWire(Error{Code: "forbidden", Status: http.StatusForbidden, Detail: "the caller may not do this"})
	ErrNotFound             = onWire(Error{Code: "not_found", Status: http.StatusNotFound, Detail: "Cat not found"})
	ErrNoUpload             = onWire(Error{Code: "no_such_upload", Status: http.StatusNotFound, Detail: "there is nothing under this ticket: nothing was sent, its blocks were not made one, or it has expired"})
	ErrEmpty                = onWire(Error{Code: "empty", Status: http.StatusUnprocessableEntity, Detail: "the picture is empty"})
	ErrIncomplete           = onWire(Error{Code: "incomplete", Status: http.StatusBadRequest, Detail: "the picture broke off before its end; nothing was stored"})
	ErrStalled              = onWire(Error{Code: "stalled", Status: http.StatusRequestTimeout, Detail: "the picture stopped coming; nothing was stored"})
	ErrDigestMismatch       = onWire(Error{Code: "digest_mismatch", Status: http.StatusBadRequest, Detail: "the picture is not the one that its digest announced; nothing was stored"})
	ErrPreconditionFailed   = onWire(Error{Code: "precondition_failed", Status: http.StatusPreconditionFailed, Detail: "the picture that is there is not as the condition says; nothing was changed"})
	ErrTooLarge             = onWire(Error{Code: "too_large", Status: http.StatusRequestEntityTooLarge, Detail: "the picture is too large"})
	ErrUnsupportedMediaType = onWire(Error{Code: "unsupported_media_type", Status: http.StatusUnsupportedMediaType, Detail: "the file is not a picture of an accepted type"})
	ErrConflict             = onWire(Error{Code: "conflict", Status: http.StatusConflict, Detail: "another upload to the same name won; nothing of this one was stored"})
	ErrArchived             = onWire(Error{Code: "archived", Status: http.StatusConflict, Detail: "the stored picture is in the archive tier, or is being rehydrated from it; until that has ended it cannot be changed"})
	ErrImmutable            = onWire(Error{Code: "immutable", Status: http.StatusConflict, Detail: "an immutability policy or a legal hold protects the stored picture"})
	ErrLeased               = onWire(Error{Code: "leased", Status: http.StatusConflict, Detail: "the stored picture is leased; it can be changed when the lease has ended"})
	ErrRejectedByStorage    = onWire(Error{Code: "rejected_by_storage", Status: http.StatusConflict, Detail: "storage does not allow this in the current state of the blob; the operator can find the reason in the signer's log"})
	ErrRateLimited          = onWire(Error{Code: "rate_limited", Status: http.StatusTooManyRequests, Detail: "too many requests from here; try again later", RetryAfter: time.Second})
	ErrMisconfigured        = onWire(Error{Code: "misconfigured", Status: http.StatusServiceUnavailable, Detail: "the containers of the service disagree about authentication; its operator can find the setting in the frontend's log", RetryAfter: 30 * time.Second})
	ErrIssuerUnavailable    = onWire(Error{Code: "issuer_unavailable", Status: http.StatusServiceUnavailable, Detail: "callers' tokens cannot be checked at the moment; try again later", RetryAfter: 5 * time.Second})
	ErrThrottled            = onWire(Error{Code: "throttled", Status: http.StatusServiceUnavailable, Detail: "storage is throttling requests; try again later", RetryAfter: 5 * time.Second})
	ErrOverloaded           = onWire(Error{Code: "overloaded", Status: http.StatusServiceUnavailable, Detail: "too much at once; try again later", RetryAfter: 2 * time.Second})
	ErrStorageUnavailable   = onWire(Error{Code: "storage_unavailable", Status: http.StatusServiceUnavailable, Detail: "storage is not answering; try again later", RetryAfter: 5 * time.Second})
	ErrDamaged              = onWire(Error{Code: "damaged", Status: http.StatusBadGateway, Detail: "storage has stored other bytes than were sent; upload the picture again", Outcome: OutcomeStored})
	ErrIdentityUnavailable  = onWire(Error{Code: "identity_unavailable", Status: http.StatusBadGateway, Detail: "the service's identity is not accepted at the moment; its operator can find the cause in the signer's log"})
	ErrInternal             = onWire(Error{Code: "internal", Status: http.StatusInternalServerError, Detail: "something went wrong here"})
	// ErrSignerUnavailable: the signer could not be reached, went away before it had answered, or has no token or key yet because
	// it has just started.
	ErrSignerUnavailable = onWire(Error{Code: "signer_unavailable", Status: http.StatusServiceUnavailable, Detail: "the service is not ready; try again in a moment", RetryAfter: 2 * time.Second})
)

// What Unknown adds to the Detail of an error of Put or Commit, and of Delete.
const (
	MayBeStored  = "; the picture may have been stored"
	MayBeDeleted = "; the picture may have been deleted"
)

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

// All returns the errors of the API, in no order.
func All() iter.Seq[*Error] { return maps.Values(wire) }

// ByCode returns the error of the contract with that code, nil if there is none.
func ByCode(code string) *Error { return wire[code] }

// WithDetail returns an error of the same code with another detail.
func (e Error) WithDetail(detail string) *Error {
	e.Detail = detail
	return &e
}

// Wrap returns an error of the same code and detail that has cause behind it.
func (e Error) Wrap(cause error) *Error {
	e.cause = cause
	return &e
}

// WithUnknownOutcome returns an error of the same code whose Outcome is unknown, with may at the end of its Detail: [MayBeStored] or
// [MayBeDeleted].
func (e Error) WithUnknownOutcome(may string) *Error {
	e.Outcome = OutcomeUnknown
	e.Detail += may
	return &e
}

// WithRetryAfter returns an error of the same code that asks to wait for d.
func (e Error) WithRetryAfter(d time.Duration) *Error {
	e.RetryAfter = d
	return &e
}

// AsError returns the *Error that err is or wraps. If there is none, or it has no Status, AsError returns ErrInternal around
// err, with its Outcome: the client learns nothing else.
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
