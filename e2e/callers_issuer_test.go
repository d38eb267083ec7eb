package e2e

import (
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"cats.example/local/stack"
)

// Keys that no verifier can use, of many kinds.
const badKeys = `[null, "key", 7, {}, {"kty": "PQC", "kid": "pqc"}, {"kty": "oct", "kid": "oct", "k": "c2VjcmV0"},
	{"kty": "RSA", "kid": "half", "e": "AQAB"}, {"kty": "RSA", "kid": "broken", "n": "!!!", "e": "AQAB"},
	{"kty": "EC", "kid": "off", "crv": "P-256", "x": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "y": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE"}]`

func TestTokensAreVerifiedBesideMalformedKeys(t *testing.T) {
	t.Parallel()
	p := startProvider(t, "0", "BAD_KEYS="+badKeys)
	sys := start(t, withCallers(p.issuer, nil)) // and so it is ready
	as(t, p.token(t, "mia", catsAudience), "PUT", sys.URL+"/cat/mia", cat).want(t, 200)
	as(t, "mew.mew.mew", "PUT", sys.URL+"/cat/mia", cat).problem(t, 401, "unauthenticated")
	for _, kid := range []string{"pqc", "oct", "half", "broken", "off"} {
		logged(t, sys.Signer.Log, 0, `"level":"WARN"`, "issuer keys ignored", "kid "+kid+": ")
	}
	if err := sys.Signer.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := sys.Signer.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := sys.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	as(t, p.token(t, "mia", catsAudience), "DELETE", sys.URL+"/cat/mia", nil).want(t, 204)
}

// As at Azure AD B2C and Entra External ID, where nothing is at the issuer's own address.
func TestIssuerAndDiscoveryMayDiffer(t *testing.T) {
	t.Parallel()
	const issuer, path = "https://tenant.ciam.example/TENANT/v2.0", "/contoso/POLICY/v2.0"
	p := startProvider(t, "0", "ISSUER="+issuer, "PATH_OF_CONFIGURATION="+path)
	with := func(discovery string) stack.SystemOptions {
		return withCallers(issuer, map[string]string{"OIDC_CLIENT_ID": "page", "OIDC_DISCOVERY_URL": discovery})
	}
	sys := start(t, with(p.issuer+path+"/.well-known/openid-configuration?p=policy"))
	mia := p.token(t, "mia", catsAudience)
	as(t, mia, "PUT", sys.URL+"/cat/mia", cat).want(t, 200)
	as(t, mia, "PUT", sys.URL+"/cat/tom", cat).problem(t, 403, "forbidden")
	other := startProvider(t, "0")
	as(t, other.token(t, "mia", catsAudience), "DELETE", sys.URL+"/cat/mia", nil).problem(t, 401, "unauthenticated")

	wrong := with(p.issuer)
	wrong.NotReady = true
	logged(t, start(t, wrong).Signer.Log, 0, `"level":"ERROR"`, p.issuer+"/.well-known/openid-configuration", "404")
	wrong = with(other.issuer)
	wrong.NotReady = true
	logged(t, start(t, wrong).Signer.Log, 0, `"level":"ERROR"`, "is the configuration of the issuer", other.issuer, issuer)

	sys = start(t, with(p.issuer+path)) // the page must find it, too
	b := browse(t, sys.URL+"/")
	b.click("#sign-in")
	b.do(chromedp.SendKeys(chromedp.CSS("[name=login]"), "mia"), chromedp.SendKeys(chromedp.CSS("[name=password]"), "mew"))
	b.click("[type=submit]")
	b.sees("Authorize")
	b.click("[type=submit]")
	b.sees("Signed in as mia")
	b.pick(catFile(t))
	b.click("#upload")
	b.sees("Stored.")
	if policy := do(t, "GET", sys.URL+"/", "", nil).Header.Get("Content-Security-Policy"); !strings.Contains(policy, p.issuer) || !strings.Contains(policy, "https://tenant.ciam.example") {
		t.Errorf("the policy is %s", policy)
	}
	keepsSecrets(t, sys)
}
