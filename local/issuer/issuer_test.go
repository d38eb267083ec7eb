package issuer

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"
)

const (
	testTenant  = "00000000-0000-4000-8000-000000000001"
	testClient  = "00000000-0000-4000-8000-000000000002"
	testSubject = "system:serviceaccount:cats:cats-api"
)

// world is a cluster and an issuer that trusts it, both served.
type world struct {
	cluster *Cluster
	issuer  *Issuer
	url     string
	client  *http.Client
	log     *bytes.Buffer
}

// newCluster serves a cluster and returns a client that trusts its certificate.
func newCluster(t *testing.T) (*Cluster, *http.Client) {
	t.Helper()
	s := httptest.NewUnstartedServer(nil)
	s.StartTLS()
	t.Cleanup(s.Close)
	c, err := NewCluster(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	s.Config.Handler = c
	return c, s.Client()
}

func newWorld(t *testing.T, change func(*Config)) *world {
	t.Helper()
	cluster, client := newCluster(t)
	w := &world{cluster: cluster, client: client, log: new(bytes.Buffer)}
	cfg := Config{
		Tenant: testTenant, ClientID: testClient, ObjectID: "00000000-0000-4000-8000-000000000003",
		Issuer: cluster.URL(), Subject: testSubject, Client: client,
		Log: slog.New(slog.NewJSONHandler(w.log, nil)),
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if w.issuer, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewTLSServer(w.issuer)
	t.Cleanup(s.Close)
	w.url = s.URL
	return w
}

func right() Federated {
	return Federated{Subject: testSubject, Audience: Audience, Lifetime: time.Minute}
}

func (w *world) assertion(t *testing.T, f Federated) string {
	t.Helper()
	token, err := w.cluster.Token(f)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func request(assertion string) url.Values {
	return url.Values{
		"grant_type":            {"client_credentials"},
		"client_id":             {testClient},
		"scope":                 {Scope + " openid offline_access profile"},
		"client_assertion_type": {assertionType},
		"client_assertion":      {assertion},
	}
}

type tokenAnswer struct {
	TokenType   string `json:"token_type"`
	ExpiresIn   int    `json:"expires_in"`
	AccessToken string `json:"access_token"`

	Error       string `json:"error"`
	Description string `json:"error_description"`
	Codes       []int  `json:"error_codes"`
	Timestamp   string `json:"timestamp"`
	TraceID     string `json:"trace_id"`
	Correlation string `json:"correlation_id"`
}

// call decodes the answer into v and returns its status.
func (w *world) call(t *testing.T, method, path string, form url.Values, v any) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, w.url+path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := w.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode
}

func (w *world) exchange(t *testing.T, tenant string, form url.Values) (int, tokenAnswer) {
	t.Helper()
	var a tokenAnswer
	status := w.call(t, http.MethodPost, "/"+tenant+"/oauth2/v2.0/token", form, &a)
	return status, a
}

func TestRightAssertionGetsTokenThatAzuriteTakes(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Lifetime = 90 * time.Second })
	status, got := w.exchange(t, testTenant, request(w.assertion(t, right())))
	if status != http.StatusOK || got.TokenType != "Bearer" || got.ExpiresIn != 90 {
		t.Fatalf("got %d %+v, want 200 and a bearer token for 90 s", status, got)
	}
	token, err := jwt.ParseSigned(got.AccessToken, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		t.Fatal(err)
	}
	claims := map[string]any{}
	if err := token.Claims(w.issuer.key.Public(), &claims); err != nil {
		t.Fatal(err)
	}
	iat, nbf, exp := claims["iat"].(float64), claims["nbf"].(float64), claims["exp"].(float64)
	now := float64(time.Now().Unix())
	if iat > now || nbf > now || exp < now+80 || exp > now+92 {
		t.Errorf("iat %v, nbf %v, exp %v at %v", iat, nbf, exp, now)
	}
	if uti, _ := claims["uti"].(string); len(uti) < 20 {
		t.Errorf("uti is %q; want a unique identifier", uti)
	}
	for _, name := range []string{"iat", "nbf", "exp", "uti"} {
		delete(claims, name)
	}
	want := map[string]any{
		"iss": "https://sts.windows.net/" + testTenant + "/", "aud": "https://storage.azure.com",
		"oid": "00000000-0000-4000-8000-000000000003", "sub": "00000000-0000-4000-8000-000000000003",
		"tid": testTenant, "appid": testClient, "ver": "1.0",
	}
	if diff := cmp.Diff(want, claims); diff != "" {
		t.Errorf("claims (-want +got):\n%s", diff)
	}
	if n := w.issuer.Issued(); n != 1 {
		t.Errorf("issued %d tokens, want 1", n)
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(t, nil)
	other, _ := newCluster(t)
	form := func(name, value string) func(url.Values) {
		return func(v url.Values) { v.Set(name, value) }
	}
	token := func(change func(*Federated)) func(url.Values) {
		return func(v url.Values) {
			f := right()
			change(&f)
			v.Set("client_assertion", w.assertion(t, f))
		}
	}
	good := w.assertion(t, right())
	hour := time.Hour
	for _, c := range []struct {
		name   string
		tenant string
		change func(url.Values)
		status int
		oauth  string
		code   int
	}{
		{"another tenant", "common", form("scope", Scope), 400, "invalid_request", 90002},
		{"grant type", "", form("grant_type", "password"), 400, "unsupported_grant_type", 70003},
		{"unknown application", "", form("client_id", testTenant), 400, "unauthorized_client", 700016},
		{"no application", "", form("client_id", ""), 400, "unauthorized_client", 700016},
		{"another scope", "", form("scope", "https://graph.microsoft.com/.default"), 400, "invalid_scope", 70011},
		{"two scopes", "", form("scope", Scope+" https://graph.microsoft.com/.default"), 400, "invalid_scope", 70011},
		{"no assertion", "", form("client_assertion", ""), 401, "invalid_client", 7000218},
		{"assertion type", "", form("client_assertion_type", "saml"), 401, "invalid_client", 7000218},
		{"not a token", "", form("client_assertion", "mew"), 401, "invalid_client", 50027},
		{"unsigned", "", form("client_assertion", unsigned(good)), 401, "invalid_client", 50027},
		{"issuer", "", token(func(f *Federated) { f.Issuer = other.URL() }), 401, "invalid_client", 700211},
		{"subject", "", token(func(f *Federated) { f.Subject = "system:serviceaccount:dogs:cats-api" }), 401, "invalid_client", 700213},
		{"subject's case", "", token(func(f *Federated) { f.Subject = "system:serviceaccount:cats:Cats-API" }), 401, "invalid_client", 7002138},
		{"audience", "", token(func(f *Federated) { f.Audience = "https://kubernetes.default.svc" }), 401, "invalid_client", 700212},
		{"another key", "", token(func(f *Federated) { f.Forged = true }), 401, "invalid_client", 700027},
		{"changed claims", "", form("client_assertion", spliced(t, w, good)), 401, "invalid_client", 700027},
		{"expired", "", token(func(f *Federated) { f.IssuedAt = time.Now().Add(-hour) }), 401, "invalid_client", 700024},
		{"not yet", "", token(func(f *Federated) { f.IssuedAt = time.Now().Add(hour) }), 401, "invalid_client", 700024},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := request(good)
			c.change(v)
			tenant := testTenant
			if c.tenant != "" {
				tenant = c.tenant
			}
			status, got := w.exchange(t, tenant, v)
			if status != c.status || got.Error != c.oauth || !cmp.Equal(got.Codes, []int{c.code}) {
				t.Fatalf("got %d %s %v (%s), want %d %s %d", status, got.Error, got.Codes, got.Description, c.status, c.oauth, c.code)
			}
			if got.AccessToken != "" {
				t.Error("a refusal holds a token")
			}
			if !uuidForm.MatchString(got.TraceID) || !uuidForm.MatchString(got.Correlation) || got.Timestamp == "" {
				t.Errorf("not in Entra ID's form: %+v", got)
			}
		})
	}
	if n := w.issuer.Issued(); n != 0 {
		t.Errorf("issued %d tokens, want none", n)
	}
	for line := range strings.Lines(w.log.String()) {
		if !strings.Contains(line, `"outcome":"refused"`) || strings.Contains(line, strings.Split(good, ".")[2]) {
			t.Errorf("log line %s", line)
		}
	}
}

// unsigned is the token with alg none.
func unsigned(token string) string {
	return "eyJhbGciOiJub25lIn0." + strings.Split(token, ".")[1] + "."
}

// spliced has the header and signature of a good token and the claims of another.
func spliced(t *testing.T, w *world, good string) string {
	f := right()
	f.Lifetime = 24 * time.Hour
	parts, longer := strings.Split(good, "."), strings.Split(w.assertion(t, f), ".")
	return parts[0] + "." + longer[1] + "." + parts[2]
}

func TestClusterOutOfReachIsARefusalThatPasses(t *testing.T) {
	reach := &switchable{next: http.DefaultTransport}
	w := newWorld(t, func(c *Config) {
		reach.next = c.Client.Transport
		c.Client = &http.Client{Transport: reach}
	})
	reach.off = true
	if status, got := w.exchange(t, testTenant, request(w.assertion(t, right()))); status != 401 || !cmp.Equal(got.Codes, []int{50166}) {
		t.Fatalf("got %d %v, want 401 and 50166", status, got.Codes)
	}
	reach.off = false
	if status, got := w.exchange(t, testTenant, request(w.assertion(t, right()))); status != 200 {
		t.Fatalf("got %d %s, want 200", status, got.Description)
	}
}

type switchable struct {
	next http.RoundTripper
	off  bool
}

func (s *switchable) RoundTrip(r *http.Request) (*http.Response, error) {
	if s.off {
		return nil, io.ErrUnexpectedEOF
	}
	return s.next.RoundTrip(r)
}

func TestConfigurationNamesTheTenantsEndpoints(t *testing.T) {
	w := newWorld(t, nil)
	var got struct {
		Issuer        string `json:"issuer"`
		TokenEndpoint string `json:"token_endpoint"`
		Keys          string `json:"jwks_uri"`
	}
	w.call(t, http.MethodGet, "/"+testTenant+"/v2.0/.well-known/openid-configuration", nil, &got)
	base := w.url + "/" + testTenant
	if got.Issuer != base+"/v2.0" || got.TokenEndpoint != base+"/oauth2/v2.0/token" || got.Keys != base+"/discovery/v2.0/keys" {
		t.Errorf("got %+v", got)
	}
	for _, path := range []string{"/common/v2.0/.well-known/openid-configuration", "/common/discovery/v2.0/keys"} {
		var got tokenAnswer
		if status := w.call(t, http.MethodGet, path, nil, &got); status != http.StatusBadRequest || !cmp.Equal(got.Codes, []int{90002}) {
			t.Errorf("GET %s: %d %v, want 400 and 90002", path, status, got.Codes)
		}
	}
}

func TestMiddlewareComesAndGoes(t *testing.T) {
	w := newWorld(t, nil)
	w.issuer.Use(func(http.Handler) http.Handler {
		return http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			answer(rw, http.StatusServiceUnavailable, map[string]string{"error": "temporarily_unavailable"})
		})
	})
	if status, _ := w.exchange(t, testTenant, request(w.assertion(t, right()))); status != http.StatusServiceUnavailable {
		t.Errorf("got %d, want 503", status)
	}
	w.issuer.Use(nil)
	w.issuer.SetLifetime(2 * time.Second)
	if status, got := w.exchange(t, testTenant, request(w.assertion(t, right()))); status != http.StatusOK || got.ExpiresIn != 2 {
		t.Errorf("got %d %+v, want a token for 2 s", status, got)
	}
}
