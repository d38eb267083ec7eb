package soak

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"cats.example/e2e/harness"
)

const restTime = 35 * time.Second // connections that are at rest are kept for thirty

// leaks puts the load on for so long, storage being cut off now and then, and compares
// what both processes hold at rest before it and after it. Before it, they have had
// as much of the load as it takes to have all that stays.
func (s *soak) leaks(long time.Duration, load func(context.Context) *sync.WaitGroup) {
	s.t.Helper()
	under := func(f func()) {
		ctx, stop := context.WithCancel(context.WithoutCancel(s.t.Context()))
		defer stop()
		wg := load(ctx)
		f()
		stop()
		wg.Wait()
	}
	processes := map[string]string{"frontend": s.sys.FrontendOps, "signer": s.sys.SignerOps}
	before, peak, after := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
	under(func() { time.Sleep(max(long/5, 10*time.Second)) })
	s.rest()
	for name, ops := range processes {
		before[name] = harness.ResourcesOf(s.t, ops, true)
		peak[name] = slices.Clone(before[name])
	}
	under(func() {
		r := rand.New(rand.NewPCG(s.seed, 1))
		s.cycle(r, long, map[string]func(){"storage cut off": s.cutStorage(r), "answers of storage lost": s.loseAnswers(r)}, func() {
			for name, ops := range processes {
				for i, v := range harness.ResourcesOf(s.t, ops, false) {
					peak[name][i] = max(peak[name][i], v)
				}
			}
		})
	})
	table := "process   what              before    peak   after"
	for range 2 { // what is slow to go is no leak
		s.rest()
		grown := false
		for name, ops := range processes {
			after[name] = harness.ResourcesOf(s.t, ops, true)
			for i, what := range harness.Resources {
				grown = grown || after[name][i] > before[name][i]*(1+what.Share)+what.More
			}
		}
		if !grown {
			break
		}
	}
	for _, name := range []string{"frontend", "signer"} {
		for i, what := range harness.Resources {
			table += fmt.Sprintf("\n%-9s %-16s %7.1f %7.1f %7.1f", name, what.Name, before[name][i], peak[name][i], after[name][i])
			if most := before[name][i]*(1+what.Share) + what.More; after[name][i] > most {
				s.fault("%s: %s grew from %.1f to %.1f; at most %.1f\n%s", name, what.Name, before[name][i], after[name][i], most,
					harness.Do(s.t, http.MethodGet, processes[name]+"/debug/pprof/goroutine?debug=1", "", nil).Body)
			}
		}
	}
	s.t.Logf("%s\n", table)
}

// rest waits until what is kept for a while is gone.
func (s *soak) rest() {
	s.client.CloseIdleConnections()
	for until := time.Now().Add(restTime); time.Now().Before(until); time.Sleep(time.Second) {
		harness.Readyz(s.t, s.sys.FrontendOps) // as a kubelet does; connections that are old are closed with that
	}
}
