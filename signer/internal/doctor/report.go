package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"unicode"
)

// Marks of a check.
const (
	ok   = "ok"
	warn = "warn"
	fail = "fail"
	skip = "skip"
)

// report writes what the checks find.
type report struct {
	out         io.Writer
	warned      int
	failed      int
	interrupted bool
}

// secret is what no error should hold and no reader must see: a token, or the
// signature of a link.
var secret = regexp.MustCompile(`eyJ[\w.-]+|(?i)sig(=|%3D)[^&\s"]+`)

func (r *report) write(line string) {
	line = strings.Map(func(c rune) rune {
		if unicode.IsControl(c) {
			return ' ' // what others wrote must not make lines of its own
		}
		return c
	}, line)
	fmt.Fprintln(r.out, secret.ReplaceAllString(line, "[secret]"))
}

// line writes the one line of a check.
func (r *report) line(mark, check, format string, args ...any) {
	switch mark {
	case warn:
		r.warned++
	case fail:
		r.failed++
	}
	r.write(fmt.Sprintf("%-4s  %-10s  ", mark, check) + fmt.Sprintf(format, args...))
}

// more writes another line below that of the check.
func (r *report) more(format string, args ...any) {
	r.write(strings.Repeat(" ", 18) + fmt.Sprintf(format, args...))
}

// fail writes that a check failed, and below it what to do.
func (r *report) fail(check string, err error) { r.problem(fail, check, err) }

func (r *report) problem(mark, check string, err error) {
	said, fix, _ := strings.Cut(err.Error(), "; fix: ")
	r.line(mark, check, "%s", said)
	if fix == "" {
		fix = network(said)
	}
	if fix != "" {
		r.more("fix: %s", fix)
	}
}

// skipped writes that a check was not tried, provided that there is a reason.
func (r *report) skipped(ctx context.Context, check, because string) bool {
	if ctx.Err() != nil {
		r.interrupted = true
		because = context.Cause(ctx).Error()
		if errors.Is(context.Cause(ctx), context.Canceled) {
			because = "it was interrupted"
		}
	}
	if because != "" {
		r.line(skip, check, "not tried, because %s", because)
	}
	return because != ""
}

// end sums up, and reports whether nothing failed.
func (r *report) end() bool {
	r.write("")
	switch {
	case r.failed > 0:
		r.write(fmt.Sprintf("failed: %d; the first of them is often why the others did", r.failed))
	case r.interrupted:
		r.write("not all was tried")
	case r.warned > 0:
		r.write(fmt.Sprintf("all works; warnings: %d", r.warned))
	default:
		r.write("all works")
	}
	return r.failed == 0 && !r.interrupted
}

// network says what to look at when there was no answer, "" when said is about
// something else. It goes by the text: what the SDK makes of an error of the token
// exchange wraps nothing.
func network(said string) string {
	for _, n := range []struct {
		parts []string
		fix   string
	}{
		{[]string{"proxyconnect", "Proxy Authentication"}, "the proxy of HTTPS_PROXY does not let this through; NO_PROXY names what goes past it"},
		{[]string{"no such host", "server misbehaving", "lookup "}, "the name does not resolve: is it spelt right, does the cluster's DNS answer, is a private endpoint's DNS zone linked to the cluster's network"},
		{[]string{"x509:", "tls:"}, "the certificate is not trusted: a proxy that opens TLS needs its CA in SSL_CERT_FILE; a private endpoint must be reached by the account's own name"},
		{[]string{"connection refused", "timeout", "deadline exceeded", "unreachable", "no route to host", "connection reset", "EOF"}, "nothing answers on this port: look at the NetworkPolicy's egress, the firewall and routes of the cluster's subnet, and HTTPS_PROXY"},
	} {
		for _, part := range n.parts {
			if strings.Contains(said, part) {
				return n.fix
			}
		}
	}
	return ""
}
