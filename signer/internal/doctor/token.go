package doctor

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"cats.example/signer/internal/identity"
)

// algorithms are the signature algorithms of Kubernetes' service-account tokens.
var algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.ES256, jose.ES384, jose.ES512}

// errNoToken is returned if the token file cannot be read.
var errNoToken = errors.New("there is no federated token")

// checkTokenFile checks the federated token. It returns what works, and lines with the token's claims, for comparison with the
// identity's federated credential. It never returns the token, and does not verify the signature: Entra ID does.
func checkTokenFile(settings identity.Settings) (works string, notes []string, err error) {
	path, audience := settings.TokenFile, settings.Audience()
	content, err := settings.FederatedToken()
	if err != nil {
		return "", nil, fmt.Errorf("%w: %w", errNoToken, err)
	}
	var claims jwt.Claims
	token, err := jwt.ParseSigned(strings.TrimSpace(content), algorithms)
	if err != nil || token.UnsafeClaimsWithoutVerification(&claims) != nil || claims.Expiry == nil {
		return "", nil, fmt.Errorf("%s does not hold a signed JSON Web Token with an expiry; fix: AZURE_FEDERATED_TOKEN_FILE must name the projected service-account token", path)
	}
	notes = []string{
		fmt.Sprintf("issuer    %.300s", claims.Issuer),
		fmt.Sprintf("subject   %.300s", claims.Subject),
		fmt.Sprintf("audience  %.300s", strings.Join(claims.Audience, ", ")),
	}
	bound := os.Getenv("AZURE_KUBERNETES_TOKEN_PROXY") != ""
	if bound {
		notes = append(notes, "identity bindings exchange this token; no federated credential has to match it")
	} else {
		notes = append(notes, "a federated credential of the identity must have exactly these three values")
	}
	if err := claims.ValidateWithLeeway(jwt.Expected{}, 0); err != nil {
		return "", notes, fmt.Errorf("%s: %w; fix: does the kubelet renew it, and is the node's clock right", path, err)
	}
	if !bound && !slices.Equal(claims.Audience, jwt.Audience{audience}) {
		return "", notes, warning{fmt.Errorf("%s has another audience than %s, which AZURE_AUTHORITY_HOST implies; "+
			"fix: set it in the token's volume, or give the federated credential the token's audience", path, audience)}
	}
	return fmt.Sprintf("%s, for %v", path, left(claims.Expiry.Time())), notes, nil
}

// left returns the time until t in whole seconds.
func left(t time.Time) time.Duration { return time.Until(t).Round(time.Second) }
