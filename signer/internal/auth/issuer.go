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
		a.log.Info("authentication is on", "issuer", a.opts.Issuer, "audience", a.opts.Audience, "claim", a.opts.UserClaim, "read_access", string(a.opts.ReadAccess))
	}
	if set.ignored != "" && (before == nil || set.ignored != before.ignored) {
		a.log.Warn("issuer keys ignored", "issuer", a.opts.Issuer, "reasons", set.ignored)
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
	at := a.opts.ConfigurationURL()
	if err := a.get(ctx, at, &doc); err != nil {
		return nil, fmt.Errorf("discovery: %w", brief(err))
	}
	if doc.Issuer != a.opts.Issuer {
		return nil, fmt.Errorf("discovery: %s has the issuer %.200q, but OIDC_ISSUER is %q; fix: %s", at, doc.Issuer, a.opts.Issuer, fixIssuer)
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
	keys, ignored := &keySet{}, new(strings.Builder)
	for _, raw := range set.Keys {
		key, err := publicKey(raw)
		switch {
		case err != nil && ignored.Len() < maxIgnored:
			var named struct {
				ID string `json:"kid"`
			}
			_ = json.Unmarshal(raw, &named) // best effort, for the log
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
func (a *Authenticator) get(ctx context.Context, url string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Cache-Control", "no-cache")
	resp, err := a.opts.Client.Do(req)
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
// keys, at the rate of keysEvery. It needs a slot of Waiters for that.
func (a *Authenticator) verify(ctx context.Context, token string) ([]byte, error) {
	jws, err := jose.ParseSignedCompact(token, algorithms)
	if err != nil {
		return nil, err
	}
	if payload, err := a.payload(jws); err == nil {
		return payload, nil
	}
	release, err := a.opts.Waiters.Take(signerapi.ClientFrom(ctx))
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
		return nil, context.Cause(ctx)
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
	want := jwt.Expected{Issuer: a.opts.Issuer, AnyAudience: jwt.Audience{a.opts.Audience}}
	if err := standard.ValidateWithLeeway(want, ClockSkew); err != nil {
		return nil, fmt.Errorf("%w; its iss is %.200q and its aud %.200q", err, standard.Issuer, strings.Join(standard.Audience, " "))
	}
	return all, nil
}

// brief bounds the text of err. Errors can quote tokens and responses of the issuer.
func brief(err error) error { return fmt.Errorf("%.400s", err.Error()) }
