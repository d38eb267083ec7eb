package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// algorithms are the signature algorithms of Kubernetes' service-account tokens.
var algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.ES256, jose.ES384, jose.ES512}

// tokenFile reports the claims of the federated token, for comparison with the identity's federated credential, and never the
// token. It does not verify the signature: Entra ID does.
func (v *visit) tokenFile(context.Context) (string, error) {
	path, audience := v.Identity.TokenFile, v.Identity.Audience()
	content, err := v.Identity.FederatedToken()
	if err != nil {
		v.noToken = errors.New("there is no federated token")
		return "", err
	}
	var claims jwt.Claims
	token, err := jwt.ParseSigned(strings.TrimSpace(content), algorithms)
	if err != nil || token.UnsafeClaimsWithoutVerification(&claims) != nil || claims.Expiry == nil {
		return "", fmt.Errorf("%s does not hold a signed JSON Web Token with an expiry; fix: AZURE_FEDERATED_TOKEN_FILE must name the projected service-account token", path)
	}
	v.note("issuer    %.300s", claims.Issuer)
	v.note("subject   %.300s", claims.Subject)
	v.note("audience  %.300s", strings.Join(claims.Audience, ", "))
	bound := os.Getenv("AZURE_KUBERNETES_TOKEN_PROXY") != ""
	if bound {
		v.note("identity bindings exchange this token; no federated credential has to match it")
	} else {
		v.note("a federated credential of the identity must have these three, letter for letter")
	}
	if err := claims.ValidateWithLeeway(jwt.Expected{}, 0); err != nil {
		return "", fmt.Errorf("%s: %w; fix: is the kubelet renewing it, and is the node's clock right", path, err)
	}
	if !bound && !slices.Equal(claims.Audience, jwt.Audience{audience}) {
		return "", warning{fmt.Errorf("%s has another audience than %s, which AZURE_AUTHORITY_HOST says; "+
			"fix: set it where the token's volume is made, or give the federated credential the token's own", path, audience)}
	}
	return fmt.Sprintf("%s, for %v", path, left(claims.Expiry.Time())), nil
}
