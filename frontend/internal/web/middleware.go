package web

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/cors"

	"cats.example/shared/access"
	"cats.example/shared/apierror"
	"cats.example/shared/httpserver"
	"cats.example/shared/ratelimit"
	"cats.example/shared/signerapi"
	"cats.example/shared/telemetry"
)

// middleware has the middlewares of the public API. routes has their order.
type middleware struct {
	Dependencies
	options     Options
	rejected    *prometheus.CounterVec // uploads, by error code
	limiter     *ratelimit.RequestLimiter
	policy      string // the RateLimit-Policy header
	crossOrigin http.CrossOriginProtection
	cors        *cors.Cors // nil without CORS_ORIGINS
	warnProxy   sync.Once  // the log line about TRUSTED_PROXIES
}

// newMiddleware returns the middlewares and registers their metrics.
func newMiddleware(options Options, deps Dependencies) *middleware {
	m := &middleware{
		Dependencies: deps, options: options,
		limiter: ratelimit.NewRequestLimiter("frontend", "address", options.RequestLimits, deps.Registry),
		rejected: telemetry.NewCounterVec(deps.Registry, "cats_frontend_uploads_rejected_total",
			"Uploads that were rejected or failed, by error code.", "reason", apierror.ErrOverloaded.Code), // it has an alert
	}
	if m.limiter.Enabled() {
		m.policy = fmt.Sprintf(`"default";q=%d;w=%.0f`, options.RateBurst, math.Ceil(float64(options.RateBurst)/options.RateLimit))
	}
	var origins []string
	for _, o := range options.CORSOrigins {
		origins = append(origins, string(o))
		_ = m.crossOrigin.AddTrustedOrigin(string(o)) // Origin.UnmarshalText has accepted it
	}
	if len(origins) > 0 {
		m.cors = cors.New(cors.Options{
			AllowedOrigins: origins,
			AllowedMethods: []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete},
			AllowedHeaders: []string{"Authorization", "Content-Type", "If-Match", "If-None-Match", "Content-MD5", "Content-Digest", "Content-Encoding", "Content-Range", "Upload-Complete", "Upload-Incomplete", "Upload-Offset", "X-Request-Id", "Traceparent"},
			ExposedHeaders: []string{"ETag", "Retry-After", "RateLimit", "RateLimit-Policy", "X-Request-Id", "WWW-Authenticate", "Allow", "Accept-Encoding"},
			MaxAge:         3600, // seconds for which browsers may cache the response to a preflight
		})
	}
	return m
}

// securityHeaderFields are in every response. Browsers then render no response as a page and show none in a frame. They send no
// URL of this service as a referrer, and give windows of other origins no reference to the page.
var securityHeaderFields = http.Header{
	"X-Content-Type-Options":     {"nosniff"},
	"Content-Security-Policy":    {"default-src 'none'; frame-ancestors 'none'"},
	"Referrer-Policy":            {"no-referrer"},
	"Cross-Origin-Opener-Policy": {"same-origin"},
}

// securityHeaders sets the security and CORS headers on every response of h, errors included. It also closes the connection
// after requests whose end another HTTP implementation may see differently; see framingAmbiguous.
func (m *middleware) securityHeaders(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		maps.Copy(w.Header(), securityHeaderFields)
		if framingAmbiguous(r) {
			w.Header().Set("Connection", "close")
		}
		if m.cors != nil && !isPreflight(r) {
			m.cors.HandlerFunc(w, r)
		}
		h.ServeHTTP(w, r)
	})
}

// framingAmbiguous reports whether a proxy may disagree with net/http about where r ends (request smuggling).
//
// net/http ignores Content-Length when the body is chunked, and ignores chunking in HTTP/1.0, and does not tell the handler
// (RFC 9112 section 6.3). After a rejected CONNECT the client may believe that the tunnel is open.
func framingAmbiguous(r *http.Request) bool {
	return r.ContentLength < 0 || len(r.TransferEncoding) > 0 || r.ProtoMajor != 1 || r.ProtoMinor != 1 || r.Method == http.MethodConnect
}

// isPreflight reports whether r is a CORS preflight.
func isPreflight(r *http.Request) bool {
	return r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != ""
}

// enforceLimits rejects requests that exceed the client's limits or break a rule for their header, before it reads the body:
// rate, requests in flight, host, length of the target, cross-origin rules. It also answers CORS preflights.
func (m *middleware) enforceLimits(h handler) handler {
	limited := m.limitInFlight(m.Slots.Requests, m.checkHeader(h))
	return func(w http.ResponseWriter, r *http.Request) error {
		peer, _ := netip.ParseAddrPort(r.RemoteAddr) // zero without a network connection
		addr := clientIP(peer.Addr(), r.Header["X-Forwarded-For"], m.options.TrustedProxies)
		if addr != peer.Addr().Unmap().WithZone("") {
			httpserver.SetClientAddress(r.Context(), addr)
		}
		client := ratelimit.ClientKey(addr)
		if err := m.chargeRequest(w, client); err != nil {
			return err
		}
		return limited(w, r.WithContext(signerapi.WithClient(r.Context(), client)))
	}
}

// checkHeader is the part of enforceLimits for requests that have a slot.
func (m *middleware) checkHeader(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		switch {
		case m.HostAllowed != nil && !m.HostAllowed(r.Host):
			return errMisdirected
		case len(r.RequestURI) > maxTarget:
			return errURITooLong
		case m.cors != nil && isPreflight(r):
			m.cors.HandlerFunc(w, r)
			return nil
		}
		if err := m.crossOrigin.Check(r); err != nil {
			return errCrossOrigin.Wrap(err)
		}
		err := h(w, r)
		if errors.Is(err, apierror.ErrRateLimited) {
			w.Header().Add("RateLimit", rateLimit("caller", 0, apierror.AsError(err).RetryAfter))
		}
		return err
	}
}

// chargeRequest takes one token from the client's bucket and sets the RateLimit headers
// (draft-ietf-httpapi-ratelimit-headers-11), with the policy "default". The policy "caller" is the signer's, which counts by
// authenticated caller. It returns ErrRateLimited if the bucket is empty.
func (m *middleware) chargeRequest(w http.ResponseWriter, client string) error {
	if !m.limiter.Enabled() {
		return nil
	}
	quota, err := m.limiter.Allow(client)
	reset := quota.Reset
	if err != nil {
		reset = apierror.AsError(err).RetryAfter
	}
	w.Header().Set("RateLimit-Policy", m.policy)
	w.Header().Set("RateLimit", rateLimit("default", quota.Remaining, reset))
	return err
}

// rateLimit returns an item of the RateLimit header.
func rateLimit(policy string, remaining int, reset time.Duration) string {
	return fmt.Sprintf("%q;r=%d;t=%d", policy, remaining, seconds(reset))
}

// limitInFlight rejects requests for whose client pool has no slot. If the client may be a proxy that is not in TRUSTED_PROXIES,
// it logs that once.
func (m *middleware) limitInFlight(pool *ratelimit.Pool, h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		client := signerapi.ClientFrom(r.Context())
		release, err := pool.Take(client)
		if errors.Is(err, apierror.ErrRateLimited) && r.Header["X-Forwarded-For"] != nil && len(m.options.TrustedProxies) == 0 {
			m.warnProxy.Do(func() {
				m.Log.Warn("client exceeds its share and sends X-Forwarded-For", "client", client, "fix", "if it is a proxy of yours, add its address to TRUSTED_PROXIES")
			})
		}
		if err != nil {
			return err
		}
		defer release()
		return h(w, r)
	}
}

// requireToken rejects requests without a bearer token, before it reads the body. The signer verifies the token.
func (m *middleware) requireToken(h handler) handler {
	if !m.options.AuthenticationOn() {
		return h
	}
	return func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Add("Vary", "Authorization") // caches must not reuse the response for another caller or after sign-out
		token, err := signerapi.BearerToken(r.Header)
		if err != nil {
			return err
		}
		if token == "" {
			return apierror.ErrUnauthenticated
		}
		return h(w, r.WithContext(signerapi.WithToken(r.Context(), token)))
	}
}

// requireReader is requireToken for requests that read a picture: with READ_ACCESS=anyone they need no token.
func (m *middleware) requireReader(h handler) handler {
	if m.options.ReadAccess == access.Anyone {
		return h
	}
	return m.requireToken(h)
}

// countRejections counts the errors of h, which handles uploads.
func (m *middleware) countRejections(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		err := h(w, r)
		if err != nil {
			m.rejected.WithLabelValues(apierror.AsError(err).Code).Inc()
		}
		return err
	}
}

// requireWhole rejects requests whose header announces a part of a picture or a content coding, before it reads the body.
func requireWhole(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		err := checkWhole(r.Header)
		for name, values := range r.URL.Query() {
			err = cmp.Or(err, checkChunkCount(name, values[0]))
		}
		if coding := checkEncoding(r.Header); coding != nil {
			w.Header().Set("Accept-Encoding", "identity") // RFC 9110 section 15.5.16
			err = cmp.Or(err, coding)
		}
		if err != nil {
			return err
		}
		return h(w, r)
	}
}

// clientIP returns the address of the client that sent a request through peer.
//
// This is peer itself unless peer is a trusted proxy. Otherwise it is the last address in X-Forwarded-For that is not a trusted
// proxy: each proxy appends the address of its own peer, and clients can forge the entries before. An invalid entry ends the
// search; the result is then the address after it. The result has no zone and is never an IPv4-mapped IPv6 address.
func clientIP(peer netip.Addr, forwarded []string, trusted AddressRanges) netip.Addr {
	client := peer.Unmap().WithZone("")
	list := strings.Join(forwarded, ",")
	for list != "" && slices.ContainsFunc(trusted, func(p netip.Prefix) bool { return p.Contains(client) }) {
		i := strings.LastIndexByte(list, ',')
		last := strings.TrimSpace(list[i+1:])
		list = list[:max(i, 0)]
		hop, err := netip.ParseAddr(strings.Trim(last, "[]"))
		if withPort, portErr := netip.ParseAddrPort(last); portErr == nil {
			hop, err = withPort.Addr(), nil
		}
		switch {
		case last == "": // RFC 9110 section 5.6.1.2
			continue
		case err != nil:
			return client
		}
		client = hop.Unmap().WithZone("")
	}
	return client
}
