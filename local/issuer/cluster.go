package issuer

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Cluster stands for a Kubernetes cluster's service account issuer. As an
// [http.Handler] it publishes its OpenID configuration and keys, as a cluster
// with an OIDC issuer does.
type Cluster struct {
	// Now is the cluster's clock, time.Now unless it is set before the first token.
	Now func() time.Time

	url      string
	key      *rsa.PrivateKey
	stranger func() (*rsa.PrivateKey, error) // makes it once; only tests need one
	mux      *http.ServeMux
}

// NewCluster returns a cluster whose issuer is url, https and without a slash at
// the end, where it must then be served.
func NewCluster(url string) (*Cluster, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	c := &Cluster{Now: time.Now, url: url, key: key, stranger: sync.OnceValues(newKey), mux: http.NewServeMux()}
	c.mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]any{
			"issuer":                                url,
			"jwks_uri":                              url + "/openid/v1/jwks",
			"response_types_supported":              []string{"id_token"},
			"subject_types_supported":               []string{"public"},
			"id_token_signing_alg_values_supported": []string{string(jose.RS256)},
		})
	})
	c.mux.HandleFunc("GET /openid/v1/jwks", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, publicKeys(key))
	})
	return c, nil
}

// URL is the iss of the cluster's tokens.
func (c *Cluster) URL() string { return c.url }

func (c *Cluster) ServeHTTP(w http.ResponseWriter, r *http.Request) { c.mux.ServeHTTP(w, r) }

// Federated describes a federated token: what the kubelet would ask the cluster
// for, and what a test wants wrong about it.
type Federated struct {
	Issuer   string // "" for the cluster's own
	Subject  string // system:serviceaccount:NAMESPACE:NAME
	Audience string
	IssuedAt time.Time // zero for now
	Lifetime time.Duration

	// Forged has it signed by another key, under the id of the cluster's.
	Forged bool
}

// Token returns the token that f describes.
func (c *Cluster) Token(f Federated) (string, error) {
	if f.Issuer == "" {
		f.Issuer = c.url
	}
	if f.IssuedAt.IsZero() {
		f.IssuedAt = c.Now()
	}
	claims := jwt.Claims{
		ID:        newUUID(),
		Issuer:    f.Issuer,
		Subject:   f.Subject,
		Audience:  jwt.Audience{f.Audience},
		IssuedAt:  jwt.NewNumericDate(f.IssuedAt),
		NotBefore: jwt.NewNumericDate(f.IssuedAt),
		Expiry:    expiry(f.IssuedAt.Add(f.Lifetime)),
	}
	if f.Forged {
		stranger, err := c.stranger()
		if err != nil {
			return "", err
		}
		return signAs(keyID(c.key), stranger, claims)
	}
	return sign(c.key, claims)
}

// expiry is t in whole seconds, and not before it, so that a token that lives for
// seconds lives for no less than it says.
func expiry(t time.Time) *jwt.NumericDate {
	return jwt.NewNumericDate(t.Add(time.Second - time.Nanosecond))
}

func newKey() (*rsa.PrivateKey, error) {
	key, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		return nil, fmt.Errorf("making a signing key: %w", err)
	}
	return key, nil
}

func sign(key *rsa.PrivateKey, claims any) (string, error) { return signAs(keyID(key), key, claims) }

func signAs(id string, key *rsa.PrivateKey, claims any) (string, error) {
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: key, KeyID: id}},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", fmt.Errorf("signing a token: %w", err)
	}
	token, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		return "", fmt.Errorf("signing a token: %w", err)
	}
	return token, nil
}

func publicKeys(key *rsa.PrivateKey) jose.JSONWebKeySet {
	return jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{
		Key: key.Public(), KeyID: keyID(key), Algorithm: string(jose.RS256), Use: "sig",
	}}}
}

// keyID is the key's thumbprint of RFC 7638.
func keyID(key *rsa.PrivateKey) string {
	print, err := (&jose.JSONWebKey{Key: key.Public()}).Thumbprint(crypto.SHA256)
	if err != nil {
		panic(err) // an RSA key has one
	}
	return base64.RawURLEncoding.EncodeToString(print)
}
