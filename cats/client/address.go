package client

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// isLoopback reports whether host is a loopback address, localhost, or a name below .localhost (RFC 6761 section 6.3).
func isLoopback(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback() || host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// parseURL parses a URL that the service sent in field. The error names the scheme if it is neither http nor https.
func parseURL(field, text string) (*url.URL, error) {
	u, err := url.Parse(text)
	detail := ""
	switch {
	case err != nil:
		detail = "is no URL"
	case u.Scheme != "http" && u.Scheme != "https":
		detail = fmt.Sprintf("has the scheme %q; only http and https are accepted", u.Scheme)
	case u.User != nil:
		detail = "contains a user name or a password"
	case u.Hostname() == "":
		detail = "has no host"
	default:
		return u, nil
	}
	return nil, newError(CodeUnexpectedResponse, "the service sent a %s that %s", field, detail)
}

// checkOrigin returns an error unless the upload URL has the scheme, host and port of the storage origin that the service names.
func checkOrigin(upload, storage string) error {
	got, err := parseURL("upload_url", upload)
	if err != nil {
		return err
	}
	want, err := parseURL("storage_origin", storage)
	if err != nil {
		return err
	}
	if origin(got) != origin(want) {
		return newError(CodeUnexpectedResponse,
			"the service sent an upload_url at %s, but its storage_origin is %s; nothing was uploaded", origin(got), origin(want))
	}
	return nil
}

// origin returns the scheme, host and port of u in one form (RFC 6454 section 4).
func origin(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return u.Scheme + "://" + net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// proxyFor returns the proxy of the environment, and none for this machine: it would get the token.
func proxyFor(r *http.Request) (*url.URL, error) {
	if isLoopback(r.URL.Hostname()) {
		return nil, nil
	}
	return http.ProxyFromEnvironment(r)
}

// dial connects to addr. It looks names below .localhost up as localhost, so that no DNS server decides where they are.
func dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if host, port, err := net.SplitHostPort(addr); err == nil && isLoopback(host) && net.ParseIP(host) == nil {
		addr = net.JoinHostPort("localhost", port)
	}
	return (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, network, addr)
}

// catPath returns the path of the picture of user.
func catPath(user string) string {
	segment := url.PathEscape(user)
	if segment == "." || segment == ".." {
		segment = strings.ReplaceAll(segment, ".", "%2E") // a proxy may remove dot segments
	}
	return "/cat/" + segment
}
