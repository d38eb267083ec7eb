// Package access has the settings of authentication that both containers need: the signer decides by them, and the frontend
// rejects requests without a token before it reads their body.
package access

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"cats.example/shared/config"
)

// ReadAccess says which clients get a signed URL of a picture if authentication is on.
type ReadAccess string

// The values of READ_ACCESS.
const (
	Own      ReadAccess = "own"       // the caller whose picture it is
	SignedIn ReadAccess = "signed-in" // all authenticated callers
	Anyone   ReadAccess = "anyone"    // all clients, also without a token
)

// Policy is the part of the authentication settings that must be equal in both containers. Authentication is off if Issuer is "".
type Policy struct {
	Issuer       string     `env:"OIDC_ISSUER" shared:"true" help:"OpenID Connect issuer of the clients' bearer tokens, such as https://login.microsoftonline.com/TENANT/v2.0. Unless set, authentication is off; the signer then requires ANONYMOUS_ACCESS=true"`
	DiscoveryURL string     `env:"OIDC_DISCOVERY_URL" shared:"true" help:"with OIDC_ISSUER, URL of the issuer's OpenID Connect configuration if it is not OIDC_ISSUER/.well-known/openid-configuration, as in Azure AD B2C; with or without that path"`
	ReadAccess   ReadAccess `env:"READ_ACCESS" shared:"true" envDefault:"own" help:"with OIDC_ISSUER, who gets a signed URL of a picture: own (its owner), signed-in (every authenticated caller) or anyone"`
}

// AuthenticationOn reports whether clients must authenticate.
func (p Policy) AuthenticationOn() bool { return p.Issuer != "" }

// ConfigurationURL returns the URL of the issuer's OpenID Connect configuration (OpenID Connect Discovery 1.0 section 4).
func (p Policy) ConfigurationURL() string {
	address := cmp.Or(p.DiscoveryURL, p.Issuer)
	u, err := url.Parse(address)
	if err != nil || strings.Contains(u.Path, "/.well-known/") {
		return address
	}
	return u.JoinPath(".well-known", "openid-configuration").String()
}

// LogWarning logs a warning if authentication is off.
func (p Policy) LogWarning(log *slog.Logger) {
	if !p.AuthenticationOn() {
		log.Warn("authentication is off: every client can store, replace, delete and read every picture", "fix", "set OIDC_ISSUER")
	}
}

// Validate returns all validation errors, joined.
func (p Policy) Validate() error {
	return errors.Join(
		checkURL("OIDC_ISSUER", p.Issuer, false, "an https URL, the issuer in iss of its tokens, such as https://login.microsoftonline.com/TENANT/v2.0"),
		checkURL("OIDC_DISCOVERY_URL", p.DiscoveryURL, true, "the URL of the issuer's configuration, such as https://TENANT.b2clogin.com/TENANT.onmicrosoft.com/POLICY/v2.0/.well-known/openid-configuration"),
		config.Require(p.DiscoveryURL == "" || p.Issuer != "", "OIDC_DISCOVERY_URL is set without OIDC_ISSUER: set both, or neither"),
		config.Require(slices.Contains([]ReadAccess{Own, SignedIn, Anyone}, p.ReadAccess),
			"READ_ACCESS is %q: want %s, %s or %s", p.ReadAccess, Own, SignedIn, Anyone),
	)
}

// Issuers of Entra ID for several tenants. Each of their tokens has the issuer of its own tenant.
// Source: https://learn.microsoft.com/entra/identity-platform/v2-protocols-oidc
var (
	entraHost = regexp.MustCompile(`(?i)(^|\.)(microsoftonline\.(com|us|de)|partner\.microsoftonline\.cn|chinacloudapi\.cn|windows\.net|microsoft\.com)$`)
	anyTenant = regexp.MustCompile(`(?i)^/(common|organizations|consumers|\{[^/]*\})(/|$)`)
)

const ownTenant = "set the URL of one tenant, such as https://login.microsoftonline.com/TENANT/v2.0 with the ID of the tenant (9188040d-6c67-4c5b-b112-36a304b66dad for personal accounts)"

// checkURL returns a validation error for a URL that is set. want describes a valid one.
func checkURL(name, value string, query bool, want string) error {
	u, err := url.Parse(value)
	switch {
	case value == "":
		return nil
	case err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" && !query || u.Fragment != "" || u.User != nil:
		return fmt.Errorf("%s is %q: want %s", name, value, want)
	case entraHost.MatchString(u.Hostname()) && anyTenant.MatchString(u.Path):
		return fmt.Errorf("%s is %q, which is for several tenants, whose tokens have other issuers: %s", name, value, ownTenant)
	}
	return nil
}
