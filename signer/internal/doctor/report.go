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

// report writes the results of the checks.
type report struct {
	out   io.Writer
	count map[string]int // of the checks, by mark
}

// secret matches a token and the signature of a link. No error should hold one; the report removes them nevertheless.
var secret = regexp.MustCompile(`eyJ[\w.-]+|(?i)sig(=|%3D)[^&\s"]+`)

// control matches a character with which a claim or a response could begin a line of the report.
var control = regexp.MustCompile(`\p{Cc}`)

func (r *report) write(line string) {
	fmt.Fprintln(r.out, secret.ReplaceAllString(control.ReplaceAllString(line, " "), "[secret]"))
}

// line writes the one line of a check.
func (r *report) line(mark, check, said string) {
	r.count[mark]++
	r.write(fmt.Sprintf("%-4s  %-10s  %s", mark, check, said))
}

// more writes another line below that of the check.
func (r *report) more(said string) { r.write(strings.Repeat(" ", 18) + said) }

// problem writes that a check failed, or warns, and below it what to do.
func (r *report) problem(check string, err error) {
	mark := fail
	if _, ok := errors.AsType[warning](err); ok {
		mark = warn
	}
	said, fix, _ := strings.Cut(err.Error(), "; fix: ")
	r.line(mark, check, said)
	if fix = cmp.Or(fix, network(said)); fix != "" {
		r.more("fix: " + fix)
	}
}

// end writes the last line and returns true if all was tried and nothing failed.
func (r *report) end() bool {
	r.write("")
	switch {
	case r.count[fail] > 0:
		r.write(fmt.Sprintf("failed: %d; the first of them is often why the others did", r.count[fail]))
	case r.count[skip] > 0:
		r.write("not all was tried")
	default:
		r.write(fmt.Sprintf("all works; warnings: %d", r.count[warn]))
	}
	return r.count[fail]+r.count[skip] == 0
}

// network returns what to do about an error of the network with the text said, "" for other errors. It matches the text,
// because the SDK's error of a failed token exchange wraps no other error.
func network(said string) string {
	for _, n := range []struct{ form, fix string }{
		{"proxyconnect|Proxy Authentication", "the proxy of HTTPS_PROXY does not let this through; NO_PROXY names what goes past it"},
		{"no such host|server misbehaving|lookup ", "the name does not resolve: is it spelt right, does the cluster's DNS answer, is a private endpoint's DNS zone linked to the cluster's network"},
		{"x509:|tls:", "the certificate is not trusted: a proxy that opens TLS needs its CA in SSL_CERT_FILE; a private endpoint must be reached by the account's own name"},
		{"connection refused|timeout|deadline exceeded|unreachable|no route to host|connection reset|EOF", "nothing answers on this port: look at the NetworkPolicy's egress, the firewall and routes of the cluster's subnet, and HTTPS_PROXY"},
	} {
		if regexp.MustCompile(n.form).MatchString(said) {
			return n.fix
		}
	}
	return ""
}
