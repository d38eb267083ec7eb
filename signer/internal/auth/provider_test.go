package auth

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/prometheus/client_golang/prometheus"

	"cats.example/shared/access"
	"cats.example/shared/ratelimit"
	"cats.example/shared/signerapi"
	"cats.example/signer/internal/storagetest"
)

const audience = "api-of-cats"

// provider is an OpenID Connect issuer. Tests change the fields between requests, under mu if requests are in flight.
type provider struct {
	*httptest.Server
	keyRequests atomic.Int64

	mu       sync.Mutex
	public   []jose.JSONWebKey
	set      string // the key set, instead of public
	keysAt   string // jwks_uri, instead of /keys
	issuer   string // issuer, instead of the URL
	configAt string // path of the configuration
	fault    http.HandlerFunc
}

func newProvider(t *testing.T, keys ...key) *provider {
	t.Helper()
	p := &provider{configAt: "/.well-known/openid-configuration"}
	p.publish(keys...)
	p.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		switch {
		case p.fault != nil:
			p.fault(w, r)
		case r.URL.Path == p.configAt:
			_ = json.NewEncoder(w).Encode(map[string]any{"issuer": cmp.Or(p.issuer, p.URL), "jwks_uri": cmp.Or(p.keysAt, p.URL+"/keys")})
		case r.URL.Path == "/keys" && p.set != "":
			_, _ = w.Write([]byte(p.set))
		case r.URL.Path == "/keys":
			p.keyRequests.Add(1)
			_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: p.public})
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(p.Close)
	return p
}

func (p *provider) publish(keys ...key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.public = nil
	for _, k := range keys {
		p.public = append(p.public, k.jwk())
	}
}

// failWith makes the provider answer with fault, or work if that is nil.
func (p *provider) failWith(fault http.HandlerFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = fault
}

func badGateway(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }

// key is a signing key.
type key struct {
	id      string
	alg     jose.SignatureAlgorithm
	private any
	public  any
}

func rsaKey(t *testing.T, id string) key {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key{id, jose.RS256, private, private.Public()}
}

func ecKey(t *testing.T, id string) key {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key{id, jose.ES256, private, private.Public()}
}

func (k key) jwk() jose.JSONWebKey {
	return jose.JSONWebKey{Key: k.public, KeyID: k.id, Algorithm: string(k.alg), Use: "sig"}
}

func (k key) sign(t *testing.T, claims any) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: k.alg, Key: jose.JSONWebKey{Key: k.private, KeyID: k.id}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(s).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// claims returns valid claims of mia with changes: names and values in turn; a nil value removes the claim.
func (p *provider) claims(change ...any) map[string]any {
	now := time.Now()
	c := map[string]any{
		"iss": p.URL, "aud": audience, "sub": "mia",
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	}
	for i := 0; i < len(change); i += 2 {
		name, _ := change[i].(string)
		if c[name] = change[i+1]; change[i+1] == nil {
			delete(c, name)
		}
	}
	return c
}

// newAuthenticator returns an Authenticator for tokens of p that has fetched nothing yet.
func newAuthenticator(p *provider, change func(*Settings)) *Authenticator {
	settings := Settings{Policy: access.Policy{Issuer: p.URL, ReadAccess: access.Own}, Audience: audience, UserClaim: "sub"}
	if change != nil {
		change(&settings)
	}
	waiters := ratelimit.NewPools("test", 0.0625, prometheus.NewRegistry()).New("waiters", 8)
	return New(settings, p.Client(), waiters, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
}

// fetched returns an Authenticator that has the keys of p.
func fetched(t *testing.T, p *provider, change func(*Settings)) *Authenticator {
	t.Helper()
	a := newAuthenticator(p, change)
	if err := a.Fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
	return a
}

// authorize returns the error of a call for mia's own picture, with a token.
func (a *Authenticator) authorize(ctx context.Context, t *testing.T, token string) error {
	t.Helper()
	_, err := a.Authorize(signerapi.WithToken(ctx, signerapi.Token(token)), storagetest.User(t, "mia"), signerapi.Owner)
	return err
}
