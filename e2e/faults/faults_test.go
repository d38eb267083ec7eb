package faults

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// noResponse is a toxic: connections are accepted, and no byte comes back.
const noResponse = `{"type":"timeout","attributes":{"timeout":0}}`

// challenge is a header of storage's 401 responses.
const challenge = "Bearer authorization_uri=https://login.microsoftonline.com/" + stack.TenantID + "/oauth2/authorize " +
	"resource_id=https://storage.azure.com"

func restart(t *testing.T, p *stack.Process) {
	t.Helper()
	if err := p.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	harness.Restart(t, p)
}

func TestFaultsOfTheConnectionToStorage(t *testing.T) {
	harness.NeedStack(t)
	t.Parallel()
	p := newTCPProxy(t, harness.Stack(t).Storage.URL)
	sys := harness.Start(t, stack.SystemOptions{StorageURL: p.url()})
	for _, f := range []incident{
		{name: "storage: latency of 1 s", inject: p.add(`{"type":"latency","attributes":{"latency":1000}}`)},
		{name: "storage: bandwidth of 2 MB/s", inject: p.add(`{"type":"bandwidth","stream":"upstream","attributes":{"rate":2000}}`)},
		{
			name:   "storage: connections break after 60 kB",
			inject: p.add(`{"type":"limit_data","stream":"upstream","attributes":{"bytes":60000}}`),
		},
		{
			name: "storage: connections are refused", inject: p.down, remove: p.up,
			check: func() {
				if ready, why := harness.Readyz(t, sys.SignerOps); !ready {
					t.Errorf("not ready with a user delegation key: %s", why)
				}
			},
		},
		{
			name:   "storage: connections are refused when the signer starts",
			inject: func() { p.down(); restart(t, sys.Signer) }, remove: p.up,
			check: func() { harness.WantNotReady(t, sys) },
		},
	} {
		if f.sys = sys; f.remove == nil {
			f.remove = p.heal
		}
		f.run(t)
	}
}

func TestFaultsOfStorageThatTakeLong(t *testing.T) {
	harness.NeedStack(t)
	t.Parallel()
	p := newTCPProxy(t, harness.Stack(t).Storage.URL)
	sys := harness.Start(t, stack.SystemOptions{StorageURL: p.url()})
	(&incident{
		name: "storage: untrusted certificate", sys: sys,
		inject: p.redirect(untrustedServer(t)), remove: p.redirect(p.address()),
	}).run(t)
	(&incident{
		name: "storage: no response", sys: sys, remove: p.heal,
		inject: func() {
			p.add(noResponse)()
			var wg sync.WaitGroup
			for i := range 10 { // they open the circuit breaker
				wg.Go(func() {
					harness.Do(t, "GET", fmt.Sprintf("%s/cat/%d", sys.URL, i), "", nil).WantProblem(t, 503, "storage_unavailable")
				})
			}
			wg.Wait()
		},
	}).run(t)
}

// TestFaultsOfStorageResponses injects all faults at the same time, each for other users.
func TestFaultsOfStorageResponses(t *testing.T) {
	t.Parallel()
	storage := harness.NewStorageProxy(t)
	sys := harness.Start(t, stack.SystemOptions{StorageURL: storage.URL})
	issued := sys.Issuer.Issued()
	var breaker sync.Mutex
	t.Run("faults", func(t *testing.T) {
		const unlimited = 0
		reject := harness.Reject
		for _, c := range []struct {
			name  string
			fault harness.Fault
			most  int64 // requests to storage
		}{
			{"storage: throttling (503, Retry-After 1)", reject(503, "ServerBusy", "Retry-After", "1"), 20},
			{"storage: throttling (503, Retry-After 120)", reject(503, "ServerBusy", "Retry-After", "120"), 6},
			{"storage: throttling (429)", reject(429, "TooManyRequests"), 20},
			{"storage: internal error (500)", reject(500, "InternalError"), 28},
			{"storage: connections are reset", harness.Reset, unlimited},
			{"storage: no container (404)", reject(404, "ContainerNotFound"), 6},
			{"storage: response of another server (404)", reject(404, ""), 6},
			{"identity: no role on the container (403)", reject(403, "AuthorizationPermissionMismatch"), 6},
			{
				"identity: storage rejects the access token (401)",
				reject(401, "InvalidAuthenticationInfo", "WWW-Authenticate", challenge), 6,
			},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				f := &incident{name: c.name, sys: sys}
				if c.most == unlimited || c.most > 20 { // two such faults at the same time would open the circuit breaker
					breaker.Lock()
					defer breaker.Unlock()
				}
				var requests atomic.Int64
				set := func(fault harness.Fault) {
					for _, suffix := range []string{"", "-missing", "-small", "-large", "-deleted"} {
						storage.Set(f.slug()+suffix, fault)
					}
				}
				f.inject = func() {
					set(func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
						requests.Add(1)
						c.fault(w, r, healthy)
					})
				}
				f.remove = func() { set(nil) }
				f.run(t)
				if n := requests.Load(); c.most != unlimited && (n < c.most*3/5 || n > c.most) {
					t.Errorf("the signer sent %d requests to storage; want at most %d", n, c.most)
				}
			})
		}
	})
	if ready, why := harness.Readyz(t, sys.FrontendOps); !ready {
		t.Errorf("not ready with a user delegation key: %s", why)
	}
	harness.Eventually(t, func() error {
		if sys.Issuer.Issued() == issued {
			return errors.New("the signer has not replaced the rejected token")
		}
		return nil
	})
}

// runUntilExpiry runs an incident that prevents token exchanges. Clients notice it when the current access token has expired.
func runUntilExpiry(t *testing.T, f incident) {
	t.Helper()
	inject := f.inject
	f.inject = func() {
		mark := f.sys.Signer.Log.Mark()
		inject()
		harness.WaitForLog(t, f.sys.Signer.Log, mark, `"level":"ERROR"`, "token exchange failed")
		target := f.sys.URL + "/cat/" + f.slug()
		expiry := tokenExpiry(t, f.sys)
		if a := harness.Do(t, "GET", target, "", nil); a.StatusCode != 200 && time.Now().Before(expiry) {
			t.Errorf("GET is answered with %d %s before the token expires", a.StatusCode, a.Body)
		}
		harness.Eventually(t, func() error {
			if a := harness.Do(t, "GET", target, "", nil); a.StatusCode != 502 {
				return fmt.Errorf("GET is answered with %d %s", a.StatusCode, a.Body)
			}
			return nil
		})
	}
	f.run(t)
}

// tokenExpiry returns when the last token that the signer obtained expires.
func tokenExpiry(t *testing.T, sys *stack.System) (expiry time.Time) {
	t.Helper()
	lines, err := sys.Signer.Log.Since(0)
	for _, line := range lines {
		var entry struct {
			Msg     string    `json:"msg"`
			Expires time.Time `json:"expires_at"`
		}
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Msg == "token obtained" {
			expiry = entry.Expires
		}
	}
	if err != nil || expiry.IsZero() {
		t.Fatalf("no token in the signer's log: %v", err)
	}
	return expiry
}

func TestFaultsOfTheTokenIssuer(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{AccessTokenLifetime: 10 * time.Second})
	var p *tcpProxy
	for _, v := range sys.Signer.Environ() {
		if authority, ok := strings.CutPrefix(v, "AZURE_AUTHORITY_HOST="); ok {
			p = newTCPProxy(t, authority)
		}
	}
	sys.Signer.SetEnv("AZURE_AUTHORITY_HOST", p.url())
	restart(t, sys.Signer)
	harness.WantRecovery(t, sys)
	(&incident{
		name: "token issuer: latency of 2 s", sys: sys,
		inject: func() {
			p.add(`{"type":"latency","attributes":{"latency":1000}}`)() // of TLS, and of the response
			mark := sys.Signer.Log.Mark()
			harness.WaitForLog(t, sys.Signer.Log, mark, "token obtained")
		},
		remove: p.heal,
	}).run(t)
	runUntilExpiry(t, incident{name: "token issuer: connections are refused", sys: sys, inject: p.down, remove: p.up})
	runUntilExpiry(t, incident{
		name: "token issuer: untrusted certificate", sys: sys,
		inject: p.redirect(untrustedServer(t)), remove: p.redirect(p.address()),
	})
	(&incident{
		name: "token issuer: no response when the signer starts", sys: sys,
		inject: func() { p.add(noResponse)(); restart(t, sys.Signer) }, remove: p.heal,
		check: func() { harness.WantNotReady(t, sys) },
	}).run(t)
}

func TestFaultsOfTheFederatedToken(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{AccessTokenLifetime: 10 * time.Second})
	reset := func() {
		if err := sys.Token.Reset(); err != nil {
			t.Error(err)
		}
	}
	runUntilExpiry(t, incident{
		name: "federated token: expired", sys: sys, remove: reset,
		inject: func() {
			expired := sys.Token.Default()
			expired.IssuedAt = time.Now().Add(-time.Hour)
			if err := sys.Token.Set(expired); err != nil {
				t.Error(err)
			}
		},
	})
	runUntilExpiry(t, incident{
		name: "federated token: missing", sys: sys, remove: reset,
		inject: func() { _ = os.Remove(sys.Token.Path()) },
	})
}

func TestFaultsOfKeysAndRoles(t *testing.T) {
	t.Parallel()
	storage := harness.NewStorageProxy(t)
	sys := harness.Start(t, stack.SystemOptions{StorageURL: storage.URL, SignerEnv: map[string]string{"LINK_BASE_URL": storage.URL}})
	// reject makes storage reject the signed URLs that which selects.
	reject := func(code string, which func(url.Values) bool) {
		fault := harness.Reject(http.StatusForbidden, code)
		storage.SetAll(func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
			if q := r.URL.Query(); q.Get("sig") != "" && which(q) {
				fault(w, r, healthy)
				return
			}
			healthy.ServeHTTP(w, r)
		})
	}
	time.Sleep(time.Second) // the start of a key is in seconds: that of the current key is in the past
	(&incident{
		name: "user delegation key: revoked", sys: sys, inTurn: true,
		inject: func() {
			first := time.Now().Add(-15 * time.Minute).Truncate(time.Second) // start of the keys that are still valid
			reject("AuthenticationFailed", func(q url.Values) bool {
				start, err := time.Parse(time.RFC3339, q.Get("skt"))
				return err != nil || start.Before(first)
			})
		},
	}).run(t)
	storage.SetAll(nil)

	restart(t, sys.Signer)
	harness.WantRecovery(t, sys)
	restart(t, sys.Signer) // it probes the first signed URL
	(&incident{
		name: "user delegation key: a new key is rejected too", sys: sys, inTurn: true, remove: func() { storage.SetAll(nil) },
		inject: func() {
			mark := sys.Signer.Log.Mark()
			reject("AuthorizationPermissionMismatch", func(url.Values) bool { return true })
			harness.Do(t, "GET", sys.URL+"/cat/recovered", "", nil).Want(t, 200)
			harness.WaitForLog(t, sys.Signer.Log, mark, "retry_in")
		},
		check: func() {
			harness.WantNotReady(t, sys)
			if _, why := harness.Readyz(t, sys.SignerOps); !strings.Contains(why, "AuthorizationPermissionMismatch") {
				t.Errorf("/readyz answers %s", why)
			}
			if n := harness.Series(t, sys.SignerOps, `cats_signer_key_probes_total{outcome="rejected"}`); n < 2 {
				t.Errorf("%v probes are counted as rejected; want 2", n)
			}
		},
	}).run(t)
	(&incident{
		name: "identity: no role on the account", sys: sys, remove: func() { storage.Set("", nil) },
		inject: func() {
			storage.Set("", harness.Reject(403, "AuthorizationPermissionMismatch"))
			mark := sys.Signer.Log.Mark()
			restart(t, sys.Signer)
			harness.WaitForLog(t, sys.Signer.Log, mark, "retry_in")
		},
		check: func() { harness.WantNotReady(t, sys) },
	}).run(t)
}
