package auth

import (
	"testing"

	"cats.example/e2e/harness"
)

// Keys that no verifier can use, of many kinds.
const badKeys = `[null, "key", 7, {}, {"kty": "PQC", "kid": "pqc"}, {"kty": "oct", "kid": "oct", "k": "c2VjcmV0"},
	{"kty": "RSA", "kid": "half", "e": "AQAB"}, {"kty": "RSA", "kid": "broken", "n": "!!!", "e": "AQAB"},
	{"kty": "EC", "kid": "off", "crv": "P-256", "x": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "y": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE"}]`

func TestTokensAreVerifiedBesideMalformedKeys(t *testing.T) {
	t.Parallel()
	p := harness.StartProvider(t, "0", "BAD_KEYS="+badKeys)
	sys := harness.Start(t, harness.WithAuthentication(p.Issuer, nil)) // and so it is ready
	harness.SendAs(t, p.Token(t, "mia", harness.Audience), "PUT", sys.URL+"/cat/mia", harness.Cat).Want(t, 200)
	harness.SendAs(t, "mew.mew.mew", "PUT", sys.URL+"/cat/mia", harness.Cat).WantProblem(t, 401, "unauthenticated")
	for _, kid := range []string{"pqc", "oct", "half", "broken", "off"} {
		harness.WaitForLog(t, sys.Signer.Log, 0, `"level":"WARN"`, "issuer keys ignored", "kid "+kid+": ")
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
	harness.SendAs(t, p.Token(t, "mia", harness.Audience), "DELETE", sys.URL+"/cat/mia", nil).Want(t, 204)
}
