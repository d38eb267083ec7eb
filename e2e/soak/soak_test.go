// Package soak tests random load with faults: no picture is lost, and no resource grows. make soak runs it for longer.
package soak

import (
	"context"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
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

	excusedUntil atomic.Int64 // Unix time in nanoseconds
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
	s.disturb(duration*3/5, true)
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
	return began.UnixNano() < s.excusedUntil.Load()
}

func (s *soak) count(what string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[what] += n
}

// disturb breaks storage for a duration, and with kills, kills and drains the processes. Each of that happens at least once, in random
// order and with pauses.
func (s *soak) disturb(duration time.Duration, kills bool) {
	s.t.Helper()
	r := rand.New(rand.NewPCG(s.seed, s.streams.Add(1)))
	sleep := func(least, more time.Duration) { time.Sleep(least + time.Duration(r.Int64N(int64(more)))) }
	disturbances := map[string]func(){
		"storage down": func() {
			s.storage.Down()
			sleep(300*time.Millisecond, 1700*time.Millisecond)
			s.storage.Up(s.t, s.storage.Address)
		},
		"responses of storage lost": func() {
			for range len(s.users) / 3 {
				user := s.users[r.IntN(len(s.users))].user
				s.storage.Set(user, harness.Once(harness.LoseResponse))
				defer s.storage.Set(user, nil)
			}
			sleep(500*time.Millisecond, 1500*time.Millisecond)
		},
	}
	for name, p := range map[string]*stack.Process{"frontend": s.sys.Frontend, "signer": s.sys.Signer} {
		if !kills {
			break
		}
		disturbances[name+" killed"] = func() {
			p.Kill()
			sleep(0, 1500*time.Millisecond)
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
	began, names := time.Now(), slices.Sorted(maps.Keys(disturbances))
	for i := 0; i < len(names) || time.Since(began) < duration; i++ {
		if i%len(names) == 0 {
			r.Shuffle(len(names), func(i, k int) { names[i], names[k] = names[k], names[i] })
		}
		if sleep(300*time.Millisecond, 500*time.Millisecond); duration > 0 {
			sleep(time.Second, 8*time.Second)
		}
		if duration > 0 && i%len(names) == 0 {
			time.Sleep(aftermath) // so that some requests are not excused
		}
		s.excusedUntil.Store(math.MaxInt64)
		name := names[i%len(names)]
		disturbances[name]()
		ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
		if err := s.sys.WaitReady(ctx); err != nil {
			s.t.Errorf("after %s: %v", name, err)
		}
		cancel()
		s.excusedUntil.Store(time.Now().Add(aftermath).UnixNano())
		s.count(name, 1)
		s.t.Logf("%v %s", time.Since(began).Round(time.Second), s.progress())
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
	s.excusedUntil.Store(0)
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
	return fmt.Sprint(s.counts, ", faults ", s.faults)
}
