// Package callers decides who may do what: it verifies the OpenID Connect token that
// a caller of the public API sent and the frontend passed on, and lets the caller at
// the one picture that the token names. It is here and not in the frontend, so that
// who takes over the frontend can act for those alone whose tokens pass through it.
package callers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"cats.example/shared/access"
	"cats.example/shared/limit"
	"cats.example/shared/signerapi"
)

const (
	// ClockSkew is how long after its end a token is taken all the same. A token that
	// begins in the future is taken for what go-oidc allows (5 minutes) less than this.
	ClockSkew = 2 * time.Minute

	issuerTimeout = 5 * time.Second // for one answer of the issuer
	firstRetry    = time.Second
	lastRetry     = 30 * time.Second
	// A key that the issuer has withdrawn is taken for so long at most: the library
	// itself looks for keys only when it sees one that it does not know.
	renewEvery = time.Hour

	// Everybody can send tokens with a key that nobody knows. So often is the issuer
	// asked for its keys at most, and no new key is unknown for longer.
	keysEvery = 2 * time.Second
	keysBurst = 5
)

// Options say whose tokens are taken and what they allow.
type Options struct {
	access.Rules
	limit.PerClient        // of each caller
	Audience        string // that a token must be for
	Claim           string // whose value is the name of the user
	Client          *http.Client
}

// Callers knows the callers.
type Callers struct {
	opts     Options
	log      *slog.Logger
	verifier atomic.Pointer[oidc.IDTokenVerifier] // nil before the issuer has answered
	failed   atomic.Pointer[error]                // why it has not
	clients  *limit.Clients[string]               // by sub
	outcomes *prometheus.CounterVec
	now      func() time.Time
}

// Outcomes of asking who calls, as the metric has them.
const (
	known       = "known"
	anonymous   = "no_token"
	expired     = "expired"
	invalid     = "invalid"
	forbidden   = "forbidden"
	limited     = "rate_limited"
	unavailable = "issuer_unavailable"
)

// New asks nobody anything before Run.
func New(opts Options, log *slog.Logger, reg prometheus.Registerer) *Callers {
	c := &Callers{opts: opts, log: log, now: time.Now, clients: limit.New[string](opts.PerClient, reg, "signer", "caller"), outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "cats_signer_callers_total", Help: "Calls that needed a known caller, by what came of asking who calls.",
	}, []string{"outcome"})}
	reg.MustRegister(c.outcomes)
	for _, o := range []string{known, anonymous, expired, invalid, forbidden, limited, unavailable} {
		c.outcomes.WithLabelValues(o)
	}
	return c
}

// Run finds out how the issuer signs, and does so again now and then, until ctx is done.
func (c *Callers) Run(ctx context.Context) error {
	retry := backoff.NewExponentialBackOff()
	retry.InitialInterval, retry.MaxInterval = firstRetry, lastRetry
	for {
		wait := renewEvery
		v, err := c.discover(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			c.failed.Store(&err)
			wait = retry.NextBackOff()
			c.log.Error("the issuer of the callers' tokens cannot be asked for its keys; those at hand are kept",
				"issuer", c.opts.Issuer, "error", err.Error(), "retry_in", wait.Round(time.Millisecond).String())
		default:
			retry.Reset()
			if c.verifier.Swap(v) == nil {
				c.log.Info("callers are known by their tokens", "issuer", c.opts.Issuer, "audience", c.opts.Audience, "claim", c.opts.Claim, "read_access", string(c.opts.Read))
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// Ready returns nil once tokens can be checked.
func (c *Callers) Ready() error {
	if c.verifier.Load() != nil {
		return nil
	}
	if err := c.failed.Load(); err != nil {
		return signerapi.ErrIssuerUnavailable.Wrap(*err)
	}
	return signerapi.ErrIssuerUnavailable.Wrap(errors.New("the issuer of the callers' tokens has not answered yet"))
}

// Check returns why tokens could not be verified now, for [cats.example/signer/internal/doctor].
func (c *Callers) Check(ctx context.Context) error {
	_, err := c.discover(ctx)
	return err
}

// discover asks the issuer how it signs, and for its keys.
func (c *Callers) discover(ctx context.Context) (*oidc.IDTokenVerifier, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*issuerTimeout)
	defer cancel()
	client := *c.opts.Client
	client.Timeout = issuerTimeout
	bounded := boundedAnswers{client.Transport}
	client.Transport = bounded
	provider, err := oidc.NewProvider(oidc.ClientContext(ctx, &client), c.opts.Issuer)
	if err != nil {
		return nil, fmt.Errorf("discovery: %w", err)
	}
	var said struct {
		Keys string   `json:"jwks_uri"`
		Algs []string `json:"id_token_signing_alg_values_supported"`
	}
	if err := provider.Claims(&said); err != nil {
		return nil, fmt.Errorf("discovery: %w", err)
	}
	if !strings.HasPrefix(said.Keys, "https://") {
		return nil, fmt.Errorf("discovery: jwks_uri is %q: want https", said.Keys)
	}
	keysClient := client
	keysClient.Transport = seldom{bounded, rate.NewLimiter(rate.Every(keysEvery), keysBurst)}
	keys := &keySet{oidc.NewRemoteKeySet(oidc.ClientContext(context.WithoutCancel(ctx), &keysClient), said.Keys)}
	// The keys are fetched when a token wants them; this one, signed by nobody, does.
	if _, err := keys.VerifySignature(ctx, "eyJhbGciOiJSUzI1NiJ9.e30.AAAA"); errors.Is(err, errNoKeys) {
		return nil, err
	}
	return oidc.NewVerifier(c.opts.Issuer, keys, &oidc.Config{
		ClientID: c.opts.Audience,
		// Ours and not the issuer's word for "none" or for secrets that are shared.
		SupportedSigningAlgs: signedByKeys(said.Algs),
		Now:                  func() time.Time { return c.now().Add(-ClockSkew) },
	}), nil
}

// signedByKeys returns those of algs that sign with a key of which the public half
// verifies; RS256, which every issuer has, where there is none.
func signedByKeys(algs []string) []string {
	var ours []string
	for _, alg := range algs {
		switch alg {
		case oidc.RS256, oidc.RS384, oidc.RS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.EdDSA:
			ours = append(ours, alg)
		}
	}
	if ours == nil {
		return []string{oidc.RS256}
	}
	return ours
}

// errNoKeys is that the issuer's keys could not be had.
var errNoKeys = errors.New("fetching the issuer's keys")

// errSeldom is that they were had a moment ago.
var errSeldom = errors.New("the issuer was asked for its keys a moment ago")

// keySet is the library's, whose errors keep what they are for [Callers.of].
type keySet struct{ *oidc.RemoteKeySet }

type verdictKey struct{}

// VerifySignature implements [oidc.KeySet]. The error is errNoKeys where the token
// could not be checked, and another where it was not signed with one of the keys.
func (k *keySet) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	payload, err := k.RemoteKeySet.VerifySignature(ctx, token)
	if err != nil && !errors.Is(err, errSeldom) && strings.HasPrefix(err.Error(), "fetching keys") {
		err = fmt.Errorf("%w: %w", errNoKeys, err)
	}
	if verdict, ok := ctx.Value(verdictKey{}).(*error); ok {
		*verdict = err // the verifier turns it into text
	}
	return payload, err
}

// seldom keeps those who send tokens from having the issuer asked as often as they like.
type seldom struct {
	http.RoundTripper
	limit *rate.Limiter
}

func (s seldom) RoundTrip(req *http.Request) (*http.Response, error) {
	if !s.limit.Allow() {
		return nil, errSeldom
	}
	return s.RoundTripper.RoundTrip(req)
}

// maxAnswer bounds an answer of the issuer, in bytes.
const maxAnswer = 1 << 20

type boundedAnswers struct{ http.RoundTripper }

func (b boundedAnswers) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(req)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxAnswer), resp.Body}
	}
	return resp, err
}

// caller is one whose token is good.
type caller struct {
	subject string // by which the issuer knows them
	name    string // of the picture that is theirs; "" for none
}

// of returns the caller on whose behalf ctx is, and counts a request of theirs.
func (c *Callers) of(ctx context.Context) (caller, error) {
	token := signerapi.TokenOf(ctx)
	if token == "" {
		return caller{}, c.refuse(anonymous, signerapi.ErrUnauthenticated)
	}
	v := c.verifier.Load()
	if v == nil {
		return caller{}, c.refuse(unavailable, signerapi.AsError(c.Ready()))
	}
	var signature error
	verified, err := v.Verify(context.WithValue(ctx, verdictKey{}, &signature), string(token))
	if err != nil {
		late, ok := errors.AsType[*oidc.TokenExpiredError](err)
		switch {
		case ok:
			return caller{}, c.refuse(expired, signerapi.ErrUnauthenticated.With("the token has expired").Wrap(late))
		case errors.Is(signature, errNoKeys):
			return caller{}, c.refuse(unavailable, signerapi.ErrIssuerUnavailable.Wrap(signature))
		}
		return caller{}, c.refuse(invalid, signerapi.ErrUnauthenticated.With("the token is not valid here").Wrap(err))
	}
	claims := map[string]any{}
	if err := verified.Claims(&claims); err != nil {
		return caller{}, c.refuse(invalid, signerapi.ErrUnauthenticated.With("the token is not valid here").Wrap(err))
	}
	name, _ := claims[c.opts.Claim].(string)
	if c.opts.Claim == "email" && claims["email_verified"] != true {
		name = "" // whoever may write down any address there would be anybody
	}
	if _, err := c.clients.Request(verified.Subject); err != nil {
		return caller{}, c.refuse(limited, err)
	}
	return caller{verified.Subject, name}, nil
}

func (c *Callers) refuse(outcome string, err error) error {
	c.outcomes.WithLabelValues(outcome).Inc()
	return err
}

// owner returns the caller, who is the one whose picture it is.
func (c *Callers) owner(ctx context.Context, user signerapi.User) (caller, error) {
	who, err := c.of(ctx)
	if err != nil {
		return caller{}, err
	}
	if who.name != user.String() { // which is never ""
		return caller{}, c.refuse(forbidden, signerapi.ErrForbidden.With("the token is not that of the one whose picture this is").
			Wrap(fmt.Errorf("the claim %s of the token is %.128q", c.opts.Claim, who.name)))
	}
	c.outcomes.WithLabelValues(known).Inc()
	return who, nil
}

// uploads counts an upload of the owner of the picture, until release is called.
func (c *Callers) uploads(ctx context.Context, user signerapi.User) (release func(), err error) {
	who, err := c.owner(ctx, user)
	if err != nil {
		return nil, err
	}
	if release, err = c.clients.Upload(who.subject); err != nil {
		return nil, c.refuse(limited, err)
	}
	return release, nil
}

// reads returns nil when the caller may have a link to the picture of user.
func (c *Callers) reads(ctx context.Context, user signerapi.User) error {
	switch c.opts.Read {
	case access.Anyone:
		return nil
	case access.SignedIn:
		_, err := c.of(ctx)
		if err == nil {
			c.outcomes.WithLabelValues(known).Inc()
		}
		return err
	}
	_, err := c.owner(ctx, user)
	return err
}

// Guard returns a signer that does for known callers alone what s does.
func (c *Callers) Guard(s signerapi.Signer) signerapi.Signer { return guard{s, c} }

type guard struct {
	signerapi.Signer
	callers *Callers
}

func (g guard) Put(ctx context.Context, user signerapi.User, body io.Reader, opts signerapi.PutOptions) (signerapi.Info, error) {
	release, err := g.callers.uploads(ctx, user)
	if err != nil {
		return signerapi.Info{}, err
	}
	defer release()
	return g.Signer.Put(ctx, user, body, opts)
}

func (g guard) Link(ctx context.Context, user signerapi.User, opts signerapi.LinkOptions) (signerapi.Link, error) {
	if err := g.callers.reads(ctx, user); err != nil {
		return signerapi.Link{}, err
	}
	return g.Signer.Link(ctx, user, opts)
}

func (g guard) Delete(ctx context.Context, user signerapi.User, conditions signerapi.Conditions) error {
	if _, err := g.callers.owner(ctx, user); err != nil {
		return err
	}
	return g.Signer.Delete(ctx, user, conditions)
}

func (g guard) Ticket(ctx context.Context, user signerapi.User, size int64) (signerapi.Ticket, error) {
	if _, err := g.callers.owner(ctx, user); err != nil {
		return signerapi.Ticket{}, err
	}
	return g.Signer.Ticket(ctx, user, size)
}

func (g guard) Commit(ctx context.Context, user signerapi.User, ticket string, opts signerapi.CommitOptions) (signerapi.Info, error) {
	release, err := g.callers.uploads(ctx, user)
	if err != nil {
		return signerapi.Info{}, err
	}
	defer release()
	return g.Signer.Commit(ctx, user, ticket, opts)
}

// About says, to anybody, by which claim callers are known.
func (g guard) About(ctx context.Context) (signerapi.About, error) {
	about, err := g.Signer.About(ctx)
	about.UserClaim = g.callers.opts.Claim
	return about, err
}

func (g guard) Ready(ctx context.Context) error {
	if err := g.Signer.Ready(ctx); err != nil {
		return err
	}
	return g.callers.Ready()
}
