package faults

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// challenge is what storage adds to a 401.
const challenge = "Bearer authorization_uri=https://login.microsoftonline.com/" + stack.TenantID + "/oauth2/authorize resource_id=https://storage.azure.com"

// slow takes a second over each answer, which on a loaded machine is still well
// within what a try may take.
func slow(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
	select {
	case <-time.After(time.Second):
		healthy.ServeHTTP(w, r)
	case <-r.Context().Done():
	}
}

// late has storage do what it is asked at once, and answers when the try that
// asked is over.
func late(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
	if r.Method == http.MethodHead {
		healthy.ServeHTTP(w, r)
		return
	}
	healthy.ServeHTTP(httptest.NewRecorder(), r)
	select {
	case <-time.After(25 * time.Second):
		w.WriteHeader(http.StatusCreated)
	case <-r.Context().Done():
	}
}

func TestAFailureOfStorageIsToldAndChangesNoPicture(t *testing.T) {
	t.Parallel()
	storage := harness.NewStorageProxy(t)
	sys := harness.Start(t, stack.SystemOptions{StorageURL: storage.URL})
	pids := [2]int{sys.Frontend.Pid(), sys.Signer.Pid()}
	small, large := harness.Picture(100<<10, 's'), harness.Picture(harness.LargeSize, 'l')

	t.Run("faults", func(t *testing.T) {
		for _, c := range []struct {
			name       string
			fault      harness.Fault
			status     int
			code       string
			retryAfter string // exactly; "" for any
			tries      int64  // at most, of the GET, the small PUT, the two blocks and a look at what became of it; 0 for any
			says       string // in the signer's log
		}{
			{"resets", harness.Reset, 503, "storage_unavailable", "5", 0, "connection reset"},
			{"container-is-gone", harness.Reject(404, "ContainerNotFound"), 500, "internal", "", 4, "create the container"},
			{"answers-are-no-azure", harness.Reject(404, ""), 500, "internal", "", 4, "404"},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				harness.Put(t, sys, c.name, harness.Cat)
				var tries atomic.Int64
				storage.Set(c.name, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
					tries.Add(1)
					c.fault(w, r, healthy)
				})
				mark, began := sys.Signer.Log.Mark(), time.Now()
				for _, a := range harness.SendAll(t, sys, c.name, small, large) {
					a.WantProblem(t, c.status, c.code)
					if c.retryAfter != "" && a.Header.Get("Retry-After") != c.retryAfter {
						t.Errorf("Retry-After is %s, want %s", a.Header.Get("Retry-After"), c.retryAfter)
					}
					if bytes.Contains(a.Body, []byte("Cat not found")) {
						t.Errorf("a failure is told as a missing picture: %s", a.Body)
					}
				}
				if took := time.Since(began); took > 15*time.Second {
					t.Errorf("it took %v to say so", took)
				}
				if n := tries.Load(); c.tries != 0 && (n < c.tries*3/5 || n > c.tries) {
					t.Errorf("storage was asked %d times, want at most %d", n, c.tries)
				}
				harness.WaitForLog(t, sys.Signer.Log, mark, c.says)
				storage.Set(c.name, nil)
				if !bytes.Equal(harness.Served(t, sys, c.name), harness.Cat) {
					t.Error("the picture has changed")
				}
				harness.Put(t, sys, c.name, large)
				if !bytes.Equal(harness.Served(t, sys, c.name), large) {
					t.Error("after the failure, what is served is not what was stored")
				}
			})
		}
	})
	if now := [2]int{sys.Frontend.Pid(), sys.Signer.Pid()}; now != pids {
		t.Errorf("processes were restarted: %v, then %v", pids, now)
	}
	harness.WantNoSecrets(t, sys)
}

func TestAPassingFailureOfStorageIsNotSeenByClients(t *testing.T) {
	t.Parallel()
	storage := harness.NewStorageProxy(t)
	sys := harness.Start(t, stack.SystemOptions{StorageURL: storage.URL})
	for name, f := range map[string]harness.Fault{
		"slow":        slow,
		"throttled":   harness.Once(harness.Reject(503, "ServerBusy", "Retry-After", "1")),
		"broken":      harness.Once(harness.Reject(500, "InternalError")),
		"timeout":     harness.Once(harness.Reject(408, "OperationTimedOut")),
		"reset":       harness.Once(harness.Reset),
		"answer-lost": harness.Once(harness.LoseResponse),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// The signer buffers both, so that it can send them again.
			for i, content := range [][]byte{harness.Picture(50<<10, 's'), harness.Picture(1<<20, 'f')} {
				user := name + strconv.Itoa(i)
				var faults atomic.Int64
				storage.Set(user, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
					faults.Add(1)
					f(w, r, healthy)
				})
				var body io.Reader = bytes.NewReader(content)
				if i > 0 {
					body = io.MultiReader(body) // without a length
				}
				a, err := harness.Try(t.Context(), http.MethodPut, sys.URL+"/cat/"+user, "", body)
				if err != nil {
					t.Fatal(err)
				}
				a.Want(t, http.StatusOK)
				if !bytes.Equal(harness.Served(t, sys, user), content) {
					t.Error("another picture is served than was stored")
				}
				if faults.Load() == 0 {
					t.Error("no fault happened")
				}
			}
		})
	}
}

func TestTheSignerHasALimitOfItsOwn(t *testing.T) {
	t.Parallel()
	sys := harness.StartDiffering(t, stack.SystemOptions{SignerEnv: map[string]string{"MAX_PICTURE_SIZE": "5MiB"}})
	harness.Put(t, sys, "u", harness.Cat)
	a, err := harness.Try(t.Context(), http.MethodPut, sys.URL+"/cat/u", "", io.MultiReader(bytes.NewReader(harness.Picture(harness.LargeSize, 'l')))) // of no known length
	if err != nil {
		t.Fatal(err)
	}
	a.WantProblem(t, http.StatusRequestEntityTooLarge, "too_large")
	if !bytes.Equal(harness.Served(t, sys, "u"), harness.Cat) {
		t.Error("the picture has changed")
	}
}

func TestATokenThatStorageRefusesIsReplaced(t *testing.T) {
	t.Parallel()
	storage := harness.NewStorageProxy(t)
	sys := harness.Start(t, stack.SystemOptions{StorageURL: storage.URL})
	harness.Put(t, sys, "u", harness.Cat)
	var revoked atomic.Value
	refused := harness.Reject(401, "InvalidAuthenticationInfo", "WWW-Authenticate", challenge)
	storage.Set("u", func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		token := r.Header.Get("Authorization")
		revoked.CompareAndSwap(nil, token)
		if token == revoked.Load() {
			refused(w, r, healthy)
			return
		}
		healthy.ServeHTTP(w, r)
	})
	harness.Do(t, http.MethodGet, sys.URL+"/cat/u", "", nil).WantProblem(t, http.StatusBadGateway, "identity_unavailable")
	harness.Eventually(t, func() error {
		a := harness.Do(t, http.MethodGet, sys.URL+"/cat/u", "", nil)
		if a.StatusCode != http.StatusOK {
			return fmt.Errorf("still %d %s", a.StatusCode, a.Body)
		}
		return nil
	})
	if got := sys.Issuer.Issued(); got != 2 {
		t.Errorf("%d tokens were exchanged, want the first and one more", got)
	}
}
