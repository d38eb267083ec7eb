// Package callers decides who may do what: it verifies the OpenID Connect token that
// a caller of the public API sent and the frontend passed on, and lets the caller at
// the one picture that the token names. It is here and not in the frontend, so that
// who takes over the frontend can act for those alone whose tokens pass through it.
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
	// ClockSkew is how long before its beginning and after its end a token is taken all the same.
	ClockSkew = 2 * time.Minute

	// A key that the issuer has withdrawn is taken for so long at most: a token makes
	// the signer fetch the keys only when no known key has signed it.
	renewEvery = time.Hour
)

// Settings say whose tokens are taken and what they allow.
type Settings struct {
	access.Policy
	Anonymous bool   `env:"ANONYMOUS_ACCESS" envDefault:"false" help:"true turns authentication off: every client can store, read, replace and delete every picture. The signer does not start unless this or OIDC_ISSUER is set"`
	Audience  string `env:"OIDC_AUDIENCE" help:"with OIDC_ISSUER, whom a token must be for, as it has it in aud: at Entra ID the client id of the API's registration"`
	Claim     string `env:"OIDC_USER_CLAIM" envDefault:"sub" help:"with OIDC_ISSUER, the claim that is the name of the caller's own picture, such as oid at Entra ID; it must be one that callers cannot choose"`

	ratelimit.RequestLimits // of each caller
}

// Validate reports the faults of the settings, joined.
func (s Settings) Validate() error {
	return errors.Join(
		s.Policy.Validate(),
		config.Require(!s.AuthenticationOn() || s.Audience != "",
			"OIDC_AUDIENCE is not set: with OIDC_ISSUER it says whom tokens must be for, or one for any other service of that issuer would do"),
		config.Require(!s.AuthenticationOn() || !s.Anonymous,
			"OIDC_ISSUER and ANONYMOUS_ACCESS=true are both set: remove ANONYMOUS_ACCESS to authenticate clients, or OIDC_ISSUER to turn authentication off"),
		config.Require(s.AuthenticationOn() || s.Audience == "", "OIDC_ISSUER is not set, and OIDC_AUDIENCE is: set both, or neither and ANONYMOUS_ACCESS=true"),
		config.Require(s.AuthenticationOn() || s.Audience != "" || s.Anonymous,
			"authentication is not configured: set OIDC_ISSUER and OIDC_AUDIENCE to require bearer tokens, or ANONYMOUS_ACCESS=true to let every client store, read, replace and delete every picture"),
		s.RequestLimits.Validate(),
	)
}

// Options are the settings, which the caller has validated, and what the callers are verified with.
type Options struct {
	Settings
	Waiters *ratelimit.Pool // of requests that wait for the issuer's keys, by client
	Client  *http.Client
}

// Callers knows the callers.
type Callers struct {
	opts     Options
	log      *slog.Logger
	keys     atomic.Pointer[keySet]    // nil before the issuer has answered
	failed   atomic.Pointer[error]     // why it has not
	fetches  singleflight.Group        // that tokens cause
	limit    *rate.Limiter             // of fetches
	clients  *ratelimit.RequestLimiter // by sub, or by name where a token has none
	outcomes *prometheus.CounterVec
}

// Outcomes of asking who calls, as the metric has them.
const (
	known       = "authenticated"
	anonymous   = "no_token"
	expired     = "expired"
	invalid     = "invalid"
	forbidden   = "forbidden"
	limited     = "rate_limited"
	unavailable = "issuer_unavailable"
)

// New returns the callers that opts describe. It sends no request before Run.
func New(opts Options, log *slog.Logger, reg prometheus.Registerer) *Callers {
	return &Callers{
		opts: opts, log: log,
		limit:   rate.NewLimiter(rate.Every(keysEvery), keysBurst),
		clients: ratelimit.NewRequestLimiter("signer", "caller", opts.RequestLimits, reg),
		outcomes: telemetry.NewCounterVec(reg, "cats_signer_authentications_total", "Calls that needed a known caller, by what came of asking who calls.",
			"outcome", known, anonymous, expired, invalid, forbidden, limited, unavailable),
	}
}

// Run fetches the issuer's configuration and keys, and renews them, until ctx is done.
func (c *Callers) Run(ctx context.Context) error {
	log := c.log.With("issuer", c.opts.Issuer)
	refresh.Keep(ctx, log, "fetching the issuer's keys failed; the known keys stay in use", nil, func(ctx context.Context) (time.Duration, error) {
		return renewEvery, c.Fetch(ctx)
	})
	return nil
}

// Ready returns nil once tokens can be checked.
func (c *Callers) Ready() error {
	if c.keys.Load() != nil {
		return nil
	}
	if err := c.failed.Load(); err != nil {
		return apierror.ErrIssuerUnavailable.Wrap(*err)
	}
	return apierror.ErrIssuerUnavailable.Wrap(errors.New("the issuer of the callers' tokens has not answered yet"))
}

// caller is an authenticated caller.
type caller struct {
	id     string         // key of the caller's limits
	name   signerapi.User // owner of the caller's picture; the zero User for none
	noName error          // why name is the zero User; holds no value of the token
}

// of returns the caller on whose behalf ctx is, and counts a request of theirs.
func (c *Callers) of(ctx context.Context) (caller, error) {
	token := signerapi.TokenFrom(ctx)
	if token == "" {
		return caller{}, c.refuse(anonymous, apierror.ErrUnauthenticated)
	}
	if err := c.Ready(); err != nil {
		return caller{}, c.refuse(unavailable, err)
	}
	claims, err := c.claims(ctx, string(token))
	switch {
	case err == nil:
	case errors.Is(err, jwt.ErrExpired):
		return caller{}, c.refuse(expired, apierror.ErrUnauthenticated.WithDetail("the token has expired").Wrap(err))
	case errors.Is(err, apierror.ErrIssuerUnavailable):
		return caller{}, c.refuse(unavailable, err)
	case errors.Is(err, apierror.ErrRateLimited), errors.Is(err, apierror.ErrOverloaded): // of the waiters
		return caller{}, c.refuse(limited, err)
	case ctx.Err() != nil: // while it waited for the issuer's keys
		return caller{}, apierror.ErrIncomplete.Wrap(context.Cause(ctx))
	default:
		return caller{}, c.refuse(invalid, apierror.ErrUnauthenticated.WithDetail("the token is not valid here").Wrap(brief(err)))
	}
	who := caller{}
	who.name, who.noName = nameIn(claims, c.opts.Claim)
	subject, _ := claims["sub"].(string)
	who.id = cmp.Or(subject, who.name.String()) // Azure AD B2C can leave sub out
	if _, err := c.clients.Allow(who.id); err != nil {
		return caller{}, c.refuse(limited, err)
	}
	return who, nil
}

// nameIn returns the user name in the claim of a token. The error names claims and the
// types of their values, and holds no value.
func nameIn(claims map[string]any, claim string) (signerapi.User, error) {
	value, ok := claims[claim].(string)
	if !ok {
		return signerapi.User{}, fmt.Errorf("the claim %s of the token is %s: want a string", claim, kind(claims, claim))
	}
	// An issuer that does not verify addresses lets a caller enter that of another user.
	if claim == "email" && claims["email_verified"] != true {
		return signerapi.User{}, fmt.Errorf("the claim email_verified of the token is %s: want the boolean true", kind(claims, "email_verified"))
	}
	name, err := signerapi.ParseUser(value)
	if err != nil {
		return name, fmt.Errorf("the claim %s of the token cannot be a user name: %s", claim, apierror.AsError(err).Detail)
	}
	return name, nil
}

// kinds has the JSON types in words, by the Go type of a decoded value.
var kinds = map[reflect.Kind]string{
	reflect.Invalid: "null", reflect.String: "a string", reflect.Float64: "a number", reflect.Slice: "a list", reflect.Map: "an object",
}

// kind returns the JSON type of a claim, in words.
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

func (c *Callers) refuse(outcome string, err error) error {
	c.outcomes.WithLabelValues(outcome).Inc()
	return err
}

// permitted returns the caller, if rule lets them use the picture of user. Where rule is Anyone, it asks for no token. A rule that
// is not known is Own.
func (c *Callers) permitted(ctx context.Context, user signerapi.User, rule access.ReadAccess) (caller, error) {
	if rule == access.Anyone {
		return caller{}, nil
	}
	who, err := c.of(ctx)
	if err != nil {
		return caller{}, err
	}
	if rule != access.SignedIn && (who.name != user || who.noName != nil) {
		reason := cmp.Or(who.noName, fmt.Errorf("the claim %s of the token names another user", c.opts.Claim))
		return caller{}, c.refuse(forbidden, apierror.ErrForbidden.WithDetail("the token is not that of the one whose picture this is").Wrap(reason))
	}
	c.outcomes.WithLabelValues(known).Inc()
	return who, nil
}
