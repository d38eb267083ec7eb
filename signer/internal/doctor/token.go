package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"cats.example/signer/internal/identity"
)

// algorithms are the signature algorithms of Kubernetes' service-account tokens.
var algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.ES256, jose.ES384, jose.ES512}

// readClaims returns the claims of a token. It does not verify the signature: Entra ID does. The error holds nothing of the
// token.
func readClaims(token string) (claims jwt.Claims, err error) {
	parsed, err := jwt.ParseSigned(strings.TrimSpace(token), algorithms)
	if err != nil || parsed.UnsafeClaimsWithoutVerification(&claims) != nil {
		return claims, errors.New("it does not hold a signed JSON Web Token")
	}
	return claims, nil
}

// noTokenFile returns why the token file is not checked, "" if it is.
func (v *visit) noTokenFile() string {
	switch {
	case v.Identity.Kind == identity.Default:
		return "CREDENTIAL=default looks for a login of its own"
	case v.Identity.TokenFile == "":
		return "AZURE_FEDERATED_TOKEN_FILE is not set"
	}
	return ""
}

// tokenFile reports the claims of the federated token, for comparison with the identity's federated credential, and never the
// token.
func (v *visit) tokenFile(context.Context) (string, error) {
	path := v.Identity.TokenFile
	content, err := v.Identity.FederatedToken()
	if err != nil {
		v.noFile = "there is no federated token"
		return "", identity.Explain(err, v.Identity.Audience())
	}
	c, err := readClaims(content)
	if err != nil {
		return "", fmt.Errorf("%s: %w; fix: AZURE_FEDERATED_TOKEN_FILE must name the projected service-account token", path, err)
	}
	want, expected := "", v.Identity.Audience()
	if !v.TokenProxy && (len(c.Audience) != 1 || c.Audience[0] != expected) {
		want = " (want " + expected + ")"
	}
	v.note("issuer    %s", shown(c.Issuer))
	v.note("subject   %s", shown(c.Subject))
	v.note("audience  %s%s", shown(strings.Join(c.Audience, ", ")), want)
	if v.TokenProxy {
		v.note("identity bindings exchange this token; no federated credential has to match it")
	} else {
		v.note("a federated credential of the identity must have these three, letter for letter")
	}
	valid, err := life(c, time.Now())
	switch {
	case err != nil:
		return "", fmt.Errorf("%s %w", path, err)
	case want != "":
		return "", warning{fmt.Errorf("%s has another audience than %s, which AZURE_AUTHORITY_HOST says; fix: set it where the token's volume is made, or give the federated credential the token's own", path, expected)}
	}
	return fmt.Sprintf("%s, for %v", path, valid), nil
}

// life returns the remaining lifetime of a token, or an error if the token is not valid now.
func life(c jwt.Claims, now time.Time) (time.Duration, error) {
	begin, end := c.NotBefore.Time(), c.Expiry.Time()
	switch {
	case c.Expiry == nil:
		return 0, errors.New("does not say when it expires; fix: AZURE_FEDERATED_TOKEN_FILE must name the projected service-account token")
	case !now.Before(end):
		return 0, fmt.Errorf("expired %v ago, at %s; fix: is the kubelet renewing it, and is the node's clock right",
			now.Sub(end).Round(time.Second), end.UTC().Format(time.RFC3339))
	case now.Before(begin):
		return 0, fmt.Errorf("is not valid before %s, in %v; fix: is the node's clock right",
			begin.UTC().Format(time.RFC3339), begin.Sub(now).Round(time.Second))
	}
	return end.Sub(now).Round(time.Second), nil
}

// shown returns a claim for the report: shortened, and "(none)" if it is empty.
func shown(claim string) string {
	const most = 300
	switch {
	case claim == "":
		return "(none)"
	case len(claim) > most:
		return strings.ToValidUTF8(claim[:most], "") + "…"
	}
	return claim
}
