// Package soak tests random load with faults: no picture is lost, and no resource grows. make soak runs it for longer.
package soak

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

const (
	soakSize     = 20 << 20         // of the largest picture
	existenceTTL = 5 * time.Second  // EXISTENCE_CACHE_TTL
	lingers      = time.Minute      // after the end of a call, the signer may carry it out for so long
	aftermath    = 10 * time.Second // of a disturbance: requests that began in it may fail
)

// soak is a random load on a system, and the history of every picture.
type soak struct {
	t       *testing.T
	sys     *stack.System
	storage *harness.StorageProxy
	api     *http.Client  // opens a connection for each request
	client  *http.Client  // for signed URLs
	budget  *rate.Limiter // of uploaded bytes; Azurite keeps replaced pictures for 20 minutes
	seed    uint64
	users   []*history

	mu     sync.Mutex
	counts map[string]int
	faults int

	disturbances atomic.Int64 // in progress
	undisturbed  atomic.Int64 // end of the last disturbance, Unix time in nanoseconds
	stored       atomic.Int64 // bytes
	streams      atomic.Uint64
}

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// TestSoak runs clients of all kinds while processes are killed, drained and restarted, and while storage fails. It fails if an
// acknowledged picture is lost or torn, if a rejected one is stored, or on an unexpected response.
//
// SOAK=3m is the duration. Three fifths of it are with kills; in the rest the test compares goroutines, descriptors and memory.
// Without SOAK, each disturbance happens once. SOAK_SEED repeats the random numbers of an earlier run.
func TestSoak(t *testing.T) {
	t.Parallel()
	harness.NeedStack(t)
	duration, err := time.ParseDuration(os.Getenv("SOAK"))
	if set := os.Getenv("SOAK"); set != "" && err != nil {
		t.Fatal(err)
	}
	seed, err := strconv.ParseUint(os.Getenv("SOAK_SEED"), 10, 64)
	if err != nil {
		seed = uint64(time.Now().UnixNano()) % 1e6
	}
	t.Logf("SOAK_SEED=%d", seed)
	s := &soak{t: t, storage: harness.NewStorageProxy(t), client: harness.Client(), seed: seed, counts: map[string]int{}}
	s.budget = rate.NewLimiter(5<<20, soakSize)
	s.api = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 2 * time.Minute}
	users, contested, readers := 24, 4, 8
	frontend := map[string]string{"STALL_TIMEOUT": "5s", "MAX_PICTURE_SIZE": "20MiB"}
	signer := harness.Merge(frontend, map[string]string{"EXISTENCE_CACHE_TTL": existenceTTL.String()})
	if duration == 0 {
		users, contested, readers = 10, 2, 3
		s.budget.SetLimit(12 << 20)
	} else { // the memory limits of a pod
		frontend = harness.Merge(frontend, map[string]string{"GOMEMLIMIT": "28MiB", "PPROF_ENABLED": "true"})
		signer = harness.Merge(signer, map[string]string{"GOMEMLIMIT": "42MiB", "PPROF_ENABLED": "true"})
	}
	s.sys = harness.Start(t, stack.SystemOptions{StorageURL: s.storage.URL, FrontendEnv: frontend, SignerEnv: signer})
	for i := range users + contested {
		s.users = append(s.users, &history{user: fmt.Sprintf("soak-%d", i), sums: map[string]int{}})
	}
	load := func(ctx context.Context) *sync.WaitGroup {
		var wg sync.WaitGroup
		run := func(n int, pause time.Duration, step func(*rand.Rand)) {
			for range n {
				r := rand.New(rand.NewPCG(s.seed, s.streams.Add(1)))
				wg.Go(func() {
					for ctx.Err() == nil {
						step(r)
						time.Sleep(time.Duration(r.Float64() * float64(pause)))
					}
				})
			}
		}
		for i, h := range s.users {
			writers := 1
			if i >= users {
				writers = 3
			}
			run(writers, 0, func(r *rand.Rand) { s.write(h, writers == 1, r) })
		}
		run(readers, 200*time.Millisecond, func(r *rand.Rand) { _ = s.look(s.users[r.IntN(len(s.users))]) })
		return &wg
	}

	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	defer stop()
	wg := load(ctx)
	s.disturb(duration * 3 / 5)
	stop()
	wg.Wait()
	s.check("after the kills")
	if duration > 0 && !t.Failed() {
		s.leaks(duration*2/5, load)
		s.check("at the end")
	}
	for _, p := range []*stack.Process{s.sys.Signer, s.sys.Frontend} { // the signer logs the causes
		harness.WantNoFaults(t, p.Log.Path(), s.fault)
	}
	t.Log(s.progress())
}

// fault fails the test. It reports the first faults only.
func (s *soak) fault(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.faults++; s.faults <= 20 {
		s.t.Errorf(format, args...)
	}
}

// excused reports whether a request that began at this time may have met a disturbance.
func (s *soak) excused(began time.Time) bool {
	return s.disturbances.Load() > 0 || time.Unix(0, s.undisturbed.Load()).Add(aftermath).After(began)
}

func (s *soak) count(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[what]++
}

// disturb kills, drains and restarts the processes and breaks storage for a duration, or until each happened once.
func (s *soak) disturb(duration time.Duration) {
	s.t.Helper()
	r := rand.New(rand.NewPCG(s.seed, 0))
	disturbances := map[string]func(){"storage down": s.stopStorage(r), "responses of storage lost": s.loseResponses(r)}
	for name, p := range map[string]*stack.Process{"frontend": s.sys.Frontend, "signer": s.sys.Signer} {
		disturbances[name+" killed"] = func() {
			p.Kill()
			time.Sleep(time.Duration(r.IntN(1500)) * time.Millisecond)
			harness.Restart(s.t, p)
		}
		disturbances[name+" drained"] = func() {
			ctx, cancel := context.WithTimeout(s.t.Context(), 80*time.Second)
			defer cancel()
			if err := p.Stop(ctx); err != nil {
				s.fault("draining %s: %v", name, err)
			}
			harness.Restart(s.t, p)
		}
	}
	s.cycle(r, duration, disturbances)
}

func (s *soak) stopStorage(r *rand.Rand) func() {
	return func() {
		s.storage.Down()
		time.Sleep(time.Duration(300+r.IntN(1700)) * time.Millisecond)
		s.storage.Up(s.t, s.storage.Address)
	}
}

func (s *soak) loseResponses(r *rand.Rand) func() {
	return func() {
		for range len(s.users) / 3 {
			user := s.users[r.IntN(len(s.users))].user
			s.storage.Set(user, harness.Once(harness.LoseResponse))
			defer s.storage.Set(user, nil)
		}
		time.Sleep(time.Duration(500+r.IntN(1500)) * time.Millisecond)
	}
}

// cycle causes one disturbance after the other in random order, with pauses.
func (s *soak) cycle(r *rand.Rand, duration time.Duration, disturbances map[string]func()) {
	s.t.Helper()
	began := time.Now()
	names := slices.Sorted(maps.Keys(disturbances))
	for round := 0; round == 0 || time.Since(began) < duration; round++ {
		r.Shuffle(len(names), func(i, k int) { names[i], names[k] = names[k], names[i] })
		for i, name := range names {
			if round > 0 && time.Since(began) >= duration {
				break
			}
			pause := time.Duration(300+r.IntN(500)) * time.Millisecond
			if duration > 0 {
				pause = time.Duration(1+r.IntN(8)) * time.Second
				if i == 0 {
					pause += aftermath // so that some requests are not excused
				}
			}
			time.Sleep(pause)
			s.disturbances.Add(1)
			disturbances[name]()
			ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
			if err := s.sys.WaitReady(ctx); err != nil {
				s.t.Errorf("after %s: %v", name, err)
			}
			cancel()
			s.count(name)
			s.undisturbed.Store(time.Now().UnixNano())
			s.disturbances.Add(-1)
			s.t.Logf("%v %s", time.Since(began).Round(time.Second), s.progress())
		}
	}
}

// check restarts both processes, so that no write is in progress, and compares every picture.
func (s *soak) check(when string) {
	s.t.Helper()
	processes := []*stack.Process{s.sys.Frontend, s.sys.Signer}
	for _, p := range processes {
		p.Signal(syscall.SIGTERM)
		harness.WantCleanExit(s.t, p)
	}
	for _, h := range s.users {
		h.settle()
	}
	for _, p := range processes {
		harness.Restart(s.t, p)
	}
	harness.WantRecovery(s.t, s.sys)
	s.undisturbed.Store(0)
	for _, h := range s.users {
		if status := s.look(h); status != 200 && status != 404 {
			s.fault("%s: GET /cat/%s: %d", when, h.user, status)
		}
		h.check(s.t)
	}
	s.t.Logf("%s: %d users compared", when, len(s.users))
}

func (s *soak) progress() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "%d MiB stored", s.stored.Load()>>20)
	for _, what := range slices.Sorted(maps.Keys(s.counts)) {
		fmt.Fprintf(&b, ", %s %d", what, s.counts[what])
	}
	fmt.Fprintf(&b, ", faults %d", s.faults)
	return b.String()
}
