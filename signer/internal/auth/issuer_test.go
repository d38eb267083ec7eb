package auth

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"cats.example/shared/apierror"
)

// text returns the public key of k as JSON.
func (k key) text(t *testing.T) string {
	t.Helper()
	b, err := json.Marshal(k.jwk())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestUnusableKeysAreIgnoredAndLogged(t *testing.T) {
	k, ec := rsaKey(t, "1"), ecKey(t, "2")
	content, err := os.ReadFile("testdata/unusable-keys.txt")
	if err != nil {
		t.Fatal(err)
	}
	huge := fmt.Sprintf("# RSA of 800000 bits\n"+`{"kty":"RSA","kid":"bad","e":"AQAB","n":"v%s"}`+"\n", strings.Repeat("A", 133_333))
	huge += "# many\n" + strings.TrimSuffix(strings.Repeat(`{"kty":"RSA","kid":"many"},7,`, 2_000), ",") + "\n"
	unused := strings.NewReplacer(`"sig"`, `"enc"`, `"RS256"`, `"RSA-OAEP"`, `"kid":"1"`, `"kid":"c2VjcmV0"`)
	encryption := unused.Replace(k.text(t)) // is not logged
	name := ""
	for line := range strings.Lines(string(content) + huge) {
		if comment, ok := strings.CutPrefix(line, "# "); ok {
			name = comment
			continue
		}
		p := newProvider(t)
		p.set = fmt.Sprintf(`{"keys":[%[1]s,%[2]s,%[1]s,%[3]s,%[4]s]}`, strings.TrimSpace(line), k.text(t), ec.text(t), encryption)
		a, log := newAuthenticator(p, nil), &bytes.Buffer{}
		a.log = slog.New(slog.NewJSONHandler(log, nil))
		if err := errors.Join(a.Fetch(t.Context()), a.Fetch(t.Context())); err != nil { // twice, as Run does every hour
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, usable := range []key{k, ec} {
			if err := a.authorize(t.Context(), t, usable.sign(t, p.claims())); err != nil {
				t.Errorf("%s: a token of a usable key: %v", name, err)
			}
		}
		if n := strings.Count(log.String(), `"issuer keys ignored"`); n != 1 || strings.Contains(log.String(), "c2VjcmV0") || log.Len() > 700+maxIgnored {
			t.Errorf("%s: logged %d times: %.2000s", name, n, log)
		}
	}
}

func TestFetchRejectsUselessResponses(t *testing.T) {
	k := rsaKey(t, "1")
	p := newProvider(t, k)
	plain := httptest.NewServer(p.Config.Handler)
	defer plain.Close()
	long := strings.Repeat("x", 100_000)
	set := func(text string) func() { return func() { p.set = text } }
	issuer := func(text string) func() { return func() { p.issuer = text } }
	for name, c := range map[string]struct {
		provide func()
		want    string // in the error
	}{
		"no keys":                {set(`{}`), "no usable key among its 0"},
		"unusable keys":          {set(`{"keys":[null,{"kty":"oct"}]}`), "no usable key among its 2"},
		"keys are a page":        {set(`<html>`), "not a JSON document of the expected form"},
		"large":                  {set(`{"keys":[` + k.text(t) + strings.Repeat(" ", maxResponse) + `]}`), "larger than 1048576 bytes"},
		"no configuration there": {func() { p.configAt = "/other" }, "HTTP status 404"},
		"issuer with a slash":    {issuer(p.URL + "/"), "OIDC_DISCOVERY_URL"},
		"long issuer":            {issuer(long), "OIDC_DISCOVERY_URL"},
		"keys over plain HTTP":   {func() { p.keysAt = plain.URL + "/keys" }, "want https"},
		"long address of keys":   {func() { p.keysAt = "http://" + long }, "want https"},
		"long error response": {func() {
			p.fault = func(w http.ResponseWriter, _ *http.Request) { http.Error(w, long, http.StatusTeapot) }
		}, "HTTP status 418"},
	} {
		p.issuer, p.keysAt, p.set, p.fault, p.configAt = "", "", "", nil, "/.well-known/openid-configuration"
		cached := fetched(t, p, nil)
		c.provide()
		if err := cached.Fetch(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 1000 {
			t.Errorf("%s: %.1500v; want %s", name, err, c.want)
		}
		if err := cached.authorize(t.Context(), t, k.sign(t, p.claims())); err != nil {
			t.Errorf("%s: a token of a cached key: %v", name, err)
		}
	}
	p.fault = nil
	a := newAuthenticator(p, nil)
	a.client = &http.Client{Transport: &http.Transport{}}
	if err := a.Fetch(t.Context()); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("an untrusted certificate: %v", err)
	}
}

func TestConfigurationMayBeElsewhere(t *testing.T) {
	k := rsaKey(t, "1")
	p := newProvider(t, k)
	p.issuer, p.configAt = "https://contoso.ciamlogin.example/TENANT/v2.0", "/policy/v2.0/.well-known/openid-configuration"
	a := fetched(t, p, func(s *Settings) { s.Issuer, s.DiscoveryURL = p.issuer, p.URL+"/policy/v2.0?p=b2c" })
	for iss, want := range map[string]error{p.issuer: nil, p.URL: apierror.ErrUnauthenticated, p.issuer + "/": apierror.ErrUnauthenticated} {
		if err := a.authorize(t.Context(), t, k.sign(t, p.claims("iss", iss))); !errors.Is(err, want) {
			t.Errorf("a token of %q: %v; want %v", iss, err, want)
		}
	}
}
