// Package issuer replaces the two token services of a real deployment. [Issuer] replaces Entra ID, which exchanges a workload's federated
// token for an access token. [Cluster] and [TokenFile] replace the Kubernetes cluster, which issues and rotates the federated token.
package issuer

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

const (
	// Audience is the audience that Entra ID requires in a federated token.
	Audience = "api://AzureADTokenExchange"
	// Scope is the only scope of access tokens.
	Scope = "https://storage.azure.com/.default"

	assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	keyBits       = 2048
	clockSkew     = 5 * time.Minute // by which a token may be ahead, as at Entra ID
	maxForm       = 64 << 10        // bytes
)

// Config describes the only workload of an issuer.
type Config struct {
	Tenant   string // tenant ID
	ClientID string // of the application or managed identity
	ObjectID string // of its service principal

	// Issuer and Subject are the federated credential: the required iss and sub of federated tokens. The required aud is [Audience].
	Issuer, Subject string

	// Client fetches the OpenID configuration and the keys of Issuer.
	Client *http.Client
	// Lifetime is the lifetime of access tokens, 1 h by default.
	Lifetime time.Duration
	// Now is the issuer's clock, time.Now by default.
	Now func() time.Time
	// Log receives one line for each exchange, without tokens. It may be nil.
	Log *slog.Logger
}

// Issuer is an [http.Handler] that behaves like Entra ID for one application of one tenant: it exchanges a federated token for an access
// token for storage. It verifies the federated token's signature with the keys of its issuer, and its issuer, subject, audience and times.
// It rejects tokens with Entra ID's error codes. Azurite accepts its access tokens without verifying their signature, so the checks
// here are the only ones.
type Issuer struct {
	cfg Config
	key *rsa.PrivateKey
	mux *http.ServeMux

	issued atomic.Int64

	mu       sync.Mutex
	verifier *oidc.IDTokenVerifier // nil until cfg.Issuer has answered
}

// signingKey returns the key of all issuers of this process. Creating a key takes as long as the rest of a system's start.
var signingKey = sync.OnceValues(newKey)

// New returns an issuer. It sends no request to cfg.Issuer before the first exchange.
func New(cfg Config) (*Issuer, error) {
	key, err := signingKey()
	if err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.Lifetime = cmp.Or(cfg.Lifetime, time.Hour)
	i := &Issuer{cfg: cfg, key: key, mux: http.NewServeMux()}
	i.mux.HandleFunc("GET /{tenant}/v2.0/.well-known/openid-configuration", i.configuration)
	i.mux.HandleFunc("POST /{tenant}/oauth2/v2.0/token", i.token)
	return i, nil
}

// Issued returns the number of access tokens issued over HTTP.
func (i *Issuer) Issued() int64 { return i.issued.Load() }

func (i *Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mux.ServeHTTP(w, r)
}

func (i *Issuer) configuration(w http.ResponseWriter, r *http.Request) {
	if r.PathValue("tenant") != i.cfg.Tenant {
		i.reject(w, r, "", unknownTenant(r.PathValue("tenant")))
		return
	}
	base := "https://" + r.Host + "/" + i.cfg.Tenant
	writeJSON(w, http.StatusOK, map[string]string{ // the parts that MSAL requires
		"issuer":                 base + "/v2.0",
		"authorization_endpoint": base + "/oauth2/v2.0/authorize",
		"token_endpoint":         base + "/oauth2/v2.0/token",
	})
}

func (i *Issuer) token(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	subject, failed := i.check(r)
	if failed != nil {
		i.reject(w, r, subject, failed)
		return
	}
	token, err := i.AccessToken(i.cfg.Lifetime)
	if err != nil {
		i.reject(w, r, subject, &tokenError{http.StatusInternalServerError, "server_error", 90000, err.Error()})
		return
	}
	i.issued.Add(1)
	i.cfg.Log.InfoContext(r.Context(), "token exchange", "subject", subject, "outcome", "issued", "lifetime", i.cfg.Lifetime.String())
	seconds := int64(i.cfg.Lifetime / time.Second)
	writeJSON(w, http.StatusOK, map[string]any{
		"token_type": "Bearer", "expires_in": seconds, "ext_expires_in": seconds, "access_token": token,
	})
}

// AccessToken returns an access token without an exchange.
func (i *Issuer) AccessToken(lifetime time.Duration) (string, error) {
	now := i.cfg.Now()
	return sign(i.key, map[string]any{
		"iss": "https://sts.windows.net/" + i.cfg.Tenant + "/",
		"aud": "https://storage.azure.com",
		"iat": now.Add(-clockSkew).Unix(),
		"nbf": now.Add(-clockSkew).Unix(),
		"exp": expiry(now.Add(lifetime)),
		"oid": i.cfg.ObjectID, "sub": i.cfg.ObjectID,
		"tid": i.cfg.Tenant, "appid": i.cfg.ClientID, "ver": "1.0",
		"uti": rand.Text(), // two tokens of the same second must differ
	})
}

// check validates a token request. It returns the subject of the federated token if it can be read, and the error to answer with.
func (i *Issuer) check(r *http.Request) (subject string, failed *tokenError) {
	if r.PathValue("tenant") != i.cfg.Tenant {
		return "", unknownTenant(r.PathValue("tenant"))
	}
	if err := r.ParseForm(); err != nil {
		return "", &tokenError{http.StatusBadRequest, "invalid_request", 900144, "The request body cannot be read: " + err.Error() + "."}
	}
	form := r.PostForm
	if grant := form.Get("grant_type"); grant != "client_credentials" {
		return "", &tokenError{http.StatusBadRequest, "unsupported_grant_type", 70003, fmt.Sprintf("The app requested an unsupported grant type '%s'.", grant)}
	}
	if id := form.Get("client_id"); id != i.cfg.ClientID {
		return "", &tokenError{http.StatusBadRequest, "unauthorized_client", 700016, fmt.Sprintf("Application with identifier '%s' was not found in the directory '%s'.", id, i.cfg.Tenant)}
	}
	// MSAL also requests scopes of OpenID Connect, which Entra ID ignores here.
	scopes := slices.DeleteFunc(strings.Fields(form.Get("scope")), func(s string) bool {
		return s == "openid" || s == "offline_access" || s == "profile"
	})
	if !slices.Equal(scopes, []string{Scope}) {
		return "", &tokenError{http.StatusBadRequest, "invalid_scope", 70011, fmt.Sprintf("The provided value for the input parameter 'scope' is not valid. The scope '%s' is not valid.", form.Get("scope"))}
	}
	if form.Get("client_assertion_type") != assertionType || form.Get("client_assertion") == "" {
		return "", &tokenError{http.StatusUnauthorized, "invalid_client", 7000218, "The request body must contain the following parameter: 'client_assertion' or 'client_secret'."}
	}
	return i.checkAssertion(r.Context(), form.Get("client_assertion"))
}

func (i *Issuer) checkAssertion(ctx context.Context, assertion string) (subject string, failed *tokenError) {
	const unmatched = " Check your federated identity credential Subject, Audience and Issuer against the presented assertion."
	invalid := func(code int, format string, args ...any) *tokenError {
		return &tokenError{http.StatusUnauthorized, "invalid_client", code, fmt.Sprintf(format, args...)}
	}
	parsed, err := jwt.ParseSigned(assertion, []jose.SignatureAlgorithm{jose.RS256})
	var c jwt.Claims
	if err == nil {
		err = parsed.UnsafeClaimsWithoutVerification(&c) // verified below
	}
	if err != nil {
		return "", invalid(50027, "JWT token is invalid or malformed: %v.", err)
	}
	// The order is that of Entra ID: the federated credential first, then the signature.
	switch {
	case c.Issuer != i.cfg.Issuer:
		return c.Subject, invalid(700211, "No matching federated identity record found for presented assertion issuer '%s'.%s", c.Issuer, unmatched)
	case c.Subject != i.cfg.Subject && strings.EqualFold(c.Subject, i.cfg.Subject):
		return c.Subject, invalid(7002138, "No matching federated identity record found for presented assertion subject '%s'. The subject matches with case-insensitive comparison, but not with case-sensitive comparison.%s", c.Subject, unmatched)
	case c.Subject != i.cfg.Subject:
		return c.Subject, invalid(700213, "No matching federated identity record found for presented assertion subject '%s'.%s", c.Subject, unmatched)
	case !c.Audience.Contains(Audience):
		return c.Subject, invalid(700212, "No matching federated identity record found for presented assertion audience '%s'.%s", strings.Join(c.Audience, " "), unmatched)
	}
	verifier, err := i.verify()
	if err != nil {
		return c.Subject, invalid(50166, "Request to External OIDC endpoint failed: %v.", err)
	}
	if _, err := verifier.Verify(ctx, assertion); err != nil {
		return c.Subject, invalid(700027, "Client assertion contains an invalid signature: %v.", err)
	}
	now := i.cfg.Now()
	if c.Expiry == nil || !now.Before(c.Expiry.Time()) ||
		(c.NotBefore != nil && c.NotBefore.Time().After(now.Add(clockSkew))) ||
		(c.IssuedAt != nil && c.IssuedAt.Time().After(now.Add(clockSkew))) {
		return c.Subject, invalid(700024, "Client assertion is not within its valid time range. Current time: %s, assertion valid from %s, expiry time of assertion %s.",
			stamp(now), stamp(c.NotBefore.Time()), stamp(c.Expiry.Time()))
	}
	return c.Subject, nil
}

// verify returns the verifier of federated tokens. It fetches the OpenID configuration of their issuer until it has succeeded once. The
// verifier fetches the keys again when a token names an unknown key.
func (i *Issuer) verify() (*oidc.IDTokenVerifier, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.verifier == nil {
		// The provider stores this context for later key requests: it must outlive the current request.
		provider, err := oidc.NewProvider(oidc.ClientContext(context.Background(), i.cfg.Client), i.cfg.Issuer)
		if err != nil {
			return nil, err
		}
		i.verifier = provider.Verifier(&oidc.Config{
			ClientID:             Audience,
			SupportedSigningAlgs: []string{oidc.RS256},
			SkipExpiryCheck:      true, // checked by the caller, with its own error code
		})
	}
	return i.verifier, nil
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store, no-cache")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // fails if the client has disconnected
}
