package web

import (
	"net/http"
	"strconv"

	"cats.example/shared/service"
	"cats.example/shared/signerapi"
)

// The errors of the public API that the contract does not know.
var (
	errNoRoute       = &signerapi.Error{Code: "no_such_path", Detail: "there is nothing at this path"}
	errMethod        = &signerapi.Error{Code: "method_not_allowed", Detail: "this method is not possible here"}
	errMissingFile   = &signerapi.Error{Code: "missing_file", Detail: `the picture is missing: send multipart/form-data with the picture in the field "file", or PUT the picture itself`}
	errNoFileChosen  = &signerapi.Error{Code: "missing_file", Detail: `no file was chosen: the field "file" has no file name and no content`}
	errFileIsText    = &signerapi.Error{Code: "missing_file", Detail: `the field "file" is text: send it as a file, with a file name`}
	errTwoFiles      = &signerapi.Error{Code: "two_files", Detail: `the form has more than one field "file"; nothing was stored`}
	errMalformedForm = &signerapi.Error{Code: "malformed_form", Detail: "the form is broken; nothing was stored"}
	errPartialUpload = &signerapi.Error{Code: "partial_upload", Detail: "this API takes whole pictures only (RFC 9110 section 14.5); nothing was stored"}
)

// status is the one table from errors to what HTTP says of them.
var status = map[string]int{
	signerapi.ErrIncomplete.Code:     http.StatusBadRequest,
	signerapi.ErrDigestMismatch.Code: http.StatusBadRequest,
	errMalformedForm.Code:            http.StatusBadRequest,
	errPartialUpload.Code:            http.StatusBadRequest,

	signerapi.ErrUnauthenticated.Code: http.StatusUnauthorized,
	signerapi.ErrForbidden.Code:       http.StatusForbidden,
	errCrossOrigin.Code:               http.StatusForbidden,

	signerapi.ErrNotFound.Code: http.StatusNotFound,
	signerapi.ErrNoUpload.Code: http.StatusNotFound,
	errNoRoute.Code:            http.StatusNotFound,

	errMethod.Code:                         http.StatusMethodNotAllowed,
	signerapi.ErrStalled.Code:              http.StatusRequestTimeout,
	signerapi.ErrConflict.Code:             http.StatusConflict,
	signerapi.ErrArchived.Code:             http.StatusConflict,
	signerapi.ErrImmutable.Code:            http.StatusConflict,
	signerapi.ErrLeased.Code:               http.StatusConflict,
	signerapi.ErrRejectedByStorage.Code:    http.StatusConflict,
	signerapi.ErrPreconditionFailed.Code:   http.StatusPreconditionFailed,
	signerapi.ErrTooLarge.Code:             http.StatusRequestEntityTooLarge,
	errURITooLong.Code:                     http.StatusRequestURITooLong,
	errMisdirected.Code:                    http.StatusMisdirectedRequest,
	signerapi.ErrUnsupportedMediaType.Code: http.StatusUnsupportedMediaType,

	signerapi.ErrInvalidUser.Code:     http.StatusUnprocessableEntity,
	signerapi.ErrInvalidArgument.Code: http.StatusUnprocessableEntity,
	signerapi.ErrEmpty.Code:           http.StatusUnprocessableEntity,
	errMissingFile.Code:               http.StatusUnprocessableEntity,
	errTwoFiles.Code:                  http.StatusUnprocessableEntity,

	signerapi.ErrRateLimited.Code: http.StatusTooManyRequests,

	signerapi.ErrInternal.Code:            http.StatusInternalServerError,
	signerapi.ErrIdentityUnavailable.Code: http.StatusBadGateway,
	signerapi.ErrDamaged.Code:             http.StatusBadGateway,

	signerapi.ErrMisconfigured.Code:      http.StatusServiceUnavailable,
	signerapi.ErrIssuerUnavailable.Code:  http.StatusServiceUnavailable,
	signerapi.ErrThrottled.Code:          http.StatusServiceUnavailable,
	signerapi.ErrOverloaded.Code:         http.StatusServiceUnavailable,
	signerapi.ErrStorageUnavailable.Code: http.StatusServiceUnavailable,
	signerapi.ErrSignerUnavailable.Code:  http.StatusServiceUnavailable,
}

// problem is an RFC 9457 problem document. Detail is always there: it is what
// clients of the tutorial service read.
type problem struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail"`
	Code      string `json:"code"`
	RequestID string `json:"request_id,omitempty"`

	Outcome signerapi.Outcome `json:"outcome,omitempty"`
}

// fail answers with err. An error that is not in the table becomes a plain 500, of which only the log has the cause. The outcome
// stays, because the failed write may have changed the stored picture.
func fail(w http.ResponseWriter, r *http.Request, err error) {
	service.Note(r.Context(), err)
	e := signerapi.AsError(err)
	outcome := e.Outcome
	code, ok := status[e.Code]
	if !ok {
		e, code = signerapi.ErrInternal, http.StatusInternalServerError
	}
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.FormatInt(seconds(e.RetryAfter), 10))
	}
	if code == http.StatusUnauthorized {
		challenge := `Bearer realm="cats-api"`
		if r.Header.Get("Authorization") != "" {
			challenge += `, error="invalid_token"`
		}
		w.Header().Set("WWW-Authenticate", challenge)
	}
	writeJSON(w, code, "application/problem+json", problem{
		Type:      "about:blank",
		Title:     http.StatusText(code),
		Status:    code,
		Detail:    e.Detail,
		Code:      e.Code,
		RequestID: service.RequestID(r.Context()),
		Outcome:   outcome,
	})
}

// Refuse answers in place of a handler.
func Refuse(w http.ResponseWriter, r *http.Request, err error) { fail(w, r, err) }
