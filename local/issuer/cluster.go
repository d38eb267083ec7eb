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

// Cluster replaces the service account issuer of a Kubernetes cluster. As an [http.Handler] it serves its OpenID configuration and keys.
type Cluster struct {
	// Now is the cluster's clock, time.Now by default. Set it before the first token.
	Now func() time.Time

	url      string
	key      *rsa.PrivateKey
	otherKey func() (*rsa.PrivateKey, error) // for forged tokens
	mux      *http.ServeMux
}

// NewCluster returns a cluster whose issuer is url: https, without a trailing slash. The caller must serve the cluster at url.
func NewCluster(url string) (*Cluster, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	c := &Cluster{Now: time.Now, url: url, key: key, otherKey: sync.OnceValues(newKey), mux: http.NewServeMux()}
	c.mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]any{
			"issuer":                                url,
			"jwks_uri":                              url + "/openid/v1/jwks",
			"response_types_supported":              []string{"id_token"},
			"subject_types_supported":               []string{"public"},
			"id_token_signing_alg_values_supported": []string{string(jose.RS256)},
		})
	})
	c.mux.HandleFunc("GET /openid/v1/jwks", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, publicKeys(key))
	})
	return c, nil
}

// URL returns the issuer (iss) of the cluster's tokens.
func (c *Cluster) URL() string { return c.url }

func (c *Cluster) ServeHTTP(w http.ResponseWriter, r *http.Request) { c.mux.ServeHTTP(w, r) }

// Federated describes a federated token. Tests use it to create invalid tokens.
type Federated struct {
	Issuer   string // the cluster by default
	Subject  string // system:serviceaccount:NAMESPACE:NAME
	Audience string
	IssuedAt time.Time // now by default
	Lifetime time.Duration

	// Forged makes another key sign the token, under the ID of the cluster's key.
	Forged bool
}

// Token returns a token with the properties in f.
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
		key, err := c.otherKey()
		if err != nil {
			return "", err
		}
		return signAs(keyID(c.key), key, claims)
	}
	return sign(c.key, claims)
}

// expiry rounds t up to whole seconds, so that a token with a short lifetime does not expire early.
func expiry(t time.Time) *jwt.NumericDate {
	return jwt.NewNumericDate(t.Add(time.Second - time.Nanosecond))
}

func newKey() (*rsa.PrivateKey, error) {
	key, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		return nil, fmt.Errorf("creating a signing key: %w", err)
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

// keyID returns the thumbprint of the key (RFC 7638).
func keyID(key *rsa.PrivateKey) string {
	print, err := (&jose.JSONWebKey{Key: key.Public()}).Thumbprint(crypto.SHA256)
	if err != nil {
		panic(err) // impossible for an RSA key
	}
	return base64.RawURLEncoding.EncodeToString(print)
}
