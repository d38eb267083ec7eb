package faults

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// changesOf are requests that change the picture of user: each way to store or delete it, with small and large pictures.
func changesOf(t *testing.T, sys *stack.System, user string) map[string]harness.Call {
	t.Helper()
	const direct = 200 << 10
	k := harness.NewUploadSession(t, sys, user, direct)
	k.Send(t, bytes.NewReader(harness.Picture(direct, 'd')), direct)
	calls := map[string]harness.Call{
		"DELETE": {Method: "DELETE", Target: "/cat/" + user, Body: nil, Header: nil},
		"commit": {Method: "POST", Target: "/cat/" + user + "/upload/" + k.ID + "/commit", Body: nil, Header: nil},
	}
	for size, n := range map[string]int{"small": 10 << 10, "large": harness.LargeSize} {
		contentType, body := harness.Form(t, harness.Picture(n, 'n'))
		calls[size+" PUT"] = harness.Call{Method: "PUT", Target: "/cat/" + user, Body: harness.Picture(n, 'n'), Header: nil}
		calls[size+" POST"] = harness.Call{Method: "POST", Target: "/cat/" + user, Body: body, Header: []string{"Content-Type", contentType}}
	}
	return calls
}

func TestKilledSignersLeaveOutcomesUnknown(t *testing.T) {
	harness.NeedOwnSystem(t)
	t.Parallel()
	storage := harness.NewStorageProxy(t)
	sys := harness.StartDirect(t, stack.SystemOptions{StorageURL: storage.URL})
	harness.Put(t, sys, "u", harness.Cat)
	for name, call := range changesOf(t, sys, "u") {
		for what, carriedOut := range map[string]bool{"before": false, "after": true} {
			t.Run(name+", "+what+" storage has done it", func(t *testing.T) {
				if _, err := harness.Try(t.Context(), http.MethodPut, sys.URL+"/cat/u", "", bytes.NewReader(harness.Cat)); err != nil {
					t.Fatal(err)
				}
				reached, release := make(chan struct{}, 9), make(chan struct{})
				storage.Set("u", func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
					if !harness.Changes(r) {
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
				answered := make(chan harness.Response, 1)
				go func() { answered <- call.Do(t, sys) }()
				<-reached
				sys.Signer.Kill()
				a := <-answered
				close(release)
				storage.Set("u", nil)
				a.WantProblem(t, http.StatusServiceUnavailable, "signer_unavailable")
				a.Outcome(t, "unknown")
				harness.Restart(t, sys.Signer)
				harness.WantRecovery(t, sys)
			})
		}
	}
}

func TestWritesWithoutASignerHaveNoOutcome(t *testing.T) {
	harness.NeedOwnSystem(t)
	t.Parallel()
	sys := harness.StartDirect(t, stack.SystemOptions{})
	harness.Put(t, sys, "u", harness.Cat)
	calls := changesOf(t, sys, "u")
	sys.Signer.Kill()
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			a := call.Do(t, sys)
			a.WantProblem(t, http.StatusServiceUnavailable, "signer_unavailable")
			a.Outcome(t, "")
		})
	}
	harness.Restart(t, sys.Signer)
	harness.WantRecovery(t, sys)
	harness.WantPicture(t, sys, "u", harness.Cat)
}

func TestLostAnswersOfStorageLeaveTheOutcomeUnknown(t *testing.T) {
	t.Parallel()
	storage := harness.NewStorageProxy(t)
	sys := harness.StartDirect(t, stack.SystemOptions{StorageURL: storage.URL})
	for _, done := range []bool{false, true} {
		for _, name := range []string{"DELETE", "commit", "small PUT", "small POST", "large PUT", "large POST"} {
			user := fmt.Sprintf("%s-done-%t", strings.ReplaceAll(name, " ", "-"), done)
			t.Run(user, func(t *testing.T) {
				t.Parallel() // each waits for the signer's retries
				harness.Put(t, sys, user, harness.Cat)
				call := changesOf(t, sys, user)[name]
				var failing atomic.Bool // from the change on
				storage.Set(user, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
					switch {
					case harness.Changes(r) && done:
						failing.Store(true)
						harness.LoseResponse(w, r, healthy)
					case harness.Changes(r):
						failing.Store(true)
						_, _ = io.Copy(io.Discard, r.Body)
						r.ContentLength = 0
						harness.Reset(w, r, healthy)
					case failing.Load():
						r.ContentLength = 0
						harness.Reset(w, r, healthy)
					default:
						healthy.ServeHTTP(w, r)
					}
				})
				a := call.Do(t, sys)
				storage.Set(user, nil)
				a.WantProblem(t, http.StatusServiceUnavailable, "storage_unavailable")
				a.Outcome(t, "unknown")
			})
		}
	}
}

func TestRefusedWritesHaveNoOutcome(t *testing.T) {
	t.Parallel()
	storage := harness.NewStorageProxy(t)
	sys := harness.StartDirect(t, stack.SystemOptions{StorageURL: storage.URL})
	harness.Put(t, sys, "u", harness.Cat)
	for name, call := range changesOf(t, sys, "u") {
		for _, c := range []struct {
			header []string
			fault  harness.Fault
			status int
			code   string
		}{
			{[]string{"If-Match", `"0x0"`}, nil, 412, "precondition_failed"},
			{[]string{"If-Match", "x"}, nil, 422, "invalid_argument"},
			{nil, harness.Reject(409, "BlobImmutableDueToPolicy"), 409, "immutable"},
			{nil, harness.Reject(503, "ServerBusy", "Retry-After", "60"), 503, "throttled"},
		} {
			t.Run(name+" "+c.code, func(t *testing.T) {
				storage.Set("u", c.fault)
				a := call.With(c.header...).Do(t, sys)
				storage.Set("u", nil)
				a.WantProblem(t, c.status, c.code)
				a.Outcome(t, "")
				harness.WantPicture(t, sys, "u", harness.Cat)
			})
		}
	}
}

func TestDamagedPicturesAreToldAsStored(t *testing.T) {
	t.Parallel()
	storage := harness.NewStorageProxy(t)
	sys := harness.Start(t, stack.SystemOptions{StorageURL: storage.URL})
	for _, size := range []int{64<<10 + 1, 1 << 20, harness.LargeSize} {
		for name, sum := range map[string][]byte{"zero": make([]byte, 8), "other": []byte("another1")} {
			user := fmt.Sprint(name, size)
			storage.Set(user, harness.CRC64(base64.StdEncoding.EncodeToString(sum)))
			a := harness.Do(t, http.MethodPut, sys.URL+"/cat/"+user, "", harness.Picture(size, 'n'))
			a.WantProblem(t, http.StatusBadGateway, "damaged")
			a.Outcome(t, "stored")
			storage.Set(user, nil)
			harness.Put(t, sys, user, harness.Picture(size, 'n'))
		}
	}
}
