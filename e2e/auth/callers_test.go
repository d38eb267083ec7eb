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

// hidesNames fails where one of names is a word of a log, at any level.
func hidesNames(t *testing.T, sys *stack.System, names ...string) {
	t.Helper()
	for _, log := range []*stack.Log{sys.Frontend.Log, sys.Signer.Log} {
		b, err := os.ReadFile(log.Path())
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if line := regexp.MustCompile(`.*\b` + regexp.QuoteMeta(name) + `\b.*`).Find(b); line != nil {
				t.Errorf("the name %s is in %s: %s", name, log.Path(), line)
			}
		}
	}
}

func TestCallersReachTheirOwnPictureAlone(t *testing.T) {
	t.Parallel()
	p := harness.StartProvider(t, "0")
	sys := harness.StartDirect(t, harness.WithAuthentication(p.Issuer, map[string]string{"LOG_LEVEL": "debug"}))
	mia, tom, dogs := p.Token(t, "mia", harness.Audience), p.Token(t, "tom", harness.Audience), p.Token(t, "mia", "https://dogs.example")
	picture := sys.URL + "/cat/mia"
	harness.SendAs(t, mia, "PUT", picture, harness.Cat).Want(t, 200)
	link, _ := harness.SendAs(t, mia, "GET", picture, nil).Want(t, 200).Field(t, "picture_url").(string)
	if got := harness.Do(t, "GET", link, "", nil).Want(t, 200).Body; !bytes.Equal(got, harness.Cat) {
		t.Error("the picture is another")
	}
	harness.SendAs(t, mia, "GET", picture+"/picture", nil).Want(t, 307)
	harness.SendAs(t, "", "GET", sys.URL+"/service", nil).Want(t, 200)

	if a := harness.SendAs(t, "", "GET", sys.URL+"/about", nil).Want(t, 200); a.Field(t, "read_access") != "own" || a.Field(t, "sign_in") != nil {
		t.Errorf("/about is %s", a.Body)
	}
	var sent harness.UploadSession
	if err := json.Unmarshal(harness.SendAs(t, mia, "POST", fmt.Sprintf("%s/upload?size=%d", picture, len(harness.OtherPicture)), nil).Want(t, 201).Body, &sent); err != nil {
		t.Fatal(err)
	}
	sent.Send(t, bytes.NewReader(harness.OtherPicture), int64(len(harness.OtherPicture)))

	formType, form := harness.Form(t, harness.Cat)
	for _, c := range []struct {
		name, token string
		status      int
		code        string
		challenge   string
	}{
		{"nobody", "", 401, "unauthenticated", `Bearer realm="cats-api"`},
		{"somebody else", tom, 403, "forbidden", ""},
		{"one with a token for another service", dogs, 401, "unauthenticated", `Bearer realm="cats-api", error="invalid_token"`},
		{"one with garbage", "mew.mew.mew", 401, "unauthenticated", `Bearer realm="cats-api", error="invalid_token"`},
		{"one with a broken signature", mia[:len(mia)-8] + "AAAAAAAA", 401, "unauthenticated", `Bearer realm="cats-api", error="invalid_token"`},
	} {
		for _, a := range []harness.Response{
			harness.SendAs(t, c.token, "PUT", picture, harness.OtherPicture),
			harness.SendAs(t, c.token, "POST", picture, form, "Content-Type", formType),
			harness.SendAs(t, c.token, "DELETE", picture, nil),
			harness.SendAs(t, c.token, "GET", picture, nil),
			harness.SendAs(t, c.token, "GET", picture+"/picture", nil),
			harness.SendAs(t, c.token, "POST", picture+"/upload?size=9", nil),
			harness.SendAs(t, c.token, "POST", picture+"/upload/"+sent.ID+"/commit", nil),
		} {
			a.WantProblem(t, c.status, c.code)
			if got := a.Header.Get("Www-Authenticate"); got != c.challenge {
				t.Errorf("%s: WWW-Authenticate is %q; want %q", c.name, got, c.challenge)
			}
		}
	}
	if a := harness.SendAs(t, "", "GET", picture, nil, "Authorization", "Basic bWlhOm1pYQ=="); a.StatusCode != 401 {
		t.Errorf("Basic: %d", a.StatusCode)
	}

	// A frontend that was taken over asks the signer itself.
	api := sys.SignerAPI + "/v1/picture?user=mia"
	const contract, version = "Cats-Contract", "1"
	for token, status := range map[string]int{"": 401, tom: 403, dogs: 401} {
		harness.SendAs(t, token, "PUT", api, harness.OtherPicture, contract, version).Want(t, status)
		harness.SendAs(t, token, "DELETE", api, nil, contract, version).Want(t, status)
		harness.SendAs(t, token, "GET", sys.SignerAPI+"/v1/link?user=mia", nil, contract, version).Want(t, status)
		harness.SendAs(t, token, "POST", sys.SignerAPI+"/v1/uploads?user=mia&size=1", nil, contract, version).Want(t, status)
		harness.SendAs(t, token, "POST", sys.SignerAPI+"/v1/commit?user=mia&upload_id="+sent.ID, nil, contract, version).Want(t, status)
	}
	link, _ = harness.SendAs(t, mia, "GET", picture, nil).Want(t, 200).Field(t, "picture_url").(string)
	if got := harness.Do(t, "GET", link, "", nil).Want(t, 200).Body; !bytes.Equal(got, harness.Cat) {
		t.Error("somebody else has changed the picture")
	}

	harness.SendAs(t, mia, "POST", picture+"/upload/"+sent.ID+"/commit", nil).Want(t, 200)

	// The provider's keys rotate: new tokens are taken without a restart, and those
	// of before as long as the key is known. And then it is down.
	p.Stop()
	harness.SendAs(t, mia, "GET", picture, nil).Want(t, 200)
	p = harness.StartProvider(t, p.Port())
	young := p.Token(t, "mia", harness.Audience)
	harness.Eventually(t, func() error { // those who sent garbage have had the issuer asked a moment ago
		if a := harness.SendAs(t, young, "PUT", picture, harness.Cat); a.StatusCode != 200 {
			return fmt.Errorf("a token of the new key: %d %s", a.StatusCode, a.Body)
		}
		return nil
	})
	harness.SendAs(t, mia, "GET", picture, nil).Want(t, 401)
	p.Stop()
	harness.SendAs(t, young, "DELETE", picture, nil).Want(t, 204)
	harness.Eventually(t, func() error { // by a key that is not known
		if a := harness.SendAs(t, mia, "GET", picture, nil); a.StatusCode != 503 || a.Field(t, "code") != "issuer_unavailable" {
			return fmt.Errorf("while the issuer is down: %d %s", a.StatusCode, a.Body)
		}
		return nil
	})
	harness.WantNoSecrets(t, sys)
	harness.WaitForLog(t, sys.Signer.Log, 0, `"http.response.status_code":403`, "the claim sub of the token names another user")
	hidesNames(t, sys, "tom", "mia")
}

func TestAnyoneReadsWhereThatIsTheRuleAndTheIssuerMayComeLater(t *testing.T) {
	t.Parallel()
	harness.NeedStack(t)
	// The cluster's issuer is one of OpenID Connect like any other.
	opts := harness.WithAuthentication(harness.Stack(t).Cluster.URL(), map[string]string{"READ_ACCESS": "anyone"})
	sys := harness.Start(t, opts)
	token := func(f issuer.Federated) string {
		t.Helper()
		if f.Audience == "" {
			f.Audience = harness.Audience
		}
		if f.Lifetime == 0 {
			f.Lifetime = time.Hour
		}
		token, err := harness.Stack(t).Cluster.Token(f)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	picture := sys.URL + "/cat/mia"
	harness.SendAs(t, token(issuer.Federated{Subject: "mia"}), "PUT", picture, harness.Cat).Want(t, 200)
	harness.SendAs(t, "", "GET", picture, nil).Want(t, 200)
	harness.SendAs(t, "mew", "GET", picture, nil).Want(t, 200)
	harness.SendAs(t, "", "PUT", picture, harness.Cat).Want(t, 401)
	now := time.Now()
	for name, f := range map[string]issuer.Federated{
		"expired":            {Subject: "mia", IssuedAt: now.Add(-2 * time.Hour)},
		"from tomorrow":      {Subject: "mia", IssuedAt: now.Add(24 * time.Hour)},
		"forged":             {Subject: "mia", Forged: true},
		"of another issuer":  {Subject: "mia", Issuer: "https://login.example.com"},
		"for another":        {Subject: "mia", Audience: "https://dogs.example"},
		"of nobody":          {},
		"of somebody else's": {Subject: "tom"},
	} {
		if a := harness.SendAs(t, token(f), "DELETE", picture, nil); a.StatusCode != 401 && a.StatusCode != 403 {
			t.Errorf("a token %s: %d %s", name, a.StatusCode, a.Body)
		}
	}
	harness.SendAs(t, token(issuer.Federated{Subject: "mia", IssuedAt: now.Add(-time.Hour - time.Minute)}), "GET", picture, nil).Want(t, 200)
	harness.SendAs(t, token(issuer.Federated{Subject: "mia", IssuedAt: now.Add(-time.Hour - time.Minute)}), "DELETE", picture, nil).Want(t, 204) // clocks differ

	sys.Signer.SetEnv("OIDC_ISSUER", "https://localhost:1")
	if err := sys.Signer.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	mark := sys.Signer.Log.Mark()
	if err := sys.Signer.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	harness.WaitForLog(t, sys.Signer.Log, mark, `"level":"ERROR"`, "https://localhost:1", "connection refused", "retry_in")
	harness.Eventually(t, func() error {
		if a := harness.Do(t, "GET", sys.SignerOps+"/readyz", "", nil); a.StatusCode != 503 || !strings.Contains(string(a.Body), "issuer_unavailable") {
			return fmt.Errorf("ready without an issuer: %d %s", a.StatusCode, a.Body)
		}
		return nil
	})
	harness.SendAs(t, token(issuer.Federated{Subject: "mia"}), "PUT", picture, harness.Cat).WantProblem(t, 503, "issuer_unavailable")
	harness.SendAs(t, "", "GET", picture, nil).Want(t, 404) // anyone reads
	p := harness.StartProvider(t, "0")                      // elsewhere, which is another issuer
	sys.Signer.SetEnv("OIDC_ISSUER", p.Issuer)
	sys.Frontend.SetEnv("OIDC_ISSUER", p.Issuer)
	for _, process := range []*stack.Process{sys.Frontend, sys.Signer} {
		if err := process.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	p.Stop()
	for _, process := range []*stack.Process{sys.Signer, sys.Frontend} {
		if err := process.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	p = harness.StartProvider(t, p.Port())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := sys.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	harness.SendAs(t, p.Token(t, "mia", harness.Audience), "PUT", picture, harness.Cat).Want(t, 200)
}

func TestItIsToldLoudlyThatCallersAreNotKnown(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	for _, p := range []*stack.Process{sys.Frontend, sys.Signer} {
		harness.WaitForLog(t, p.Log, 0, `"level":"WARN"`, "authentication is off", "OIDC_ISSUER")
	}
	harness.Put(t, sys, "anybody", harness.Cat)
	// A token that nobody asked for changes nothing.
	harness.SendAs(t, "mew", "GET", sys.URL+"/cat/anybody", nil).Want(t, 200)
	harness.SendAs(t, "", "GET", sys.URL+"/cat/anybody", nil, "Authorization", "Basic bWlhOm1pYQ==").Want(t, 200)
}
