package issuer

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"regexp"
	"time"
)

// tokenError is an error response of Entra ID. Codes: https://learn.microsoft.com/entra/identity-platform/reference-error-codes
type tokenError struct {
	status int
	oauth  string // error code of RFC 6749 section 5.2
	code   int    // number after AADSTS
	text   string
}

func unknownTenant(tenant string) *tokenError {
	return &tokenError{http.StatusBadRequest, "invalid_request", 90002, fmt.Sprintf("Tenant '%s' not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud.", tenant)}
}

var uuidForm = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// reject logs and sends an error response in the format of Entra ID.
func (i *Issuer) reject(w http.ResponseWriter, r *http.Request, subject string, why *tokenError) {
	i.cfg.Log.WarnContext(r.Context(), "token exchange", "subject", subject, "outcome", "rejected", "code", fmt.Sprintf("AADSTS%d", why.code), "reason", why.text)
	trace, correlation, now := newUUID(), r.Header.Get("Client-Request-Id"), stamp(time.Now())
	if !uuidForm.MatchString(correlation) {
		correlation = newUUID()
	}
	writeJSON(w, why.status, map[string]any{
		"error": why.oauth,
		"error_description": fmt.Sprintf("AADSTS%d: %s Trace ID: %s Correlation ID: %s Timestamp: %s",
			why.code, why.text, trace, correlation, now),
		"error_codes":    []int{why.code},
		"timestamp":      now,
		"trace_id":       trace,
		"correlation_id": correlation,
		"error_uri":      fmt.Sprintf("https://login.microsoftonline.com/error?code=%d", why.code),
	})
}

// stamp formats a time like Entra ID.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])                      // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80 // version 4, variant of RFC 9562
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
