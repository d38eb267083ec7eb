package auth

import (
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

// Outages of the issuer are in TestFaultsOfTheTokenIssuer of e2e/faults, and wrong settings in e2e/ops.
func TestWrongFederatedTokenIsExplainedAndRecovers(t *testing.T) {
	t.Parallel()
	harness.NeedStack(t)
	const file = "AZURE_FEDERATED_TOKEN_FILE"
	path := filepath.Join(t.TempDir(), "token")
	sys := harness.Start(t, stack.SystemOptions{SignerEnv: map[string]string{file: path}, NotReady: true})
	pids := [2]int{sys.Frontend.Pid(), sys.Signer.Pid()}
	for _, c := range []struct {
		token string
		log   []string // parts of the log line that explains it
	}{
		{"", []string{file, "no such file"}},
		{
			harness.FederatedToken(t, func(f *issuer.Federated) { f.Subject = "system:serviceaccount:cats:other" }),
			[]string{"AADSTS700213:", "cats:other"},
		},
		{
			harness.FederatedToken(t, func(f *issuer.Federated) { f.IssuedAt = time.Now().Add(time.Hour) }),
			[]string{"AADSTS700024:", "clocks"},
		},
		{harness.FederatedToken(t, func(f *issuer.Federated) { f.Forged = true }), []string{"AADSTS700027:"}},
		{"a cat walked over the keyboard", []string{"AADSTS50027:", file}},
		{" ", []string{file, "empty"}},
	} {
		if c.token != "" {
			harness.WriteToken(t, path, c.token)
		}
		harness.WaitForLog(t, sys.Signer.Log, 0, append(c.log, `"level":"ERROR"`, "token exchange failed", "fix: ")...)
		if _, says := harness.Readyz(t, sys.SignerOps); !strings.Contains(says, c.log[0]) {
			t.Errorf("the signer's /readyz is %q; want %q", says, c.log[0])
		}
	}
	harness.WantNotReady(t, sys)
	if _, says := harness.Readyz(t, sys.FrontendOps); strings.Contains(says, file) {
		t.Errorf("the frontend's /readyz has details of the signer: %s", says)
	}
	for range 5 { // the signer rejects the large uploads while the frontend still sends
		for _, a := range harness.SendAll(t, sys, "x", harness.Cat, harness.Picture(harness.OneBlob+1, 'l')) {
			a.WantProblem(t, http.StatusBadGateway, "identity_unavailable")
		}
	}
	if got := sys.Issuer.Issued(); got != 0 {
		t.Errorf("%d tokens were issued", got)
	}
	harness.WriteToken(t, path, harness.FederatedToken(t, nil))
	harness.WantRecovery(t, sys)
	if now := [2]int{sys.Frontend.Pid(), sys.Signer.Pid()}; now != pids {
		t.Errorf("processes were restarted: %v, then %v", pids, now)
	}
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
				if a := k.Do(t, sys); a.StatusCode != http.StatusOK && failed.Add(1) < 10 {
					t.Errorf("%s %s: %d %s", k.Method, k.Target, a.StatusCode, a.Body)
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
