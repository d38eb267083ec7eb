package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// problem is an RFC 9457 problem document: the service's, or one of the same shape for
// what the command found out itself, without a status.
type problem struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status,omitempty"`
	Detail    string `json:"detail"`
	Code      string `json:"code"`
	RequestID string `json:"request_id,omitempty"`
	Outcome   string `json:"outcome,omitempty"`
}

// Outcomes of a failed write, as the service names them.
const (
	outcomeUnknown = "unknown"
	outcomeStored  = "stored" // the picture is damaged
)

// failure is an error of a command. It holds neither a token nor a signed URL.
type failure struct {
	problem
	sent json.RawMessage // the document as the service sent it, or nil
	exit int
	hint string // what to do

	again bool          // another try can be worth it
	lost  bool          // there is no answer of the service, which may have received the request
	may   string        // what a write of unknown outcome may have done to the picture
	after time.Duration // how long the service asks to wait; 0 when it does not say
}

// Error is one line: what is wrong, what to do, and by what the operator finds it.
func (f *failure) Error() string {
	s := f.Detail
	if f.hint != "" {
		s += "; " + f.hint
	}
	if f.after > 0 {
		s += fmt.Sprintf("; it asks to wait %v", f.after)
	}
	if f.RequestID != "" {
		s += " (request " + f.RequestID + ")"
	}
	return escape(s)
}

// advise adds to what the user can do.
func (f *failure) advise(hint string) {
	f.hint = strings.TrimPrefix(f.hint+"; "+hint, "; ")
}

// unknown makes the outcome unknown: the picture may have been stored, or deleted.
func (f *failure) unknown(may string) {
	f.Outcome, f.may = outcomeUnknown, may
	f.advise("the picture may have been " + may)
	if f.sent != nil {
		f.sent = withFields(f.sent, map[string]any{"outcome": outcomeUnknown})
	}
}

func (f *failure) document() any {
	if f.sent != nil {
		return f.sent
	}
	f.Type = "about:blank"
	return f.problem
}

// found returns a failure that the command found out itself.
func found(exit int, code, title, detail string) *failure {
	return &failure{problem: problem{Title: title, Detail: detail, Code: code}, exit: exit}
}

func fileFailure(err error) *failure {
	return found(exitOther, "file", "File", err.Error())
}

// stranger is the failure of an answer that no cats-api gives.
func (c *client) stranger(resp *http.Response) *failure {
	f := found(exitOther, "unexpected_answer", "Unexpected answer", fmt.Sprintf("%s answers %s, and not as a cats-api does", c.base, resp.Status))
	f.hint = "is --server right?"
	f.Status = resp.StatusCode
	f.lost = resp.StatusCode != http.StatusRequestEntityTooLarge && resp.StatusCode != http.StatusTooManyRequests // which proxies answer themselves
	return f
}

// refusal is the failure of an answer that is no success.
func (c *client) refusal(resp *http.Response, answer []byte) *failure {
	var p problem
	if json.Unmarshal(answer, &p) != nil || p.Code == "" || p.Detail == "" {
		f := c.stranger(resp)
		if resp.StatusCode == http.StatusServiceUnavailable || resp.StatusCode == http.StatusBadGateway || resp.StatusCode == http.StatusGatewayTimeout { // of a proxy
			f.exit, f.again, f.hint = exitLater, true, ""
		}
		return f
	}
	f := &failure{problem: p, sent: answer, after: retryAfter(resp)}
	f.exit, f.again = kind(resp.StatusCode)
	switch p.Code {
	case "no_such_path":
		f.exit, f.hint = exitOther, "is --server right?"
	case "no_such_upload", "archived", "immutable", "leased", "rejected_by_storage": // no other client was faster
		f.exit = exitOther
	case "unauthenticated":
		f.hint = "set CATS_TOKEN, or --token-file"
		if c.token != "" {
			f.hint = "is the token still good, and for this service?"
		}
	}
	return f
}

// kind returns the exit code that goes with a status, and whether to try again.
func kind(status int) (exit int, again bool) {
	switch status {
	case http.StatusNotFound:
		return exitNotFound, false
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusRequestURITooLong, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity:
		return exitRefused, false
	case http.StatusUnauthorized, http.StatusForbidden:
		return exitNotAllowed, false
	case http.StatusConflict, http.StatusPreconditionFailed:
		return exitCondition, false
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return exitLater, true
	}
	return exitOther, false
}

func retryAfter(resp *http.Response) time.Duration {
	seconds, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if err != nil || seconds < 0 {
		return 0
	}
	return time.Duration(seconds) * time.Second
}
