package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// held is what a process holds, and how much more of it may be left once a load is
// over: of what there was, and besides.
var held = []struct {
	name, metric string
	unit         float64
	share, more  float64
}{
	{"goroutines", "go_goroutines", 1, 0, 12},
	{"descriptors", "process_open_fds", 1, 0, 12},
	{"live heap, MiB", "go_memstats_heap_alloc_bytes", 1 << 20, .5, 2},
	{"resident, MiB", "process_resident_memory_bytes", 1 << 20, .25, 12},
}

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
		before[name] = heldBy(s.t, ops, true)
		peak[name] = slices.Clone(before[name])
	}
	under(func() {
		r := rand.New(rand.NewPCG(s.seed, 1))
		s.cycle(r, long, map[string]func(){"storage cut off": s.cutStorage(r), "answers of storage lost": s.loseAnswers(r)}, func() {
			for name, ops := range processes {
				for i, v := range heldBy(s.t, ops, false) {
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
			after[name] = heldBy(s.t, ops, true)
			for i, what := range held {
				grown = grown || after[name][i] > before[name][i]*(1+what.share)+what.more
			}
		}
		if !grown {
			break
		}
	}
	for _, name := range []string{"frontend", "signer"} {
		for i, what := range held {
			table += fmt.Sprintf("\n%-9s %-16s %7.1f %7.1f %7.1f", name, what.name, before[name][i], peak[name][i], after[name][i])
			if most := before[name][i]*(1+what.share) + what.more; after[name][i] > most {
				s.fault("%s: %s grew from %.1f to %.1f; at most %.1f\n%s", name, what.name, before[name][i], after[name][i], most,
					do(s.t, http.MethodGet, processes[name]+"/debug/pprof/goroutine?debug=1", "", nil).body)
			}
		}
	}
	s.t.Logf("%s\n", table)
}

// rest waits until what is kept for a while is gone.
func (s *soak) rest() {
	s.client.CloseIdleConnections()
	for until := time.Now().Add(restTime); time.Now().Before(until); time.Sleep(time.Second) {
		readyz(s.t, s.sys.FrontendOps) // as a kubelet does; connections that are old are closed with that
	}
}

// heldBy returns what a process holds, in the order of [held]; of the heap, where live,
// only what is in use.
func heldBy(t *testing.T, ops string, live bool) []float64 {
	t.Helper()
	if live {
		for range 2 { // what finalizers hold is free with the second
			do(t, http.MethodGet, ops+"/debug/pprof/heap?gc=1", "", nil).want(t, http.StatusOK)
		}
	}
	values := make([]float64, len(held))
	for line := range strings.Lines(string(do(t, http.MethodGet, ops+"/metrics", "", nil).want(t, http.StatusOK).body)) {
		for i, what := range held {
			if value, ok := strings.CutPrefix(line, what.metric+" "); ok {
				n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
				if err != nil {
					t.Fatal(err)
				}
				values[i] = n / what.unit
			}
		}
	}
	return values
}
