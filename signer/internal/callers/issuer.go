package callers

import (
	"context"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
	josejson "github.com/go-jose/go-jose/v4/json"
	"github.com/go-jose/go-jose/v4/jwt"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"cats.example/shared/signerapi"
)

const (
	issuerTimeout = 5 * time.Second // for one answer of the issuer

	// A token that no known key has signed makes the signer fetch the keys. This limits how often,
	// and for how long a new key is unknown.
	keysEvery = 2 * time.Second
	keysBurst = 5

	maxAnswer  = 1 << 20 // bytes of an answer of the issuer
	maxIgnored = 2000    // bytes about ignored keys, give or take one key
	minRSABits = 2048    // RFC 7518 section 3.3
)

// algorithms are the signature algorithms that a public key verifies. Tokens with another, such as none or HS256, are rejected.
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.ES256, jose.ES384, jose.ES512, jose.PS256, jose.PS384, jose.PS512, jose.EdDSA,
}

// errNoKeys is returned when the issuer's keys cannot be fetched.
var errNoKeys = errors.New("fetching the issuer's keys")

// issuer holds the configuration and the keys of the issuer.
type issuer struct {
	client  *http.Client
	keysURL string
	fetches singleflight.Group
	limit   *rate.Limiter // of fetches that tokens cause
	keys    atomic.Pointer[keySet]
}

// keySet is a JSON Web Key Set of the issuer.
type keySet struct {
	usable  []jose.JSONWebKey
	ignored string // why the other keys are not used; "" for none
}

// Check returns why tokens could not be verified now, for [cats.example/signer/internal/doctor].
func (c *Callers) Check(ctx context.Context) error {
	_, err := c.discover(ctx)
	return err
}

// discover fetches the issuer's configuration and keys. The issuer of the configuration must equal the one of the tokens
// (OpenID Connect Discovery 1.0 section 4.3).
func (c *Callers) discover(ctx context.Context) (*issuer, error) {
	client := *c.opts.Client
	client.Timeout = issuerTimeout
	var said struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	at := c.opts.DiscoveryURL()
	if err := get(ctx, &client, at, &said); err != nil {
		return nil, fmt.Errorf("discovery: %w", brief(err))
	}
	if said.Issuer != c.opts.Issuer {
		return nil, fmt.Errorf("discovery: %s is the configuration of the issuer %.200q, and OIDC_ISSUER is %q: OIDC_ISSUER must be the iss of the tokens, "+
			"and OIDC_DISCOVERY_URL the address of its configuration", at, said.Issuer, c.opts.Issuer)
	}
	if !strings.HasPrefix(said.Keys, "https://") {
		return nil, fmt.Errorf("discovery: jwks_uri is %.200q: want https", said.Keys)
	}
	i := &issuer{client: &client, keysURL: said.Keys, limit: rate.NewLimiter(rate.Every(keysEvery), keysBurst)}
	return i, i.fetch(ctx)
}

// get decodes the JSON document at url into v.
func get(ctx context.Context, client *http.Client, url string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Cache-Control", "no-cache")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered with HTTP status %d", url, resp.StatusCode)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(v); err != nil {
		return fmt.Errorf("%s is not a JSON document of the expected form, or larger than %d bytes: %w", url, maxAnswer, err)
	}
	return nil
}

// fetch fetches the issuer's keys. A malformed key is ignored (RFC 7517 section 5). Without a usable key, the error is errNoKeys.
func (i *issuer) fetch(ctx context.Context) error {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := get(ctx, i.client, i.keysURL, &set); err != nil {
		return fmt.Errorf("%w: %w", errNoKeys, brief(err))
	}
	keys, ignored := &keySet{}, new(strings.Builder)
	for _, raw := range set.Keys {
		key, err := publicKey(raw)
		switch {
		case err != nil && ignored.Len() < maxIgnored:
			var named struct {
				ID string `json:"kid"`
			}
			_ = json.Unmarshal(raw, &named) // as far as it can be read
			fmt.Fprintf(ignored, "kid %.64s: %.100s; ", named.ID, err)
		case err == nil && key.Use != "enc":
			keys.usable = append(keys.usable, key)
		}
	}
	if len(keys.usable) == 0 {
		return fmt.Errorf("%w: the JSON Web Key Set has no usable key among its %d: %.400s", errNoKeys, len(set.Keys), ignored)
	}
	keys.ignored = ignored.String()
	i.keys.Store(keys)
	return nil
}

// publicKey parses a JSON Web Key. The error is nil if it is for encryption or can verify a signature.
func publicKey(raw []byte) (key jose.JSONWebKey, err error) {
	err = key.UnmarshalJSON(raw)
	rsaKey, isRSA := key.Key.(*rsa.PublicKey)
	switch {
	case err != nil || key.Use == "enc":
	case !key.IsPublic() || !key.Valid():
		err = errors.New("it is not a public key")
	case isRSA && rsaKey.N.BitLen() < minRSABits:
		err = fmt.Errorf("it has %d bits: want %d at least", rsaKey.N.BitLen(), minRSABits)
	case key.Algorithm != "" && !slices.Contains(algorithms, jose.SignatureAlgorithm(key.Algorithm)):
		err = fmt.Errorf("its algorithm %q is not one of a public key", key.Algorithm)
	}
	return key, err
}

// verify returns the payload of a token that one of the issuer's keys has signed. If none of the known keys has, verify
// fetches the keys, unless other tokens have caused that often. Few tokens wait for that.
func (c *Callers) verify(ctx context.Context, i *issuer, token string) ([]byte, error) {
	jws, err := jose.ParseSignedCompact(token, algorithms)
	if err != nil {
		return nil, err
	}
	if payload, err := i.payload(jws); err == nil {
		return payload, nil
	}
	release, err := c.opts.Waiters.Take(signerapi.ClientOf(ctx))
	if err != nil {
		return nil, err
	}
	defer release()
	fetched := i.fetches.DoChan("", func() (any, error) {
		if !i.limit.Allow() {
			return nil, nil
		}
		return nil, i.fetch(context.WithoutCancel(ctx)) // for all that wait
	})
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case result := <-fetched:
		if result.Err != nil {
			return nil, result.Err
		}
	}
	return i.payload(jws)
}

// payload returns the payload of a token that one of the known keys has signed.
func (i *issuer) payload(jws *jose.JSONWebSignature) ([]byte, error) {
	header := jws.Signatures[0].Header
	for _, key := range i.keys.Load().usable {
		if (header.KeyID == "" || header.KeyID == key.KeyID) && (key.Algorithm == "" || key.Algorithm == header.Algorithm) {
			if payload, err := jws.Verify(&key); err == nil {
				return payload, nil
			}
		}
	}
	return nil, errors.New("no key of the issuer has signed it")
}

// claims returns the claims of a token that the issuer has made for this service and that has not expired.
func (c *Callers) claims(ctx context.Context, i *issuer, token string) (map[string]any, error) {
	payload, err := c.verify(ctx, i, token)
	if err != nil {
		return nil, err
	}
	var standard jwt.Claims
	all := map[string]any{}
	// This decoder compares the names of claims exactly, and rejects a claim that occurs twice.
	if err := errors.Join(josejson.Unmarshal(payload, &standard), josejson.Unmarshal(payload, &all)); err != nil {
		return nil, err
	}
	if standard.Expiry == nil {
		return nil, errors.New("it has no exp, the time of its end")
	}
	want := jwt.Expected{Issuer: c.opts.Issuer, AnyAudience: jwt.Audience{c.opts.Audience}, Time: c.now()}
	if err := standard.ValidateWithLeeway(want, ClockSkew); err != nil {
		return nil, fmt.Errorf("%w; its iss is %.200q and its aud %.200q", err, standard.Issuer, strings.Join(standard.Audience, " "))
	}
	return all, nil
}

// brief returns err with a text of a bounded length. Errors can quote tokens and answers of the issuer, which can be long.
func brief(err error) error { return fmt.Errorf("%.400s", err.Error()) }
