package issuer

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	gocmp "github.com/google/go-cmp/cmp"
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

// exchange sends a token request. It returns the status, followed by the error codes if there are any, and the response.
func (f *fixture) exchange(t *testing.T, tenant string, form url.Values) (string, map[string]any) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/"+tenant+"/oauth2/v2.0/token", strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	w := httptest.NewRecorder()
	f.ServeHTTP(w, r)
	var response map[string]any
	decoder := json.NewDecoder(w.Body)
	decoder.UseNumber()
	if err := decoder.Decode(&response); err != nil {
		t.Fatal(err)
	}
	result := strconv.Itoa(w.Code)
	if response["error"] != nil {
		result += fmt.Sprint(" ", response["error"], " ", response["error_codes"])
	}
	return result, response
}

func TestExchangeIssuesTokenForStorage(t *testing.T) {
	f := newFixture(t, nil)
	result, got := f.exchange(t, testTenant, f.request(t, valid()))
	text, _ := got["access_token"].(string)
	token, err := jwt.ParseSigned(text, []jose.SignatureAlgorithm{jose.RS256})
	if result != "200" || got["token_type"] != "Bearer" || got["expires_in"] != json.Number("90") || err != nil {
		t.Fatalf("got %s %v, %v; want a bearer token for 90 s", result, got, err)
	}
	claims := map[string]any{}
	if err := token.Claims(f.key.Public(), &claims); err != nil {
		t.Fatal(err)
	}
	if lifetime := claims["exp"].(float64) - claims["nbf"].(float64) - clockSkew.Seconds(); lifetime < 90 || lifetime > 91 || claims["nbf"] != claims["iat"] {
		t.Errorf("nbf %v, iat %v, exp %v", claims["nbf"], claims["iat"], claims["exp"])
	}
	if uti, _ := claims["uti"].(string); len(uti) < 20 {
		t.Errorf("uti is %q; want a unique identifier", uti)
	}
	maps.DeleteFunc(claims, func(name string, _ any) bool { return slices.Contains([]string{"iat", "nbf", "exp", "uti"}, name) })
	want := map[string]any{
		"iss": "https://sts.windows.net/" + testTenant + "/", "aud": "https://storage.azure.com",
		"oid": testObject, "sub": testObject, "tid": testTenant, "appid": testClient, "ver": "1.0",
	}
	if diff := gocmp.Diff(want, claims); diff != "" {
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
			result, got := f.exchange(t, cmp.Or(c.tenant, testTenant), form)
			if result != c.want || got["access_token"] != nil {
				t.Fatalf("got %s: %v; want %s", result, got, c.want)
			}
			trace, _ := got["trace_id"].(string)
			correlation, _ := got["correlation_id"].(string)
			if !uuidForm.MatchString(trace) || !uuidForm.MatchString(correlation) || got["timestamp"] == nil {
				t.Errorf("not in the format of Entra ID: %v", got)
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
	if result, got := f.exchange(t, testTenant, f.request(t, valid())); result != "200" {
		t.Fatalf("reachable cluster: %s %v", result, got)
	}
}
