package doctor

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// Marks of a check.
const (
	ok   = "ok"
	warn = "warn"
	fail = "fail"
	skip = "skip"
)

// warning is an error with which the signer works.
type warning struct{ error }

// report writes the results of the checks.
type report struct {
	out   io.Writer
	count map[string]int // of checks, by mark
}

// secret matches a token and the signature of a signed URL. No error should hold one; the report redacts them nevertheless.
var secret = regexp.MustCompile(`eyJ[\w.-]+|(?i)sig(=|%3D)[^&\s"]+`)

// control matches a character with which a claim or a response could begin a line of the report.
var control = regexp.MustCompile(`\p{Cc}`)

func (r *report) write(line string) {
	fmt.Fprintln(r.out, secret.ReplaceAllString(control.ReplaceAllString(line, " "), "[secret]"))
}

// line writes the line of a check.
func (r *report) line(mark, check, text string) {
	r.count[mark]++
	r.write(fmt.Sprintf("%-4s  %-10s  %s", mark, check, text))
}

// note writes another line below that of the check.
func (r *report) note(text string) { r.write(strings.Repeat(" ", 18) + text) }

// problem writes that a check failed, or its warning, and below it what to do.
func (r *report) problem(check string, err error) {
	mark := fail
	if _, ok := errors.AsType[warning](err); ok {
		mark = warn
	}
	text, fix, _ := strings.Cut(err.Error(), "; fix: ")
	r.line(mark, check, text)
	if fix = cmp.Or(fix, networkFix(text)); fix != "" {
		r.note("fix: " + fix)
	}
}

// end writes the last line. It returns true if no check failed or was skipped.
func (r *report) end() bool {
	r.write("")
	switch {
	case r.count[fail] > 0:
		r.write(fmt.Sprintf("failed checks: %d; the first one often causes the others", r.count[fail]))
	case r.count[skip] > 0:
		r.write("some checks were skipped")
	default:
		r.write(fmt.Sprintf("all works; warnings: %d", r.count[warn]))
	}
	return r.count[fail]+r.count[skip] == 0
}

// networkFix returns what to do about a network error with that text, "" for other errors. It matches the text, because the SDK's
// error of a failed token exchange wraps no other error.
func networkFix(text string) string {
	for _, n := range []struct{ form, fix string }{
		{"proxyconnect|Proxy Authentication", "the proxy of HTTPS_PROXY rejects this connection; NO_PROXY lists the hosts that need no proxy"},
		{"no such host|server misbehaving|lookup ", "the name does not resolve: check its spelling, the cluster's DNS, and that a private endpoint's DNS zone is linked to the cluster's network"},
		{"x509:|tls:", "the certificate is not trusted: a proxy that intercepts TLS needs its CA in SSL_CERT_FILE; a private endpoint must be reached by the account's own name"},
		{"connection refused|timeout|deadline exceeded|unreachable|no route to host|connection reset|EOF", "nothing answers on this port: look at the NetworkPolicy's egress, the firewall and routes of the cluster's subnet, and HTTPS_PROXY"},
	} {
		if regexp.MustCompile(n.form).MatchString(text) {
			return n.fix
		}
	}
	return ""
}
