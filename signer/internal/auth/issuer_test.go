package auth

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"cats.example/shared/access"
	"cats.example/shared/apierror"
)

// jwk returns the public key of k as JSON, with changes: names and JSON values in turn; "" removes the member.
func (k key) jwk(t *testing.T, change ...string) string {
	t.Helper()
	b, err := json.Marshal(jose.JSONWebKey{Key: k.public, KeyID: k.id, Algorithm: string(k.alg), Use: "sig"})
	if err != nil {
		t.Fatal(err)
	}
	members := map[string]json.RawMessage{}
	if err := json.Unmarshal(b, &members); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(change); i += 2 {
		if members[change[i]] = json.RawMessage(change[i+1]); change[i+1] == "" {
			delete(members, change[i])
		}
	}
	if b, err = json.Marshal(members); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// ofBits returns an RSA public key of that size, without a private key.
func ofBits(t *testing.T, bits int) key {
	t.Helper()
	n := make([]byte, bits/8)
	_, _ = rand.Read(n)
	n[0], n[len(n)-1] = n[0]|0x80, n[len(n)-1]|1
	return key{"bits", jose.RS256, nil, &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: 65537}}
}

// logged returns an Authenticator and its log.
func logged(p *provider) (*Authenticator, *bytes.Buffer) {
	var log bytes.Buffer
	a := newAuthenticator(p, nil)
	a.log = slog.New(slog.NewJSONHandler(&log, nil))
	return a, &log
}

func TestUnusableKeysAreIgnoredAndLogged(t *testing.T) {
	k, ec := rsaKey(t, "1"), ecKey(t, "2")
	private, err := json.Marshal(jose.JSONWebKey{Key: k.private, KeyID: "bad", Algorithm: "RS256", Use: "sig"})
	if err != nil {
		t.Fatal(err)
	}
	other, err := x509.MarshalPKIXPublicKey(ec.public)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"null":                    `null`,
		"string":                  `"key"`,
		"number":                  `7`,
		"list":                    `[{}]`,
		"empty object":            `{}`,
		"unknown type":            `{"kty":"PQC","kid":"bad"}`,
		"type is a number":        `{"kty":7,"kid":"bad"}`,
		"only a type":             `{"kty":"RSA","kid":"bad"}`,
		"symmetric":               `{"kty":"oct","kid":"bad","k":"c2VjcmV0"}`,
		"private":                 string(private),
		"RSA without n":           k.jwk(t, "kid", `"bad"`, "n", ""),
		"RSA with an empty n":     k.jwk(t, "kid", `"bad"`, "n", `""`),
		"RSA without e":           k.jwk(t, "kid", `"bad"`, "e", ""),
		"RSA with e 1":            k.jwk(t, "kid", `"bad"`, "e", `"AQ"`),
		"RSA of 1024 bits":        ofBits(t, 1024).jwk(t),
		"RSA of 800000 bits":      ofBits(t, 800_000).jwk(t),
		"invalid base64":          k.jwk(t, "kid", `"bad"`, "n", `"!!!"`),
		"n is a number":           k.jwk(t, "kid", `"bad"`, "n", `7`),
		"invalid x5c":             k.jwk(t, "kid", `"bad"`, "x5c", `["AAAA"]`),
		"x5c is a string":         k.jwk(t, "kid", `"bad"`, "x5c", fmt.Sprintf("%q", base64.StdEncoding.EncodeToString(other))),
		"invalid x5t":             k.jwk(t, "kid", `"bad"`, "x5t", `"mew"`),
		"invalid x5t#S256":        k.jwk(t, "kid", `"bad"`, "x5t#S256", `"mew"`),
		"invalid x5u":             k.jwk(t, "kid", `"bad"`, "x5u", `"https://%zz"`),
		"kid is a number":         k.jwk(t, "kid", `7`),
		"alg is a number":         k.jwk(t, "kid", `"bad"`, "alg", `256`),
		"alg is symmetric":        k.jwk(t, "kid", `"bad"`, "alg", `"HS256"`),
		"unknown alg":             k.jwk(t, "kid", `"bad"`, "alg", `"ES256K"`),
		"EC not on the curve":     ec.jwk(t, "kid", `"bad"`, "x", `"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"`),
		"EC of another curve":     ec.jwk(t, "kid", `"bad"`, "crv", `"P-384"`),
		"EC of an unknown curve":  ec.jwk(t, "kid", `"bad"`, "crv", `"secp256k1"`),
		"EC without y":            ec.jwk(t, "kid", `"bad"`, "y", ""),
		"OKP of an unknown curve": `{"kty":"OKP","crv":"Ed448","kid":"bad","x":"AAAA"}`,
		"OKP too short":           `{"kty":"OKP","crv":"Ed25519","kid":"bad","x":"AAAA"}`,
		"kid of a usable key":     k.jwk(t, "n", `""`),
	} {
		p := newProvider(t)
		p.set = fmt.Sprintf(`{"keys":[%[1]s,%[2]s,%[1]s,%[3]s]}`, bad, k.jwk(t), ec.jwk(t))
		a, log := logged(p)
		if err := errors.Join(a.Fetch(t.Context()), a.Fetch(t.Context())); err != nil { // twice, as Run does every hour
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := errors.Join(remove(t, a, k.sign(t, p.claims())), remove(t, a, ec.sign(t, p.claims()))); err != nil {
			t.Errorf("%s: a token of a usable key: %v", name, err)
		}
		if n := strings.Count(log.String(), `"issuer keys ignored"`); n != 1 || strings.Contains(log.String(), "c2VjcmV0") || log.Len() > 1000 {
			t.Errorf("%s: logged %d times: %.2000s", name, n, log)
		}
	}
}

func TestKeyVerifiesOnlyItsOwnAlgorithm(t *testing.T) {
	k := rsaKey(t, "1")
	p := newProvider(t)
	token := k.sign(t, p.claims()) // RS256
	for alg, want := range map[string]error{`"RS256"`: nil, `"PS256"`: apierror.ErrUnauthenticated, "": nil} {
		p.set = fmt.Sprintf(`{"keys":[%s]}`, k.jwk(t, "alg", alg))
		if err := remove(t, fetched(t, p, nil), token); !errors.Is(err, want) {
			t.Errorf("a key with the alg %s: %v; want %v", alg, err, want)
		}
	}
}

func TestIgnoredKeysAreLoggedWhenTheyChange(t *testing.T) {
	k := rsaKey(t, "1")
	p := newProvider(t)
	a, log := logged(p)
	many := strings.TrimSuffix(strings.Repeat(`{"kty":"RSA","kid":"many"},7,`, 20_000), ",")
	for i, step := range []struct {
		bad   string
		lines int
	}{
		{k.jwk(t, "use", `"enc"`, "alg", `"RSA-OAEP"`), 0}, // ignored silently
		{`{"kty":"x","kid":"a"}`, 1},
		{`{"kty":"x","kid":"a"}`, 0},
		{`{"kty":"x","kid":"a"},{"kty":"y","kid":"a"}`, 1},
		{`{"kty":"y","kid":"a"}`, 1},
		{`{"kty":"` + strings.Repeat("x", 10_000) + `","kid":"` + strings.Repeat("y", 10_000) + `"}`, 1},
		{many, 1},
		{many, 0},
	} {
		p.set = fmt.Sprintf(`{"keys":[%s,%s]}`, step.bad, k.jwk(t))
		log.Reset()
		if err := a.Fetch(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(log.String(), "issuer keys ignored"); n != step.lines || log.Len() > 500+(maxIgnored+200)*n {
			t.Errorf("step %d: %d lines, %d bytes; want %d lines\n%.2000s", i, n, log.Len(), step.lines, log)
		}
	}
}

func TestFetchRejectsUselessKeySets(t *testing.T) {
	k := rsaKey(t, "1")
	p := newProvider(t)
	for set, want := range map[string]string{
		`{}`:                                   "no usable key among its 0",
		`{"keys":null}`:                        "no usable key among its 0",
		`null`:                                 "no usable key among its 0",
		`{"keys":[null,{"kty":"oct"}]}`:        "no usable key among its 2",
		`{"keys":[` + k.jwk(t, "n", "") + `]}`: "no usable key among its 1",
		`{"keys":"none"}`:                      "not a JSON document of the expected form",
		`[]`:                                   "not a JSON document of the expected form",
		`<html>`:                               "not a JSON document of the expected form",
		`{"keys":[` + k.jwk(t) + strings.Repeat(" ", maxResponse) + `]}`: "larger than 1048576 bytes",
	} {
		p.set = set
		if err := newAuthenticator(p, nil).Fetch(t.Context()); err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 600 {
			t.Errorf("%.60s: %v; want %s", set, err, want)
		}
	}
	p.set = fmt.Sprintf(`{"keys":[%s]}`, k.jwk(t))
	a := fetched(t, p, nil)
	p.set = `{"keys":[]}`
	if err := remove(t, a, rsaKey(t, "2").sign(t, p.claims())); !errors.Is(err, apierror.ErrIssuerUnavailable) {
		t.Errorf("a token of an unknown key: %v", err)
	}
	if err := remove(t, a, k.sign(t, p.claims())); err != nil {
		t.Errorf("a token of a cached key: %v", err)
	}
}

func TestFetchRejectsWrongIssuers(t *testing.T) {
	p := newProvider(t, rsaKey(t, "1"))
	p.configAt = "/policy/v2.0/.well-known/openid-configuration"
	plain := httptest.NewServer(p.Config.Handler)
	defer plain.Close()
	for name, c := range map[string]struct {
		provide func()
		change  func(*Options)
		want    string // in the error
	}{
		"untrusted certificate":   {func() {}, func(o *Options) { o.Client = &http.Client{Transport: &http.Transport{}} }, "certificate"},
		"no configuration there":  {func() {}, func(o *Options) { o.DiscoveryURL = p.URL + "/other" }, "HTTP status 404"},
		"issuer with a slash":     {func() {}, func(o *Options) { o.Issuer += "/" }, "OIDC_DISCOVERY_URL"},
		"issuer is a placeholder": {func() { p.issuer = "https://login.example.com/{tenantid}/v2.0" }, nil, "OIDC_DISCOVERY_URL"},
		"issuer in capitals":      {func() { p.issuer = strings.ToUpper(p.URL) }, nil, "OIDC_DISCOVERY_URL"},
		"long issuer":             {func() { p.issuer = strings.Repeat("x", 100_000) }, nil, "OIDC_DISCOVERY_URL"},
		"keys over plain HTTP":    {func() { p.keysAt = plain.URL + "/keys" }, nil, "want https"},
		"long address of keys":    {func() { p.keysAt = "http://" + strings.Repeat("x", 12_000) }, nil, "want https"},
		"long error response": {func() {
			p.handle = func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path == "/keys" {
					w.WriteHeader(http.StatusTeapot)
					_, _ = w.Write(bytes.Repeat([]byte("x"), maxResponse))
				}
				return r.URL.Path == "/keys"
			}
		}, nil, "HTTP status 418"},
	} {
		p.issuer, p.keysAt, p.handle = "", "", nil
		c.provide()
		err := newAuthenticator(p, func(o *Options) {
			o.DiscoveryURL = p.URL + "/policy/v2.0"
			if c.change != nil {
				c.change(o)
			}
		}).Fetch(t.Context())
		if err == nil || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 1000 {
			t.Errorf("%s: %.1500v; want %s", name, err, c.want)
		}
	}
}

func TestConfigurationMayBeElsewhere(t *testing.T) {
	k := rsaKey(t, "1")
	p := newProvider(t, k)
	p.issuer, p.configAt = "https://contoso.ciamlogin.example/TENANT/v2.0", "/policy/v2.0/.well-known/openid-configuration"
	for _, at := range []string{p.configAt, "/policy/v2.0", "/policy/v2.0/", p.configAt + "?p=b2c", "/policy/v2.0?p=b2c"} {
		a := fetched(t, p, func(o *Options) {
			o.Policy = access.Policy{Issuer: p.issuer, DiscoveryURL: p.URL + at, ReadAccess: access.Own}
		})
		if err := remove(t, a, k.sign(t, p.claims("iss", p.issuer))); err != nil {
			t.Errorf("%s: a token of the issuer: %v", at, err)
		}
		for _, iss := range []string{p.URL, p.URL + at, p.issuer + "/", "https://contoso.ciamlogin.example/OTHER/v2.0", ""} {
			if err := remove(t, a, k.sign(t, p.claims("iss", iss))); !errors.Is(err, apierror.ErrUnauthenticated) {
				t.Errorf("%s: a token of %q: %v", at, iss, err)
			}
		}
	}
}

func TestErrorsOfTokensAreShort(t *testing.T) {
	k := rsaKey(t, "1")
	p := newProvider(t, k)
	long := strings.Repeat("x", 12_000)
	a := fetched(t, p, nil)
	for name, token := range map[string]string{
		"iss":       k.sign(t, p.claims("iss", "https://"+long)),
		"aud":       k.sign(t, p.claims("aud", long)),
		"many auds": k.sign(t, p.claims("aud", strings.Split(long, ""))),
		"exp":       k.sign(t, p.claims("exp", json.Number("1"+strings.Repeat("0", 5000)))),
		"sub":       k.sign(t, p.claims("sub", []string{long})),
		"alg":       base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"`+long+`"}`)) + ".e30.AAAA",
		"garbage":   long,
	} {
		if err := remove(t, a, token); !errors.Is(err, apierror.ErrUnauthenticated) || len(err.Error()) > 500 {
			t.Errorf("a token with a long %s: %d bytes: %.600v", name, len(fmt.Sprint(err)), err)
		}
	}
}
