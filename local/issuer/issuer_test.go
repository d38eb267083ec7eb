package issuer

import (
	"cmp"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
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

func valid() Federated {
	return Federated{Subject: testSubject, Audience: Audience, Lifetime: time.Minute}
}

// exchange sends a token request. It returns the status, followed by the error codes if there are any, and the response.
func exchange(t *testing.T, i *Issuer, tenant string, form url.Values) (string, map[string]any) {
	t.Helper()
	body := strings.NewReader(form.Encode())
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/"+tenant+"/oauth2/v2.0/token", body)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	w := httptest.NewRecorder()
	i.ServeHTTP(w, r)
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

func TestExchangeIsLikeThatOfEntraID(t *testing.T) {
	served := httptest.NewTLSServer(nil)
	defer served.Close()
	cluster, err := NewCluster(served.URL)
	if err != nil {
		t.Fatal(err)
	}
	i, err := New(Config{
		Tenant: testTenant, ClientID: testClient, ObjectID: testObject,
		Issuer: cluster.URL(), Subject: testSubject, Client: served.Client(), Lifetime: 90 * time.Second,
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	federated := func(change func(*Federated)) string {
		t.Helper()
		d := valid()
		change(&d)
		token, err := cluster.Token(d)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	assertion := federated(func(*Federated) {})
	good := url.Values{
		"grant_type": {"client_credentials"}, "client_id": {testClient}, "scope": {Scope + " openid offline_access profile"},
		"client_assertion_type": {assertionType}, "client_assertion": {assertion},
	}
	if result, _ := exchange(t, i, testTenant, good); result != "401 invalid_client [50166]" {
		t.Fatalf("unreachable cluster: %s", result)
	}
	served.Config.Handler = cluster

	token := func(change func(*Federated)) string { return "client_assertion=" + federated(change) }
	parts := strings.Split(assertion, ".")
	longer := strings.Split(federated(func(d *Federated) { d.Lifetime = 24 * time.Hour }), ".")
	for _, c := range []struct{ tenant, field, want string }{
		{"common", "scope=" + Scope, "400 invalid_request [90002]"},
		{"", "grant_type=password", "400 unsupported_grant_type [70003]"},
		{"", "client_id=" + testTenant, "400 unauthorized_client [700016]"},
		{"", "scope=" + Scope + " https://graph.microsoft.com/.default", "400 invalid_scope [70011]"},
		{"", "client_assertion=", "401 invalid_client [7000218]"},
		{"", "client_assertion_type=saml", "401 invalid_client [7000218]"},
		{"", "client_assertion=eyJhbGciOiJub25lIn0." + parts[1] + ".", "401 invalid_client [50027]"},
		{"", "client_assertion=" + parts[0] + "." + longer[1] + "." + parts[2], "401 invalid_client [700027]"},
		{"", token(func(d *Federated) { d.Forged = true }), "401 invalid_client [700027]"},
		{"", token(func(d *Federated) { d.Issuer = "https://other.example" }), "401 invalid_client [700211]"},
		{"", token(func(d *Federated) { d.Subject = strings.Replace(testSubject, "cats", "dogs", 1) }), "401 invalid_client [700213]"},
		{"", token(func(d *Federated) { d.Subject = strings.Replace(testSubject, "api", "API", 1) }), "401 invalid_client [7002138]"},
		{"", token(func(d *Federated) { d.Audience = "https://kubernetes.default.svc" }), "401 invalid_client [700212]"},
		{"", token(func(d *Federated) { d.IssuedAt = time.Now().Add(-time.Hour) }), "401 invalid_client [700024]"},
		{"", token(func(d *Federated) { d.IssuedAt = time.Now().Add(time.Hour) }), "401 invalid_client [700024]"},
	} {
		form := maps.Clone(good)
		name, value, _ := strings.Cut(c.field, "=")
		form.Set(name, value)
		result, got := exchange(t, i, cmp.Or(c.tenant, testTenant), form)
		if result != c.want || got["access_token"] != nil {
			t.Errorf("%.60s: %s: %v; want %s", c.field, result, got, c.want)
		}
	}

	result, got := exchange(t, i, testTenant, good)
	text, _ := got["access_token"].(string)
	issued, err := jwt.ParseSigned(text, []jose.SignatureAlgorithm{jose.RS256})
	if result != "200" || got["token_type"] != "Bearer" || got["expires_in"] != json.Number("90") || err != nil {
		t.Fatalf("got %s %v, %v; want a bearer token for 90 s", result, got, err)
	}
	claims := map[string]any{}
	if err := issued.Claims(i.key.Public(), &claims); err != nil {
		t.Fatal(err)
	}
	if lifetime := claims["exp"].(float64) - claims["nbf"].(float64) - clockSkew.Seconds(); lifetime < 90 || lifetime > 91 {
		t.Errorf("the claims are %v", claims)
	}
	maps.DeleteFunc(claims, func(name string, _ any) bool { return slices.Contains([]string{"iat", "nbf", "exp", "uti"}, name) })
	want := map[string]any{
		"iss": "https://sts.windows.net/" + testTenant + "/", "aud": "https://storage.azure.com",
		"oid": testObject, "sub": testObject, "tid": testTenant, "appid": testClient, "ver": "1.0",
	}
	if diff := gocmp.Diff(want, claims); diff != "" || i.Issued() != 1 {
		t.Errorf("%d tokens issued; claims (-want +got):\n%s", i.Issued(), diff)
	}
}

func TestTokenFileRotatesBeforeTheExpiry(t *testing.T) {
	cluster, err := NewCluster("https://cluster.example")
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		file, err := NewTokenFile(filepath.Join(t.TempDir(), "token"), cluster, valid()) // for a minute
		if err != nil {
			t.Fatal(err)
		}
		go file.Run(t.Context(), slog.New(slog.DiscardHandler))
		var tokens []string
		for _, wait := range []time.Duration{0, 47 * time.Second, 2 * time.Second} { // 80 % of the lifetime are 48 s
			time.Sleep(wait)
			synctest.Wait()
			text, err := os.ReadFile(file.Path())
			info, statErr := os.Stat(file.Path())
			if err != nil || statErr != nil || info.Mode().Perm() != 0o600 {
				t.Fatalf("%v, %v, %v; want mode 0600", err, statErr, info)
			}
			tokens = append(tokens, string(text))
		}
		if tokens[1] != tokens[0] || tokens[2] == tokens[0] {
			t.Errorf("the tokens are %q", tokens)
		}
	})
}
