package faults

import (
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
	p.Stop()
	sys := harness.Start(t, stack.SystemOptions{StorageURL: p.url(), NotReady: true})
	const atStart = "storage: connections are refused when the signer starts"
	log := []string{"connection refused", "retry_in"}
	line := logCell(t, harness.WaitForLog(t, sys.Signer.Log, 0, append(log, `"level":"ERROR"`)...), log)
	harness.WantNotReady(t, sys)
	harness.Do(t, "GET", sys.URL+"/cat/x", "", nil).WantProblem(t, 503, "storage_unavailable")
	p.up()
	began := time.Now()
	harness.WantRecovery(t, sys)
	end(t, atStart, row{"not ready; 503 `storage_unavailable`", line, rounded(time.Since(began))})

	for _, f := range []incident{
		{
			name:   "storage: latency of 1 s",
			inject: p.add(`{"type":"latency","attributes":{"latency":1000}}`), remove: p.heal, limit: 20 * time.Second,
		},
		{
			name:   "storage: bandwidth of 2 MB/s",
			inject: p.add(`{"type":"bandwidth","stream":"upstream","attributes":{"rate":2000}}`), remove: p.heal, limit: 30 * time.Second,
		},
		{
			name:   "storage: connections break after 60 kB",
			inject: p.add(`{"type":"limit_data","stream":"upstream","attributes":{"bytes":60000}}`), remove: p.heal,
			log: []string{"storage_unavailable", "put_blob"}, limit: 15 * time.Second,
		},
		{
			name:   "storage: connections are refused",
			inject: p.down, remove: p.up, log: []string{"storage_unavailable", "connection refused"},
			check: func() {
				if ready, why := harness.Readyz(t, sys.SignerOps); !ready {
					t.Errorf("not ready with a user delegation key: %s", why)
				}
			},
		},
	} {
		f.sys = sys
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
		log: []string{"storage_unavailable", "x509: certificate signed by unknown authority"},
	}).run(t)
	(&incident{
		name: "storage: no response", sys: sys, remove: p.heal,
		before: "ten requests wait for 10 s; then ",
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
		log: []string{"storage circuit breaker opened"}, limit: time.Second,
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
		const unlimited, rejectsRole = 0, "AuthorizationPermissionMismatch"
		reject := harness.Reject
		for _, c := range []struct {
			name  string
			fault harness.Fault
			most  int64 // requests to storage
			log   []string
		}{
			{"storage: throttling (503, Retry-After 1)", reject(503, "ServerBusy", "Retry-After", "1"), 20, []string{"throttled", "ServerBusy"}},
			{"storage: throttling (503, Retry-After 120)", reject(503, "ServerBusy", "Retry-After", "120"), 6, []string{"throttled", "ServerBusy"}},
			{"storage: throttling (429)", reject(429, "TooManyRequests"), 20, []string{"throttled", "TooManyRequests"}},
			{
				"storage: internal error (500)", reject(500, "InternalError"), 28,
				[]string{"storage_unavailable", "500 InternalError", "the-request-id"},
			},
			{"storage: connections are reset", harness.Reset, unlimited, []string{"storage_unavailable", "connection reset"}},
			{
				"storage: no container (404)", reject(404, "ContainerNotFound"), 6,
				[]string{"internal", "ContainerNotFound", "fix: create the container"},
			},
			{"storage: response of another server (404)", reject(404, ""), 6, []string{"internal", "404"}},
			{
				"identity: no role on the container (403)", reject(403, rejectsRole), 6,
				[]string{rejectsRole, "fix: give the identity the role Storage Blob Data Contributor"},
			},
			{
				"identity: storage rejects the access token (401)", reject(401, "InvalidAuthenticationInfo", "WWW-Authenticate", challenge), 6,
				[]string{"InvalidAuthenticationInfo", "fix: storage does not accept the identity's token"},
			},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				f := &incident{name: c.name, sys: sys, log: c.log, limit: 15 * time.Second}
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
	get := func(want int) error {
		if a := harness.Do(t, "GET", f.sys.URL+"/cat/"+f.slug(), "", nil); a.StatusCode != want {
			return fmt.Errorf("GET is answered with %d; want %d", a.StatusCode, want)
		}
		return nil
	}
	inject := f.inject
	f.inject = func() {
		mark := f.sys.Signer.Log.Mark()
		inject()
		harness.WaitForLog(t, f.sys.Signer.Log, mark, `"level":"ERROR"`, "token exchange failed")
		if err := get(200); err != nil {
			t.Error(err)
		}
		harness.Eventually(t, func() error { return get(502) })
	}
	f.before, f.limit = "success until the access token expires; then ", 5*time.Second
	f.log = append(f.log, "token exchange failed")
	f.run(t)
}

func TestFaultsOfTheTokenIssuer(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{AccessTokenLifetime: 6 * time.Second})
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
	runUntilExpiry(t, incident{
		name: "token issuer: connections are refused", sys: sys,
		inject: p.down, remove: p.up, log: []string{"connection refused", "retry_in"},
	})
	runUntilExpiry(t, incident{
		name: "token issuer: untrusted certificate", sys: sys,
		inject: p.redirect(untrustedServer(t)), remove: p.redirect(p.address()),
		log: []string{"x509: certificate signed by unknown authority"},
	})
	(&incident{
		name: "token issuer: no response when the signer starts", sys: sys, restarts: true,
		inject: func() { p.add(noResponse)(); restart(t, sys.Signer) }, remove: p.heal,
		before: "not ready; during the first token exchange ",
		log:    []string{"signer_unavailable", "the first token is being fetched"},
		check:  func() { harness.WantNotReady(t, sys) },
	}).run(t)
}

func TestFaultsOfTheFederatedToken(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{AccessTokenLifetime: 6 * time.Second})
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
		log: []string{"AADSTS700024", "fix: the federated token is expired or not valid yet"},
	})
	runUntilExpiry(t, incident{
		name: "federated token: missing", sys: sys, remove: reset,
		inject: func() { _ = os.Remove(sys.Token.Path()) },
		log:    []string{"no such file", "fix: mount the token's volume"},
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
	revoked := &incident{
		name: "user delegation key: revoked", sys: sys, inTurn: true, remove: func() {},
		before: "until the next probe (of the first signed URL after an idle minute, or within 75 s) ",
		log: []string{
			"storage rejected the user delegation key; fetching a new one", "AuthenticationFailed",
			"fix: nothing, if the keys were revoked on purpose",
		},
	}
	revoked.inject = func() {
		revoked.since = time.Now()
		first := revoked.since.Add(-15 * time.Minute).Truncate(time.Second) // start of the keys that are still valid
		reject("AuthenticationFailed", func(q url.Values) bool {
			start, err := time.Parse(time.RFC3339, q.Get("skt"))
			return err != nil || start.Before(first)
		})
	}
	revoked.run(t)
	storage.SetAll(nil)

	restart(t, sys.Signer)
	harness.WantRecovery(t, sys)
	restart(t, sys.Signer) // it probes the first signed URL
	(&incident{
		name: "user delegation key: a new key is rejected too", sys: sys, inTurn: true, remove: func() { storage.SetAll(nil) },
		before: "storage answers the first signed URL with 403; then not ready, ",
		inject: func() {
			mark := sys.Signer.Log.Mark()
			reject("AuthorizationPermissionMismatch", func(url.Values) bool { return true })
			harness.Do(t, "GET", sys.URL+"/cat/recovered", "", nil).Want(t, 200)
			harness.WaitForLog(t, sys.Signer.Log, mark, "retry_in")
		},
		log: []string{
			"storage rejects a signed URL of the user delegation key", "AuthorizationPermissionMismatch",
			"fix: give the identity the role Storage Blob Data Contributor on the container", "retry_in",
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
		name: "identity: no role on the account", sys: sys, restarts: true, remove: func() { storage.Set("", nil) },
		before: "success while the user delegation key is valid; after a start not ready, ",
		inject: func() {
			storage.Set("", harness.Reject(403, "AuthorizationPermissionMismatch"))
			mark := sys.Signer.Log.Mark()
			restart(t, sys.Signer)
			harness.WaitForLog(t, sys.Signer.Log, mark, "retry_in")
		},
		log:   []string{"AuthorizationPermissionMismatch", "Storage Blob Delegator", "retry_in"},
		check: func() { harness.WantNotReady(t, sys) },
	}).run(t)
}
