package harness

import (
	"bufio"
	"bytes"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"cats.example/local/issuer"
	"cats.example/local/stack"
)

// Audience is the OIDC_AUDIENCE of the signer with WithAuthentication.
const Audience = "https://cats.example"

// Provider is a process with an OpenID provider, oidc-provider.
type Provider struct {
	Issuer string // its URL and, unless ISSUER is set, its issuer
	cmd    *exec.Cmd
}

// StartProvider starts a provider with the clients mia and tom. It listens on port, "0" for any, and has more in its
// environment.
func StartProvider(t *testing.T, port string, more ...string) *Provider {
	t.Helper()
	ca := Stack(t).CA
	p := &Provider{cmd: exec.CommandContext(t.Context(), "node", Root("e2e", "testdata", "provider.mjs"))}
	p.cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "NODE_MODULES=" + Root("local", "node_modules"),
		"CERT=" + ca.File, "KEY=" + ca.KeyFile, "PORT=" + port, "CLIENTS=mia,tom", "AUDIENCE=" + Audience,
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
	t.Cleanup(p.Stop)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if issuer, ok := strings.CutPrefix(lines.Text(), "issuer "); ok {
			p.Issuer = issuer
			//lint:ignore errcheck the copy ends with the process
			go io.Copy(io.Discard, out)
			return p
		}
	}
	p.Stop()
	t.Fatalf("the provider does not start: %v: %s", lines.Err(), &stderr)
	return nil
}

// Stop kills the process.
func (p *Provider) Stop() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// Port returns the port that the provider listens on.
func (p *Provider) Port() string { return p.Issuer[strings.LastIndexByte(p.Issuer, ':')+1:] }

// Token returns an access token of client for audience.
func (p *Provider) Token(t *testing.T, client, audience string) string {
	t.Helper()
	form := url.Values{"grant_type": {"client_credentials"}, "resource": {audience}, "client_id": {client}, "client_secret": {"secret"}}
	a := Do(t, http.MethodPost, p.Issuer+"/token", "application/x-www-form-urlencoded", []byte(form.Encode()))
	if a.StatusCode == http.StatusUnauthorized {
		t.Fatal(string(a.Body))
	}
	token, _ := a.Want(t, http.StatusOK).Field(t, "access_token").(string)
	return token
}

// SendAs is Send with a bearer token, or without one if token is "".
func SendAs(t *testing.T, token, method, url string, body []byte, header ...string) Response {
	t.Helper()
	if token != "" {
		header = append(header, "Authorization", "Bearer "+token)
	}
	return Send(t, method, url, string(body), header...)
}

// WithAuthentication returns the options of a system with authentication by issuer, and more in the environment of both.
func WithAuthentication(issuer string, more map[string]string) stack.SystemOptions {
	both := map[string]string{"OIDC_ISSUER": issuer}
	maps.Copy(both, more)
	signer := maps.Clone(both)
	signer["OIDC_AUDIENCE"] = Audience
	return stack.SystemOptions{FrontendEnv: both, SignerEnv: signer}
}

// WriteToken replaces the file at path atomically, as the kubelet does.
func WriteToken(t *testing.T, path, token string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// FederatedToken returns a token of the stack's cluster after change, which may be nil, has altered its claims.
func FederatedToken(t *testing.T, change func(*issuer.Federated)) string {
	t.Helper()
	f := issuer.Federated{Subject: stack.Subject, Audience: issuer.Audience, Lifetime: 10 * time.Minute}
	if change != nil {
		change(&f)
	}
	token, err := Stack(t).Cluster.Token(f)
	if err != nil {
		t.Fatal(err)
	}
	return token
}
