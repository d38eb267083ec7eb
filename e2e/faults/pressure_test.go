package faults

import (
	"bytes"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// An upload whose 200 comes too late was stored, and is told to be.
func TestAnAnswerThatComesLateIsNotALoss(t *testing.T) {
	t.Parallel()
	storage := harness.NewStorageProxy(t)
	sys := harness.Start(t, stack.SystemOptions{StorageURL: storage.URL})
	content := harness.Picture(100<<10, 'l')
	storage.Set("late", late)
	began := time.Now()
	harness.Put(t, sys, "late", content)
	if took := time.Since(began); took > 55*time.Second {
		t.Errorf("it took %v", took)
	}
	if !bytes.Equal(harness.Served(t, sys, "late"), content) {
		t.Error("another picture is served")
	}
}

// While storage takes a second over each answer, or throttles, what waits is
// bounded, and all is as before once it is over.
//
// It runs beside no other test of this package: all have part of the same two cores.
func TestWhatWaitsForStorageIsBounded(t *testing.T) {
	for name, f := range map[string]harness.Fault{"slow": slow, "throttled": harness.Reject(503, "ServerBusy", "Retry-After", "1"), "resets": harness.Reset} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storage := harness.NewStorageProxy(t)
			sys := harness.Start(t, stack.SystemOptions{StorageURL: storage.URL})
			harness.Put(t, sys, "warm", harness.Cat)
			before := harness.Sum(t, sys.SignerOps, "go_goroutines")
			var asked atomic.Int64
			storage.SetAll(func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
				asked.Add(1)
				f(w, r, healthy)
			})
			const each = 150
			var wg sync.WaitGroup
			var told [600]atomic.Int64
			for i := range each {
				for _, body := range [][]byte{nil, harness.Picture(50<<10, 'w')} {
					wg.Go(func() {
						method := http.MethodPut
						if body == nil {
							method = http.MethodGet
						}
						a, err := harness.Try(t.Context(), method, fmt.Sprintf("%s/cat/waits-%d", sys.URL, i), "", bytes.NewReader(body))
						if err != nil {
							t.Error(err)
							return
						}
						told[a.StatusCode].Add(1)
					})
				}
			}
			time.Sleep(1500 * time.Millisecond)
			if n := harness.Sum(t, sys.SignerOps, "go_goroutines"); n > before+each*2*8 {
				t.Errorf("%v goroutines, %v before", n, before)
			}
			wg.Wait()
			var answered int64
			for code := range told {
				n := told[code].Load()
				answered += n
				if n > 0 && code != 503 && (name != "slow" || code != 200 && code != 404) {
					t.Errorf("%d were told %d", n, code)
				}
			}
			if answered != 2*each || asked.Load() == 0 || asked.Load() > 2*each*8 {
				t.Errorf("%d answers, after storage was asked %d times", answered, asked.Load())
			}
			storage.SetAll(nil)
			harness.Eventually(t, func() error {
				// One for each of the frontend's connections, two for each of those to
				// storage: they are kept for a while.
				if n := harness.Sum(t, sys.SignerOps, "go_goroutines"); n > before+2*each+2*128+20 {
					return fmt.Errorf("%v goroutines are left, %v before", n, before)
				}
				return nil
			})
			harness.Eventually(t, func() error { // the circuit may be open for a while
				a, err := harness.Try(t.Context(), http.MethodPut, sys.URL+"/cat/recovered", "", bytes.NewReader(harness.Cat))
				if err != nil || a.StatusCode != http.StatusOK {
					return fmt.Errorf("afterwards: %w %s", err, a.Body)
				}
				return nil
			})
			if !bytes.Equal(harness.Served(t, sys, "recovered"), harness.Cat) {
				t.Error("another picture is served than was stored")
			}
		})
	}
}
