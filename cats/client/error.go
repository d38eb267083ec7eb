package client

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Codes of errors that the client itself found. All other codes are those of the service; see its API reference.
const (
	CodeInterrupted        = "interrupted"       // the context ended; errors.Is finds its cause
	CodeUnreachable        = "unreachable"       // no connection, no whole response, or no trust in the certificate
	CodeUnexpectedResponse = "unexpected_answer" // a response that no cats-api sends, perhaps of another program
	CodeStorage            = "storage"           // storage rejected a request; Status is that of storage
	CodeUploadExpired      = "upload_expired"    // a direct upload took longer than its upload URL is valid
	CodeTooLarge           = "too_large"         // the picture is larger than the service accepts; nothing was sent
	CodeDigestMismatch     = "digest_mismatch"   // the downloaded bytes are not those of the stored picture
	CodeConflict           = "conflict"          // the picture was replaced during the download
	CodeBody               = "body"              // the picture could not be read; errors.As finds the reader's error
)

// Values of [Error.Outcome].
const (
	OutcomeUnknown = "unknown" // the request may have been executed, or may still be
	OutcomeStored  = "stored"  // the picture was stored, but is damaged: upload it again
)

// Error is a failed request, as a problem document (RFC 9457). It contains neither a token nor a signed URL. As JSON it is the
// problem document.
type Error struct {
	Type      string `json:"type,omitempty"`
	Title     string `json:"title"`
	Status    int    `json:"status,omitempty"` // of HTTP; 0 if there is no response
	Detail    string `json:"detail"`           // one sentence, for people
	Code      string `json:"code"`             // stable, for programs
	RequestID string `json:"request_id,omitempty"`

	// Outcome says what a failed Put or Delete did: [OutcomeUnknown], [OutcomeStored], or nothing if it is empty.
	Outcome string `json:"outcome,omitempty"`

	// RetryAfter is the wait that the response asks for; 0 if it has no Retry-After, or one that is not in seconds.
	RetryAfter time.Duration `json:"-"`

	temporary  bool
	noResponse bool // the service may have received the request, and has not answered it
	cause      error
}

// Error returns the detail and the ID of the request.
func (e *Error) Error() string {
	s := e.Detail
	if e.Outcome == OutcomeUnknown {
		s += "; the outcome is unknown"
	}
	if e.RequestID != "" {
		s += " (request " + e.RequestID + ")"
	}
	return s
}

// Unwrap returns the cause of an error that the client itself found, or nil.
func (e *Error) Unwrap() error { return e.cause }

// Temporary reports whether the same call may succeed later: after a status 408, 429 or 503, a 5xx of storage or of a proxy, a
// broken connection, or a damaged upload. A repeated Delete or Put may meet another picture if the outcome is unknown.
func (e *Error) Temporary() bool { return e.temporary || e.Outcome == OutcomeStored }

func newError(code, format string, args ...any) *Error {
	title := strings.ReplaceAll(code, "_", " ")
	title = strings.ToUpper(title[:1]) + title[1:]
	return &Error{Type: "about:blank", Title: title, Detail: fmt.Sprintf(format, args...), Code: code}
}

// interruption returns the error of a call whose context has ended.
func interruption(ctx context.Context, during string) *Error {
	e := newError(CodeInterrupted, "interrupted%s", during)
	if e.cause = context.Cause(ctx); !errors.Is(e.cause, context.Canceled) {
		e.Detail += ": " + e.cause.Error()
	}
	return e
}

// bodyError returns the error of the picture's reader, which may be an [*Error] already.
func bodyError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	e := newError(CodeBody, "reading the picture failed: %v", err)
	e.cause = err
	return e
}

// requestError returns the error of a request without a whole response. err may contain a signed URL, the result does not.
func requestError(req *http.Request, err error) *Error {
	cause := context.Cause(req.Context())
	if cause != nil && !errors.Is(cause, errStalled) {
		return interruption(req.Context(), "")
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e // of the request body
	}
	if outer, ok := errors.AsType[*url.Error](err); ok {
		err = outer.Err
	}
	if cause != nil {
		err = cause
	}
	host := req.URL.Scheme + "://" + req.URL.Host
	e := newError(CodeUnreachable, "%s does not answer: %v", host, err)
	e.cause, e.temporary = err, true
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		e.Detail, e.temporary = fmt.Sprintf("the certificate of %s is not trusted: %v", host, err), false
	} else if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		e.Detail = fmt.Sprintf("%s cannot be reached: %v", host, op.Err)
	}
	return e
}

// problem returns the error of a response that is no success.
func (c *Client) problem(resp *http.Response, text []byte) *Error {
	e := &Error{}
	if resp.StatusCode/100 != 2 && json.Unmarshal(text, e) == nil && e.Code != "" && e.Detail != "" {
		e.Status, e.RetryAfter = resp.StatusCode, retryAfter(resp)
		e.temporary = slices.Contains(temporary, e.Status)
		return e
	}
	e = newError(CodeUnexpectedResponse, "%s answered %s, but not as a cats-api does", c.base, resp.Status)
	e.Status = resp.StatusCode
	e.temporary = slices.Contains([]int{502, 503, 504}, e.Status)
	e.noResponse = e.Status != 413 && e.Status != 429 // which proxies send themselves
	return e
}

// temporary are the statuses after which the service or storage may accept the same request.
var temporary = []int{http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusServiceUnavailable}

// retryAfter returns the Retry-After of resp in seconds (RFC 9110 section 10.2.3), or 0. The service sends no dates.
func retryAfter(resp *http.Response) time.Duration {
	seconds, err := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 32)
	if err != nil {
		return 0
	}
	return time.Duration(seconds) * time.Second
}
