// Package auth tests the authentication of callers, and the identity of the signer.
package auth

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// badKeys are keys that no verifier can use. The provider publishes them before its own.
const badKeys = `[null, "key", 7, {}, {"kty": "PQC", "kid": "pqc"}, {"kty": "oct", "kid": "oct", "k": "c2VjcmV0"},
	{"kty": "RSA", "kid": "half", "e": "AQAB"}, {"kty": "RSA", "kid": "broken", "n": "!!!", "e": "AQAB"},
	{"kty": "EC", "kid": "off", "crv": "P-256", "x": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "y": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE"}]`

func TestCallersReachTheirOwnPictureAlone(t *testing.T) {
	t.Parallel()
	p := harness.StartProvider(t, harness.FreePort(t), "BAD_KEYS="+badKeys)
	sys := harness.StartDirect(t, harness.WithAuthentication(p.Issuer, map[string]string{"LOG_LEVEL": "debug"}))
	for _, kid := range []string{"pqc", "oct", "half", "broken", "off"} {
		harness.WaitForLog(t, sys.Signer.Log, 0, `"level":"WARN"`, "issuer keys ignored", "kid "+kid+": ")
	}
	mia, tom, dogs := p.Token(t, "mia", harness.Audience), p.Token(t, "tom", harness.Audience), p.Token(t, "mia", "https://dogs.example")
	at, size := sys.URL+"/cat/mia", int64(len(harness.OtherPicture))
	wantPicture := func(content []byte) {
		t.Helper()
		location := harness.SendAs(t, mia, "GET", at+"/picture", nil).Want(t, 307).Header.Get("Location")
		if got := harness.Do(t, "GET", location, "", nil).Want(t, 200).Body; !bytes.Equal(got, content) {
			t.Error("another picture is served")
		}
	}
	harness.SendAs(t, mia, "PUT", at, harness.Cat).Want(t, 200)
	wantPicture(harness.Cat)
	harness.SendAs(t, "", "GET", sys.URL+"/service", nil).Want(t, 200)
	if a := harness.SendAs(t, "", "GET", sys.URL+"/about", nil).Want(t, 200); a.Field(t, "read_access") != "own" || a.Field(t, "sign_in") != nil {
		t.Errorf("/about is %s", a.Body)
	}
	var k harness.UploadSession
	created := harness.SendAs(t, mia, "POST", fmt.Sprintf("%s/upload?size=%d", at, size), nil).Want(t, 201)
	if err := json.Unmarshal(created.Body, &k); err != nil {
		t.Fatal(err)
	}
	k.Send(t, harness.OtherPicture)

	formType, form := harness.Form(t, harness.Cat)
	const challenge, invalid = `Bearer realm="cats-api"`, `Bearer realm="cats-api", error="invalid_token"`
	for _, c := range []struct {
		token     string
		status    int
		code      string
		challenge string
	}{
		{"", 401, "unauthenticated", challenge},
		{tom, 403, "forbidden", ""},
		{dogs, 401, "unauthenticated", invalid}, // for another audience
		{"mew.mew.mew", 401, "unauthenticated", invalid},
		{mia[:len(mia)-8] + "AAAAAAAA", 401, "unauthenticated", invalid},
	} {
		for _, row := range harness.Table(t, "calls.txt", "{frontend}", at, "{signer}", sys.SignerAPI+"/v1", "{id}", k.ID,
			"{form type}", formType) {
			body := harness.OtherPicture
			if row[0] == "POST" {
				body = form
			}
			a := harness.SendAs(t, c.token, row[0], row[1], body, append(row[2:], "Cats-Contract", "1")...)
			if a.StatusCode != c.status || !bytes.Contains(a.Body, []byte(`"code":"`+c.code+`"`)) {
				t.Errorf("%q with %.20q: %d %s; want %d %s", row, c.token, a.StatusCode, a.Body, c.status, c.code)
			}
			if got := a.Header.Get("Www-Authenticate"); got != c.challenge && strings.HasPrefix(row[1], at) {
				t.Errorf("%q with %.20q: WWW-Authenticate is %q; want %q", row, c.token, got, c.challenge)
			}
		}
	}
	harness.SendAs(t, "", "GET", at, nil, "Authorization", "Basic bWlhOm1pYQ==").Want(t, 401)
	wantPicture(harness.Cat)
	harness.SendAs(t, mia, "POST", at+"/upload/"+k.ID+"/commit", nil).Want(t, 200)

	// With other keys of the provider, new tokens are accepted without a restart, and old ones until the new keys are fetched.
	p.Stop()
	harness.SendAs(t, mia, "GET", at, nil).Want(t, 200)
	p = harness.StartProvider(t, p.Port())
	young := p.Token(t, "mia", harness.Audience)
	eventually(t, 200, "", func() harness.Response { return harness.SendAs(t, young, "PUT", at, harness.Cat) }) // fetches of keys are limited
	harness.SendAs(t, mia, "GET", at, nil).Want(t, 401)
	p.Stop()
	harness.SendAs(t, young, "DELETE", at, nil).Want(t, 204)
	eventually(t, 503, `"issuer_unavailable"`, func() harness.Response { return harness.SendAs(t, mia, "GET", at, nil) })
	harness.WantNoSecrets(t, sys)
	harness.WaitForLog(t, sys.Signer.Log, 0, `"http.response.status_code":403`, "the claim sub of the token names another user")
	for _, log := range []*stack.Log{sys.Frontend.Log, sys.Signer.Log} {
		b, err := os.ReadFile(log.Path())
		if line := regexp.MustCompile(`.*\b(tom|mia)\b.*`).Find(b); line != nil || err != nil {
			t.Errorf("a user name is logged: %s, %v", line, err)
		}
	}
}

// eventually repeats a request until the response has this status, and a body that contains part.
func eventually(t *testing.T, status int, part string, request func() harness.Response) {
	t.Helper()
	harness.Eventually(t, func() error {
		if a := request(); a.StatusCode != status || !bytes.Contains(a.Body, []byte(part)) {
			return fmt.Errorf("%d %s; want %d %s", a.StatusCode, a.Body, status, part)
		}
		return nil
	})
}

func TestReadersNeedNoTokenAndNoIssuer(t *testing.T) {
	t.Parallel()
	p := harness.StartProvider(t, harness.FreePort(t))
	sys := harness.Start(t, harness.WithAuthentication(p.Issuer, map[string]string{"READ_ACCESS": "anyone"}))
	at, mia := sys.URL+"/cat/mia", p.Token(t, "mia", harness.Audience)
	harness.SendAs(t, mia, "PUT", at, harness.Cat).Want(t, 200)
	harness.SendAs(t, "", "PUT", at, harness.Cat).WantProblem(t, 401, "unauthenticated")
	wantReadable := func() {
		t.Helper()
		harness.SendAs(t, "", "GET", at, nil).Want(t, 200)
		harness.SendAs(t, "mew", "GET", at, nil).Want(t, 200)
	}
	wantReadable()

	// The signer starts while the issuer is down.
	p.Stop()
	if err := sys.Signer.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	mark := sys.Signer.Log.Mark()
	harness.Restart(t, sys.Signer)
	harness.WaitForLog(t, sys.Signer.Log, mark, `"level":"ERROR"`, p.Issuer, "connection refused", "retry_in")
	eventually(t, 503, "issuer_unavailable", func() harness.Response { return harness.Do(t, "GET", sys.SignerOps+"/readyz", "", nil) })
	harness.SendAs(t, mia, "PUT", at, harness.Cat).WantProblem(t, 503, "issuer_unavailable")
	wantReadable()
	p = harness.StartProvider(t, p.Port())
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	if err := sys.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	harness.SendAs(t, p.Token(t, "mia", harness.Audience), "DELETE", at, nil).Want(t, 204)
}

func TestAnonymousAccessIsLoggedAndIgnoresTokens(t *testing.T) {
	t.Parallel()
	sys, user := harness.Shared(t), harness.User(t)
	for _, p := range []*stack.Process{sys.Frontend, sys.Signer} {
		harness.WaitForLog(t, p.Log, 0, `"level":"WARN"`, "authentication is off", "OIDC_ISSUER")
	}
	harness.SendAs(t, "mew", "PUT", sys.URL+"/cat/"+user, harness.Cat).Want(t, 200)
	harness.SendAs(t, "", "GET", sys.URL+"/cat/"+user, nil, "Authorization", "Basic bWlhOm1pYQ==").Want(t, 200)
}
