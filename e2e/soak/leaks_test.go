package soak

import (
	"context"
	"fmt"
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
	resources := func() (values []float64) {
		for _, ops := range []string{s.sys.FrontendOps, s.sys.SignerOps} {
			values = append(values, harness.ResourcesOf(s.t, ops, true)...)
		}
		return values
	}
	under(func() { time.Sleep(max(duration/5, 10*time.Second)) })
	before := resources()
	under(func() { s.disturb(duration, false) })
	harness.Eventually(s.t, func() (err error) { // some resources are released slowly
		for i, after := range resources() {
			what := harness.Resources[i%len(harness.Resources)]
			s.t.Logf("%s %.1f, then %.1f", what.Name, before[i], after)
			if after > before[i]*(1+what.Share)+what.More {
				err = fmt.Errorf("resource %d of frontend and signer: %s grew from %.1f to %.1f", i, what.Name, before[i], after)
			}
		}
		return err
	})
}
