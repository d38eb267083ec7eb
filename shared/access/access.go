// Package access holds the settings that say whether callers must be known, and who
// may read. The signer decides by them; the frontend turns those away early who
// bring no token at all.
package access

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
)

// Reading says who gets a link to a picture.
type Reading string

// Who gets a link to a picture, where callers are known.
const (
	Own      Reading = "own"       // the one whose picture it is
	SignedIn Reading = "signed-in" // any known caller
	Anyone   Reading = "anyone"    // without a token, too
)

// Rules are the settings, the same in both containers. The zero value of Issuer asks nobody who
// they are.
type Rules struct {
	Issuer string  `env:"OIDC_ISSUER" help:"OpenID Connect issuer whose bearer tokens callers bring, such as https://login.microsoftonline.com/TENANT/v2.0; unless set, anyone may do anything; the same in both containers"`
	Read   Reading `env:"READ_ACCESS" envDefault:"own" help:"with OIDC_ISSUER, who gets a link to a picture: own (the one whose it is), signed-in (any known caller) or anyone; the same in both containers"`
}

// Validate reports the faults of the settings, joined.
func (r Rules) Validate() error {
	var faults []error
	if r.Issuer != "" {
		u, err := url.Parse(r.Issuer)
		if err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
			faults = append(faults, fmt.Errorf("OIDC_ISSUER is %q: want the issuer as its tokens have it in iss, such as https://login.microsoftonline.com/TENANT/v2.0", r.Issuer))
		}
	}
	switch r.Read {
	case Own, SignedIn, Anyone:
	default:
		faults = append(faults, fmt.Errorf("READ_ACCESS is %q: want %s, %s or %s", r.Read, Own, SignedIn, Anyone))
	}
	return errors.Join(faults...)
}

// On reports whether callers must be known.
func (r Rules) On() bool { return r.Issuer != "" }

// Tell has it in the log when callers are not known, and what that means.
func (r Rules) Tell(log *slog.Logger) {
	if !r.On() {
		log.Warn("callers are not known: whoever reaches the public port can store, replace, delete and read every picture; OIDC_ISSUER changes that")
	}
}
