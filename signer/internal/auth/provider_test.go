package auth

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"io"
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
)

const audience = "api-of-cats"

// provider is an OpenID Connect issuer. Tests change the fields between requests, under mu if requests are in flight.
type provider struct {
	*httptest.Server
	keyRequests atomic.Int64
	down        atomic.Bool

	mu       sync.Mutex
	public   []jose.JSONWebKey
	set      string // the key set, instead of public
	keysAt   string // jwks_uri, instead of /keys
	issuer   string // issuer, instead of the URL
	configAt string // path of the configuration
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
			_ = json.NewEncoder(w).Encode(map[string]any{"issuer": cmp.Or(p.issuer, p.URL), "jwks_uri": cmp.Or(p.keysAt, p.URL+"/keys")})
		case "/keys":
			p.keyRequests.Add(1)
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

// counting is a Signer that counts its calls.
type counting struct{ calls atomic.Int64 }

func (s *counting) Put(context.Context, signerapi.User, io.Reader, signerapi.PutOptions) (signerapi.Info, error) {
	s.calls.Add(1)
	return signerapi.Info{}, nil
}

func (s *counting) Link(context.Context, signerapi.User, signerapi.LinkOptions) (signerapi.Link, error) {
	s.calls.Add(1)
	return signerapi.Link{}, nil
}

func (s *counting) Delete(context.Context, signerapi.User, signerapi.Preconditions) error {
	s.calls.Add(1)
	return nil
}

func (s *counting) StartUpload(context.Context, signerapi.User, int64) (signerapi.UploadSession, error) {
	s.calls.Add(1)
	return signerapi.UploadSession{}, nil
}

func (s *counting) CommitUpload(context.Context, signerapi.User, string, signerapi.CommitOptions) (signerapi.Info, error) {
	s.calls.Add(1)
	return signerapi.Info{}, nil
}

func (*counting) About(context.Context) (signerapi.About, error) { return signerapi.About{}, nil }

func (*counting) Ready(context.Context) error { return nil }

// newAuthenticator returns an Authenticator for tokens of p that has fetched nothing yet.
func newAuthenticator(p *provider, change func(*Options)) *Authenticator {
	opts := Options{
		Settings: Settings{Policy: access.Policy{Issuer: p.URL, ReadAccess: access.Own}, Audience: audience, UserClaim: "sub"}, Client: p.Client(),
		Waiters: ratelimit.NewPools("test", 0.0625, prometheus.NewRegistry()).New("waiters", 8),
	}
	if change != nil {
		change(&opts)
	}
	return New(opts, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
}

// fetched returns an Authenticator that has the keys of p.
func fetched(t *testing.T, p *provider, change func(*Options)) *Authenticator {
	t.Helper()
	a := newAuthenticator(p, change)
	if err := a.Fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
	return a
}

func user(t *testing.T, name string) signerapi.User {
	t.Helper()
	u, err := signerapi.ParseUser(name)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func with(t *testing.T, token string) context.Context {
	t.Helper()
	return signerapi.WithToken(t.Context(), signerapi.Token(token))
}

// remove deletes the picture of mia with a token, through a Guard of a.
func remove(t *testing.T, a *Authenticator, token string) error {
	t.Helper()
	return a.Guard(&counting{}).Delete(with(t, token), user(t, "mia"), signerapi.Preconditions{})
}
