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

// leaks applies the load for a duration, during which storage fails now and then. It compares the resources of both idle processes
// before and after. Before the first measurement, the processes have had some of the load, so that buffers and caches have their size.
func (s *soak) leaks(duration time.Duration, load func(context.Context) *sync.WaitGroup) {
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
	under(func() { time.Sleep(max(duration/5, 10*time.Second)) })
	s.idle()
	for name, ops := range processes {
		before[name] = harness.ResourcesOf(s.t, ops, true)
		peak[name] = slices.Clone(before[name])
	}
	under(func() {
		r := rand.New(rand.NewPCG(s.seed, 1))
		s.cycle(r, duration, map[string]func(){"storage down": s.stopStorage(r), "responses of storage lost": s.loseResponses(r)}, func() {
			for name, ops := range processes {
				for i, v := range harness.ResourcesOf(s.t, ops, false) {
					peak[name][i] = max(peak[name][i], v)
				}
			}
		})
	})
	limit := func(name string, i int) float64 {
		return before[name][i]*(1+harness.Resources[i].Share) + harness.Resources[i].More
	}
	for attempt, grown := 0, true; grown && attempt < 2; attempt++ { // some resources are released slowly
		s.idle()
		grown = false
		for name, ops := range processes {
			after[name] = harness.ResourcesOf(s.t, ops, true)
			for i := range harness.Resources {
				grown = grown || after[name][i] > limit(name, i)
			}
		}
	}
	table := "process   resource         before    peak   after"
	for name, ops := range processes {
		for i, what := range harness.Resources {
			table += fmt.Sprintf("\n%-9s %-16s %7.1f %7.1f %7.1f", name, what.Name, before[name][i], peak[name][i], after[name][i])
			if after[name][i] > limit(name, i) {
				s.fault("%s: %s grew from %.1f to %.1f; at most %.1f\n%s", name, what.Name, before[name][i], after[name][i], limit(name, i),
					harness.Do(s.t, http.MethodGet, ops+"/debug/pprof/goroutine?debug=1", "", nil).Body)
			}
		}
	}
	s.t.Log(table)
}

// idle waits until idle connections, which are kept for 30 s, are closed.
func (s *soak) idle() {
	s.client.CloseIdleConnections()
	for until := time.Now().Add(35 * time.Second); time.Now().Before(until); time.Sleep(time.Second) {
		harness.Readyz(s.t, s.sys.FrontendOps) // as a kubelet does
	}
}
