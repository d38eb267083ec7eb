package web

import (
	"net/http"
	"strconv"

	"cats.example/shared/apierror"
	"cats.example/shared/httpserver"
	"cats.example/shared/signerapi"
)

// The errors of the public API that the contract does not know.
var (
	errNoRoute       = &apierror.Error{Code: "no_such_path", Status: http.StatusNotFound, Detail: "there is nothing at this path"}
	errMethod        = &apierror.Error{Code: "method_not_allowed", Status: http.StatusMethodNotAllowed, Detail: "this method is not possible here"}
	errMissingFile   = &apierror.Error{Code: "missing_file", Status: http.StatusUnprocessableEntity, Detail: `the picture is missing: send multipart/form-data with the picture in the field "file", or PUT the picture itself`}
	errNoFileChosen  = &apierror.Error{Code: "missing_file", Status: http.StatusUnprocessableEntity, Detail: `no file was chosen: the field "file" has no file name and no content`}
	errFileIsText    = &apierror.Error{Code: "missing_file", Status: http.StatusUnprocessableEntity, Detail: `the field "file" is text: send it as a file, with a file name`}
	errTwoFiles      = &apierror.Error{Code: "two_files", Status: http.StatusUnprocessableEntity, Detail: `the form has more than one field "file"; nothing was stored`}
	errMalformedForm = &apierror.Error{Code: "malformed_form", Status: http.StatusBadRequest, Detail: "the form is broken; nothing was stored"}
	errPartialUpload = &apierror.Error{Code: "partial_upload", Status: http.StatusBadRequest, Detail: "this API takes whole pictures only (RFC 9110 section 14.5); nothing was stored"}
)

// problem is an RFC 9457 problem document: the code, detail and outcome of an error, and these. Detail is always there: it is
// what clients of the tutorial service read.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	apierror.Error
	RequestID string `json:"request_id,omitempty"`
}

// Refuse answers with err. An error without a status becomes a plain 500; only the log has its cause.
func Refuse(w http.ResponseWriter, r *http.Request, err error) {
	httpserver.SetError(r.Context(), err)
	e := apierror.AsError(err)
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.FormatInt(seconds(e.RetryAfter), 10))
	}
	if e.Status == http.StatusUnauthorized {
		challenge := `Bearer realm="cats-api"`
		if r.Header.Get("Authorization") != "" {
			challenge += `, error="invalid_token"`
		}
		w.Header().Set("WWW-Authenticate", challenge)
	}
	signerapi.WriteJSON(w, e.Status, "application/problem+json",
		problem{"about:blank", http.StatusText(e.Status), e.Status, *e, httpserver.RequestID(r.Context())})
}
