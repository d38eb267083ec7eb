package main

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

// onThisMachine reports whether host is a loopback address, localhost, or a name below .localhost (RFC 6761 section 6.3).
func onThisMachine(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback() || host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// parseLink parses a URL that the service sent in field. The failure names the scheme if it is neither http nor https.
func parseLink(field, link string) (*url.URL, error) {
	u, err := url.Parse(link)
	detail := ""
	switch {
	case err != nil:
		detail = "is no URL"
	case u.Scheme != "http" && u.Scheme != "https":
		detail = fmt.Sprintf("has the scheme %q, only http and https are accepted", u.Scheme)
	case u.User != nil:
		detail = "holds a user name or a password"
	case u.Hostname() == "":
		detail = "names no host"
	default:
		return u, nil
	}
	return nil, found(exitOther, "unexpected_answer", "Unexpected answer", "the service sent a "+field+" that "+detail)
}

// checkOrigin returns a failure unless upload, an upload URL of the service, has the scheme, host and port of storage, the
// storage_origin of GET /about.
func checkOrigin(upload, storage string) error {
	at, err := parseLink("upload_url", upload)
	if err != nil {
		return err
	}
	want, err := parseLink("storage_origin", storage)
	if err != nil {
		return err
	}
	if origin(at) != origin(want) {
		return found(exitOther, "unexpected_answer", "Unexpected answer", fmt.Sprintf("the service sent an upload_url at %s, but its storage is at %s; nothing was sent there", origin(at), origin(want)))
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

// proxyFor returns the proxy of the environment, and none for hosts on this machine.
func proxyFor(r *http.Request) (*url.URL, error) {
	if onThisMachine(r.URL.Hostname()) {
		return nil, nil
	}
	return http.ProxyFromEnvironment(r)
}

// dial connects to addr. It looks names below .localhost up as localhost, so that no DNS server decides where they are.
func dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if host, port, err := net.SplitHostPort(addr); err == nil && onThisMachine(host) && net.ParseIP(host) == nil {
		addr = net.JoinHostPort("localhost", port)
	}
	return (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, network, addr)
}
