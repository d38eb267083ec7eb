package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cats.example/local/stack"
)

// An upload whose 200 comes too late was stored, and is told to be.
func TestAnAnswerThatComesLateIsNotALoss(t *testing.T) {
	t.Parallel()
	storage := newAccount(t)
	sys := start(t, stack.SystemOptions{StorageURL: storage.URL})
	content := picture(100<<10, 'l')
	storage.set("late", late)
	began := time.Now()
	put(t, sys, "late", content)
	if took := time.Since(began); took > 55*time.Second {
		t.Errorf("it took %v", took)
	}
	if !bytes.Equal(served(t, sys, "late"), content) {
		t.Error("another picture is served")
	}
}

// While storage takes a second over each answer, or throttles, what waits is
// bounded, and all is as before once it is over.
//
// It runs beside no other test of this package: all have part of the same two cores.
func TestWhatWaitsForStorageIsBounded(t *testing.T) {
	for name, f := range map[string]fault{"slow": slow, "throttled": refuse(503, "ServerBusy", "Retry-After", "1"), "resets": reset} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storage := newAccount(t)
			sys := start(t, stack.SystemOptions{StorageURL: storage.URL})
			put(t, sys, "warm", cat)
			before := sum(t, sys.SignerOps, "go_goroutines")
			var asked atomic.Int64
			storage.setAll(func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
				asked.Add(1)
				f(w, r, healthy)
			})
			const each = 150
			var wg sync.WaitGroup
			var told [600]atomic.Int64
			for i := range each {
				for _, body := range [][]byte{nil, picture(50<<10, 'w')} {
					wg.Go(func() {
						method := http.MethodPut
						if body == nil {
							method = http.MethodGet
						}
						a, err := try(t.Context(), method, fmt.Sprintf("%s/cat/waits-%d", sys.URL, i), "", bytes.NewReader(body))
						if err != nil {
							t.Error(err)
							return
						}
						told[a.StatusCode].Add(1)
					})
				}
			}
			time.Sleep(1500 * time.Millisecond)
			if n := sum(t, sys.SignerOps, "go_goroutines"); n > before+each*2*8 {
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
			storage.setAll(nil)
			eventually(t, func() error {
				// One for each of the frontend's connections, two for each of those to
				// storage: they are kept for a while.
				if n := sum(t, sys.SignerOps, "go_goroutines"); n > before+2*each+2*128+20 {
					return fmt.Errorf("%v goroutines are left, %v before", n, before)
				}
				return nil
			})
			eventually(t, func() error { // the circuit may be open for a while
				a, err := try(t.Context(), http.MethodPut, sys.URL+"/cat/recovered", "", bytes.NewReader(cat))
				if err != nil || a.StatusCode != http.StatusOK {
					return fmt.Errorf("afterwards: %w %s", err, a.body)
				}
				return nil
			})
			if !bytes.Equal(served(t, sys, "recovered"), cat) {
				t.Error("another picture is served than was stored")
			}
		})
	}
}
