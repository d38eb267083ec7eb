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

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestFaultsOfTheWayToStorage(t *testing.T) {
	harness.NeedStack(t)
	t.Parallel()
	w := newWay(t, harness.Stack(t).Storage.URL)
	w.down()
	sys := harness.Start(t, stack.SystemOptions{StorageURL: w.url(harness.Stack(t).Storage.URL), NotReady: true})
	const down = "storage is down when the signer starts"
	says := []string{"connection refused", "retry_in"}
	line := cell(t, harness.WaitForLog(t, sys.Signer.Log, 0, append([]string{`"level":"ERROR"`}, says...)...), says)
	harness.WantNotReady(t, sys)
	get := &asked{method: http.MethodGet, what: "GET", user: "x"}
	incident{sys: sys, told: 10 * time.Second}.ask(t, get)
	told := get.told(t)
	w.up()
	began := time.Now()
	harness.WantRecovery(t, sys)
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("it recovered after %v", took)
	}
	seen(t, down, faultRow{"not ready; who asks all the same: " + told, line, rounded(time.Since(began))})

	for _, f := range []incident{
		{
			name:  "storage is slow: a second more for each answer",
			begin: func() { w.poison(`{"type":"latency","attributes":{"latency":1000}}`) }, end: w.heal,
			told: 20 * time.Second, within: 20 * time.Second,
		},
		{
			name:  "the way to storage is narrow: 2 MB/s",
			begin: func() { w.poison(`{"type":"bandwidth","stream":"upstream","attributes":{"rate":2000}}`) }, end: w.heal,
			told: 30 * time.Second, within: 20 * time.Second,
		},
		{
			name:  "connections to storage break amid a body",
			begin: func() { w.poison(`{"type":"limit_data","stream":"upstream","attributes":{"bytes":60000}}`) }, end: w.heal,
			says: []string{"storage_unavailable", "put_blob"},
			told: 15 * time.Second, within: 20 * time.Second,
		},
		{
			name:  "storage is down: connections are refused",
			begin: w.down, end: w.up,
			says: []string{"storage_unavailable", "connection refused"},
			told: 10 * time.Second, within: 20 * time.Second,
			meanwhile: func() {
				if ready, says := harness.Readyz(t, sys.SignerOps); !ready {
					t.Errorf("a key is at hand, but not ready: %s", says)
				}
			},
		},
	} {
		f.sys = sys
		f.run(t)
	}
}

func TestFaultsOfTheWayToStorageThatTakeLong(t *testing.T) {
	harness.NeedStack(t)
	t.Parallel()
	w := newWay(t, harness.Stack(t).Storage.URL)
	sys := harness.Start(t, stack.SystemOptions{StorageURL: w.url(harness.Stack(t).Storage.URL)})
	other := impostor(t)
	incident{
		name: "storage's certificate is not to be trusted", sys: sys,
		begin: func() { w.lead(other) }, end: func() { w.lead(w.healthy) },
		says: []string{"storage_unavailable", "x509: certificate signed by unknown authority"},
		told: 10 * time.Second, within: 20 * time.Second,
	}.run(t)
	incident{
		name: "storage never answers", sys: sys, end: w.heal,
		begin: func() {
			w.poison(`{"type":"timeout","attributes":{"timeout":0}}`)
			var wg sync.WaitGroup
			for i := range 10 { // until nobody is asked any more
				wg.Go(func() {
					began := time.Now()
					harness.Do(t, http.MethodGet, fmt.Sprintf("%s/cat/%d", sys.URL, i), "", nil).WantProblem(t, 503, "storage_unavailable")
					if took := time.Since(began); took > 12*time.Second {
						t.Errorf("it took %v to say so", took)
					}
				})
			}
			wg.Wait()
		},
		first: "the first ten are told after 10 s; then, while it is not asked: ",
		says:  []string{"storage circuit breaker opened"}, lone: true,
		told: 10 * time.Second, within: 20 * time.Second,
	}.run(t)
}

func TestFaultsOfTheIssuer(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{AccessTokenLifetime: 6 * time.Second}) // renewed after about half of it
	authority := ""
	for _, v := range sys.Signer.Environ() {
		if u, ok := strings.CutPrefix(v, "AZURE_AUTHORITY_HOST="); ok {
			authority = u
		}
	}
	w, other := newWay(t, authority), impostor(t)
	if err := sys.Signer.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	sys.Signer.SetEnv("AZURE_AUTHORITY_HOST", w.url(authority))
	harness.Restart(t, sys.Signer)
	harness.WantRecovery(t, sys)
	incident{
		name: "the token issuer is slow: two seconds more", sys: sys,
		begin: func() {
			w.poison(`{"type":"latency","attributes":{"latency":1000}}`) // of TLS, and of the answer
			mark := sys.Signer.Log.Mark()
			harness.WaitForLog(t, sys.Signer.Log, mark, "token obtained")
		},
		end: w.heal, told: 10 * time.Second, within: 20 * time.Second,
	}.run(t)
	for _, f := range []incident{
		{
			name:  "the token issuer is down",
			begin: w.down, end: w.up,
			says: []string{"connection refused", "retry_in"},
		},
		{
			name:  "the token issuer's certificate is not to be trusted",
			begin: func() { w.lead(other) }, end: func() { w.lead(w.healthy) },
			says: []string{"x509: certificate signed by unknown authority"},
		},
	} {
		runOut(t, sys, f)
	}
	incident{
		name: "the token issuer never answers a signer that starts", sys: sys, restarts: true,
		begin: func() {
			if err := sys.Signer.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.poison(`{"type":"timeout","attributes":{"timeout":0}}`)
			harness.Restart(t, sys.Signer)
		},
		says:  []string{"signer_unavailable", "the first token is being fetched"},
		first: "not ready; requests during its first token exchange: ",
		told:  10 * time.Second, within: 20 * time.Second,
		meanwhile: func() { harness.WantNotReady(t, sys) },
		end:       w.heal,
	}.run(t)
}

// runOut runs an incident that keeps the signer from new tokens: the clients see
// nothing of it until the one at hand has expired.
func runOut(t *testing.T, sys *stack.System, f incident) {
	t.Helper()
	begin, mark := f.begin, int64(0)
	f.sys, f.told, f.within = sys, 5*time.Second, 20*time.Second
	f.first = "nothing while the token at hand lives; then "
	f.says = append([]string{"token exchange failed"}, f.says...)
	f.begin = func() {
		mark = sys.Signer.Log.Mark()
		begin()
		harness.WaitForLog(t, sys.Signer.Log, mark, `"level":"ERROR"`, "token exchange failed")
		if a := harness.Do(t, http.MethodGet, sys.URL+"/cat/"+f.slug(), "", nil); a.StatusCode != http.StatusOK {
			t.Errorf("a token is at hand, and GET is %d %s", a.StatusCode, a.Body)
		}
		harness.Eventually(t, func() error {
			if a := harness.Do(t, http.MethodGet, sys.URL+"/cat/"+f.slug(), "", nil); a.StatusCode != http.StatusBadGateway {
				return fmt.Errorf("without a token, GET is %d", a.StatusCode)
			}
			return nil
		})
	}
	f.run(t)
}

func TestFaultsOfTheFederatedToken(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{AccessTokenLifetime: 6 * time.Second})
	right := func() {
		if err := sys.Token.Reset(); err != nil {
			t.Error(err)
		}
	}
	runOut(t, sys, incident{
		name: "the federated token has expired", end: right,
		begin: func() {
			expired := sys.Token.Default()
			expired.IssuedAt = time.Now().Add(-time.Hour)
			if err := sys.Token.Set(expired); err != nil {
				t.Error(err)
			}
		},
		says: []string{"AADSTS700024", "fix: the federated token is expired or not valid yet"},
	})
	runOut(t, sys, incident{
		name: "the federated token is missing", end: right,
		begin: func() { _ = os.Remove(sys.Token.Path()) },
		says:  []string{"no such file", "fix: mount the token's volume"},
	})
}

func TestFaultsOfKeysAndRoles(t *testing.T) {
	t.Parallel()
	storage := harness.NewStorageProxy(t)
	sys := harness.Start(t, stack.SystemOptions{StorageURL: storage.URL, SignerEnv: map[string]string{"LINK_BASE_URL": storage.URL}})
	var began time.Time
	// refuseLinks has storage refuse links that are refused by which.
	refuseLinks := func(code string, which func(url.Values) bool) {
		f := harness.Reject(http.StatusForbidden, code)
		storage.SetAll(func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
			if q := r.URL.Query(); q.Get("sig") != "" && which(q) {
				f(w, r, healthy)
				return
			}
			healthy.ServeHTTP(w, r)
		})
		began = time.Now()
	}
	restart := func() {
		if err := sys.Signer.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		harness.Restart(t, sys.Signer)
	}
	time.Sleep(time.Second) // keys go by seconds: the one at hand is not the next one
	incident{
		name: "the delegation keys were revoked", sys: sys, inTurn: true,
		first: "until the next trial (the first link after a quiet minute, or within 75 s): ",
		begin: func() {
			revoked := time.Now().Add(-15 * time.Minute)
			refuseLinks("AuthenticationFailed", func(q url.Values) bool {
				start, err := time.Parse(time.RFC3339, q.Get("skt"))
				return err != nil || start.Before(revoked.Truncate(time.Second))
			})
		},
		says: []string{"storage rejected the user delegation key; fetching a new one", "AuthenticationFailed", "fix: nothing, if the keys were revoked on purpose"},
		told: 10 * time.Second, within: 15 * time.Second,
		end: func() {}, since: func() time.Time { return began },
	}.run(t)
	storage.SetAll(nil)

	restart()
	harness.WantRecovery(t, sys)
	restart() // the first link after a start is tried
	incident{
		name: "links of a new key are refused too", sys: sys, inTurn: true,
		first: "the first has a link that gets a 403 of storage; then not ready, and ",
		begin: func() {
			mark := sys.Signer.Log.Mark()
			refuseLinks("AuthorizationPermissionMismatch", func(url.Values) bool { return true })
			harness.Do(t, http.MethodGet, sys.URL+"/cat/recovered", "", nil).Want(t, http.StatusOK)
			harness.WaitForLog(t, sys.Signer.Log, mark, "retry_in")
		},
		says: []string{"storage rejects a signed URL of the user delegation key", "AuthorizationPermissionMismatch", "fix: give the identity the role Storage Blob Data Contributor on the container", "retry_in"},
		told: 10 * time.Second, within: 20 * time.Second,
		meanwhile: func() {
			harness.WantNotReady(t, sys)
			if _, says := harness.Readyz(t, sys.SignerOps); !strings.Contains(says, "AuthorizationPermissionMismatch") {
				t.Errorf("/readyz says %s", says)
			}
		},
		end: func() { storage.SetAll(nil) },
	}.run(t)
	if n := harness.Series(t, sys.SignerOps, `cats_signer_key_probes_total{outcome="rejected"}`); n < 2 {
		t.Errorf("%v trials are counted as refused", n)
	}

	incident{
		name: "the identity has lost its role on the account: no key", sys: sys,
		first: "nothing while the key at hand lives; a signer that starts is not ready, and ", restarts: true,
		begin: func() {
			storage.Set("", harness.Reject(403, "AuthorizationPermissionMismatch"))
			mark := sys.Signer.Log.Mark()
			restart()
			harness.WaitForLog(t, sys.Signer.Log, mark, "retry_in")
		},
		says: []string{"AuthorizationPermissionMismatch", "Storage Blob Delegator", "retry_in"},
		told: 10 * time.Second, within: 20 * time.Second,
		meanwhile: func() { harness.WantNotReady(t, sys) },
		end:       func() { storage.Set("", nil) },
	}.run(t)
}

// TestFaultsOfStoragesAnswers injects all at once, each for users of its own.
func TestFaultsOfStoragesAnswers(t *testing.T) {
	t.Parallel()
	storage := harness.NewStorageProxy(t)
	sys := harness.Start(t, stack.SystemOptions{StorageURL: storage.URL})
	issued := sys.Issuer.Issued()
	t.Run("faults", func(t *testing.T) {
		for _, c := range []struct {
			name  string
			fault harness.Fault
			says  []string
			tries int64 // at most, of two HEADs, the buffered PUT and the streamed PUT, each with a HEAD for its outcome
		}{
			{"storage throttles: 503, Retry-After 1", harness.Reject(503, "ServerBusy", "Retry-After", "1"), []string{"throttled", "ServerBusy"}, 16},
			{"storage throttles for long: 503, Retry-After 120", harness.Reject(503, "ServerBusy", "Retry-After", "120"), []string{"throttled", "ServerBusy"}, 5},
			{"storage throttles: 429", harness.Reject(429, "TooManyRequests"), []string{"throttled", "TooManyRequests"}, 16},
			{"storage is broken: 500", harness.Reject(500, "InternalError"), []string{"storage_unavailable", "500 InternalError", "the-request-id"}, 24},
			{"the identity has lost its role on the container: 403", harness.Reject(403, "AuthorizationPermissionMismatch"), []string{"identity_unavailable", "AuthorizationPermissionMismatch", "fix: give the identity the role Storage Blob Data Contributor"}, 5},
			{"storage refuses the access token: 401", harness.Reject(401, "InvalidAuthenticationInfo", "WWW-Authenticate", challenge), []string{"identity_unavailable", "InvalidAuthenticationInfo", "fix: storage does not accept the identity's token"}, 5},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				var tries atomic.Int64
				f := incident{
					name: c.name, sys: sys, says: c.says, told: 15 * time.Second, within: 20 * time.Second,
				}
				f.begin = func() {
					for _, user := range []string{"", "-none", "-s", "-l"} {
						storage.Set(f.slug()+user, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
							tries.Add(1)
							c.fault(w, r, healthy)
						})
					}
				}
				f.end = func() {
					if n := tries.Load(); n < c.tries*3/5 || n > c.tries {
						t.Errorf("storage was asked %d times, want at most %d", n, c.tries)
					}
					for _, user := range []string{"", "-none", "-s", "-l"} {
						storage.Set(f.slug()+user, nil)
					}
				}
				f.run(t)
			})
		}
	})
	// A key is at hand, so the replica is not taken out because storage hiccups.
	if ready, says := harness.Readyz(t, sys.FrontendOps); !ready {
		t.Errorf("not ready: %s", says)
	}
	harness.Eventually(t, func() error {
		if sys.Issuer.Issued() == issued {
			return errors.New("storage refused the token, and no other was asked for")
		}
		return nil
	})
}

func TestFaultsOfTheClock(t *testing.T) {
	harness.NeedStack(t)
	t.Parallel()
	root, err := stack.FindRoot()
	if err != nil {
		t.Fatal(err)
	}
	world, err := stack.New(t.Context(), stack.Options{Root: root, Dir: t.TempDir(), Clock: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := world.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	sys, err := world.StartSystem(t.Context(), stack.SystemOptions{
		Container: "clocks", Frontend: filepath.Join(harness.BinDir(t), "frontend"), Signer: filepath.Join(harness.BinDir(t), "signer"),
		SignerEnv: map[string]string{"EXISTENCE_CACHE_TTL": "0s"},
	})
	if err != nil {
		t.Fatal(err)
	}
	// set puts our clock ahead of the world's, and has the signer start by it.
	set := func(ahead time.Duration) {
		if err := errors.Join(sys.Signer.Stop(t.Context()), world.SetClock(-ahead), sys.Token.Reset()); err != nil {
			t.Fatal(err)
		}
		harness.Restart(t, sys.Signer)
		ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Second, errors.New("not ready by another clock"))
		defer cancel()
		if err := sys.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	}
	skew := func(want time.Duration) {
		if got := harness.Series(t, sys.SignerOps, "cats_signer_clock_skew_seconds"); got < want.Seconds()-30 || got > want.Seconds()+30 {
			t.Errorf("a skew of %v s is measured, want %v", got, want)
		}
	}
	short := func(want int) {
		a := harness.Do(t, http.MethodGet, sys.URL+"/cat/x?ttl=5m", "", nil).Want(t, http.StatusOK)
		link, _ := a.Field(t, "picture_url").(string)
		if at := harness.Do(t, http.MethodGet, link, "", nil); at.StatusCode != want {
			t.Errorf("a link for 5 min gets a %d, want %d", at.StatusCode, want)
		}
	}
	harness.Put(t, sys, "x", harness.Cat)
	incident{
		name: "our clock is 10 minutes ahead", sys: sys,
		begin: func() { set(10 * time.Minute) }, end: func() { set(0) },
		restarts: true, says: []string{"clock differs from storage's", "ahead of storage's", "fix: time synchronization on this node"},
		meanwhile: func() { skew(10 * time.Minute); short(200) },
		told:      10 * time.Second, within: 20 * time.Second,
	}.run(t)
	incident{
		name: "our clock is 10 minutes behind", sys: sys,
		begin: func() { set(-10 * time.Minute) }, end: func() { set(0) },
		restarts: true, first: "links end 10 min early, and those for less get a 403 of storage; else ",
		says: []string{"clock differs from storage's", "behind storage's", "fix: time synchronization on this node"},
		meanwhile: func() {
			skew(-10 * time.Minute)
			short(403)
		},
		told: 10 * time.Second, within: 20 * time.Second,
	}.run(t)
	if err := sys.Close(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
}
