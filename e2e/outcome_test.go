package e2e

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"cats.example/local/stack"
)

// outcome checks the outcome in a problem document; "" means that it has none.
func (a answer) outcome(t *testing.T, want string) {
	t.Helper()
	got, has := a.field(t, "outcome").(string)
	if got != want || has != (want != "") {
		t.Errorf("outcome %q; want %q: %s", got, want, a.body)
	}
}

// changesOf are requests that change the picture of user: each way to store or delete it, with small and large pictures.
func changesOf(t *testing.T, sys *stack.System, user string) map[string]apiCall {
	t.Helper()
	const direct = 200 << 10
	k := ticketFor(t, sys, user, direct)
	k.send(t, bytes.NewReader(picture(direct, 'd')), direct)
	calls := map[string]apiCall{
		"DELETE": {"DELETE", "/cat/" + user, nil, nil},
		"commit": {"POST", "/cat/" + user + "/upload/" + k.ID + "/commit", nil, nil},
	}
	for size, n := range map[string]int{"small": 10 << 10, "large": largeSize} {
		contentType, body := form(t, picture(n, 'n'))
		calls[size+" PUT"] = apiCall{"PUT", "/cat/" + user, picture(n, 'n'), nil}
		calls[size+" POST"] = apiCall{"POST", "/cat/" + user, body, []string{"Content-Type", contentType}}
	}
	return calls
}

func (k apiCall) do(t *testing.T, sys *stack.System) (a answer) {
	t.Helper()
	resp, err := client().Do(k.request(t, sys))
	if err != nil {
		t.Error(err)
		return answer{Response: &http.Response{}}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return answer{resp, body}
}

// changes reports whether storage changes the visible picture when it carries out r.
func changes(r *http.Request) bool {
	return r.Method == http.MethodDelete || r.Method == http.MethodPut && r.URL.Query().Get("comp") != "block"
}

func TestKilledSignersLeaveOutcomesUnknown(t *testing.T) {
	own(t)
	t.Parallel()
	storage := newAccount(t)
	sys := direct(t, stack.SystemOptions{StorageURL: storage.URL})
	put(t, sys, "u", cat)
	for name, call := range changesOf(t, sys, "u") {
		for what, carriedOut := range map[string]bool{"before": false, "after": true} {
			t.Run(name+", "+what+" storage has done it", func(t *testing.T) {
				if _, err := try(t.Context(), http.MethodPut, sys.URL+"/cat/u", "", bytes.NewReader(cat)); err != nil {
					t.Fatal(err)
				}
				reached, release := make(chan struct{}, 9), make(chan struct{})
				storage.set("u", func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
					if !changes(r) {
						healthy.ServeHTTP(w, r)
						return
					}
					if carriedOut {
						healthy.ServeHTTP(httptest.NewRecorder(), r)
					} else {
						_, _ = io.Copy(io.Discard, r.Body)
					}
					reached <- struct{}{}
					<-release
					panic(http.ErrAbortHandler)
				})
				answered := make(chan answer, 1)
				go func() { answered <- call.do(t, sys) }()
				<-reached
				sys.Signer.Kill()
				a := <-answered
				close(release)
				storage.set("u", nil)
				a.problem(t, http.StatusServiceUnavailable, "signer_unavailable")
				a.outcome(t, "unknown")
				again(t, sys.Signer)
				recovers(t, sys)
			})
		}
	}
}

func TestWritesWithoutASignerHaveNoOutcome(t *testing.T) {
	own(t)
	t.Parallel()
	sys := direct(t, stack.SystemOptions{})
	put(t, sys, "u", cat)
	calls := changesOf(t, sys, "u")
	sys.Signer.Kill()
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			a := call.do(t, sys)
			a.problem(t, http.StatusServiceUnavailable, "signer_unavailable")
			a.outcome(t, "")
		})
	}
	again(t, sys.Signer)
	recovers(t, sys)
	hasPicture(t, sys, "u", cat)
}

func TestLostAnswersOfStorageLeaveTheOutcomeUnknown(t *testing.T) {
	t.Parallel()
	storage := newAccount(t)
	sys := direct(t, stack.SystemOptions{StorageURL: storage.URL})
	for _, done := range []bool{false, true} {
		user := fmt.Sprint("done-", done)
		put(t, sys, user, cat)
		for name, call := range changesOf(t, sys, user) {
			t.Run(name+" "+user, func(t *testing.T) {
				put(t, sys, user, cat)
				var failing atomic.Bool // from the change on
				storage.set(user, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
					switch {
					case changes(r) && done:
						failing.Store(true)
						loseAnswer(w, r, healthy)
					case changes(r):
						failing.Store(true)
						_, _ = io.Copy(io.Discard, r.Body)
						r.ContentLength = 0
						reset(w, r, healthy)
					case failing.Load():
						r.ContentLength = 0
						reset(w, r, healthy)
					default:
						healthy.ServeHTTP(w, r)
					}
				})
				a := call.do(t, sys)
				storage.set(user, nil)
				a.problem(t, http.StatusServiceUnavailable, "storage_unavailable")
				a.outcome(t, "unknown")
			})
		}
	}
}

func TestRefusedWritesHaveNoOutcome(t *testing.T) {
	t.Parallel()
	storage := newAccount(t)
	sys := direct(t, stack.SystemOptions{StorageURL: storage.URL})
	put(t, sys, "u", cat)
	for name, call := range changesOf(t, sys, "u") {
		for _, c := range []struct {
			header []string
			fault  fault
			status int
			code   string
		}{
			{[]string{"If-Match", `"0x0"`}, nil, 412, "precondition_failed"},
			{[]string{"If-Match", "x"}, nil, 422, "invalid_argument"},
			{nil, refuse(409, "BlobImmutableDueToPolicy"), 409, "immutable"},
			{nil, refuse(503, "ServerBusy", "Retry-After", "60"), 503, "throttled"},
		} {
			t.Run(name+" "+c.code, func(t *testing.T) {
				storage.set("u", c.fault)
				a := call.with(c.header...).do(t, sys)
				storage.set("u", nil)
				a.problem(t, c.status, c.code)
				a.outcome(t, "")
				hasPicture(t, sys, "u", cat)
			})
		}
	}
}

// crc64 has storage return a CRC64 with its answer to a write.
func crc64(sum string) fault {
	return func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		if changes(r) {
			to := w
			w = &pendingAnswer{ResponseWriter: to, hold: func() { to.Header().Set("X-Ms-Content-Crc64", sum) }}
		}
		healthy.ServeHTTP(w, r)
	}
}

func TestDamagedPicturesAreToldAsStored(t *testing.T) {
	t.Parallel()
	storage := newAccount(t)
	sys := start(t, stack.SystemOptions{StorageURL: storage.URL})
	for _, size := range []int{64<<10 + 1, 1 << 20, largeSize} {
		for name, sum := range map[string][]byte{"zero": make([]byte, 8), "other": []byte("another1")} {
			user := fmt.Sprint(name, size)
			storage.set(user, crc64(base64.StdEncoding.EncodeToString(sum)))
			a := do(t, http.MethodPut, sys.URL+"/cat/"+user, "", picture(size, 'n'))
			a.problem(t, http.StatusBadGateway, "damaged")
			a.outcome(t, "stored")
			storage.set(user, nil)
			put(t, sys, user, picture(size, 'n'))
		}
	}
}
