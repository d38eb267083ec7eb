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
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"cats.example/shared/access"
	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
)

// jwk is the public half of k as an issuer publishes it, with members changed as said.
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

// ofBits is an RSA key that signs nothing.
func ofBits(t *testing.T, bits int) key {
	t.Helper()
	n := make([]byte, bits/8)
	_, _ = rand.Read(n)
	n[0], n[len(n)-1] = n[0]|0x80, n[len(n)-1]|1
	return key{"bits", jose.RS256, nil, &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: 65537}}
}

func TestUnusableKeysOfTheIssuerAreIgnored(t *testing.T) {
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
		"null":                  `null`,
		"a string":              `"key"`,
		"a number":              `7`,
		"a list":                `[{}]`,
		"true":                  `true`,
		"an empty object":       `{}`,
		"an unknown type":       `{"kty":"PQC","kid":"bad"}`,
		"a type that is none":   `{"kty":7,"kid":"bad"}`,
		"a type and no more":    `{"kty":"RSA","kid":"bad"}`,
		"a secret":              `{"kty":"oct","kid":"bad","k":"c2VjcmV0"}`,
		"a private key":         string(private),
		"RSA without n":         k.jwk(t, "kid", `"bad"`, "n", ""),
		"RSA with an empty n":   k.jwk(t, "kid", `"bad"`, "n", `""`),
		"RSA without e":         k.jwk(t, "kid", `"bad"`, "e", ""),
		"RSA with e 1":          k.jwk(t, "kid", `"bad"`, "e", `"AQ"`),
		"RSA of 1024 bits":      ofBits(t, 1024).jwk(t),
		"RSA of 800000 bits":    ofBits(t, 800_000).jwk(t),
		"bad base64":            k.jwk(t, "kid", `"bad"`, "n", `"!!!"`),
		"a number for n":        k.jwk(t, "kid", `"bad"`, "n", `7`),
		"a bad x5c":             k.jwk(t, "kid", `"bad"`, "x5c", `["AAAA"]`),
		"an x5c of no list":     k.jwk(t, "kid", `"bad"`, "x5c", fmt.Sprintf("%q", base64.StdEncoding.EncodeToString(other))),
		"a bad x5t":             k.jwk(t, "kid", `"bad"`, "x5t", `"mew"`),
		"a bad x5t#S256":        k.jwk(t, "kid", `"bad"`, "x5t#S256", `"mew"`),
		"a bad x5u":             k.jwk(t, "kid", `"bad"`, "x5u", `"https://%zz"`),
		"a number for the kid":  k.jwk(t, "kid", `7`),
		"a number for alg":      k.jwk(t, "kid", `"bad"`, "alg", `256`),
		"an alg of a secret":    k.jwk(t, "kid", `"bad"`, "alg", `"HS256"`),
		"an unknown alg":        k.jwk(t, "kid", `"bad"`, "alg", `"ES256K"`),
		"EC not on the curve":   ec.jwk(t, "kid", `"bad"`, "x", `"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"`),
		"EC of another curve":   ec.jwk(t, "kid", `"bad"`, "crv", `"P-384"`),
		"EC of an unknown one":  ec.jwk(t, "kid", `"bad"`, "crv", `"secp256k1"`),
		"EC without y":          ec.jwk(t, "kid", `"bad"`, "y", ""),
		"OKP of an unknown one": `{"kty":"OKP","crv":"Ed448","kid":"bad","x":"AAAA"}`,
		"OKP too short":         `{"kty":"OKP","crv":"Ed25519","kid":"bad","x":"AAAA"}`,
		"the kid of a good one": k.jwk(t, "n", `""`),
	} {
		t.Run(name, func(t *testing.T) {
			p := newProvider(t)
			p.set = fmt.Sprintf(`{"keys":[%[1]s,%[2]s,%[1]s,%[3]s]}`, bad, k.jwk(t), ec.jwk(t))
			var log bytes.Buffer
			c := asking(p, nil)
			c.log = slog.New(slog.NewJSONHandler(&log, nil))
			for range 2 { // as Run does every hour
				if err := c.Fetch(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			for _, k := range []key{k, ec} {
				if err := c.Guard(&counting{}).Delete(with(t, k.sign(t, p.claims())), user(t, "mia"), signerapi.Preconditions{}); err != nil {
					t.Errorf("a token of a good key: %v", err)
				}
			}
			if n := strings.Count(log.String(), `"issuer keys ignored"`); n != 1 || strings.Contains(log.String(), "c2VjcmV0") || log.Len() > 1000 {
				t.Errorf("the key was logged %d times: %.2000s", n, &log)
			}
		})
	}
}

func TestKeysVerifyTheirOwnAlgorithmOnly(t *testing.T) {
	k := rsaKey(t, "1")
	p := newProvider(t)
	token := with(t, k.sign(t, p.claims())) // RS256
	for alg, want := range map[string]error{`"RS256"`: nil, `"PS256"`: apierror.ErrUnauthenticated, "": nil} {
		p.set = fmt.Sprintf(`{"keys":[%s]}`, k.jwk(t, "alg", alg))
		if err := knowing(t, p, nil).Guard(&counting{}).Delete(token, user(t, "mia"), signerapi.Preconditions{}); !errors.Is(err, want) {
			t.Errorf("a key with the alg %s: %v; want %v", alg, err, want)
		}
	}
}

func TestKeysForEncryptionAreIgnoredSilently(t *testing.T) {
	k := rsaKey(t, "1")
	p := newProvider(t)
	p.set = fmt.Sprintf(`{"keys":[%s,%s]}`, k.jwk(t, "use", `"enc"`, "alg", `"RSA-OAEP"`), k.jwk(t))
	var log bytes.Buffer
	c := asking(p, nil)
	c.log = slog.New(slog.NewJSONHandler(&log, nil))
	if err := c.Fetch(t.Context()); err != nil || strings.Contains(log.String(), "ignored") {
		t.Errorf("%v; logged: %s", err, &log)
	}
}

func TestAChangedIgnoredKeyIsLoggedAgain(t *testing.T) {
	k := rsaKey(t, "1")
	p := newProvider(t)
	var log bytes.Buffer
	c := asking(p, nil)
	c.log = slog.New(slog.NewJSONHandler(&log, nil))
	many := strings.TrimSuffix(strings.Repeat(`{"kty":"RSA","kid":"many"},7,`, 20_000), ",")
	var distinct strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&distinct, "%s%d", strings.Repeat(",", min(i, 1)), 100+i)
	}
	for i, step := range []struct {
		bad   string
		lines int
	}{
		{`{"kty":"x","kid":"a"}`, 1},
		{`{"kty":"x","kid":"a"}`, 0},
		{`{"kty":"x","kid":"a"},{"kty":"y","kid":"a"}`, 1},
		{`{"kty":"y","kid":"a"}`, 1},
		{`{"kty":"` + strings.Repeat("x", 10_000) + `","kid":"` + strings.Repeat("y", 10_000) + `"}`, 1},
		{many, 1},
		{many, 0},
		{distinct.String(), 1},
		{distinct.String(), 0},
	} {
		p.set = fmt.Sprintf(`{"keys":[%s,%s]}`, step.bad, k.jwk(t))
		log.Reset()
		if err := c.Fetch(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(log.String(), "issuer keys ignored"); n != step.lines || log.Len() > 500+(maxIgnored+200)*n {
			t.Errorf("step %d: %d lines, %d bytes; want %d lines\n%.2000s", i, n, log.Len(), step.lines, &log)
		}
	}
}

func TestKeySetNeedsAUsableKey(t *testing.T) {
	k := rsaKey(t, "1")
	p := newProvider(t)
	for set, want := range map[string]string{
		`{}`:                                   "no usable key among its 0",
		`{"keys":null}`:                        "no usable key among its 0",
		`{"keys":[]}`:                          "no usable key among its 0",
		`{"keys":[null,{"kty":"oct"}]}`:        "no usable key among its 2",
		`{"keys":[` + k.jwk(t, "n", "") + `]}`: "no usable key among its 1",
		`{"keys":"none"}`:                      "not a JSON document of the expected form",
		`{"keys":{}}`:                          "not a JSON document of the expected form",
		`[]`:                                   "not a JSON document of the expected form",
		`null`:                                 "no usable key among its 0",
		`<html>`:                               "not a JSON document of the expected form",
		`{"keys":[` + k.jwk(t) + strings.Repeat(" ", maxAnswer) + `]}`: "larger than 1048576 bytes",
	} {
		p.set = set
		err := asking(p, nil).Fetch(t.Context())
		if err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 600 {
			t.Errorf("%.60s: %v; want %s", set, err, want)
		}
	}
	// The cached keys stay in use.
	p.set = ""
	p.publish(k)
	c := knowing(t, p, nil)
	p.set = `{"keys":[]}`
	if err := c.Guard(&counting{}).Delete(with(t, rsaKey(t, "2").sign(t, p.claims())), user(t, "mia"), signerapi.Preconditions{}); !errors.Is(err, apierror.ErrIssuerUnavailable) {
		t.Errorf("a token of an unknown key: %v", err)
	}
	if err := c.Guard(&counting{}).Delete(with(t, k.sign(t, p.claims())), user(t, "mia"), signerapi.Preconditions{}); err != nil {
		t.Errorf("a token of a cached key: %v", err)
	}
}

func TestTheConfigurationMayBeElsewhere(t *testing.T) {
	k := rsaKey(t, "1")
	p := newProvider(t, k)
	p.issuer, p.configAt = "https://contoso.ciamlogin.example/TENANT/v2.0", "/policy/v2.0/.well-known/openid-configuration"
	for at, want := range map[string]string{
		p.URL + p.configAt:            "",
		p.URL + "/policy/v2.0":        "",
		p.URL + "/policy/v2.0/":       "",
		p.URL + p.configAt + "?p=b2c": "",
		p.URL + "/policy/v2.0?p=b2c":  "",
		p.URL + "/other/v2.0":         "HTTP status 404",
		p.URL:                         "HTTP status 404",
	} {
		rules := access.Policy{Issuer: p.issuer, DiscoveryURL: at, ReadAccess: access.Own}
		c := asking(p, func(o *Options) { o.Policy = rules })
		err := c.Fetch(t.Context())
		if want != "" {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v; want %s", at, err, want)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", at, err)
		}
		del := func(claims ...any) error {
			return c.Guard(&counting{}).Delete(with(t, k.sign(t, p.claims(claims...))), user(t, "mia"), signerapi.Preconditions{})
		}
		if err := del("iss", p.issuer); err != nil {
			t.Errorf("%s: a token of the issuer: %v", at, err)
		}
		for _, iss := range []string{p.URL, at, p.issuer + "/", "https://contoso.ciamlogin.example/OTHER/v2.0", ""} {
			if err := del("iss", iss); !errors.Is(err, apierror.ErrUnauthenticated) {
				t.Errorf("%s: a token of %q: %v", at, iss, err)
			}
		}
	}
	for _, said := range []string{"", "https://login.example.com/{tenantid}/v2.0", p.issuer + "/", strings.ToUpper(p.issuer), strings.Repeat("x", 100_000)} {
		opts := access.Policy{Issuer: p.issuer, DiscoveryURL: p.URL + p.configAt, ReadAccess: access.Own}
		c := asking(p, func(o *Options) { o.Policy = opts })
		p.mu.Lock()
		before := p.issuer
		p.issuer = said
		p.mu.Unlock()
		if err := c.Fetch(t.Context()); err == nil || !strings.Contains(err.Error(), "OIDC_DISCOVERY_URL") || len(err.Error()) > 1000 {
			t.Errorf("a configuration of the issuer %.50q: %v", said, err)
		}
		p.issuer = before
	}
}

// Neither a token nor an answer of the issuer makes a long log line.
func TestErrorsOfTheIssuerAreShort(t *testing.T) {
	k := rsaKey(t, "1")
	p := newProvider(t, k)
	long := strings.Repeat("x", 12_000)
	c := knowing(t, p, nil)
	for name, token := range map[string]string{
		"iss":       k.sign(t, p.claims("iss", "https://"+long)),
		"aud":       k.sign(t, p.claims("aud", long)),
		"many auds": k.sign(t, p.claims("aud", strings.Split(long, ""))),
		"exp":       k.sign(t, p.claims("exp", json.Number("1"+strings.Repeat("0", 5000)))),
		"sub":       k.sign(t, p.claims("sub", []string{long})),
		"alg":       base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"`+long+`"}`)) + ".e30.AAAA",
		"garbage":   long,
	} {
		err := c.Guard(&counting{}).Delete(with(t, token), user(t, "mia"), signerapi.Preconditions{})
		if !errors.Is(err, apierror.ErrUnauthenticated) || len(err.Error()) > 500 {
			t.Errorf("a token with a long %s: %d bytes: %.600v", name, len(fmt.Sprint(err)), err)
		}
	}
	p.handle = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/keys" {
			return false
		}
		w.WriteHeader(http.StatusTeapot)
		_, _ = w.Write(bytes.Repeat([]byte("x"), maxAnswer))
		return true
	}
	if err := asking(p, nil).Fetch(t.Context()); err == nil || len(err.Error()) > 600 {
		t.Errorf("a long answer in place of the keys: %.700v", err)
	}
	p.handle = nil
	p.keysAt = "http://" + long
	if err := asking(p, nil).Fetch(t.Context()); err == nil || len(err.Error()) > 600 {
		t.Errorf("a long jwks_uri: %.700v", err)
	}
}
