// Package auth authenticates and authorizes the callers of the public API.
//
// It verifies the OpenID Connect token that the frontend passes on, and permits access to the one picture that a claim of the token
// names. The signer does this, not the frontend: an attacker who controls the frontend then acts only for callers whose tokens pass
// through it.
package auth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"sync/atomic"
	"time"

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
		config.Require(s.AuthenticationOn() || s.Audience == "", "OIDC_AUDIENCE is set, and OIDC_ISSUER is not: set both, or set neither and ANONYMOUS_ACCESS=true"),
		config.Require(s.AuthenticationOn() || s.Audience != "" || s.AnonymousAccess,
			"authentication is not configured: set OIDC_ISSUER and OIDC_AUDIENCE to require bearer tokens, or ANONYMOUS_ACCESS=true to let every client store, read, replace and delete every picture"),
		s.RequestLimits.Validate(),
	)
}

// Options configure an [Authenticator]. Settings must be valid.
type Options struct {
	Settings
	Waiters *ratelimit.Pool // slots for requests that wait for the issuer's keys, by client
	Client  *http.Client    // for requests to the issuer
}

// Authenticator verifies callers' tokens. It is safe for concurrent use.
type Authenticator struct {
	opts     Options
	log      *slog.Logger
	keys     atomic.Pointer[keySet]    // nil before the first successful fetch
	failed   atomic.Pointer[error]     // error of the last failed fetch
	fetches  singleflight.Group        // fetches that tokens of unknown keys cause
	limit    *rate.Limiter             // of these fetches
	callers  *ratelimit.RequestLimiter // by sub, or by user name if a token has no sub
	outcomes *prometheus.CounterVec
}

// Values of the label outcome.
const (
	accepted    = "authenticated"
	noToken     = "no_token"
	expired     = "expired"
	invalid     = "invalid"
	forbidden   = "forbidden"
	limited     = "rate_limited"
	unavailable = "issuer_unavailable"
)

// New returns an Authenticator. It sends no request before Run or Fetch.
func New(opts Options, log *slog.Logger, reg prometheus.Registerer) *Authenticator {
	return &Authenticator{
		opts: opts, log: log,
		limit:   rate.NewLimiter(rate.Every(keysEvery), keysBurst),
		callers: ratelimit.NewRequestLimiter("signer", "caller", opts.RequestLimits, reg),
		outcomes: telemetry.NewCounterVec(reg, "cats_signer_authentications_total", "Calls that need an authenticated caller, by outcome.",
			"outcome", accepted, noToken, expired, invalid, forbidden, limited, unavailable),
	}
}

// Run fetches the issuer's configuration and keys, and renews them every hour, until ctx is done.
func (a *Authenticator) Run(ctx context.Context) error {
	log := a.log.With("issuer", a.opts.Issuer)
	refresh.Keep(ctx, log, "fetching the issuer's keys failed; the cached keys stay in use", nil, func(ctx context.Context) (time.Duration, error) {
		return keysTTL, a.Fetch(ctx)
	})
	return nil
}

// Ready returns nil after the first successful fetch of the issuer's keys, otherwise ErrIssuerUnavailable.
func (a *Authenticator) Ready() error {
	if a.keys.Load() != nil {
		return nil
	}
	if err := a.failed.Load(); err != nil {
		return apierror.ErrIssuerUnavailable.Wrap(*err)
	}
	return apierror.ErrIssuerUnavailable.Wrap(errors.New("the issuer's keys are being fetched"))
}

// caller is an authenticated caller.
type caller struct {
	id     string         // key of the caller in rate limits and slots
	user   signerapi.User // user name in the token; the zero User if it has none
	noUser error          // why user is the zero User; contains no value of the token
}

// authenticate returns the caller of the request that ctx belongs to, and counts the request.
func (a *Authenticator) authenticate(ctx context.Context) (caller, error) {
	token := signerapi.TokenFrom(ctx)
	if token == "" {
		return caller{}, a.reject(noToken, apierror.ErrUnauthenticated)
	}
	if err := a.Ready(); err != nil {
		return caller{}, a.reject(unavailable, err)
	}
	claims, err := a.claims(ctx, string(token))
	switch {
	case err == nil:
	case errors.Is(err, jwt.ErrExpired):
		return caller{}, a.reject(expired, apierror.ErrUnauthenticated.WithDetail("the token has expired").Wrap(err))
	case errors.Is(err, apierror.ErrIssuerUnavailable):
		return caller{}, a.reject(unavailable, err)
	case errors.Is(err, apierror.ErrRateLimited), errors.Is(err, apierror.ErrOverloaded): // from Waiters
		return caller{}, a.reject(limited, err)
	case ctx.Err() != nil: // while the request waited for the issuer's keys
		return caller{}, apierror.ErrIncomplete.Wrap(context.Cause(ctx))
	default:
		return caller{}, a.reject(invalid, apierror.ErrUnauthenticated.WithDetail("the token is not valid for this service").Wrap(brief(err)))
	}
	who := caller{}
	who.user, who.noUser = userOf(claims, a.opts.UserClaim)
	subject, _ := claims["sub"].(string)
	who.id = cmp.Or(subject, who.user.String()) // tokens of Azure AD B2C can lack sub
	if _, err := a.callers.Allow(who.id); err != nil {
		return caller{}, a.reject(limited, err)
	}
	return who, nil
}

// userOf returns the user name in a claim. The error names claims and the JSON types of their values, and contains no value.
func userOf(claims map[string]any, claim string) (signerapi.User, error) {
	value, ok := claims[claim].(string)
	if !ok {
		return signerapi.User{}, fmt.Errorf("the claim %s of the token is %s: want a string", claim, kind(claims, claim))
	}
	// Some issuers let a caller enter the address of another user.
	if claim == "email" && claims["email_verified"] != true {
		return signerapi.User{}, fmt.Errorf("the claim email_verified of the token is %s: want the boolean true", kind(claims, "email_verified"))
	}
	name, err := signerapi.ParseUser(value)
	if err != nil {
		return name, fmt.Errorf("the claim %s of the token cannot be a user name: %s", claim, apierror.AsError(err).Detail)
	}
	return name, nil
}

// kinds has the names of JSON types by the Go kind of the decoded value.
var kinds = map[reflect.Kind]string{
	reflect.Invalid: "null", reflect.String: "a string", reflect.Float64: "a number", reflect.Slice: "a list", reflect.Map: "an object",
}

// kind returns the name of a claim's JSON type.
func kind(claims map[string]any, claim string) string {
	value, ok := claims[claim]
	if !ok {
		return "missing"
	}
	if truth, ok := value.(bool); ok {
		return fmt.Sprintf("the boolean %t", truth)
	}
	return kinds[reflect.ValueOf(value).Kind()]
}

// reject counts outcome and returns err.
func (a *Authenticator) reject(outcome string, err error) error {
	a.outcomes.WithLabelValues(outcome).Inc()
	return err
}

// authorize returns the caller if rule permits access to the picture of user, otherwise ErrUnauthenticated, ErrForbidden,
// ErrRateLimited or ErrIssuerUnavailable. With [access.Anyone] it requires no token. An unknown rule is [access.Own].
func (a *Authenticator) authorize(ctx context.Context, user signerapi.User, rule access.ReadAccess) (caller, error) {
	if rule == access.Anyone {
		return caller{}, nil
	}
	who, err := a.authenticate(ctx)
	if err != nil {
		return caller{}, err
	}
	if rule != access.SignedIn && (who.user != user || who.noUser != nil) {
		reason := cmp.Or(who.noUser, fmt.Errorf("the claim %s of the token names another user", a.opts.UserClaim))
		return caller{}, a.reject(forbidden, apierror.ErrForbidden.WithDetail("the token does not belong to the owner of this picture").Wrap(reason))
	}
	a.outcomes.WithLabelValues(accepted).Inc()
	return who, nil
}
