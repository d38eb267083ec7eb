// Package access holds the settings that say whether callers must be known, and who
// may read. The signer decides by them; the frontend turns those away early who
// bring no token at all.
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
)

// ReadAccess says who gets a link to a picture.
type ReadAccess string

// Who gets a link to a picture, where callers are known.
const (
	Own      ReadAccess = "own"       // the one whose picture it is
	SignedIn ReadAccess = "signed-in" // any known caller
	Anyone   ReadAccess = "anyone"    // without a token, too
)

// Policy are the settings, the same in both containers. The zero value of Issuer asks nobody who
// they are.
type Policy struct {
	Issuer       string     `env:"OIDC_ISSUER" shared:"true" help:"OpenID Connect issuer whose bearer tokens callers bring, such as https://login.microsoftonline.com/TENANT/v2.0; unless set, authentication is off, which the signer accepts with ANONYMOUS_ACCESS=true only"`
	DiscoveryURL string     `env:"OIDC_DISCOVERY_URL" shared:"true" help:"with OIDC_ISSUER, the address of the issuer's OpenID Connect configuration where it is not at OIDC_ISSUER/.well-known/openid-configuration, as at Azure AD B2C; with or without that path"`
	ReadAccess   ReadAccess `env:"READ_ACCESS" shared:"true" envDefault:"own" help:"with OIDC_ISSUER, who gets a link to a picture: own (the one whose it is), signed-in (any known caller) or anyone"`
}

// ConfigurationURL returns the address of the issuer's OpenID Connect configuration.
func (r Policy) ConfigurationURL() string {
	at := cmp.Or(r.DiscoveryURL, r.Issuer)
	u, err := url.Parse(at)
	if err != nil || strings.Contains(u.Path, "/.well-known/") {
		return at
	}
	return u.JoinPath(".well-known", "openid-configuration").String()
}

// Validate reports the faults of the settings, joined.
func (r Policy) Validate() error {
	faults := []error{
		checkURL("OIDC_ISSUER", r.Issuer, false, "an https URL, the issuer as its tokens have it in iss, such as https://login.microsoftonline.com/TENANT/v2.0"),
		checkURL("OIDC_DISCOVERY_URL", r.DiscoveryURL, true, "the address of the issuer's configuration, such as https://TENANT.b2clogin.com/TENANT.onmicrosoft.com/POLICY/v2.0/.well-known/openid-configuration"),
	}
	if r.DiscoveryURL != "" && r.Issuer == "" {
		faults = append(faults, errors.New("OIDC_ISSUER is not set, and OIDC_DISCOVERY_URL is: set both, or neither"))
	}
	if !slices.Contains([]ReadAccess{Own, SignedIn, Anyone}, r.ReadAccess) {
		faults = append(faults, fmt.Errorf("READ_ACCESS is %q: want %s, %s or %s", r.ReadAccess, Own, SignedIn, Anyone))
	}
	return errors.Join(faults...)
}

// Addresses of Entra ID at which the tokens of several tenants are issued. Each token has
// the issuer of its own tenant.
// Source: https://learn.microsoft.com/entra/identity-platform/v2-protocols-oidc
var (
	entraHost = regexp.MustCompile(`(?i)(^|\.)(microsoftonline\.(com|us|de)|partner\.microsoftonline\.cn|chinacloudapi\.cn|windows\.net|microsoft\.com)$`)
	anyTenant = regexp.MustCompile(`(?i)^/(common|organizations|consumers)(/|$)`)
	ownTenant = "set the tenant's own, such as https://login.microsoftonline.com/TENANT/v2.0 with the ID of the tenant (9188040d-6c67-4c5b-b112-36a304b66dad for personal accounts)"
)

// checkURL returns what is wrong with an address that is set.
func checkURL(name, value string, query bool, want string) error {
	u, err := url.Parse(value)
	switch {
	case value == "":
		return nil
	case strings.ContainsAny(value, "{}") || err == nil && strings.ContainsAny(u.Path, "{}"):
		return fmt.Errorf("%s is %q, which holds a placeholder, so that it equals the issuer of no token: %s", name, value, ownTenant)
	case err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" && !query || u.Fragment != "" || u.User != nil:
		return fmt.Errorf("%s is %q: want %s", name, value, want)
	case entraHost.MatchString(u.Hostname()) && anyTenant.MatchString(u.Path):
		return fmt.Errorf("%s is %q, which is for several tenants, and the tokens of each have another issuer: %s", name, value, ownTenant)
	}
	return nil
}

// AuthenticationOn reports whether callers must be known.
func (r Policy) AuthenticationOn() bool { return r.Issuer != "" }

// LogWarning has it in the log when callers are not known, and what that means.
func (r Policy) LogWarning(log *slog.Logger) {
	if !r.AuthenticationOn() {
		log.Warn("callers are not known: whoever reaches the public port can store, replace, delete and read every picture; OIDC_ISSUER changes that")
	}
}
