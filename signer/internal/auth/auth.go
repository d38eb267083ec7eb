// Package auth authenticates and authorizes the callers of the public API.
//
// It verifies the OpenID Connect token that the frontend passes on, and permits access to the one picture that a claim of the token
// names. The signer does this, not the frontend: an attacker who controls the frontend then acts only for callers whose tokens pass
// through it.
package auth

import (
	"cmp"
	"context"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
	josejson "github.com/go-jose/go-jose/v4/json"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"cats.example/shared/access"
	"cats.example/shared/apierror"
	"cats.example/shared/config"
	"cats.example/shared/ratelimit"
	"cats.example/shared/signerapi"
	"cats.example/shared/telemetry"
	"cats.example/signer/internal/refresh"
)

const (
	// ClockSkew is how long a token is accepted before its nbf and after its exp.
	ClockSkew = 2 * time.Minute

	// keysTTL is the time between two scheduled fetches of the issuer's keys. A withdrawn key is accepted for at most this long.
	keysTTL = time.Hour
)

// Settings say which tokens are accepted and what they permit.
type Settings struct {
	access.Policy
	AnonymousAccess bool   `env:"ANONYMOUS_ACCESS" envDefault:"false" help:"true turns authentication off: every client can store, read, replace and delete every picture. The signer does not start unless this or OIDC_ISSUER is set"`
	Audience        string `env:"OIDC_AUDIENCE" help:"with OIDC_ISSUER, the audience (aud) that a token must have; at Entra ID the client ID of the API's registration"`
	UserClaim       string `env:"OIDC_USER_CLAIM" envDefault:"sub" help:"with OIDC_ISSUER, the claim that must equal the user name, such as oid at Entra ID; it must be a claim that callers cannot choose"`

	ratelimit.RequestLimits // for each authenticated caller
}

// Validate returns the validation errors of the settings, joined.
func (s Settings) Validate() error {
	return errors.Join(
		s.Policy.Validate(),
		config.Require(!s.AuthenticationOn() || s.Audience != "",
			"OIDC_AUDIENCE is not set: without it, tokens for other services of the issuer would be accepted; set it to the aud of the API's tokens"),
		config.Require(!s.AuthenticationOn() || !s.AnonymousAccess,
			"OIDC_ISSUER and ANONYMOUS_ACCESS=true are both set: remove ANONYMOUS_ACCESS to authenticate clients, or OIDC_ISSUER to turn authentication off"),
		config.Require(s.AuthenticationOn() || s.AnonymousAccess && s.Audience == "",
			"authentication is not configured: set OIDC_ISSUER and OIDC_AUDIENCE to require bearer tokens, or ANONYMOUS_ACCESS=true and neither of them to let every client store, read, replace and delete every picture"),
		s.RequestLimits.Validate(),
	)
}

// Authenticator verifies callers' tokens. It is safe for concurrent use.
type Authenticator struct {
	Settings
	client   *http.Client    // for requests to the issuer
	waiters  *ratelimit.Pool // slots for requests that wait for the issuer's keys, by client
	log      *slog.Logger
	keys     atomic.Pointer[keySet]    // nil before the first successful fetch
	failed   atomic.Pointer[error]     // why there are no keys
	fetches  singleflight.Group        // fetches that tokens of unknown keys cause
	limit    *rate.Limiter             // of these fetches
	callers  *ratelimit.RequestLimiter // by sub, or by user name if a token has no sub
	outcomes *prometheus.CounterVec
}

// New returns an Authenticator with valid settings. It sends no request before Run or Fetch.
func New(settings Settings, client *http.Client, waiters *ratelimit.Pool, log *slog.Logger, reg prometheus.Registerer) *Authenticator {
	a := &Authenticator{
		Settings: settings, client: client, waiters: waiters, log: log,
		limit:   rate.NewLimiter(rate.Every(keysEvery), keysBurst),
		callers: ratelimit.NewRequestLimiter("signer", "caller", settings.RequestLimits, reg),
		outcomes: telemetry.NewCounterVec(reg, "cats_signer_authentications_total",
			"Calls that need an authenticated caller, by outcome: ok, or the error code.", "outcome", "ok"),
	}
	a.failed.Store(new(errors.New("the issuer's keys are being fetched")))
	return a
}

// Run fetches the issuer's configuration and keys, and renews them every hour, until ctx is done.
func (a *Authenticator) Run(ctx context.Context) {
	const failed = "fetching the issuer's keys failed; the cached keys stay in use"
	refresh.Keep(ctx, a.log.With("issuer", a.Issuer), failed, nil, func(ctx context.Context) (time.Duration, error) {
		return keysTTL, a.Fetch(ctx)
	})
}

// Ready returns nil after the first successful fetch of the issuer's keys, otherwise ErrIssuerUnavailable.
func (a *Authenticator) Ready() error {
	if a.keys.Load() != nil {
		return nil
	}
	return apierror.ErrIssuerUnavailable.Wrap(*a.failed.Load())
}

// Authorize returns ctx with the key of its caller if rule permits the caller to access the picture of user. Otherwise the error
// is ErrUnauthenticated, ErrForbidden, ErrRateLimited, ErrOverloaded or ErrIssuerUnavailable. It requires no token to read
// with [access.Anyone]. An unknown rule or READ_ACCESS is [access.Own].
func (a *Authenticator) Authorize(ctx context.Context, user signerapi.User, rule signerapi.Rule) (context.Context, error) {
	required := access.Own
	if rule == signerapi.Readers {
		required = a.ReadAccess
	}
	if required == access.Anyone {
		return ctx, nil
	}
	caller, err := a.authenticate(ctx, user, required)
	outcome := "ok"
	if err != nil {
		outcome = apierror.AsError(err).Code
	}
	a.outcomes.WithLabelValues(outcome).Inc()
	return signerapi.WithCaller(ctx, caller), err
}

// authenticate returns the key of the caller in rate limits and pools, and counts the request. The caller must be user, unless
// access for everybody who is signed in is enough.
func (a *Authenticator) authenticate(ctx context.Context, user signerapi.User, required access.ReadAccess) (string, error) {
	token := signerapi.TokenFrom(ctx)
	if token == "" {
		return "", apierror.ErrUnauthenticated
	}
	if err := a.Ready(); err != nil {
		return "", err
	}
	claims, err := a.claims(ctx, string(token))
	if _, ok := errors.AsType[*apierror.Error](err); ok { // nothing is wrong with the token
		return "", err
	}
	if err != nil {
		detail := "the token is not valid for this service"
		if errors.Is(err, jwt.ErrExpired) {
			detail = "the token has expired"
		}
		return "", apierror.ErrUnauthenticated.WithDetail(detail).Wrap(brief(err))
	}
	name, noUser := userOf(claims, a.UserClaim)
	subject, _ := claims["sub"].(string)
	caller := cmp.Or(subject, name.String()) // tokens of Azure AD B2C can lack sub
	if _, err := a.callers.Allow(caller); err != nil {
		return "", err
	}
	if required != access.SignedIn && (noUser != nil || name != user) {
		reason := cmp.Or(noUser, fmt.Errorf("the claim %s of the token names another user", a.UserClaim))
		return "", apierror.ErrForbidden.WithDetail("the token does not belong to the owner of this picture").Wrap(reason)
	}
	return caller, nil
}

// userOf returns the user name in a claim. The error names claims and the Go types of their values, and contains no value.
func userOf(claims map[string]any, claim string) (signerapi.User, error) {
	value, ok := claims[claim].(string)
	if !ok {
		return signerapi.User{}, fmt.Errorf("the claim %s of the token is missing or no string (%T)", claim, claims[claim])
	}
	// Some issuers let a caller enter the address of another user.
	if verified := claims["email_verified"]; claim == "email" && verified != true {
		return signerapi.User{}, fmt.Errorf("the claim email_verified of the token is missing or not the boolean true (%T)", verified)
	}
	name, err := signerapi.ParseUser(value)
	if err != nil {
		return name, fmt.Errorf("the claim %s of the token cannot be a user name: %s", claim, apierror.AsError(err).Detail)
	}
	return name, nil
}

const (
	issuerTimeout = 6 * time.Second // for one fetch of configuration and keys

	// Rate and burst of the fetches that tokens of unknown keys cause. They also bound how long a new key is rejected.
	keysEvery = 2 * time.Second
	keysBurst = 5

	maxResponse = 1 << 20 // bytes of a response of the issuer
	maxIgnored  = 2000    // bytes about ignored keys in the log, plus one key
	minRSABits  = 2048    // RFC 7518 section 3.3
)

// algorithms has the accepted signature algorithms: those of public keys, so not none and not HS256.
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.ES256, jose.ES384, jose.ES512, jose.PS256, jose.PS384, jose.PS512, jose.EdDSA,
}

const fixIssuer = "OIDC_ISSUER must equal the iss of the tokens, and OIDC_DISCOVERY_URL, if set, must be the address of the issuer's configuration"

// keySet is the JSON Web Key Set of the issuer.
type keySet struct {
	usable  []jose.JSONWebKey
	ignored string // why the other keys are not used; "" if there are none
}

// Fetch fetches the issuer's configuration and keys, and uses them from then on. If it fails, the cached keys stay in use.
func (a *Authenticator) Fetch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, issuerTimeout)
	defer cancel()
	set, err := a.discover(ctx)
	if err != nil {
		a.failed.Store(&err)
		return err
	}
	before := a.keys.Swap(set)
	if before == nil {
		a.log.Info("authentication is on", "issuer", a.Issuer, "audience", a.Audience, "claim", a.UserClaim, "read_access", string(a.ReadAccess))
	}
	if set.ignored != "" && (before == nil || set.ignored != before.ignored) {
		a.log.Warn("issuer keys ignored", "issuer", a.Issuer, "reasons", set.ignored)
	}
	return nil
}

// discover fetches the issuer's configuration and keys. The issuer of the configuration must equal the one of the tokens
// (OpenID Connect Discovery 1.0 section 4.3). A malformed key is ignored (RFC 7517 section 5).
func (a *Authenticator) discover(ctx context.Context) (*keySet, error) {
	var doc struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	at := a.ConfigurationURL()
	if err := a.get(ctx, at, &doc); err != nil {
		return nil, fmt.Errorf("discovery: %w", brief(err))
	}
	if doc.Issuer != a.Issuer {
		return nil, fmt.Errorf("discovery: %s has the issuer %.200q, but OIDC_ISSUER is %q; fix: %s", at, doc.Issuer, a.Issuer, fixIssuer)
	}
	if !strings.HasPrefix(doc.Keys, "https://") {
		return nil, fmt.Errorf("discovery: jwks_uri is %.200q: want https", doc.Keys)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := a.get(ctx, doc.Keys, &set); err != nil {
		return nil, fmt.Errorf("fetching the issuer's keys: %w", brief(err))
	}
	keys := &keySet{}
	for _, raw := range set.Keys {
		key, err := publicKey(raw)
		switch {
		case err != nil && len(keys.ignored) < maxIgnored:
			var named struct {
				ID string `json:"kid"`
			}
			_ = json.Unmarshal(raw, &named) // best effort, for the log
			keys.ignored += fmt.Sprintf("kid %.64s: %.100s; ", named.ID, err)
		case err == nil && key.Use != "enc":
			keys.usable = append(keys.usable, key)
		}
	}
	if len(keys.usable) == 0 {
		return nil, fmt.Errorf("the issuer's JSON Web Key Set has no usable key among its %d: %.400s", len(set.Keys), keys.ignored)
	}
	return keys, nil
}

// get decodes the JSON document at url into v.
func (a *Authenticator) get(ctx context.Context, url string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Cache-Control", "no-cache")
	resp, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered with HTTP status %d; fix: %s", url, resp.StatusCode, fixIssuer)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxResponse)).Decode(v); err != nil {
		return fmt.Errorf("%s is not a JSON document of the expected form, or larger than %d bytes: %w", url, maxResponse, err)
	}
	return nil
}

// publicKey parses a JSON Web Key. It returns no error for a key that verifies signatures or is for encryption (use is enc).
func publicKey(raw []byte) (key jose.JSONWebKey, err error) {
	err = key.UnmarshalJSON(raw)
	rsaKey, isRSA := key.Key.(*rsa.PublicKey)
	switch {
	case err != nil || key.Use == "enc":
	case !key.IsPublic() || !key.Valid():
		err = errors.New("not a public key")
	case isRSA && rsaKey.N.BitLen() < minRSABits:
		err = fmt.Errorf("%d bits, the minimum is %d", rsaKey.N.BitLen(), minRSABits)
	case key.Algorithm != "" && !slices.Contains(algorithms, jose.SignatureAlgorithm(key.Algorithm)):
		err = fmt.Errorf("algorithm %q is not accepted", key.Algorithm)
	}
	return key, err
}

// verify returns the payload of a token that one of the issuer's keys has signed. If no cached key has signed it, verify fetches the
// keys, at the rate of keysEvery. It needs a slot for that.
func (a *Authenticator) verify(ctx context.Context, token string) ([]byte, error) {
	jws, err := jose.ParseSignedCompact(token, algorithms)
	if err != nil {
		return nil, err
	}
	if payload, err := a.payload(jws); err == nil {
		return payload, nil
	}
	release, err := a.waiters.Take(signerapi.ClientFrom(ctx))
	if err != nil {
		return nil, err
	}
	defer release()
	fetched := a.fetches.DoChan("", func() (any, error) {
		if !a.limit.Allow() {
			return nil, nil
		}
		return nil, a.Fetch(context.WithoutCancel(ctx)) // shared by all waiting requests
	})
	select {
	case <-ctx.Done():
		return nil, apierror.ErrIncomplete.Wrap(context.Cause(ctx))
	case result := <-fetched:
		if result.Err != nil {
			return nil, apierror.ErrIssuerUnavailable.Wrap(result.Err)
		}
	}
	return a.payload(jws)
}

// payload returns the payload of a token that one of the cached keys has signed.
func (a *Authenticator) payload(jws *jose.JSONWebSignature) ([]byte, error) {
	header := jws.Signatures[0].Header
	for _, key := range a.keys.Load().usable {
		if (header.KeyID == "" || header.KeyID == key.KeyID) && (key.Algorithm == "" || key.Algorithm == header.Algorithm) {
			if payload, err := jws.Verify(&key); err == nil {
				return payload, nil
			}
		}
	}
	return nil, errors.New("no key of the issuer has signed the token")
}

// claims returns the claims of a token that is signed, has the right issuer and audience, and is valid now.
func (a *Authenticator) claims(ctx context.Context, token string) (map[string]any, error) {
	payload, err := a.verify(ctx, token)
	if err != nil {
		return nil, err
	}
	var standard jwt.Claims
	all := map[string]any{}
	// Unlike encoding/json, this decoder matches names exactly and rejects duplicates.
	if err := errors.Join(josejson.Unmarshal(payload, &standard), josejson.Unmarshal(payload, &all)); err != nil {
		return nil, err
	}
	if standard.Expiry == nil {
		return nil, errors.New("the token has no exp")
	}
	want := jwt.Expected{Issuer: a.Issuer, AnyAudience: jwt.Audience{a.Audience}}
	if err := standard.ValidateWithLeeway(want, ClockSkew); err != nil {
		return nil, fmt.Errorf("%w; its iss is %.200q and its aud %.200q", err, standard.Issuer, strings.Join(standard.Audience, " "))
	}
	return all, nil
}

// brief bounds the text of err. Errors can quote tokens and responses of the issuer.
func brief(err error) error { return fmt.Errorf("%.400s", err.Error()) }
