package auth

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

const audience = "api-of-cats"

// provider is an issuer of tokens whose keys change as told.
type provider struct {
	*httptest.Server
	asked, askedKeys atomic.Int64
	down             atomic.Bool

	mu       sync.Mutex
	public   []jose.JSONWebKey
	set      string // of keys, instead of those in public
	keysAt   string // another address of the keys
	issuer   string // another than the address
	configAt string // another path of the configuration
	handle   func(http.ResponseWriter, *http.Request) bool
}

func newProvider(t *testing.T, keys ...key) *provider {
	t.Helper()
	p := &provider{}
	p.publish(keys...)
	p.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.down.Load() {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		if p.handle != nil && p.handle(w, r) {
			return
		}
		switch r.URL.Path {
		case cmp.Or(p.configAt, "/.well-known/openid-configuration"):
			p.asked.Add(1)
			_ = json.NewEncoder(w).Encode(map[string]any{
				"issuer": cmp.Or(p.issuer, p.URL), "jwks_uri": cmp.Or(p.keysAt, p.URL+"/keys"),
				"id_token_signing_alg_values_supported": []string{"RS256", "ES256", "none", "HS256"},
			})
		case "/keys":
			p.askedKeys.Add(1)
			if p.set != "" {
				_, _ = w.Write([]byte(p.set))
				return
			}
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
		p.public = append(p.public, jose.JSONWebKey{Key: k.public, KeyID: k.id, Algorithm: string(k.alg), Use: "sig"})
	}
}

// key is one of a provider's.
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

// claims are good ones of mia, changed as said: a name and a value each, nil takes it away.
func (p *provider) claims(change ...any) map[string]any {
	now := time.Now()
	c := map[string]any{
		"iss": p.URL, "aud": audience, "sub": "mia",
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	}
	for i := 0; i < len(change); i += 2 {
		name, _ := change[i].(string)
		if change[i+1] == nil {
			delete(c, name)
			continue
		}
		c[name] = change[i+1]
	}
	return c
}
