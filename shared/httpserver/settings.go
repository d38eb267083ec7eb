package httpserver

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"cats.example/shared/config"
)

// Settings are the settings of the HTTP server in both containers. Embed them in the settings of the process.
type Settings struct {
	StallTimeout  time.Duration `env:"STALL_TIMEOUT" envDefault:"30s" help:"time over which the rate of a request body is averaged; a slower body is rejected with 408"`
	MinUploadRate int64         `env:"MIN_UPLOAD_RATE" envDefault:"2048" help:"minimum rate of a request body, in bytes per second, averaged over STALL_TIMEOUT; 16384 while more than half of MAX_UPLOADS are in progress"`
	MaxUploads    int           `env:"MAX_UPLOADS" envDefault:"128" help:"maximum number of uploads in progress; the limits are half of it for commits of direct uploads, 4 times for requests and 8 times for connections"`
	ClientShare   float64       `env:"CLIENT_SHARE" envDefault:"0.0625" help:"share of MAX_UPLOADS and of the limits that follow from it that one client may take, but at least 1: the frontend counts by address (IPv6: /56), the signer by authenticated caller; 0 for no shares"`
	AllowedHosts  []HostName    `env:"ALLOWED_HOSTS" help:"host names, separated by commas, that are accepted in the Host header; other requests are answered 421. IP addresses and localhost are always accepted. Unless set, any host is accepted"`
	PprofEnabled  bool          `env:"PPROF_ENABLED" envDefault:"false" help:"true serves Go profiles at /debug/pprof/ on the ops listener"`
	DrainDelay    time.Duration `env:"DRAIN_DELAY" envDefault:"0s" help:"time after SIGTERM in which the process is not ready but accepts requests, so that load balancers can react"`
	DrainTimeout  time.Duration `env:"DRAIN_TIMEOUT" envDefault:"60s" help:"maximum time after DRAIN_DELAY for requests in progress; after it they are cut off"`
	LogLevel      slog.Level    `env:"LOG_LEVEL" envDefault:"info" help:"debug, info, warn or error"`
}

// Validate returns all validation errors, joined.
func (s Settings) Validate() error {
	return errors.Join(
		config.Require(s.StallTimeout > 0, "STALL_TIMEOUT is %v: it must be above zero", s.StallTimeout),
		config.Require(s.MinUploadRate > 0 && s.MaxUploads > 0, "MIN_UPLOAD_RATE and MAX_UPLOADS must be above zero"),
		// The comparison also rejects NaN.
		config.Require(s.ClientShare >= 0 && s.ClientShare <= 1, "CLIENT_SHARE is %v: want a number from 0 to 1, such as 0.0625; 0 for no shares", s.ClientShare),
		config.Require(s.DrainDelay >= 0 && s.DrainTimeout > 0, "DRAIN_DELAY must not be negative, DRAIN_TIMEOUT must be above zero"),
	)
}

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
