package soak

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"cats.example/e2e/harness"
)

// leaks applies the load for a duration, during which storage fails now and then. It compares the resources of both idle
// processes before and after. A part of the load comes before the first measurement, so that buffers and caches have their size.
func (s *soak) leaks(duration time.Duration, load func(context.Context) *sync.WaitGroup) {
	s.t.Helper()
	under := func(f func()) {
		ctx, stop := context.WithCancel(context.WithoutCancel(s.t.Context()))
		wg := load(ctx)
		f()
		stop()
		wg.Wait()
		s.client.CloseIdleConnections()
		// Idle connections are kept for 30 s.
		for until := time.Now().Add(35 * time.Second); time.Now().Before(until); time.Sleep(time.Second) {
			harness.Readyz(s.t, s.sys.FrontendOps) // as a kubelet does
		}
	}
	under(func() { time.Sleep(max(duration/5, 10*time.Second)) })
	processes, before := map[string]string{"frontend": s.sys.FrontendOps, "signer": s.sys.SignerOps}, map[string][]float64{}
	for name, ops := range processes {
		before[name] = harness.ResourcesOf(s.t, ops, true)
	}
	under(func() {
		r := rand.New(rand.NewPCG(s.seed, 1))
		s.cycle(r, duration, map[string]func(){"storage down": s.stopStorage(r), "responses of storage lost": s.loseResponses(r)})
	})
	for name, ops := range processes {
		var table string
		harness.Eventually(s.t, func() error { // some resources are released slowly
			table = ""
			var grown error
			for i, after := range harness.ResourcesOf(s.t, ops, true) {
				what := harness.Resources[i]
				table += fmt.Sprintf("%s: %s %.1f, then %.1f\n", name, what.Name, before[name][i], after)
				if after > before[name][i]*(1+what.Share)+what.More {
					stacks := harness.Do(s.t, "GET", ops+"/debug/pprof/goroutine?debug=1", "", nil)
					grown = fmt.Errorf("%s: %s grew from %.1f to %.1f\n%s", name, what.Name, before[name][i], after, stacks.Body)
				}
			}
			return grown
		})
		s.t.Log(table)
	}
}
