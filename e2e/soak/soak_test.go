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

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

const (
	soakSize  = 20 << 20         // the largest picture, in bytes
	lingers   = time.Minute      // what the signer may still be about when its caller has given up
	aftermath = 10 * time.Second // of a disturbance: what began in it may fail
)

// soak is a random load on a system, and what is known of every picture in it.
type soak struct {
	t       *testing.T
	sys     *stack.System
	storage *harness.StorageProxy
	client  *http.Client
	seed    uint64
	names   []*history

	rate float64 // bytes that are uploaded, in a second; Azurite keeps what was replaced for 20 minutes
	mu   sync.Mutex
	next time.Time // when the next upload may begin
	told map[string]int
	bad  int

	disturbed   atomic.Int64 // disturbances under way
	undisturbed atomic.Int64 // since when, in Unix nanoseconds
	late        atomic.Int64 // how long this process did not run when it should have, in nanoseconds
	stored      atomic.Int64 // bytes
}

// TestSoak has clients of all kinds do what they like while processes are killed,
// drained and started again and storage is cut off. What was acknowledged is there to
// the byte, what was refused is not, no answer is a 500, and every answer is one that
// the README has. SOAK=3m goes on for so long, and then finds out, over another two
// thirds of that without kills, whether goroutines, descriptors and memory come back;
// without it, some seconds have each kind of disturbance once. SOAK_SEED makes the
// same load again, as far as it is not up to time.
func TestSoak(t *testing.T) {
	t.Parallel()
	harness.NeedStack(t)
	long, err := time.ParseDuration(os.Getenv("SOAK"))
	if set := os.Getenv("SOAK"); set != "" && err != nil {
		t.Fatal(err)
	}
	seed, err := strconv.ParseUint(os.Getenv("SOAK_SEED"), 10, 64)
	if err != nil {
		seed = uint64(time.Now().UnixNano()) % 1e6
	}
	t.Logf("SOAK_SEED=%d", seed)
	s := &soak{t: t, seed: seed, rate: 5 << 20, told: map[string]int{}, storage: harness.NewStorageProxy(t)}
	users, contested, readers := 24, 4, 8
	both := map[string]string{"STALL_TIMEOUT": "5s", "MAX_PICTURE_SIZE": "20MiB"}
	frontend, signer := maps.Clone(both), maps.Clone(both)
	signer["EXISTENCE_CACHE_TTL"] = existenceTTL.String()
	if long == 0 {
		users, contested, readers, s.rate = 10, 2, 3, 12<<20
	} else { // as in a pod
		frontend["GOMEMLIMIT"], frontend["PPROF_ENABLED"] = "28MiB", "true"
		signer["GOMEMLIMIT"], signer["PPROF_ENABLED"] = "42MiB", "true"
	}
	s.sys = harness.Start(t, stack.SystemOptions{StorageURL: s.storage.URL, FrontendEnv: frontend, SignerEnv: signer})
	s.client = harness.Client()
	for i := range users + contested {
		s.names = append(s.names, newHistory(fmt.Sprintf("soak-%d", i)))
	}
	load := func(ctx context.Context) *sync.WaitGroup {
		var wg sync.WaitGroup
		run := func(step func(context.Context, *rand.Rand)) {
			n := streams.Add(1)
			wg.Go(func() {
				r := rand.New(rand.NewPCG(s.seed, n))
				for ctx.Err() == nil {
					step(ctx, r)
				}
			})
		}
		for i, name := range s.names {
			writers := 1
			if i >= users {
				writers = 3
			}
			for range writers {
				run(func(_ context.Context, r *rand.Rand) { s.write(name, writers == 1, r) })
			}
		}
		for range readers {
			run(func(ctx context.Context, r *rand.Rand) {
				s.look(s.names[r.IntN(len(s.names))])
				pause(ctx, r, 100*time.Millisecond)
			})
		}
		for range 2 {
			run(func(ctx context.Context, r *rand.Rand) {
				s.garbage(r)
				pause(ctx, r, 100*time.Millisecond)
			})
		}
		return &wg
	}

	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	defer stop()
	go s.watch(ctx)
	wg := load(ctx)
	s.disturb(long*3/5, func() {})
	stop()
	wg.Wait()
	s.check("after the kills")
	if long > 0 && !t.Failed() {
		s.leaks(long*2/5, load)
		s.check("at the end")
	}
	s.logs()
	t.Logf("%s", s.progress())
}

const existenceTTL = 5 * time.Second

// streams counts the clients: each has random numbers of its own.
var streams atomic.Uint64

func pause(ctx context.Context, r *rand.Rand, most time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(rand.N(most) * time.Duration(1+r.IntN(2))):
	}
}

// fault reports what must not be. Of many, the first tell the most.
func (s *soak) fault(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bad++; s.bad <= 20 {
		s.t.Errorf(format, args...)
	}
}

func (s *soak) must(err error) {
	if err != nil {
		s.fault("%v", err)
	}
}

func (s *soak) count(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told[what]++
}

// excused reports whether what began then may have met a disturbance.
func (s *soak) excused(began time.Time) bool {
	return s.disturbed.Load() > 0 || time.Unix(0, s.undisturbed.Load()).Add(aftermath).After(began)
}

// watch sums up for how long this process is kept from running, in steps of over
// half a second: on a busy machine it is the clients that stall.
func (s *soak) watch(ctx context.Context) {
	const step = 100 * time.Millisecond
	for ctx.Err() == nil {
		began := time.Now()
		time.Sleep(step)
		if late := time.Since(began) - step; late > 500*time.Millisecond {
			s.late.Add(int64(late))
		}
	}
}

// stalled reports whether an upload may have been told so: since late was read, this
// process did not run for a second or more.
func (s *soak) stalled(a said, late int64) bool {
	return a.status == http.StatusRequestTimeout && s.late.Load()-late > int64(time.Second)
}

// budget waits until so many bytes may be uploaded.
func (s *soak) budget(n int) {
	s.mu.Lock()
	s.next = later(s.next, time.Now().Add(-time.Second))
	wait := time.Until(s.next)
	s.next = s.next.Add(time.Duration(float64(n) / s.rate * float64(time.Second)))
	s.mu.Unlock()
	time.Sleep(wait)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// disturb kills, drains and starts again, and cuts storage off, for so long: at least
// until each was done once. meanwhile is called every second or so.
func (s *soak) disturb(long time.Duration, meanwhile func()) {
	s.t.Helper()
	r := rand.New(rand.NewPCG(s.seed, 0))
	kill := func(p *stack.Process) func() {
		return func() {
			p.Kill()
			time.Sleep(time.Duration(r.IntN(1500)) * time.Millisecond)
			harness.Restart(s.t, p)
		}
	}
	drain := func(p *stack.Process) func() {
		return func() {
			ctx, cancel := context.WithTimeout(s.t.Context(), 80*time.Second)
			defer cancel()
			if err := p.Stop(ctx); err != nil {
				s.fault("a drain: %v", err)
			}
			harness.Restart(s.t, p)
		}
	}
	disturbances := map[string]func(){
		"frontend killed": kill(s.sys.Frontend), "signer killed": kill(s.sys.Signer),
		"frontend drained": drain(s.sys.Frontend), "signer drained": drain(s.sys.Signer),
		"storage cut off": s.cutStorage(r), "answers of storage lost": s.loseAnswers(r),
	}
	s.cycle(r, long, disturbances, meanwhile)
}

func (s *soak) cutStorage(r *rand.Rand) func() {
	return func() {
		s.storage.Down()
		time.Sleep(time.Duration(300+r.IntN(1700)) * time.Millisecond)
		s.storage.Up(s.t, s.storage.Address)
	}
}

// loseAnswers has storage do what it is asked for some names, and say nothing.
func (s *soak) loseAnswers(r *rand.Rand) func() {
	return func() {
		for range len(s.names) / 3 {
			user := s.names[r.IntN(len(s.names))].user
			s.storage.Set(user, harness.Once(harness.LoseResponse))
			defer s.storage.Set(user, nil)
		}
		time.Sleep(time.Duration(500+r.IntN(1500)) * time.Millisecond)
	}
}

// cycle does one disturbance after the other, in any order, with time between them.
func (s *soak) cycle(r *rand.Rand, long time.Duration, disturbances map[string]func(), meanwhile func()) {
	s.t.Helper()
	began, told := time.Now(), time.Now()
	names := slices.Sorted(maps.Keys(disturbances))
	for round := 0; round == 0 || time.Since(began) < long; round++ {
		r.Shuffle(len(names), func(i, k int) { names[i], names[k] = names[k], names[i] })
		for i, name := range names {
			if round > 0 && time.Since(began) >= long {
				break
			}
			between := time.Duration(300+r.IntN(500)) * time.Millisecond
			if long > 0 {
				between = time.Duration(1+r.IntN(8)) * time.Second
				if i == 0 {
					between += aftermath // so that there are times in which nothing is excused
				}
			}
			for until := time.Now().Add(between); time.Now().Before(until); {
				time.Sleep(min(time.Until(until), time.Second))
				meanwhile()
				if time.Since(told) > 10*time.Second {
					told = time.Now()
					s.t.Logf("%v %s", time.Since(began).Round(time.Second), s.progress())
				}
			}
			s.disturbed.Add(1)
			disturbances[name]()
			ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
			err := s.sys.WaitReady(ctx)
			cancel()
			if err != nil {
				s.t.Errorf("after %s: %v", name, err)
			}
			s.count(name)
			s.undisturbed.Store(time.Now().UnixNano())
			s.disturbed.Add(-1)
		}
	}
}

// check lets nothing be under way any more, and looks at every picture.
func (s *soak) check(when string) {
	s.t.Helper()
	for _, p := range []*stack.Process{s.sys.Frontend, s.sys.Signer} {
		p.Signal(syscall.SIGTERM)
		harness.WantCleanExit(s.t, p)
	}
	for _, h := range s.names {
		h.settle()
	}
	for _, p := range []*stack.Process{s.sys.Signer, s.sys.Frontend} {
		harness.Restart(s.t, p)
	}
	harness.WantRecovery(s.t, s.sys)
	s.undisturbed.Store(0)
	pictures := 0
	for _, h := range s.names {
		a := s.ask(http.MethodGet, "/cat/"+h.user, nil, nil, 0)
		switch a.status {
		case 404:
			s.must(h.sawNothing(time.Now(), time.Now(), nil))
		case 200:
			pictures++
			now := time.Now()
			if a.MD5 != nil {
				s.must(h.sawMD5(a.MD5, now, now))
			}
			s.fetch(h, a.URL)
		default:
			s.fault("%s: %v", h.user, a)
		}
	}
	s.t.Logf("%s: %d pictures of %d names compared", when, pictures, len(s.names))
}

// logs looks for what nobody was told.
func (s *soak) logs() {
	s.t.Helper()
	for _, p := range []*stack.Process{s.sys.Signer, s.sys.Frontend} { // the signer logs the causes
		harness.WantNoFaults(s.t, p.Log.Path(), s.fault)
	}
}

func (s *soak) progress() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "%d MiB stored", s.stored.Load()>>20)
	for _, what := range slices.Sorted(maps.Keys(s.told)) {
		fmt.Fprintf(&b, ", %s %d", strings.TrimSpace(what), s.told[what])
	}
	fmt.Fprintf(&b, ", late %v, faults %d", time.Duration(s.late.Load()).Round(time.Second/10), s.bad)
	return b.String()
}
