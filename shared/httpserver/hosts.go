package httpserver

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// HostName is a host name without a port, such as cats.example.com, in lower case.
type HostName string

var hostForm = regexp.MustCompile(`^([A-Za-z0-9_-]+\.)*[A-Za-z0-9_-]+\.?$`)

// UnmarshalText implements [encoding.TextUnmarshaler]. It converts the name to lower case and removes a dot at its end.
func (n *HostName) UnmarshalText(text []byte) error {
	s := strings.TrimSpace(string(text))
	if !hostForm.MatchString(s) {
		return fmt.Errorf("%q is not a host name: want a name such as cats.example.com, without scheme, port, path or *; non-ASCII names in their xn-- form", s)
	}
	*n = HostName(hostOf(s))
	return nil
}

// hostOf returns the host of a Host header field, in lower case, without port, brackets and the dot at its end.
func hostOf(field string) string {
	u := url.URL{Host: field}
	return strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
}

// LocalHost reports whether a Host header field names no host of the public DNS: it is an IP address, localhost, a name
// below .localhost (RFC 6761 section 6.3), or missing, as HTTP/1.0 allows.
//
// A web page that uses DNS rebinding sends the DNS name of its own origin, so its requests never have such a Host.
func LocalHost(field string) bool {
	host := hostOf(field)
	_, err := netip.ParseAddr(host)
	return err == nil || field == "" || host == "localhost" || strings.HasSuffix(host, ".localhost") && hostForm.MatchString(host)
}

// HostAllowed reports whether the settings accept a Host header field: a [LocalHost] always, any other host if
// ALLOWED_HOSTS lists it or is not set.
func (s Settings) HostAllowed(field string) bool {
	return len(s.AllowedHosts) == 0 || LocalHost(field) || slices.Contains(s.AllowedHosts, HostName(hostOf(field)))
}

// LogAllowedHosts logs that requests for any host are accepted, if ALLOWED_HOSTS is not set.
func (s Settings) LogAllowedHosts(log *slog.Logger) {
	if len(s.AllowedHosts) == 0 {
		log.Info("requests for any host name are accepted", "fix", "set ALLOWED_HOSTS to the public names of this service")
	}
}

// RequireHost returns a handler that answers 421 (Misdirected Request, RFC 9110 section 15.5.20) if the Host header field is not
// allowed, and passes all other requests to h.
func RequireHost(allowed func(field string) bool, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !allowed(r.Host) {
			http.Error(w, "this server does not serve the host in the request's Host header", http.StatusMisdirectedRequest)
			return
		}
		h.ServeHTTP(w, r)
	})
}
