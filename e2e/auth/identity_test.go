package auth

import (
	"bytes"
	"context"
	"net/http"
	"net/url"
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

func TestAWrongFederatedTokenIsToldAndMendsItself(t *testing.T) {
	harness.NeedStack(t)
	t.Parallel()
	const file, fix = "AZURE_FEDERATED_TOKEN_FILE", "fix: "
	for _, c := range []struct {
		name string
		// spoil makes the file at path wrong.
		spoil func(t *testing.T, path string)
		// says is what the log has besides the error.
		says []string
	}{
		{"subject", harness.WrongToken(func(f *issuer.Federated) { f.Subject = "system:serviceaccount:cats:other" }), []string{"AADSTS700213:", fix, "serviceaccount:cats:other"}},
		{"case of the subject", harness.WrongToken(func(f *issuer.Federated) { f.Subject = strings.ToUpper(stack.Subject) }), []string{"AADSTS7002138:", fix, "case-sensitive"}},
		{"audience", harness.WrongToken(func(f *issuer.Federated) { f.Audience = "api://other" }), []string{"AADSTS700212:", fix, issuer.Audience}},
		{"issuer", harness.WrongToken(func(f *issuer.Federated) { f.Issuer = "https://elsewhere.example.com" }), []string{"AADSTS700211:", fix, "oidcIssuerProfile"}},
		{"forged", harness.WrongToken(func(f *issuer.Federated) { f.Forged = true }), []string{"AADSTS700027:", fix}},
		{"expired", harness.WrongToken(func(f *issuer.Federated) { f.IssuedAt = time.Now().Add(-time.Hour) }), []string{"AADSTS700024:", fix, "kubelet"}},
		{"not yet", harness.WrongToken(func(f *issuer.Federated) { f.IssuedAt = time.Now().Add(time.Hour) }), []string{"AADSTS700024:", fix, "clocks"}},
		{"missing", func(*testing.T, string) {}, []string{file, fix, "no such file"}},
		{"empty", func(t *testing.T, path string) { harness.WriteToken(t, path, "") }, []string{file, fix, "empty"}},
		{"garbage", func(t *testing.T, path string) { harness.WriteToken(t, path, "a cat walked over the keyboard") }, []string{"AADSTS50027:", fix, file}},
		{"no file", func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, []string{file, fix, "is a directory"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "token")
			c.spoil(t, path)
			sys := harness.Start(t, stack.SystemOptions{SignerEnv: map[string]string{"AZURE_FEDERATED_TOKEN_FILE": path}, NotReady: true})
			pids := [2]int{sys.Frontend.Pid(), sys.Signer.Pid()}

			line := harness.WaitForLog(t, sys.Signer.Log, 0, `"level":"ERROR"`, "token exchange failed")
			for _, want := range c.says {
				if !strings.Contains(line, want) {
					t.Errorf("%q is not in the log's line %s", want, line)
				}
			}
			refusesAll(t, sys)
			if got := sys.Issuer.Issued(); got != 0 {
				t.Errorf("%d tokens were issued", got)
			}
			if _, says := harness.Readyz(t, sys.SignerOps); !strings.Contains(says, c.says[0]) {
				t.Errorf("the signer's /readyz says %q, without %q", says, c.says[0])
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

// refusesAll checks that neither is ready, and that a client is told that it is
// the service's fault.
func refusesAll(t *testing.T, sys *stack.System) {
	t.Helper()
	harness.WantNotReady(t, sys)
	if _, says := harness.Readyz(t, sys.FrontendOps); strings.Contains(says, "AADSTS") {
		t.Errorf("the frontend knows too much: %s", says)
	}
	for _, a := range harness.SendAll(t, sys, "x", harness.Cat, harness.Picture(harness.LargeSize, 'l')) {
		a.WantProblem(t, http.StatusBadGateway, "identity_unavailable")
	}
}

// TestARefusalAmidAnUploadReachesTheClient has a signer refuse when it has read a
// part of a picture, while the frontend goes on sending.
func TestARefusalAmidAnUploadReachesTheClient(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{SignerEnv: map[string]string{"AZURE_CLIENT_ID": "unknown"}, NotReady: true})
	harness.WaitForLog(t, sys.Signer.Log, 0, `"level":"ERROR"`, "token exchange failed")
	large := harness.Picture(harness.LargeSize, 'l')
	for range 30 {
		harness.Do(t, http.MethodPut, sys.URL+"/cat/u", "", large).WantProblem(t, http.StatusBadGateway, "identity_unavailable")
	}
}

func TestAWrongIdentityInTheSettingsIsTold(t *testing.T) {
	t.Parallel()
	for variable, code := range map[string]string{"AZURE_CLIENT_ID": "AADSTS700016:", "AZURE_TENANT_ID": "AADSTS90002:"} {
		t.Run(variable, func(t *testing.T) {
			t.Parallel()
			right := map[string]string{"AZURE_CLIENT_ID": stack.ClientID, "AZURE_TENANT_ID": stack.TenantID}[variable]
			sys := harness.Start(t, stack.SystemOptions{
				SignerEnv: map[string]string{variable: "00000000-0000-4000-8000-00000000ffff"}, NotReady: true,
			})
			frontend := sys.Frontend.Pid()
			line := harness.WaitForLog(t, sys.Signer.Log, 0, `"level":"ERROR"`, "token exchange failed")
			if !strings.Contains(line, code) || !strings.Contains(line, "fix: "+variable) {
				t.Errorf("%s and what to do about %s are not in the log's line %s", code, variable, line)
			}
			refusesAll(t, sys)
			if err := sys.Signer.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			sys.Signer.SetEnv(variable, right)
			if err := sys.Signer.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			harness.WantRecovery(t, sys)
			if sys.Frontend.Pid() != frontend {
				t.Error("the frontend was restarted")
			}
			harness.WantNoSecrets(t, sys)
		})
	}
}

// broken answers 503 in place of the issuer.
func broken(http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "AADSTS90033: A transient error has occurred. Please try again.", http.StatusServiceUnavailable)
	})
}

func TestAnIssuerThatIsDownOrSlowAtTheStart(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	if err := sys.Signer.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	sys.Issuer.Use(broken)
	mark := sys.Signer.Log.Mark()
	if err := sys.Signer.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	pid := sys.Signer.Pid()
	harness.WaitForLog(t, sys.Signer.Log, mark, `"level":"ERROR"`, "token exchange failed", "AADSTS90033", "retry_in")
	refusesAll(t, sys)
	sys.Issuer.Use(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(2 * time.Second)
			next.ServeHTTP(w, r)
		})
	})
	harness.WantRecovery(t, sys)
	if sys.Signer.Pid() != pid {
		t.Error("the signer was restarted")
	}
	harness.WantNoSecrets(t, sys)
}

func TestNoRequestFailsWhileTokensRotateAndExpire(t *testing.T) {
	t.Parallel()
	const rotations, exchanges, enough = 3, 6, 200
	// The signer is told whole seconds and storage goes by what is in the token,
	// which lives longer than that by more than the exchange takes: as Entra ID's do.
	sys := harness.Start(t, stack.SystemOptions{AccessTokenLifetime: 4900 * time.Millisecond, FederatedTokenLifetime: 5 * time.Second})
	harness.Put(t, sys, "seen", harness.Cat)
	small := harness.Picture(20<<10, 's')
	first := sys.Issuer.Issued()
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()

	var answered, failed atomic.Int64
	var wg sync.WaitGroup
	for i, request := range []struct {
		method, user string
		body         []byte
	}{
		{http.MethodGet, "seen", nil},
		{http.MethodGet, "seen", nil},
		{http.MethodPut, "a", small},
		{http.MethodPut, "b", harness.Cat},
		{http.MethodPut, "c", harness.Picture(harness.LargeSize, 'l')},
	} {
		wg.Go(func() {
			for ctx.Err() == nil {
				a, err := harness.Try(t.Context(), request.method, sys.URL+"/cat/"+request.user, "", bytes.NewReader(request.body))
				if err != nil || a.StatusCode != http.StatusOK {
					if failed.Add(1) < 10 {
						t.Errorf("request of %d, %s: %v %s", i, request.method, err, a.Body)
					}
				}
				answered.Add(1)
				time.Sleep(time.Duration(20+len(request.body)>>13) * time.Millisecond) // leave the machine to others
			}
		})
	}
	tokens := map[string]bool{}
	for ctx.Err() == nil && (len(tokens) <= rotations || sys.Issuer.Issued() < first+exchanges || answered.Load() < enough) {
		b, err := os.ReadFile(sys.Token.Path())
		if err != nil {
			t.Error(err)
		}
		tokens[string(b)] = true
		time.Sleep(50 * time.Millisecond)
	}
	if ctx.Err() != nil {
		t.Errorf("only %d federated tokens, %d exchanges and %d requests", len(tokens), sys.Issuer.Issued()-first, answered.Load())
	}
	cancel()
	wg.Wait()
	t.Logf("%d requests, %d failed, while %d federated tokens were exchanged %d times", answered.Load(), failed.Load(), len(tokens), sys.Issuer.Issued()-first)
	harness.WantNoSecrets(t, sys)
}

func TestLinksBearClocksThatDifferAndNeverOutliveTheirKey(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	harness.Put(t, sys, "u", harness.Cat)
	for _, ttl := range []string{"", "5s", "10m", "24h"} {
		query := "?ttl=" + ttl
		if ttl == "" {
			query = ""
		}
		link, _ := harness.Do(t, http.MethodGet, sys.URL+"/cat/u"+query, "", nil).Want(t, http.StatusOK).Field(t, "picture_url").(string)
		u, err := url.Parse(link)
		if err != nil {
			t.Fatal(err)
		}
		at := map[string]time.Time{}
		for _, name := range []string{"st", "se", "skt", "ske"} {
			if at[name], err = time.Parse(time.RFC3339, u.Query().Get(name)); err != nil {
				t.Fatal(err)
			}
		}
		now := time.Now()
		for _, name := range []string{"st", "skt"} {
			if ahead := now.Sub(at[name]); ahead < 14*time.Minute {
				t.Errorf("ttl %q: %s is %v ago; a storage clock that is behind would refuse the link", ttl, name, ahead)
			}
		}
		if at["st"].Before(at["skt"]) || at["se"].After(at["ske"]) {
			t.Errorf("ttl %q: the link is from %v to %v, its key from %v to %v", ttl, at["st"], at["se"], at["skt"], at["ske"])
		}
	}
}
