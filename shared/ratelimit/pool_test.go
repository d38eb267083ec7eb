package ratelimit

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"cats.example/shared/apierror"
)

func TestTakeLimitsClientsAndTotal(t *testing.T) {
	for _, c := range []struct {
		name  string
		share float64
		total int
		// The clients that take a slot, in order, and whether they get one.
		clients string
		want    []error
	}{
		{"a client takes its share", 0.5, 4, "aaab", []error{nil, nil, apierror.ErrRateLimited, nil}},
		{"the pool is full", 0.5, 4, "aabbc", []error{nil, nil, nil, nil, apierror.ErrOverloaded}},
		{"a client with its share is rejected first", 0.5, 4, "aabba", []error{nil, nil, nil, nil, apierror.ErrRateLimited}},
		{"a share is one slot at least", 0.0625, 4, "aab", []error{nil, apierror.ErrRateLimited, nil}},
		{"shares are rounded down", 0.3, 4, "aa", []error{nil, apierror.ErrRateLimited}},
		{"no shares", 0, 2, "aaa", []error{nil, nil, apierror.ErrOverloaded}},
		{"the share is all", 1, 2, "aaa", []error{nil, nil, apierror.ErrOverloaded}},
		{"no client has no share", 0.5, 2, "---", []error{nil, nil, apierror.ErrOverloaded}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := NewPools("test", c.share, prometheus.NewRegistry()).New("things", c.total)
			for i, client := range c.clients {
				release, err := p.Take(strings.Trim(string(client), "-"))
				if !errors.Is(err, c.want[i]) || (release == nil) != (err != nil) {
					t.Errorf("take %d, by %c: %v; want %v", i, client, err, c.want[i])
				}
			}
		})
	}
}

func TestReleaseReturnsTheSlot(t *testing.T) {
	p := NewPools("test", 0.5, prometheus.NewRegistry()).New("things", 2)
	for range 3 {
		release, err := p.Take("a")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Take("a"); !errors.Is(err, apierror.ErrRateLimited) {
			t.Fatalf("the second slot of a client: %v", err)
		}
		release()
	}
	if p.Taken() != 0 || len(p.clients) != 0 {
		t.Errorf("%d slots of %d clients are taken", p.Taken(), len(p.clients))
	}
}

func TestMetricsCountSlotsAndRejections(t *testing.T) {
	reg := prometheus.NewRegistry()
	s := NewPools("test", 0.5, reg)
	s.New("idle", 1)
	p := s.New("things", 2)
	for _, client := range []string{"a", "a", "b", "c", "d"} {
		_, _ = p.Take(client)
	}
	want := `
# HELP cats_test_pool_rejected_total Requests and connections without a slot, by limit: the client's share (client), or the pool (total).
# TYPE cats_test_pool_rejected_total counter
cats_test_pool_rejected_total{limit="client",pool="idle"} 0
cats_test_pool_rejected_total{limit="client",pool="things"} 1
cats_test_pool_rejected_total{limit="total",pool="idle"} 0
cats_test_pool_rejected_total{limit="total",pool="things"} 2
# HELP cats_test_pool_slots Slots of the pool.
# TYPE cats_test_pool_slots gauge
cats_test_pool_slots{pool="idle"} 1
cats_test_pool_slots{pool="things"} 2
# HELP cats_test_pool_slots_taken Slots that are taken.
# TYPE cats_test_pool_slots_taken gauge
cats_test_pool_slots_taken{pool="idle"} 0
cats_test_pool_slots_taken{pool="things"} 2
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

func TestConcurrentTakesKeepTheLimits(t *testing.T) {
	p := NewPools("test", 0.5, prometheus.NewRegistry()).New("things", 4)
	var all sync.WaitGroup
	for _, client := range []string{"a", "b", "c", "d"} {
		for range 4 {
			all.Go(func() {
				for range 500 {
					if release, err := p.Take(client); err == nil {
						p.mu.Lock()
						if p.taken > 4 || p.clients[client] > 2 {
							t.Errorf("%d slots are taken, %d of them by one client", p.taken, p.clients[client])
						}
						p.mu.Unlock()
						release()
					}
				}
			})
		}
	}
	all.Wait()
	if p.taken != 0 {
		t.Errorf("%d slots are taken at the end", p.taken)
	}
}
