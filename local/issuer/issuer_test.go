package issuer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"
)

const (
	testTenant  = "00000000-0000-4000-8000-000000000001"
	testClient  = "00000000-0000-4000-8000-000000000002"
	testObject  = "00000000-0000-4000-8000-000000000003"
	testSubject = "system:serviceaccount:cats:cats-api"
)

// testCluster returns a cluster that is served with TLS by the server. All tests share it, because creating keys is slow.
var testCluster = sync.OnceValues(func() (*Cluster, *httptest.Server) {
	s := httptest.NewTLSServer(nil)
	c, err := NewCluster(s.URL)
	if err != nil {
		panic(err)
	}
	s.Config.Handler = c
	return c, s
})

// fixture is an issuer that accepts tokens of a cluster, as a client sees it.
type fixture struct {
	*Issuer
	cluster *Cluster
	server  *httptest.Server
	log     bytes.Buffer
}

// newFixture serves an issuer. client, unless nil, sends the issuer's requests to the cluster.
func newFixture(t *testing.T, client *http.Client) *fixture {
	t.Helper()
	f := &fixture{}
	var served *httptest.Server
	f.cluster, served = testCluster()
	if client == nil {
		client = served.Client()
	}
	var err error
	f.Issuer, err = New(Config{
		Tenant: testTenant, ClientID: testClient, ObjectID: testObject,
		Issuer: f.cluster.URL(), Subject: testSubject, Client: client, Lifetime: 90 * time.Second,
		Log: slog.New(slog.NewJSONHandler(&f.log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	f.server = httptest.NewTLSServer(f)
	t.Cleanup(f.server.Close)
	return f
}

func valid() Federated {
	return Federated{Subject: testSubject, Audience: Audience, Lifetime: time.Minute}
}

// request returns the form of a token request with the federated token d.
func (f *fixture) request(t *testing.T, d Federated) url.Values {
	t.Helper()
	assertion, err := f.cluster.Token(d)
	if err != nil {
		t.Fatal(err)
	}
	return url.Values{
		"grant_type":            {"client_credentials"},
		"client_id":             {testClient},
		"scope":                 {Scope + " openid offline_access profile"},
		"client_assertion_type": {assertionType},
		"client_assertion":      {assertion},
	}
}

type tokenResponse struct {
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

// call decodes the response into v and returns its status.
func (f *fixture) call(t *testing.T, method, path string, form url.Values, v any) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, f.server.URL+path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := f.server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode
}

// exchange sends a token request. It returns the status and the error codes, such as "401 [700027]".
func (f *fixture) exchange(t *testing.T, tenant string, form url.Values) (string, tokenResponse) {
	t.Helper()
	var r tokenResponse
	status := f.call(t, http.MethodPost, "/"+tenant+"/oauth2/v2.0/token", form, &r)
	return strings.TrimSpace(fmt.Sprintf("%d %s %v", status, r.Error, r.Codes)), r
}

func TestExchangeIssuesTokenForStorage(t *testing.T) {
	f := newFixture(t, nil)
	result, got := f.exchange(t, testTenant, f.request(t, valid()))
	if result != "200  []" || got.TokenType != "Bearer" || got.ExpiresIn != 90 {
		t.Fatalf("got %s %+v; want a bearer token for 90 s", result, got)
	}
	token, err := jwt.ParseSigned(got.AccessToken, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		t.Fatal(err)
	}
	claims := map[string]any{}
	if err := token.Claims(f.key.Public(), &claims); err != nil {
		t.Fatal(err)
	}
	iat, nbf, exp := claims["iat"].(float64), claims["nbf"].(float64), claims["exp"].(float64)
	if now := float64(time.Now().Unix()); iat > now || nbf > now || exp < now+30 || exp > now+92 {
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
		"oid": testObject, "sub": testObject, "tid": testTenant, "appid": testClient, "ver": "1.0",
	}
	if diff := cmp.Diff(want, claims); diff != "" {
		t.Errorf("claims (-want +got):\n%s", diff)
	}
	if n := f.Issued(); n != 1 {
		t.Errorf("issued %d tokens; want 1", n)
	}
}

func TestExchangeRejectsLikeEntraID(t *testing.T) {
	f := newFixture(t, nil)
	set := func(name, value string) func(url.Values) {
		return func(form url.Values) { form.Set(name, value) }
	}
	token := func(change func(*Federated)) func(url.Values) {
		return func(form url.Values) {
			d := valid()
			change(&d)
			form.Set("client_assertion", f.request(t, d).Get("client_assertion"))
		}
	}
	good := f.request(t, valid()).Get("client_assertion")
	parts := strings.Split(good, ".")
	longer := valid()
	longer.Lifetime = 24 * time.Hour
	spliced := parts[0] + "." + strings.Split(f.request(t, longer).Get("client_assertion"), ".")[1] + "." + parts[2]
	for _, c := range []struct {
		name   string
		tenant string
		change func(url.Values)
		want   string
	}{
		{"another tenant", "common", set("scope", Scope), "400 invalid_request [90002]"},
		{"grant type", "", set("grant_type", "password"), "400 unsupported_grant_type [70003]"},
		{"unknown application", "", set("client_id", testTenant), "400 unauthorized_client [700016]"},
		{"no application", "", set("client_id", ""), "400 unauthorized_client [700016]"},
		{"another scope", "", set("scope", "https://graph.microsoft.com/.default"), "400 invalid_scope [70011]"},
		{"two scopes", "", set("scope", Scope+" https://graph.microsoft.com/.default"), "400 invalid_scope [70011]"},
		{"no assertion", "", set("client_assertion", ""), "401 invalid_client [7000218]"},
		{"assertion type", "", set("client_assertion_type", "saml"), "401 invalid_client [7000218]"},
		{"not a token", "", set("client_assertion", "mew"), "401 invalid_client [50027]"},
		{"alg none", "", set("client_assertion", "eyJhbGciOiJub25lIn0."+parts[1]+"."), "401 invalid_client [50027]"},
		{"issuer", "", token(func(d *Federated) { d.Issuer = "https://other.example" }), "401 invalid_client [700211]"},
		{"subject", "", token(func(d *Federated) { d.Subject = "system:serviceaccount:dogs:cats-api" }), "401 invalid_client [700213]"},
		{"case of the subject", "", token(func(d *Federated) { d.Subject = "system:serviceaccount:cats:Cats-API" }), "401 invalid_client [7002138]"},
		{"audience", "", token(func(d *Federated) { d.Audience = "https://kubernetes.default.svc" }), "401 invalid_client [700212]"},
		{"another key", "", token(func(d *Federated) { d.Forged = true }), "401 invalid_client [700027]"},
		{"changed claims", "", set("client_assertion", spliced), "401 invalid_client [700027]"},
		{"expired", "", token(func(d *Federated) { d.IssuedAt = time.Now().Add(-time.Hour) }), "401 invalid_client [700024]"},
		{"not yet valid", "", token(func(d *Federated) { d.IssuedAt = time.Now().Add(time.Hour) }), "401 invalid_client [700024]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			form := f.request(t, valid())
			c.change(form)
			tenant := testTenant
			if c.tenant != "" {
				tenant = c.tenant
			}
			result, got := f.exchange(t, tenant, form)
			if result != c.want || got.AccessToken != "" {
				t.Fatalf("got %s (%s); want %s", result, got.Description, c.want)
			}
			if !uuidForm.MatchString(got.TraceID) || !uuidForm.MatchString(got.Correlation) || got.Timestamp == "" {
				t.Errorf("not in the format of Entra ID: %+v", got)
			}
		})
	}
	if n := f.Issued(); n != 0 {
		t.Errorf("issued %d tokens", n)
	}
	for line := range strings.Lines(f.log.String()) {
		if !strings.Contains(line, `"outcome":"rejected"`) || strings.Contains(line, parts[2]) {
			t.Errorf("log line %s", line)
		}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestExchangeRecoversWhenTheClusterDoes(t *testing.T) {
	_, served := testCluster()
	failure := errors.New("unreachable")
	f := newFixture(t, &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		if failure != nil {
			return nil, failure
		}
		return served.Client().Transport.RoundTrip(r)
	})})
	if result, _ := f.exchange(t, testTenant, f.request(t, valid())); result != "401 invalid_client [50166]" {
		t.Fatalf("unreachable cluster: %s", result)
	}
	failure = nil
	if result, got := f.exchange(t, testTenant, f.request(t, valid())); result != "200  []" {
		t.Fatalf("reachable cluster: %s %s", result, got.Description)
	}
}

func TestConfigurationContainsTheTenantsEndpoints(t *testing.T) {
	f := newFixture(t, nil)
	got := map[string]any{}
	f.call(t, http.MethodGet, "/"+testTenant+"/v2.0/.well-known/openid-configuration", nil, &got)
	base := f.server.URL + "/" + testTenant
	for name, want := range map[string]string{"issuer": "/v2.0", "token_endpoint": "/oauth2/v2.0/token", "jwks_uri": "/discovery/v2.0/keys"} {
		if got[name] != base+want {
			t.Errorf("%s is %v; want %s", name, got[name], base+want)
		}
	}
	for _, path := range []string{"/common/v2.0/.well-known/openid-configuration", "/common/discovery/v2.0/keys"} {
		var r tokenResponse
		if status := f.call(t, http.MethodGet, path, nil, &r); status != http.StatusBadRequest || !cmp.Equal(r.Codes, []int{90002}) {
			t.Errorf("GET %s: %d %v; want 400 [90002]", path, status, r.Codes)
		}
	}
}

func TestMiddlewareCanBeReplaced(t *testing.T) {
	f := newFixture(t, nil)
	f.Use(func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			writeJSON(w, http.StatusServiceUnavailable, map[string]string{"error": "temporarily_unavailable"})
		})
	})
	if result, _ := f.exchange(t, testTenant, f.request(t, valid())); result != "503 temporarily_unavailable []" {
		t.Errorf("with middleware: %s", result)
	}
	f.Use(nil)
	f.SetLifetime(2 * time.Second)
	if result, got := f.exchange(t, testTenant, f.request(t, valid())); result != "200  []" || got.ExpiresIn != 2 {
		t.Errorf("without: %s %+v; want a token for 2 s", result, got)
	}
}
