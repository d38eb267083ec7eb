package auth

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
	"time"

	"github.com/go-jose/go-jose/v4"
	josejson "github.com/go-jose/go-jose/v4/json"
	"github.com/go-jose/go-jose/v4/jwt"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
)

const (
	issuerTimeout = 6 * time.Second // for the issuer's configuration and keys

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

const fixIssuer = "OIDC_ISSUER must be the iss of the tokens, and OIDC_DISCOVERY_URL, if that is set, the address of its configuration"

// keySet is a JSON Web Key Set of the issuer.
type keySet struct {
	usable  []jose.JSONWebKey
	ignored string // why the other keys are not used; "" for none
}

// Fetch fetches the issuer's configuration and keys, with which tokens are verified from then on. If that fails, the known keys
// stay in use.
func (c *Callers) Fetch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, issuerTimeout)
	defer cancel()
	set, err := c.discover(ctx)
	if err != nil {
		c.failed.Store(&err)
		return err
	}
	before := c.keys.Swap(set)
	if before == nil {
		c.log.Info("callers are known by their tokens", "issuer", c.opts.Issuer, "audience", c.opts.Audience, "claim", c.opts.Claim, "read_access", string(c.opts.ReadAccess))
	}
	if set.ignored != "" && (before == nil || set.ignored != before.ignored) {
		c.log.Warn("issuer keys ignored", "issuer", c.opts.Issuer, "reasons", set.ignored)
	}
	return nil
}

// discover fetches the issuer's configuration and keys. The issuer of the configuration must equal the one of the tokens
// (OpenID Connect Discovery 1.0 section 4.3). A malformed key is ignored (RFC 7517 section 5).
func (c *Callers) discover(ctx context.Context) (*keySet, error) {
	var said struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	at := c.opts.ConfigurationURL()
	if err := c.get(ctx, at, &said); err != nil {
		return nil, fmt.Errorf("discovery: %w", brief(err))
	}
	if said.Issuer != c.opts.Issuer {
		return nil, fmt.Errorf("discovery: %s is the configuration of the issuer %.200q, and OIDC_ISSUER is %q; fix: %s", at, said.Issuer, c.opts.Issuer, fixIssuer)
	}
	if !strings.HasPrefix(said.Keys, "https://") {
		return nil, fmt.Errorf("discovery: jwks_uri is %.200q: want https", said.Keys)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := c.get(ctx, said.Keys, &set); err != nil {
		return nil, fmt.Errorf("fetching the issuer's keys: %w", brief(err))
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
		return nil, fmt.Errorf("the issuer's JSON Web Key Set has no usable key among its %d: %.400s", len(set.Keys), ignored)
	}
	keys.ignored = ignored.String()
	return keys, nil
}

// get decodes the JSON document at url into v.
func (c *Callers) get(ctx context.Context, url string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Cache-Control", "no-cache")
	resp, err := c.opts.Client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if status := resp.StatusCode; status != http.StatusOK {
		err := fmt.Errorf("%s answered with HTTP status %d", url, status)
		if status < http.StatusInternalServerError && status != http.StatusTooManyRequests {
			err = fmt.Errorf("%w; fix: %s", err, fixIssuer)
		}
		return err
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(v); err != nil {
		return fmt.Errorf("%s is not a JSON document of the expected form, or larger than %d bytes: %w", url, maxAnswer, err)
	}
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
func (c *Callers) verify(ctx context.Context, token string) ([]byte, error) {
	jws, err := jose.ParseSignedCompact(token, algorithms)
	if err != nil {
		return nil, err
	}
	if payload, err := c.payload(jws); err == nil {
		return payload, nil
	}
	release, err := c.opts.Waiters.Take(signerapi.ClientFrom(ctx))
	if err != nil {
		return nil, err
	}
	defer release()
	fetched := c.fetches.DoChan("", func() (any, error) {
		if !c.limit.Allow() {
			return nil, nil
		}
		return nil, c.Fetch(context.WithoutCancel(ctx)) // for all that wait
	})
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case result := <-fetched:
		if result.Err != nil {
			return nil, apierror.ErrIssuerUnavailable.Wrap(result.Err)
		}
	}
	return c.payload(jws)
}

// payload returns the payload of a token that one of the known keys has signed.
func (c *Callers) payload(jws *jose.JSONWebSignature) ([]byte, error) {
	header := jws.Signatures[0].Header
	for _, key := range c.keys.Load().usable {
		if (header.KeyID == "" || header.KeyID == key.KeyID) && (key.Algorithm == "" || key.Algorithm == header.Algorithm) {
			if payload, err := jws.Verify(&key); err == nil {
				return payload, nil
			}
		}
	}
	return nil, errors.New("no key of the issuer has signed it")
}

// claims returns the claims of a token that the issuer has made for this service and that has not expired.
func (c *Callers) claims(ctx context.Context, token string) (map[string]any, error) {
	payload, err := c.verify(ctx, token)
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
	want := jwt.Expected{Issuer: c.opts.Issuer, AnyAudience: jwt.Audience{c.opts.Audience}}
	if err := standard.ValidateWithLeeway(want, ClockSkew); err != nil {
		return nil, fmt.Errorf("%w; its iss is %.200q and its aud %.200q", err, standard.Issuer, strings.Join(standard.Audience, " "))
	}
	return all, nil
}

// brief returns err with a text of a bounded length. Errors can quote tokens and answers of the issuer, which can be long.
func brief(err error) error { return fmt.Errorf("%.400s", err.Error()) }
