package auth

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cats.example/e2e/harness"
	"cats.example/local/issuer"
	"cats.example/local/stack"
)

// wrongToken makes the federated token wrong. log are parts of the log line that explains it.
type wrongToken struct {
	name  string
	write func(t *testing.T, path string)
	log   []string
}

func TestWrongFederatedTokenIsExplainedAndRecovers(t *testing.T) {
	t.Parallel()
	harness.NeedStack(t)
	const file = "AZURE_FEDERATED_TOKEN_FILE"
	text := func(s string) func(*testing.T, string) {
		return func(t *testing.T, path string) { t.Helper(); harness.WriteToken(t, path, s) }
	}
	folder := func(t *testing.T, path string) {
		t.Helper()
		_ = os.Remove(path)
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	type token = issuer.Federated
	claims := func(change func(*token)) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			t.Helper()
			harness.WriteToken(t, path, harness.FederatedToken(t, change))
		}
	}
	for _, group := range [][]wrongToken{{
		{"missing", func(*testing.T, string) {}, []string{file, "no such file"}},
		{"other subject", claims(func(f *token) { f.Subject = "system:serviceaccount:cats:other" }), []string{"AADSTS700213:", "cats:other"}},
		{"capitals", claims(func(f *token) { f.Subject = strings.ToUpper(stack.Subject) }), []string{"AADSTS7002138:", "case-sensitive"}},
		{"other audience", claims(func(f *token) { f.Audience = "api://other" }), []string{"AADSTS700212:", issuer.Audience}},
	}, {
		{"expired", claims(func(f *token) { f.IssuedAt = time.Now().Add(-time.Hour) }), []string{"AADSTS700024:", "kubelet"}},
		{"not valid yet", claims(func(f *token) { f.IssuedAt = time.Now().Add(time.Hour) }), []string{"AADSTS700024:", "clocks"}},
		{"other issuer", claims(func(f *token) { f.Issuer = "https://elsewhere.example.com" }), []string{"AADSTS700211:", "oidcIssuerProfile"}},
		{"forged", claims(func(f *token) { f.Forged = true }), []string{"AADSTS700027:"}},
	}, {
		{"empty", text(""), []string{file, "empty"}},
		{"garbage", text("a cat walked over the keyboard"), []string{"AADSTS50027:", file}},
		{"folder", folder, []string{file, "is a directory"}},
	}} {
		t.Run(group[0].name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "token")
			group[0].write(t, path)
			sys := harness.Start(t, stack.SystemOptions{SignerEnv: map[string]string{file: path}, NotReady: true})
			pids := [2]int{sys.Frontend.Pid(), sys.Signer.Pid()}
			for i, c := range group {
				if i > 0 {
					c.write(t, path)
				}
				harness.WaitForLog(t, sys.Signer.Log, 0, append(c.log, `"level":"ERROR"`, "token exchange failed", "fix: ")...)
				if _, says := harness.Readyz(t, sys.SignerOps); !strings.Contains(says, c.log[0]) {
					t.Errorf("%s: the signer's /readyz is %q; want %q", c.name, says, c.log[0])
				}
			}
			wantIdentityUnavailable(t, sys)
			if got := sys.Issuer.Issued(); got != 0 {
				t.Errorf("%d tokens were issued", got)
			}
			_ = os.Remove(path) // a folder cannot be replaced in one step
			harness.WriteToken(t, path, harness.FederatedToken(t, nil))
			harness.WantRecovery(t, sys)
			if now := [2]int{sys.Frontend.Pid(), sys.Signer.Pid()}; now != pids {
				t.Errorf("processes were restarted: %v, then %v", pids, now)
			}
			harness.WantNoSecrets(t, sys)
		})
	}
}

// wantIdentityUnavailable fails the test unless neither process is ready, and requests get a 502 without details. The signer rejects
// the large uploads while the frontend still sends.
func wantIdentityUnavailable(t *testing.T, sys *stack.System) {
	t.Helper()
	harness.WantNotReady(t, sys)
	if _, says := harness.Readyz(t, sys.FrontendOps); strings.Contains(says, "AADSTS") {
		t.Errorf("the frontend's /readyz has details of the signer: %s", says)
	}
	for range 5 {
		for _, a := range harness.SendAll(t, sys, "x", harness.Cat, harness.Picture(harness.OneBlob+1, 'l')) {
			a.WantProblem(t, http.StatusBadGateway, "identity_unavailable")
		}
	}
}

// Each restart of the signer corrects one setting. Outages of the issuer are in TestFaultsOfTheTokenIssuer of e2e/faults.
func TestWrongIdentityIsExplained(t *testing.T) {
	t.Parallel()
	const wrong = "00000000-0000-4000-8000-00000000ffff"
	env := map[string]string{"AZURE_CLIENT_ID": wrong, "AZURE_TENANT_ID": wrong}
	sys := harness.Start(t, stack.SystemOptions{SignerEnv: env, NotReady: true})
	mark := int64(0)
	for _, c := range [][3]string{
		{"AADSTS90002:", "AZURE_TENANT_ID", stack.TenantID},
		{"AADSTS700016:", "AZURE_CLIENT_ID", stack.ClientID},
	} {
		harness.WaitForLog(t, sys.Signer.Log, mark, `"level":"ERROR"`, "token exchange failed", c[0], "fix: "+c[1])
		wantIdentityUnavailable(t, sys)
		if err := sys.Signer.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		mark = sys.Signer.Log.Mark()
		sys.Signer.SetEnv(c[1], c[2])
		harness.Restart(t, sys.Signer)
	}
	harness.WantRecovery(t, sys)
	harness.WantNoSecrets(t, sys)
}

func TestNoRequestFailsWhileTokensRotateAndExpire(t *testing.T) {
	t.Parallel()
	const rotations, exchanges, enough = 3, 6, 200
	// The signer sees whole seconds, and storage the exact end of the token, which is later. Tokens of Entra ID are like this.
	sys := harness.Start(t, stack.SystemOptions{AccessTokenLifetime: 4900 * time.Millisecond, FederatedTokenLifetime: 5 * time.Second})
	harness.Put(t, sys, "seen", harness.Cat)
	first := sys.Issuer.Issued()
	ctx, cancel := context.WithCancel(t.Context())
	var answered, failed atomic.Int64
	var wg sync.WaitGroup
	for _, k := range []harness.Call{
		{Method: "GET", Target: "/cat/seen"},
		{Method: "PUT", Target: "/cat/small", Body: harness.Cat},
		{Method: "PUT", Target: "/cat/large", Body: harness.Picture(harness.LargeSize, 'l')},
	} {
		wg.Go(func() {
			for ctx.Err() == nil {
				a, err := harness.Try(t.Context(), k.Method, sys.URL+k.Target, "", bytes.NewReader(k.Body))
				if (err != nil || a.StatusCode != http.StatusOK) && failed.Add(1) < 10 {
					t.Errorf("%s %s: %v %s", k.Method, k.Target, err, a.Body)
				}
				answered.Add(1)
				time.Sleep(time.Duration(20+len(k.Body)>>13) * time.Millisecond) // leaves the processors to other tests
			}
		})
	}
	tokens := map[string]bool{}
	end := time.Now().Add(time.Minute)
	for len(tokens) <= rotations || sys.Issuer.Issued() < first+exchanges || answered.Load() < enough {
		b, err := os.ReadFile(sys.Token.Path())
		if err != nil || time.Now().After(end) {
			t.Errorf("%v: only %d federated tokens, %d exchanges, %d requests", err, len(tokens), sys.Issuer.Issued()-first, answered.Load())
			break
		}
		tokens[string(b)] = true
		time.Sleep(50 * time.Millisecond)
	}
	cancel()
	wg.Wait()
	harness.WantNoSecrets(t, sys)
}
