package web

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"cats.example/shared/apierror"
	"cats.example/shared/httpserver"
	"cats.example/shared/signerapi"
)

var (
	errNoRoute          = &apierror.Error{Code: "no_such_path", Status: http.StatusNotFound, Detail: "no resource has this path"}
	errMethodNotAllowed = &apierror.Error{Code: "method_not_allowed", Status: http.StatusMethodNotAllowed, Detail: "this resource does not support the method"}
	errURITooLong       = &apierror.Error{Code: "uri_too_long", Status: http.StatusRequestURITooLong, Detail: fmt.Sprintf("the path and query are longer than %d bytes", maxTarget)}
	errMisdirected      = &apierror.Error{Code: "misdirected_request", Status: http.StatusMisdirectedRequest, Detail: "this server does not serve the host in the request's Host header; its operator can allow host names with ALLOWED_HOSTS"}
	errCrossOrigin      = &apierror.Error{Code: "cross_origin", Status: http.StatusForbidden, Detail: "pages of this origin may not change pictures; the operator can allow origins with CORS_ORIGINS"}
	errPartialUpload    = &apierror.Error{Code: "partial_upload", Status: http.StatusBadRequest, Detail: "this API accepts whole pictures only (RFC 9110 section 14.5); nothing was stored"}
)

// maxTarget is the maximum length of a request target in bytes. It has room for a user name and a file name that are
// percent-encoded several times over.
const maxTarget = 4 << 10

// problem is a problem document (RFC 9457) with the code, detail and outcome of an error. Detail is never empty: clients of the
// tutorial's service read it.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	apierror.Error
	RequestID string `json:"request_id,omitempty"`
}

// WriteError writes err as a problem document and hands it to the log line of the request. An error that is no [apierror.Error]
// with a status becomes a plain 500.
func WriteError(w http.ResponseWriter, r *http.Request, err error) {
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

// seconds returns d in seconds, rounded up.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }
