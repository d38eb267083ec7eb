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
	"time"

	"cats.example/e2e/harness"
	"cats.example/local/issuer"
	"cats.example/local/stack"
)

// badKeys are keys that no verifier can use. The provider publishes them before its own.
const badKeys = `[null, "key", 7, {}, {"kty": "PQC", "kid": "pqc"}, {"kty": "oct", "kid": "oct", "k": "c2VjcmV0"},
	{"kty": "RSA", "kid": "half", "e": "AQAB"}, {"kty": "RSA", "kid": "broken", "n": "!!!", "e": "AQAB"},
	{"kty": "EC", "kid": "off", "crv": "P-256", "x": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "y": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE"}]`

func TestCallersReachTheirOwnPictureAlone(t *testing.T) {
	t.Parallel()
	p := harness.StartProvider(t, "0", "BAD_KEYS="+badKeys)
	sys := harness.StartDirect(t, harness.WithAuthentication(p.Issuer, map[string]string{"LOG_LEVEL": "debug"}))
	for _, kid := range []string{"pqc", "oct", "half", "broken", "off"} {
		harness.WaitForLog(t, sys.Signer.Log, 0, `"level":"WARN"`, "issuer keys ignored", "kid "+kid+": ")
	}
	mia, tom, dogs := p.Token(t, "mia", harness.Audience), p.Token(t, "tom", harness.Audience), p.Token(t, "mia", "https://dogs.example")
	at := sys.URL + "/cat/mia"
	wantPicture := func(content []byte) {
		t.Helper()
		signed, _ := harness.SendAs(t, mia, "GET", at, nil).Want(t, 200).Field(t, "picture_url").(string)
		if got := harness.Do(t, "GET", signed, "", nil).Want(t, 200).Body; !bytes.Equal(got, content) {
			t.Error("another picture is served")
		}
	}
	harness.SendAs(t, mia, "PUT", at, harness.Cat).Want(t, 200)
	wantPicture(harness.Cat)
	harness.SendAs(t, mia, "GET", at+"/picture", nil).Want(t, 307)
	harness.SendAs(t, "", "GET", sys.URL+"/service", nil).Want(t, 200)
	if a := harness.SendAs(t, "", "GET", sys.URL+"/about", nil).Want(t, 200); a.Field(t, "read_access") != "own" || a.Field(t, "sign_in") != nil {
		t.Errorf("/about is %s", a.Body)
	}
	var k harness.UploadSession
	size := int64(len(harness.OtherPicture))
	if err := json.Unmarshal(harness.SendAs(t, mia, "POST", fmt.Sprintf("%s/upload?size=%d", at, size), nil).Want(t, 201).Body, &k); err != nil {
		t.Fatal(err)
	}
	k.Send(t, bytes.NewReader(harness.OtherPicture), size)

	formType, form := harness.Form(t, harness.Cat)
	const challenge, invalid = `Bearer realm="cats-api"`, `Bearer realm="cats-api", error="invalid_token"`
	for name, c := range map[string]struct {
		token     string
		status    int
		code      string
		challenge string
	}{
		"no token":         {"", 401, "unauthenticated", challenge},
		"other user":       {tom, 403, "forbidden", ""},
		"other audience":   {dogs, 401, "unauthenticated", invalid},
		"garbage":          {"mew.mew.mew", 401, "unauthenticated", invalid},
		"broken signature": {mia[:len(mia)-8] + "AAAAAAAA", 401, "unauthenticated", invalid},
	} {
		for _, a := range []harness.Response{
			harness.SendAs(t, c.token, "PUT", at, harness.OtherPicture),
			harness.SendAs(t, c.token, "POST", at, form, "Content-Type", formType),
			harness.SendAs(t, c.token, "DELETE", at, nil),
			harness.SendAs(t, c.token, "GET", at, nil),
			harness.SendAs(t, c.token, "GET", at+"/picture", nil),
			harness.SendAs(t, c.token, "POST", at+"/upload?size=9", nil),
			harness.SendAs(t, c.token, "POST", at+"/upload/"+k.ID+"/commit", nil),
		} {
			a.WantProblem(t, c.status, c.code)
			if got := a.Header.Get("Www-Authenticate"); got != c.challenge {
				t.Errorf("%s: WWW-Authenticate is %q; want %q", name, got, c.challenge)
			}
		}
		// A compromised frontend calls the signer with the same tokens.
		for _, call := range []string{"PUT picture", "DELETE picture", "GET link", "POST uploads&size=1", "POST commit&upload_id=" + k.ID} {
			method, path, _ := strings.Cut(call, " ")
			path, query, _ := strings.Cut(path, "&")
			harness.SendAs(t, c.token, method, sys.SignerAPI+"/v1/"+path+"?user=mia&"+query, harness.OtherPicture, "Cats-Contract", "1").Want(t, c.status)
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

// The cluster's issuer of federated tokens is also one of OpenID Connect, so the test can choose the claims.
func TestReadAccessAnyoneAndIssuerOutageAtStart(t *testing.T) {
	t.Parallel()
	harness.NeedStack(t)
	sys := harness.Start(t, harness.WithAuthentication(harness.Stack(t).Cluster.URL(), map[string]string{"READ_ACCESS": "anyone"}))
	at, now := sys.URL+"/cat/mia", time.Now()
	token := func(change func(*issuer.Federated)) string {
		return harness.FederatedToken(t, func(f *issuer.Federated) {
			f.Subject, f.Audience, f.Lifetime = "mia", harness.Audience, time.Hour
			change(f)
		})
	}
	valid := token(func(*issuer.Federated) {})
	skewed := token(func(f *issuer.Federated) { f.IssuedAt = now.Add(-time.Hour - time.Minute) })
	harness.SendAs(t, valid, "PUT", at, harness.Cat).Want(t, 200)
	harness.SendAs(t, "", "GET", at, nil).Want(t, 200)
	harness.SendAs(t, "mew", "GET", at, nil).Want(t, 200)
	harness.SendAs(t, "", "PUT", at, harness.Cat).Want(t, 401)
	for name, c := range map[string]struct {
		status int
		change func(*issuer.Federated)
	}{
		"expired":       {401, func(f *issuer.Federated) { f.IssuedAt = now.Add(-2 * time.Hour) }},
		"not valid yet": {401, func(f *issuer.Federated) { f.IssuedAt = now.Add(24 * time.Hour) }},
		"forged":        {401, func(f *issuer.Federated) { f.Forged = true }},
		"other issuer":  {401, func(f *issuer.Federated) { f.Issuer = "https://login.example.com" }},
		"no user":       {403, func(f *issuer.Federated) { f.Subject = "" }},
	} {
		if a := harness.SendAs(t, token(c.change), "DELETE", at, nil); a.StatusCode != c.status {
			t.Errorf("%s: %d %s; want %d", name, a.StatusCode, a.Body, c.status)
		}
	}
	harness.SendAs(t, skewed, "DELETE", at, nil).Want(t, 204)

	restart := func(issuer string, processes ...*stack.Process) {
		t.Helper()
		for _, p := range processes {
			p.SetEnv("OIDC_ISSUER", issuer)
			if err := p.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			harness.Restart(t, p)
		}
	}
	mark := sys.Signer.Log.Mark()
	restart("https://localhost:1", sys.Signer)
	harness.WaitForLog(t, sys.Signer.Log, mark, `"level":"ERROR"`, "https://localhost:1", "connection refused", "retry_in")
	eventually(t, 503, "issuer_unavailable", func() harness.Response { return harness.Do(t, "GET", sys.SignerOps+"/readyz", "", nil) })
	harness.SendAs(t, valid, "PUT", at, harness.Cat).WantProblem(t, 503, "issuer_unavailable")
	harness.SendAs(t, "", "GET", at, nil).Want(t, 404) // needs no token
	p := harness.StartProvider(t, "0")
	p.Stop()
	restart(p.Issuer, sys.Signer, sys.Frontend)
	p = harness.StartProvider(t, p.Port())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := sys.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	harness.SendAs(t, p.Token(t, "mia", harness.Audience), "PUT", at, harness.Cat).Want(t, 200)
}

func TestAnonymousAccessIsLoggedAndIgnoresTokens(t *testing.T) {
	t.Parallel()
	harness.NeedOwnSystem(t)
	sys, user := harness.Shared(t), harness.User(t)
	for _, p := range []*stack.Process{sys.Frontend, sys.Signer} {
		harness.WaitForLog(t, p.Log, 0, `"level":"WARN"`, "callers are not known", "OIDC_ISSUER")
	}
	harness.Put(t, sys, user, harness.Cat)
	harness.SendAs(t, "mew", "GET", sys.URL+"/cat/"+user, nil).Want(t, 200)
	harness.SendAs(t, "", "GET", sys.URL+"/cat/"+user, nil, "Authorization", "Basic bWlhOm1pYQ==").Want(t, 200)
}
