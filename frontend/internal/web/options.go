package web

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"cats.example/shared/access"
	"cats.example/shared/config"
	"cats.example/shared/httpserver"
	"cats.example/shared/picture"
	"cats.example/shared/ratelimit"
	"cats.example/shared/signerapi"
)

// Options are the settings of the public API.
type Options struct {
	TrustedProxies AddressRanges `env:"TRUSTED_PROXIES" help:"address ranges of trusted proxies, such as 10.0.0.0/8, separated by commas: the client is then the last other address in X-Forwarded-For; none unless set"`
	CORSOrigins    []Origin      `env:"CORS_ORIGINS" help:"origins whose pages may use the API in a browser, such as https://cats.example.com, separated by commas; only the API's own unless set"`

	access.Policy
	ClientID string `env:"OIDC_CLIENT_ID" help:"with OIDC_ISSUER, the client ID with which the page signs users in: a public client (authorization code with PKCE) whose redirect URI is the address of the page; the page has no sign-in unless set"`
	Scope    string `env:"OIDC_SCOPE" envDefault:"openid" help:"with OIDC_CLIENT_ID, the scope that the page requests, such as openid api://API/.default at Entra ID, where API is the client ID of the API's registration: the access token must be for OIDC_AUDIENCE"`

	ratelimit.RequestLimits
	picture.Limits
}

// signInEnabled reports whether the page offers a sign-in.
func (o Options) signInEnabled() bool { return o.AuthenticationOn() && o.ClientID != "" }

// Validate returns the validation errors of the settings, joined.
func (o Options) Validate() error {
	return errors.Join(
		config.Require(o.ClientID == "" || o.AuthenticationOn(), "OIDC_CLIENT_ID is set and OIDC_ISSUER is not: without an issuer, authentication is off"),
		config.Require(o.ClientID == "" || slices.Contains(strings.Fields(o.Scope), "openid"), "OIDC_SCOPE is %q: it must contain openid, so that the page gets an ID token and can check its nonce", o.Scope),
		o.Policy.Validate(), o.RequestLimits.Validate(), o.Limits.Validate(),
	)
}

// Origin is the origin of a web page, as in the Origin header.
type Origin string

var originForm = regexp.MustCompile(`^https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]+)?$`)

// UnmarshalText implements [encoding.TextUnmarshaler]. There is no origin for all pages: if authentication is off and the
// service is on a private network, the same-origin rule of browsers protects it from pages of others.
func (o *Origin) UnmarshalText(text []byte) error {
	*o = Origin(strings.TrimSpace(string(text)))
	if !originForm.MatchString(string(*o)) || new(http.CrossOriginProtection).AddTrustedOrigin(string(*o)) != nil {
		return fmt.Errorf("%q is not an origin: want an origin such as https://cats.example.com, in lower case, without a path or *", *o)
	}
	return nil
}

// AddressRanges is a list of address ranges, read from text such as "10.0.0.0/8, 192.0.2.1".
type AddressRanges []netip.Prefix

// UnmarshalText implements [encoding.TextUnmarshaler].
func (a *AddressRanges) UnmarshalText(text []byte) error {
	for s := range strings.SplitSeq(string(text), ",") {
		s = strings.TrimSpace(s)
		p, err := netip.ParsePrefix(s)
		if addr, addrErr := netip.ParseAddr(s); addrErr == nil && addr.Zone() == "" {
			p, err = addr.Unmap().Prefix(addr.Unmap().BitLen())
		}
		if err != nil || p != p.Masked() || p.Addr().Is4In6() {
			return fmt.Errorf("%q is not an address range: want a range such as 10.0.0.0/8, with no bits set after the prefix, or one address", s)
		}
		*a = append(*a, p)
	}
	return nil
}

// Slots are the pools that limit the frontend, per client and in total.
type Slots struct{ Requests, Uploads, Commits *ratelimit.Pool }

// Dependencies are the parts of the process that the public API uses.
type Dependencies struct {
	Signer      signerapi.Signer
	Requests    *httpserver.Middleware
	Slots       Slots
	HostAllowed func(field string) bool // reports whether a Host header names this server; nil allows any
	Log         *slog.Logger
	Registry    prometheus.Registerer
}
