package callers

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	"golang.org/x/time/rate"

	"cats.example/shared/pool"
	"cats.example/shared/signerapi"
)

const (
	issuerTimeout = 5 * time.Second // for one answer of the issuer

	// A token with an unknown key makes the signer fetch the keys. This limits how often,
	// and for how long a new key is unknown.
	keysEvery = 2 * time.Second
	keysBurst = 5

	maxAnswer  = 1 << 20 // bytes of an answer of the issuer
	maxIgnored = 16      // ignored keys of one answer that are logged
	minRSABits = 2048    // RFC 7518 section 3.3
)

// publicKeyAlgorithms are the signature algorithms that a public key verifies.
var publicKeyAlgorithms = []string{
	oidc.RS256, oidc.RS384, oidc.RS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.EdDSA,
}

// Check returns why tokens could not be verified now, for [cats.example/signer/internal/doctor].
func (c *Callers) Check(ctx context.Context) error {
	_, err := c.discover(ctx)
	return err
}

// discover fetches the issuer's configuration and keys.
func (c *Callers) discover(ctx context.Context) (*oidc.IDTokenVerifier, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*issuerTimeout)
	defer cancel()
	client := *c.opts.Client
	client.Timeout = issuerTimeout
	bounded := boundedAnswers{client.Transport}
	client.Transport = bounded
	said, err := c.configuration(ctx, &client)
	if err != nil {
		return nil, fmt.Errorf("discovery: %w", err)
	}
	client.Transport = usableKeys{limitedFetches{bounded, rate.NewLimiter(rate.Every(keysEvery), keysBurst)}, c}
	keys := &keySet{oidc.NewRemoteKeySet(oidc.ClientContext(context.WithoutCancel(ctx), &client), said.Keys), c.opts.Waiters}
	// The library fetches the keys for a token. This one has no valid signature.
	if _, err := keys.VerifySignature(ctx, "eyJhbGciOiJSUzI1NiJ9.e30.AAAA"); errors.Is(err, errNoKeys) {
		return nil, err
	}
	return oidc.NewVerifier(c.opts.Issuer, keys, &oidc.Config{
		ClientID: c.opts.Audience,
		// Without the algorithms none and HS256, whatever the issuer lists.
		SupportedSigningAlgs: signedByKeys(said.Algs),
		Now:                  func() time.Time { return c.now().Add(-ClockSkew) },
	}), nil
}

// configuration holds the fields of an OpenID Connect configuration that discover uses.
type configuration struct {
	Issuer string   `json:"issuer"`
	Keys   string   `json:"jwks_uri"`
	Algs   []string `json:"id_token_signing_alg_values_supported"`
}

// configuration fetches the issuer's configuration. Its issuer must equal the one of the
// tokens (OpenID Connect Discovery 1.0 section 4.3).
func (c *Callers) configuration(ctx context.Context, client *http.Client) (said configuration, err error) {
	at := c.opts.DiscoveryURL()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return said, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return said, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return said, fmt.Errorf("%s answered with HTTP status %d", at, resp.StatusCode)
	}
	if err := json.NewDecoder(resp.Body).Decode(&said); err != nil {
		return said, fmt.Errorf("%s is not an OpenID Connect configuration: %w", at, err)
	}
	if said.Issuer != c.opts.Issuer {
		return said, fmt.Errorf("%s is the configuration of the issuer %.200q, and OIDC_ISSUER is %q: OIDC_ISSUER must be the iss of the tokens, and OIDC_DISCOVERY_URL the address of its configuration", at, said.Issuer, c.opts.Issuer)
	}
	if !strings.HasPrefix(said.Keys, "https://") {
		return said, fmt.Errorf("jwks_uri is %.200q: want https", said.Keys)
	}
	return said, nil
}

// signedByKeys returns those of algs that sign with a key of which the public half
// verifies; RS256, which every issuer has, where there is none.
func signedByKeys(algs []string) []string {
	ours := slices.DeleteFunc(slices.Clone(algs), func(alg string) bool { return !slices.Contains(publicKeyAlgorithms, alg) })
	if len(ours) == 0 {
		return []string{oidc.RS256}
	}
	return ours
}

// errNoKeys is returned when the issuer's keys cannot be fetched.
var errNoKeys = errors.New("fetching the issuer's keys")

// errRefreshLimited is returned when the keys were fetched less than keysEvery ago.
var errRefreshLimited = errors.New("the issuer's keys were fetched a moment ago")

// keySet is the library's key set. It passes its error to [Callers.of] through the context.
type keySet struct {
	*oidc.RemoteKeySet
	waiters *pool.Pool
}

type verdictKey struct{}

// VerifySignature implements [oidc.KeySet]. The error is errNoKeys where the token
// could not be checked, and another where it was not signed with one of the keys.
func (k *keySet) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	cached, cancel := context.WithCancel(ctx)
	cancel() // the library then looks only at the keys that it has
	payload, err := k.RemoteKeySet.VerifySignature(cached, token)
	if errors.Is(err, context.Canceled) && ctx.Err() == nil {
		var release func()
		if release, err = k.waiters.Take(signerapi.ClientOf(ctx)); err == nil {
			payload, err = k.RemoteKeySet.VerifySignature(ctx, token)
			release()
		}
	}
	if err != nil && !errors.Is(err, errRefreshLimited) && strings.HasPrefix(err.Error(), "fetching keys") {
		err = fmt.Errorf("%w: %w", errNoKeys, brief(err))
	}
	if verdict, ok := ctx.Value(verdictKey{}).(*error); ok {
		*verdict = err // the verifier turns it into text
	}
	return payload, err
}

// brief returns err with a text of a bounded length. The library's errors quote tokens
// and answers of the issuer, which can be long.
func brief(err error) error { return fmt.Errorf("%.400s", err.Error()) }

// limitedFetches limits how often tokens with unknown keys cause requests to the issuer.
type limitedFetches struct {
	http.RoundTripper
	limit *rate.Limiter
}

func (s limitedFetches) RoundTrip(req *http.Request) (*http.Response, error) {
	if !s.limit.Allow() {
		return nil, errRefreshLimited
	}
	return s.RoundTripper.RoundTrip(req)
}

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

// usableKeys removes from a JSON Web Key Set the keys that cannot verify a signature. The
// library rejects the whole set for one malformed key; RFC 7517 section 5 says to ignore it.
type usableKeys struct {
	http.RoundTripper
	callers *Callers
}

func (u usableKeys) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := u.RoundTripper.RoundTrip(req)
	if err != nil || resp.StatusCode != http.StatusOK {
		return resp, err
	}
	defer resp.Body.Close()
	set, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if set, err = u.callers.usable(set); err != nil {
		return nil, err
	}
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(set)), int64(len(set))
	return resp, nil
}

// ignoredKeys are the ignored keys of the last key set, of which each has its line in the log.
type ignoredKeys struct {
	mu     sync.Mutex
	logged map[[sha256.Size]byte]bool // by the bytes of the key
}

// usable returns the key set without the keys that cannot verify a signature. It logs each of
// these keys, except those of the previous key set. A set without a usable key is an error.
func (c *Callers) usable(set []byte) ([]byte, error) {
	var jwks struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(set, &jwks); err != nil {
		if len(set) == maxAnswer {
			err = fmt.Errorf("it is larger than %d bytes", maxAnswer)
		}
		return nil, fmt.Errorf("the answer is not a JSON Web Key Set: %w", err)
	}
	c.ignored.mu.Lock()
	defer c.ignored.mu.Unlock()
	all, now := len(jwks.Keys), map[[sha256.Size]byte]bool{}
	jwks.Keys = slices.DeleteFunc(jwks.Keys, func(raw json.RawMessage) bool {
		reason := unusable(raw)
		if sum := sha256.Sum256(raw); reason != nil && !errors.Is(reason, errEncryption) && len(now) < maxIgnored && !now[sum] {
			if now[sum] = true; !c.ignored.logged[sum] {
				var key struct {
					ID   string `json:"kid"`
					Type string `json:"kty"`
				}
				_ = json.Unmarshal(raw, &key) // as far as it can be read
				c.log.Warn("issuer key ignored", "issuer", c.opts.Issuer, "kid", fmt.Sprintf("%.64s", key.ID), "kty", fmt.Sprintf("%.64s", key.Type), "reason", brief(reason).Error())
			}
		}
		return reason != nil
	})
	c.ignored.logged = now
	if len(jwks.Keys) == 0 {
		return nil, fmt.Errorf("the JSON Web Key Set has no usable key among its %d", all)
	}
	return json.Marshal(jwks)
}

// errEncryption is the reason to ignore a valid encryption key. It is not logged.
var errEncryption = errors.New("it is for encryption")

// unusable returns why the key cannot verify a signature, nil when it can.
func unusable(raw []byte) error {
	var key jose.JSONWebKey
	if err := key.UnmarshalJSON(raw); err != nil {
		return err
	}
	if key.Use == "enc" {
		return errEncryption
	}
	if !key.IsPublic() || !key.Valid() {
		return errors.New("it is not a public key")
	}
	if k, ok := key.Key.(*rsa.PublicKey); ok && k.N.BitLen() < minRSABits {
		return fmt.Errorf("it has %d bits: want %d at least", k.N.BitLen(), minRSABits)
	}
	if key.Algorithm != "" && !slices.Contains(publicKeyAlgorithms, key.Algorithm) {
		return fmt.Errorf("its algorithm %q is not one of %s", key.Algorithm, strings.Join(publicKeyAlgorithms, ", "))
	}
	return nil
}
