package faults

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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
	begin(atStart)
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
		for _, c := range []struct {
			name  string
			fault harness.Fault
			log   []string
			most  int64 // requests to storage; 0 for any number
		}{
			{
				"storage: throttling (503, Retry-After 1)", harness.Reject(503, "ServerBusy", "Retry-After", "1"),
				[]string{"throttled", "ServerBusy"},
				20,
			},
			{
				"storage: throttling (503, Retry-After 120)", harness.Reject(503, "ServerBusy", "Retry-After", "120"),
				[]string{"throttled", "ServerBusy"},
				6,
			},
			{"storage: throttling (429)", harness.Reject(429, "TooManyRequests"), []string{"throttled", "TooManyRequests"}, 20},
			{
				"storage: internal error (500)", harness.Reject(500, "InternalError"),
				[]string{"storage_unavailable", "500 InternalError", "the-request-id"},
				28,
			},
			{"storage: connections are reset", harness.Reset, []string{"storage_unavailable", "connection reset"}, 0},
			{
				"storage: no container (404)", harness.Reject(404, "ContainerNotFound"),
				[]string{"internal", "ContainerNotFound", "fix: create the container"},
				6,
			},
			{"storage: response of another server (404)", harness.Reject(404, ""), []string{"internal", "404"}, 6},
			{
				"identity: no role on the container (403)", harness.Reject(403, "AuthorizationPermissionMismatch"),
				[]string{"AuthorizationPermissionMismatch", "fix: give the identity the role Storage Blob Data Contributor"},
				6,
			},
			{
				"identity: storage rejects the access token (401)",
				harness.Reject(401, "InvalidAuthenticationInfo", "WWW-Authenticate", challenge),
				[]string{"InvalidAuthenticationInfo", "fix: storage does not accept the identity's token"},
				6,
			},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				f := &incident{name: c.name, sys: sys, log: c.log, limit: 15 * time.Second}
				if c.most == 0 || c.most > 20 { // two such faults at the same time would open the circuit breaker
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
				if n := requests.Load(); c.most > 0 && (n < c.most*3/5 || n > c.most) {
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

func TestFaultsOfTheClock(t *testing.T) {
	harness.NeedStack(t)
	t.Parallel()
	st, err := stack.New(t.Context(), stack.Options{Root: harness.Root(), Dir: t.TempDir(), Clock: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	sys := harness.StartOn(t, st, stack.SystemOptions{})
	// set sets the signer's clock ahead of storage's clock.
	set := func(ahead time.Duration) func() {
		return func() {
			if err := errors.Join(sys.Signer.Stop(t.Context()), st.SetClock(-ahead), sys.Token.Reset()); err != nil {
				t.Fatal(err)
			}
			harness.Restart(t, sys.Signer)
			harness.WantRecovery(t, sys)
		}
	}
	for _, c := range []struct {
		ahead         time.Duration
		before, where string
		short         int // status of a signed URL with a lifetime of 5 minutes
	}{
		{10 * time.Minute, "", "ahead of", 200},
		{-10 * time.Minute, "signed URLs end 10 min early, shorter ones get 403 from storage; else ", "behind", 403},
	} {
		(&incident{
			name: "clock: 10 minutes " + c.where + " storage's", sys: sys, restarts: true, before: c.before,
			inject: set(c.ahead), remove: set(0),
			log: []string{"clock differs from storage's", c.where + " storage's", "fix: time synchronization on this node"},
			check: func() {
				if skew := harness.Series(t, sys.SignerOps, "cats_signer_clock_skew_seconds") - c.ahead.Seconds(); skew < -30 || skew > 30 {
					t.Errorf("the measured skew is wrong by %v s", skew)
				}
				link, _ := harness.Link(t, sys, "recovered", "?ttl=5m")
				harness.Do(t, "GET", link, "", nil).Want(t, c.short)
			},
		}).run(t)
	}
}

// takeDescriptors prevents that a process opens files. It returns a function that ends this.
func takeDescriptors(t *testing.T, p *stack.Process) (restore func()) {
	t.Helper()
	var old unix.Rlimit
	if err := errors.Join(
		unix.Prlimit(p.Pid(), unix.RLIMIT_NOFILE, nil, &old),
		unix.Prlimit(p.Pid(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: old.Max}, nil), // stdin, stdout and stderr
	); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Prlimit(p.Pid(), unix.RLIMIT_NOFILE, &old, nil); err != nil {
			t.Error(err)
		}
	}
}

func TestFaultsOfFileDescriptors(t *testing.T) {
	harness.NeedStack(t)
	t.Parallel()
	p := newTCPProxy(t, harness.Stack(t).Storage.URL)
	sys := harness.Start(t, stack.SystemOptions{StorageURL: p.url()})
	var restore func()
	(&incident{
		name: "file descriptors: none left in the signer", sys: sys, inTurn: true,
		inject: func() {
			p.down() // so that the signer needs new connections
			p.up()
			restore = takeDescriptors(t, sys.Signer)
		},
		remove: func() { restore() },
		log:    []string{"storage_unavailable", "too many open files"}, limit: 20 * time.Second,
	}).run(t)
	(&incident{
		name: "file descriptors: none left in the frontend", sys: sys, inTurn: true, logger: sys.Frontend.Log,
		before: "new connections wait; on open ones ",
		inject: func() {
			restore = takeDescriptors(t, sys.Frontend)
			harness.Dial(t, sys)
		},
		remove: func() { restore() },
		log:    []string{"no file descriptor for a connection", "raise the limit of open files"},
	}).run(t)
}

// TestFaultsOfTheFileSystem runs both programs without a working folder, without temporary files and with a file size limit of 0.
func TestFaultsOfTheFileSystem(t *testing.T) {
	harness.NeedStack(t)
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"frontend", "signer"} {
		script := fmt.Sprintf("#!/bin/sh\n{ cd /proc || cd /; } && ulimit -f 0 && exec '%s'\n", filepath.Join(harness.BinDir(t), name))
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	env := map[string]string{"TMPDIR": filepath.Join(dir, "missing"), "HOME": ""}
	sys := harness.Start(t, stack.SystemOptions{
		Frontend: filepath.Join(dir, "frontend"), Signer: filepath.Join(dir, "signer"), FrontendEnv: env, SignerEnv: env,
	})
	(&incident{name: "file system: nothing can be written", sys: sys, inject: func() {}, remove: func() {}}).run(t)
}
