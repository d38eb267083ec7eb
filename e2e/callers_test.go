package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"cats.example/local/issuer"
	"cats.example/local/stack"
)

const catsAudience = "https://cats.example"

// provider is a real OpenID provider, oidc-provider, as a process.
type provider struct {
	issuer string // where it is, and, without ISSUER, its issuer
	cmd    *exec.Cmd
}

// startProvider starts one that knows mia and tom, at port, "0" for any, with more
// variables of its environment.
func startProvider(t *testing.T, port string, more ...string) *provider {
	t.Helper()
	needStand(t)
	root, err := stack.FindRoot()
	if err != nil {
		t.Fatal(err)
	}
	p := &provider{cmd: exec.CommandContext(t.Context(), "node", filepath.Join(root, "e2e", "testdata", "provider.mjs"))}
	p.cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "NODE_MODULES=" + filepath.Join(root, "local", "node_modules"),
		"CERT=" + st.CA.File, "KEY=" + st.CA.KeyFile, "PORT=" + port, "CLIENTS=mia,tom", "AUDIENCE=" + catsAudience,
	}, more...)
	var stderr bytes.Buffer
	p.cmd.Stderr = &stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.stop)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if issuer, ok := strings.CutPrefix(lines.Text(), "issuer "); ok {
			p.issuer = issuer
			go io.Copy(io.Discard, out) //nolint:errcheck // ends with the process
			return p
		}
	}
	p.stop()
	t.Fatalf("the provider does not start: %s", &stderr)
	return nil
}

func (p *provider) stop() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

func (p *provider) port() string { return p.issuer[strings.LastIndexByte(p.issuer, ':')+1:] }

// token returns what the provider gives client for audience.
func (p *provider) token(t *testing.T, client, audience string) string {
	t.Helper()
	form := url.Values{"grant_type": {"client_credentials"}, "resource": {audience}, "client_id": {client}, "client_secret": {"secret"}}
	a := do(t, http.MethodPost, p.issuer+"/token", "application/x-www-form-urlencoded", []byte(form.Encode()))
	if a.StatusCode == http.StatusUnauthorized {
		t.Fatal(string(a.body))
	}
	token, _ := a.want(t, http.StatusOK).field(t, "access_token").(string)
	return token
}

// as sends one request with a bearer token, or without where it is "".
func as(t *testing.T, token, method, url string, body []byte, header ...string) answer {
	t.Helper()
	if token != "" {
		header = append(header, "Authorization", "Bearer "+token)
	}
	return ask(t, method, url, string(body), header...)
}

// withCallers are the options of a system that knows its callers.
func withCallers(issuer string, more map[string]string) stack.SystemOptions {
	both := map[string]string{"OIDC_ISSUER": issuer}
	maps.Copy(both, more)
	signer := maps.Clone(both)
	signer["OIDC_AUDIENCE"] = catsAudience
	return stack.SystemOptions{FrontendEnv: both, SignerEnv: signer}
}

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
	p := startProvider(t, "0")
	sys := direct(t, withCallers(p.issuer, map[string]string{"LOG_LEVEL": "debug"}))
	mia, tom, dogs := p.token(t, "mia", catsAudience), p.token(t, "tom", catsAudience), p.token(t, "mia", "https://dogs.example")
	picture := sys.URL + "/cat/mia"
	as(t, mia, "PUT", picture, cat).want(t, 200)
	link, _ := as(t, mia, "GET", picture, nil).want(t, 200).field(t, "picture_url").(string)
	if got := do(t, "GET", link, "", nil).want(t, 200).body; !bytes.Equal(got, cat) {
		t.Error("the picture is another")
	}
	as(t, mia, "GET", picture+"/picture", nil).want(t, 307)
	as(t, "", "GET", sys.URL+"/service", nil).want(t, 200)

	if a := as(t, "", "GET", sys.URL+"/about", nil).want(t, 200); a.field(t, "read_access") != "own" || a.field(t, "sign_in") != nil {
		t.Errorf("/about is %s", a.body)
	}
	var sent ticket
	if err := json.Unmarshal(as(t, mia, "POST", fmt.Sprintf("%s/upload?size=%d", picture, len(picture2)), nil).want(t, 201).body, &sent); err != nil {
		t.Fatal(err)
	}
	sent.send(t, bytes.NewReader(picture2), int64(len(picture2)))

	formType, form := form(t, cat)
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
		for _, a := range []answer{
			as(t, c.token, "PUT", picture, picture2),
			as(t, c.token, "POST", picture, form, "Content-Type", formType),
			as(t, c.token, "DELETE", picture, nil),
			as(t, c.token, "GET", picture, nil),
			as(t, c.token, "GET", picture+"/picture", nil),
			as(t, c.token, "POST", picture+"/upload?size=9", nil),
			as(t, c.token, "POST", picture+"/upload/"+sent.ID+"/commit", nil),
		} {
			a.problem(t, c.status, c.code)
			if got := a.Header.Get("Www-Authenticate"); got != c.challenge {
				t.Errorf("%s: WWW-Authenticate is %q; want %q", c.name, got, c.challenge)
			}
		}
	}
	if a := as(t, "", "GET", picture, nil, "Authorization", "Basic bWlhOm1pYQ=="); a.StatusCode != 401 {
		t.Errorf("Basic: %d", a.StatusCode)
	}

	// A frontend that was taken over asks the signer itself.
	api := sys.SignerAPI + "/v1/picture?user=mia"
	const contract, version = "Cats-Contract", "1"
	for token, status := range map[string]int{"": 401, tom: 403, dogs: 401} {
		as(t, token, "PUT", api, picture2, contract, version).want(t, status)
		as(t, token, "DELETE", api, nil, contract, version).want(t, status)
		as(t, token, "GET", sys.SignerAPI+"/v1/link?user=mia", nil, contract, version).want(t, status)
		as(t, token, "POST", sys.SignerAPI+"/v1/ticket?user=mia&size=1", nil, contract, version).want(t, status)
		as(t, token, "POST", sys.SignerAPI+"/v1/commit?user=mia&ticket="+sent.ID, nil, contract, version).want(t, status)
	}
	link, _ = as(t, mia, "GET", picture, nil).want(t, 200).field(t, "picture_url").(string)
	if got := do(t, "GET", link, "", nil).want(t, 200).body; !bytes.Equal(got, cat) {
		t.Error("somebody else has changed the picture")
	}

	as(t, mia, "POST", picture+"/upload/"+sent.ID+"/commit", nil).want(t, 200)

	// The provider's keys rotate: new tokens are taken without a restart, and those
	// of before as long as the key is known. And then it is down.
	p.stop()
	as(t, mia, "GET", picture, nil).want(t, 200)
	p = startProvider(t, p.port())
	young := p.token(t, "mia", catsAudience)
	eventually(t, func() error { // those who sent garbage have had the issuer asked a moment ago
		if a := as(t, young, "PUT", picture, cat); a.StatusCode != 200 {
			return fmt.Errorf("a token of the new key: %d %s", a.StatusCode, a.body)
		}
		return nil
	})
	as(t, mia, "GET", picture, nil).want(t, 401)
	p.stop()
	as(t, young, "DELETE", picture, nil).want(t, 204)
	eventually(t, func() error { // by a key that is not known
		if a := as(t, mia, "GET", picture, nil); a.StatusCode != 503 || a.field(t, "code") != "issuer_unavailable" {
			return fmt.Errorf("while the issuer is down: %d %s", a.StatusCode, a.body)
		}
		return nil
	})
	keepsSecrets(t, sys)
	logged(t, sys.Signer.Log, 0, `"http.response.status_code":403`, "the claim sub of the token names another user")
	hidesNames(t, sys, "tom", "mia")
}

// picture2 is another picture than cat.
var picture2 = []byte("\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x00\x00\x00\x00:~\x9bU")

func TestAnyoneReadsWhereThatIsTheRuleAndTheIssuerMayComeLater(t *testing.T) {
	t.Parallel()
	needStand(t)
	// The cluster's issuer is one of OpenID Connect like any other.
	opts := withCallers(st.Cluster.URL(), map[string]string{"READ_ACCESS": "anyone"})
	sys := start(t, opts)
	token := func(f issuer.Federated) string {
		t.Helper()
		if f.Audience == "" {
			f.Audience = catsAudience
		}
		if f.Lifetime == 0 {
			f.Lifetime = time.Hour
		}
		token, err := st.Cluster.Token(f)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	picture := sys.URL + "/cat/mia"
	as(t, token(issuer.Federated{Subject: "mia"}), "PUT", picture, cat).want(t, 200)
	as(t, "", "GET", picture, nil).want(t, 200)
	as(t, "mew", "GET", picture, nil).want(t, 200)
	as(t, "", "PUT", picture, cat).want(t, 401)
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
		if a := as(t, token(f), "DELETE", picture, nil); a.StatusCode != 401 && a.StatusCode != 403 {
			t.Errorf("a token %s: %d %s", name, a.StatusCode, a.body)
		}
	}
	as(t, token(issuer.Federated{Subject: "mia", IssuedAt: now.Add(-time.Hour - time.Minute)}), "GET", picture, nil).want(t, 200)
	as(t, token(issuer.Federated{Subject: "mia", IssuedAt: now.Add(-time.Hour - time.Minute)}), "DELETE", picture, nil).want(t, 204) // clocks differ

	sys.Signer.SetEnv("OIDC_ISSUER", "https://localhost:1")
	if err := sys.Signer.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	mark := sys.Signer.Log.Mark()
	if err := sys.Signer.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	logged(t, sys.Signer.Log, mark, `"level":"ERROR"`, "https://localhost:1", "connection refused", "retry_in")
	eventually(t, func() error {
		if a := do(t, "GET", sys.SignerOps+"/readyz", "", nil); a.StatusCode != 503 || !strings.Contains(string(a.body), "issuer_unavailable") {
			return fmt.Errorf("ready without an issuer: %d %s", a.StatusCode, a.body)
		}
		return nil
	})
	as(t, token(issuer.Federated{Subject: "mia"}), "PUT", picture, cat).problem(t, 503, "issuer_unavailable")
	as(t, "", "GET", picture, nil).want(t, 404) // anyone reads
	p := startProvider(t, "0")                  // elsewhere, which is another issuer
	sys.Signer.SetEnv("OIDC_ISSUER", p.issuer)
	sys.Frontend.SetEnv("OIDC_ISSUER", p.issuer)
	for _, process := range []*stack.Process{sys.Frontend, sys.Signer} {
		if err := process.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	p.stop()
	for _, process := range []*stack.Process{sys.Signer, sys.Frontend} {
		if err := process.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	p = startProvider(t, p.port())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := sys.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	as(t, p.token(t, "mia", catsAudience), "PUT", picture, cat).want(t, 200)
}

func TestItIsToldLoudlyThatCallersAreNotKnown(t *testing.T) {
	t.Parallel()
	sys := start(t, stack.SystemOptions{})
	for _, p := range []*stack.Process{sys.Frontend, sys.Signer} {
		logged(t, p.Log, 0, `"level":"WARN"`, "callers are not known", "OIDC_ISSUER")
	}
	put(t, sys, "anybody", cat)
	// A token that nobody asked for changes nothing.
	as(t, "mew", "GET", sys.URL+"/cat/anybody", nil).want(t, 200)
	as(t, "", "GET", sys.URL+"/cat/anybody", nil, "Authorization", "Basic bWlhOm1pYQ==").want(t, 200)
}
