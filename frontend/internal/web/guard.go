package web

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/cors"

	"cats.example/shared/access"
	"cats.example/shared/apierror"
	"cats.example/shared/httpserver"
	"cats.example/shared/picture"
	"cats.example/shared/ratelimit"
	"cats.example/shared/signerapi"
)

// maxTarget is the longest request target, in bytes: a user name and a file name
// that are percent-encoded whole, several times over.
const maxTarget = 4 << 10

// preflightAge is for how long a browser may know what other origins may do.
const preflightAge = time.Hour

// Options are the settings of the public API.
type Options struct {
	TrustedProxies AddressRanges `env:"TRUSTED_PROXIES" help:"address ranges such as 10.0.0.0/8, separated by commas, of proxies whose X-Forwarded-For says who the client is; nobody's unless set"`
	CORSOrigins    []Origin      `env:"CORS_ORIGINS" help:"origins such as https://cats.example.com, separated by commas, whose pages may use this API in a browser; only its own unless set"`

	// HostAllowed reports whether a Host header field names this server; nil allows any.
	HostAllowed func(field string) bool

	access.Policy
	SignIn
	ratelimit.RequestLimits
	picture.Limits
}

// Validate reports the faults of the options, joined.
func (o Options) Validate() error {
	var fault error
	switch {
	case o.ClientID != "" && !o.AuthenticationOn():
		fault = errors.New("OIDC_ISSUER is not set, and OIDC_CLIENT_ID is: nobody has to sign in")
	case o.ClientID != "" && !slices.Contains(strings.Fields(o.Scope), "openid"):
		fault = fmt.Errorf("OIDC_SCOPE is %q: want openid in it, or the page cannot tell whose sign-in it was", o.Scope)
	}
	return errors.Join(fault, o.Policy.Validate(), o.RequestLimits.Validate(), o.Limits.Validate())
}

// Origin is where a page in a browser comes from, as the header Origin has it.
type Origin string

var origin = regexp.MustCompile(`^https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]+)?$`)

// UnmarshalText implements [encoding.TextUnmarshaler]. There is no origin for all:
// who runs this in a network of their own, without tokens, relies on pages of
// others not to reach it through the browsers there.
func (o *Origin) UnmarshalText(text []byte) error {
	*o = Origin(strings.TrimSpace(string(text)))
	if !origin.MatchString(string(*o)) || new(http.CrossOriginProtection).AddTrustedOrigin(string(*o)) != nil {
		return fmt.Errorf("%q is no origin: want such as https://cats.example.com, in lower case, without a path, and none with *", *o)
	}
	return nil
}

// Errors of the guard.
var (
	errURITooLong  = &apierror.Error{Code: "uri_too_long", Status: http.StatusRequestURITooLong, Detail: fmt.Sprintf("the path and query are longer than %d bytes", maxTarget)}
	errMisdirected = &apierror.Error{Code: "misdirected_request", Status: http.StatusMisdirectedRequest, Detail: "this server does not serve the host in the request's Host header; its operator can allow host names with ALLOWED_HOSTS"}
	errCrossOrigin = &apierror.Error{Code: "cross_origin", Status: http.StatusForbidden, Detail: "a page of another origin may not do this; its operator can allow origins"}
)

// Slots are the pools of the frontend, by client address.
type Slots struct{ Requests, Uploads, Commits *ratelimit.Pool }

// guard stands before all of the public API.
type guard struct {
	Options
	slots   Slots
	log     *slog.Logger
	noProxy sync.Once // the log line about TRUSTED_PROXIES
	clients *ratelimit.RequestLimiter
	policy  []string // the RateLimit-Policy header
	csrf    http.CrossOriginProtection
	cors    *cors.Cors // nil where there is no other origin
}

func newGuard(options Options, slots Slots, log *slog.Logger, reg prometheus.Registerer) *guard {
	g := &guard{Options: options, slots: slots, log: log, clients: ratelimit.NewRequestLimiter("frontend", "address", options.RequestLimits, reg)}
	if g.clients.Enabled() {
		g.policy = []string{fmt.Sprintf(`%s;q=%d;w=%.0f`, addressPolicy, options.RateBurst, math.Ceil(float64(options.RateBurst)/options.RateLimit))}
	}
	var origins []string
	for _, o := range options.CORSOrigins {
		origins = append(origins, string(o))
		if err := g.csrf.AddTrustedOrigin(string(o)); err != nil {
			panic(err) // it was read as an origin
		}
	}
	if len(origins) > 0 {
		g.cors = cors.New(cors.Options{
			AllowedOrigins: origins,
			AllowedMethods: []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete},
			AllowedHeaders: []string{"Authorization", "Content-Type", "If-Match", "If-None-Match", "Content-MD5", "Content-Digest", "Content-Encoding", "Content-Range", "Upload-Complete", "Upload-Incomplete", "Upload-Offset", "X-Request-Id", "Traceparent"},
			ExposedHeaders: []string{"ETag", "Retry-After", "RateLimit", "RateLimit-Policy", "X-Request-Id", "WWW-Authenticate", "Allow", "Accept-Encoding"},
			MaxAge:         int(preflightAge.Seconds()),
		})
	}
	return g
}

// securityHeaders are those of every response. A browser makes no page of a response, shows none in a frame, and sends no
// address of ours as a referrer. Windows of other origins get no reference to our page.
var securityHeaders = http.Header{
	"X-Content-Type-Options":     {"nosniff"},
	"Content-Security-Policy":    {"default-src 'none'; frame-ancestors 'none'"},
	"Referrer-Policy":            {"no-referrer"},
	"Cross-Origin-Opener-Policy": {"same-origin"},
}

// outermost has h's answers say how browsers are to take them, refusals included.
func (g *guard) outermost(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		maps.Copy(w.Header(), securityHeaders)
		if ambiguous(r) {
			w.Header().Set("Connection", "close")
		}
		if g.cors != nil && !preflight(r) {
			g.cors.HandlerFunc(w, r)
		}
		h.ServeHTTP(w, r)
	})
}

// ambiguous reports whether somebody on the way may see another end of r than
// net/http does, so that nothing behind it is to be taken for a request. Of a body in
// chunks, net/http passes over a Content-Length, and in HTTP/1.0 over chunks; no
// handler can tell. A tunnel that was refused may be taken for open.
func ambiguous(r *http.Request) bool {
	return r.ContentLength < 0 || len(r.TransferEncoding) > 0 || r.ProtoMajor != 1 || r.ProtoMinor != 1 || r.Method == http.MethodConnect
}

// preflight reports whether a browser asks what pages of another origin may do.
func preflight(r *http.Request) bool {
	return r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != ""
}

// inner passes requests within the limits of their client to h. It rejects others before their bodies are read.
func (g *guard) inner(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		peer, _ := netip.ParseAddrPort(r.RemoteAddr) // the zero value if it is not of a network
		addr := clientOf(peer.Addr(), r.Header[forwardedFor], g.TrustedProxies)
		if addr != peer.Addr().Unmap().WithZone("") {
			httpserver.SetClientAddress(r.Context(), addr)
		}
		client := ratelimit.ClientKey(addr)
		if err := g.count(w, client); err != nil {
			return err
		}
		release, err := g.take(g.slots.Requests, client, r)
		if err != nil {
			return err
		}
		defer release()
		switch {
		case g.HostAllowed != nil && !g.HostAllowed(r.Host):
			return errMisdirected
		case len(r.RequestURI) > maxTarget:
			return errURITooLong
		case g.cors != nil && preflight(r):
			g.cors.HandlerFunc(w, r)
			return nil
		}
		if err := g.csrf.Check(r); err != nil {
			return errCrossOrigin.Wrap(err)
		}
		return h(w, r.WithContext(signerapi.WithClient(r.Context(), client)))
	}
}

// slot returns h for requests that get a slot of slots.
func (g *guard) slot(slots *ratelimit.Pool, h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		release, err := g.take(slots, signerapi.ClientFrom(r.Context()), r)
		if err != nil {
			return err
		}
		defer release()
		return h(w, r)
	}
}

// take takes a slot for the client that has sent r. Its log line helps operators whose proxy seems to be one client.
func (g *guard) take(slots *ratelimit.Pool, client string, r *http.Request) (release func(), err error) {
	release, err = slots.Take(client)
	if errors.Is(err, apierror.ErrRateLimited) && r.Header[forwardedFor] != nil && len(g.TrustedProxies) == 0 {
		g.noProxy.Do(func() {
			g.log.Warn("a client exceeds its share and sends X-Forwarded-For", "client", client, "fix", "if it is a proxy of yours, add its address to TRUSTED_PROXIES")
		})
	}
	return release, err
}

// The policies of the RateLimit header: of what an address asks, here, and of what a
// signed-in caller asks, which is the signer's to count.
const (
	addressPolicy = `"default"`
	callerPolicy  = `"caller"`
)

// count counts a request of an address and has the answer say what is left, as
// draft-ietf-httpapi-ratelimit-headers-11 has it: until the quota is there again, or
// after a refusal, until the next request is possible.
func (g *guard) count(w http.ResponseWriter, client string) error {
	if !g.clients.Enabled() {
		return nil
	}
	state, err := g.clients.Allow(client)
	wait := state.Reset
	if err != nil {
		wait = apierror.AsError(err).RetryAfter
	}
	header := w.Header()
	header["Ratelimit-Policy"] = g.policy // the canonical form of RateLimit-Policy
	header["Ratelimit"] = []string{rateLimit(addressPolicy, state.Remaining, wait)}
	return err
}

// callerRefused has the answer say that the signer has refused for the caller's sake.
func callerRefused(w http.ResponseWriter, err error) {
	if errors.Is(err, apierror.ErrRateLimited) {
		w.Header().Add("RateLimit", rateLimit(callerPolicy, 0, apierror.AsError(err).RetryAfter))
	}
}

// rateLimit is an element of the RateLimit header.
func rateLimit(policy string, remaining int, wait time.Duration) string {
	b := append(make([]byte, 0, 48), policy...)
	b = append(b, ";r="...)
	b = strconv.AppendInt(b, int64(remaining), 10)
	b = append(b, ";t="...)
	return string(strconv.AppendInt(b, seconds(wait), 10))
}

// seconds rounds up to whole ones.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }
