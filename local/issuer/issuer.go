// Package issuer stands for the two token services of a real deployment: Entra
// ID, which exchanges a workload's federated token for an access token
// ([Issuer]), and the Kubernetes cluster that makes and rotates that federated
// token ([Cluster], [TokenFile]).
package issuer

import (
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
	// Audience is what Entra ID wants a federated token to be for.
	Audience = "api://AzureADTokenExchange"
	// Scope is the only one that the issuer gives tokens for.
	Scope = "https://storage.azure.com/.default"

	assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	keyBits       = 2048
	clockSkew     = 5 * time.Minute // that Entra ID allows a token from the future
	maxForm       = 64 << 10
)

// Config says which one workload the issuer knows.
type Config struct {
	Tenant   string // tenant id
	ClientID string // of the application or managed identity
	ObjectID string // of its service principal

	// Issuer, Subject and [Audience] are the federated credential: whose tokens,
	// about whom, are accepted.
	Issuer, Subject string

	// Client reaches Issuer for its OpenID configuration and its keys.
	Client *http.Client
	// Lifetime of access tokens, 1 h when zero.
	Lifetime time.Duration
	// Now is the issuer's clock, time.Now when nil.
	Now func() time.Time
	// Log gets a line for each exchange, which never holds a token.
	Log *slog.Logger
}

// Issuer is an [http.Handler] that does what Entra ID does for one application
// of one tenant: it exchanges a federated token for an access token to storage.
// It checks the federated token's signature against the keys that its maker
// publishes, and issuer, subject, audience and times, and refuses with Entra ID's
// own codes. Its access tokens are what Azurite takes, which checks no signature:
// this is the only place that checks anything.
type Issuer struct {
	cfg Config
	key *rsa.PrivateKey
	mux *http.ServeMux

	lifetime atomic.Int64
	issued   atomic.Int64
	wrapped  atomic.Pointer[http.Handler]

	mu       sync.Mutex
	verifier *oidc.IDTokenVerifier // nil before cfg.Issuer has answered
}

// signingKey is what all issuers of a process sign with, as Entra ID does for all
// tenants. To make one takes as long as all else that a system needs.
var signingKey = sync.OnceValues(newKey)

// New returns an issuer. Nothing is fetched from cfg.Issuer before the first exchange.
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
	i := &Issuer{cfg: cfg, key: key, mux: http.NewServeMux()}
	i.SetLifetime(cfg.Lifetime)
	i.mux.HandleFunc("GET /{tenant}/v2.0/.well-known/openid-configuration", i.configuration)
	i.mux.HandleFunc("GET /{tenant}/discovery/v2.0/keys", i.keys)
	i.mux.HandleFunc("POST /{tenant}/oauth2/v2.0/token", i.token)
	i.Use(nil)
	return i, nil
}

// SetLifetime changes how long access tokens live from now on, 0 for 1 h.
func (i *Issuer) SetLifetime(d time.Duration) {
	if d == 0 {
		d = time.Hour
	}
	i.lifetime.Store(int64(d))
}

// Use puts middleware before the issuer, in place of what an earlier call put
// there, so that a test can make it slow or broken; nil takes it away.
func (i *Issuer) Use(middleware func(http.Handler) http.Handler) {
	var h http.Handler = i.mux
	if middleware != nil {
		h = middleware(h)
	}
	i.wrapped.Store(&h)
}

// Issued is how many access tokens were handed out over HTTP.
func (i *Issuer) Issued() int64 { return i.issued.Load() }

func (i *Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	(*i.wrapped.Load()).ServeHTTP(w, r)
}

func (i *Issuer) configuration(w http.ResponseWriter, r *http.Request) {
	if r.PathValue("tenant") != i.cfg.Tenant {
		i.refuse(w, r, "", unknownTenant(r.PathValue("tenant")))
		return
	}
	base := "https://" + r.Host + "/" + i.cfg.Tenant
	answer(w, http.StatusOK, map[string]any{
		"issuer":                                base + "/v2.0",
		"authorization_endpoint":                base + "/oauth2/v2.0/authorize",
		"token_endpoint":                        base + "/oauth2/v2.0/token",
		"jwks_uri":                              base + "/discovery/v2.0/keys",
		"token_endpoint_auth_methods_supported": []string{"private_key_jwt"},
		"response_types_supported":              []string{"code"},
		"subject_types_supported":               []string{"pairwise"},
		"id_token_signing_alg_values_supported": []string{string(jose.RS256)},
	})
}

func (i *Issuer) keys(w http.ResponseWriter, r *http.Request) {
	if r.PathValue("tenant") != i.cfg.Tenant {
		i.refuse(w, r, "", unknownTenant(r.PathValue("tenant")))
		return
	}
	answer(w, http.StatusOK, publicKeys(i.key))
}

func (i *Issuer) token(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	subject, refused := i.check(r)
	if refused != nil {
		i.refuse(w, r, subject, refused)
		return
	}
	lifetime := time.Duration(i.lifetime.Load())
	token, err := i.AccessToken(lifetime)
	if err != nil {
		i.refuse(w, r, subject, &refusal{http.StatusInternalServerError, "server_error", 90000, err.Error()})
		return
	}
	i.issued.Add(1)
	i.cfg.Log.InfoContext(r.Context(), "token exchange", "subject", subject, "outcome", "issued", "lifetime", lifetime.String())
	seconds := int64(lifetime / time.Second)
	answer(w, http.StatusOK, map[string]any{
		"token_type": "Bearer", "expires_in": seconds, "ext_expires_in": seconds, "access_token": token,
	})
}

// AccessToken returns a token as an exchange would, without one.
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
		"uti": rand.Text(), // so that two tokens of one second differ, as those of Entra ID do
	})
}

// check returns the subject that the request's federated token claims, as far as
// it could be read, and why it gets no token.
func (i *Issuer) check(r *http.Request) (subject string, refused *refusal) {
	if r.PathValue("tenant") != i.cfg.Tenant {
		return "", unknownTenant(r.PathValue("tenant"))
	}
	if err := r.ParseForm(); err != nil {
		return "", &refusal{http.StatusBadRequest, "invalid_request", 900144, "The request body cannot be read: " + err.Error() + "."}
	}
	form := r.PostForm
	if grant := form.Get("grant_type"); grant != "client_credentials" {
		return "", &refusal{http.StatusBadRequest, "unsupported_grant_type", 70003, fmt.Sprintf("The app requested an unsupported grant type '%s'.", grant)}
	}
	if id := form.Get("client_id"); id != i.cfg.ClientID {
		return "", &refusal{http.StatusBadRequest, "unauthorized_client", 700016, fmt.Sprintf("Application with identifier '%s' was not found in the directory '%s'.", id, i.cfg.Tenant)}
	}
	// MSAL asks for OpenID Connect's own scopes besides, and Entra ID ignores them here.
	scopes := slices.DeleteFunc(strings.Fields(form.Get("scope")), func(s string) bool {
		return s == "openid" || s == "offline_access" || s == "profile"
	})
	if !slices.Equal(scopes, []string{Scope}) {
		return "", &refusal{http.StatusBadRequest, "invalid_scope", 70011, fmt.Sprintf("The provided value for the input parameter 'scope' is not valid. The scope '%s' is not valid.", form.Get("scope"))}
	}
	if form.Get("client_assertion_type") != assertionType || form.Get("client_assertion") == "" {
		return "", &refusal{http.StatusUnauthorized, "invalid_client", 7000218, "The request body must contain the following parameter: 'client_assertion' or 'client_secret'."}
	}
	return i.checkAssertion(r.Context(), form.Get("client_assertion"))
}

func (i *Issuer) checkAssertion(ctx context.Context, assertion string) (subject string, refused *refusal) {
	const unmatched = " Check your federated identity credential Subject, Audience and Issuer against the presented assertion."
	invalid := func(code int, format string, args ...any) *refusal {
		return &refusal{http.StatusUnauthorized, "invalid_client", code, fmt.Sprintf(format, args...)}
	}
	parsed, err := jwt.ParseSigned(assertion, []jose.SignatureAlgorithm{jose.RS256})
	var c jwt.Claims
	if err == nil {
		err = parsed.UnsafeClaimsWithoutVerification(&c) // verified below
	}
	if err != nil {
		return "", invalid(50027, "JWT token is invalid or malformed: %v.", err)
	}
	// As Entra ID does: find the federated credential, then its issuer's keys.
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

// verify returns the verifier of signatures. It reads the OpenID configuration
// of the federated tokens' maker until that has worked once; keys are fetched
// anew when a token names one that is not known yet.
func (i *Issuer) verify() (*oidc.IDTokenVerifier, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.verifier == nil {
		// The provider keeps this context for fetching keys: not a request's.
		provider, err := oidc.NewProvider(oidc.ClientContext(context.Background(), i.cfg.Client), i.cfg.Issuer)
		if err != nil {
			return nil, err
		}
		i.verifier = provider.Verifier(&oidc.Config{
			ClientID:             Audience,
			SupportedSigningAlgs: []string{oidc.RS256},
			SkipExpiryCheck:      true, // has a code of its own
		})
	}
	return i.verifier, nil
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store, no-cache")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client has gone
}
