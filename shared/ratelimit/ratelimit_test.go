package ratelimit

import (
	"errors"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

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
			results := map[error]float64{}
			for i, client := range c.clients {
				results[c.want[i]]++
				release, err := p.Take(strings.Trim(string(client), "-"))
				if !errors.Is(err, c.want[i]) || (release == nil) != (err != nil) {
					t.Errorf("take %d, by %c: %v; want %v", i, client, err, c.want[i])
				}
			}
			for result, metric := range map[error]prometheus.Collector{
				nil: p.gauge, apierror.ErrRateLimited: p.overShare, apierror.ErrOverloaded: p.overTotal,
			} {
				if got := testutil.ToFloat64(metric); got != results[result] {
					t.Errorf("%v is counted %v times; want %v", result, got, results[result])
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

func newLimiter(settings RequestLimits) *RequestLimiter {
	return NewRequestLimiter("test", "caller", settings, prometheus.NewRegistry())
}

func TestAllowGrantsTheBurstAndThenTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newLimiter(RequestLimits{RateLimit: 0.5, RateBurst: 10})
		for i := range 10 {
			state, err := c.Allow("mia")
			want := Quota{9 - i, time.Duration(2*(i+1)) * time.Second}
			if err != nil || state != want {
				t.Fatalf("request %d: %+v, %v; want %+v", i, state, err, want)
			}
		}
		for range 3 { // a rejection takes no token
			state, err := c.Allow("mia")
			wait := apierror.AsError(err).RetryAfter
			if !errors.Is(err, apierror.ErrRateLimited) || wait != 2*time.Second || state != (Quota{0, 20 * time.Second}) {
				t.Fatalf("one too many: %+v, %v after %v", state, err, wait)
			}
		}
		if _, err := c.Allow("leo"); err != nil {
			t.Errorf("another client: %v", err)
		}
		time.Sleep(2 * time.Second)
		_, err1 := c.Allow("mia")
		if _, err2 := c.Allow("mia"); err1 != nil || err2 == nil {
			t.Errorf("after RetryAfter for one request: %v, and then %v", err1, err2)
		}
		time.Sleep(time.Hour)
		if state, err := c.Allow("mia"); err != nil || state.Remaining != 9 {
			t.Errorf("after a long pause: %+v, %v; want no more than the burst", state, err)
		}
	})
}

func TestParallelFirstRequestsShareABurst(t *testing.T) {
	c := newLimiter(RequestLimits{RateLimit: minRate, RateBurst: 5})
	var requests sync.WaitGroup
	var allowed atomic.Int64
	for range 50 {
		requests.Go(func() {
			if _, err := c.Allow("mia"); err == nil {
				allowed.Add(1)
			}
		})
	}
	if requests.Wait(); allowed.Load() != 5 {
		t.Errorf("%d requests were allowed; want 5", allowed.Load())
	}
}

func TestZeroMeansNoLimit(t *testing.T) {
	c := newLimiter(RequestLimits{})
	for range 10_000 {
		if _, err := c.Allow("x"); err != nil {
			t.Fatal(err)
		}
	}
	if c.Enabled() || c.buckets.Len() > 0 {
		t.Error("a bucket was kept")
	}
}

func TestTableOfClientsIsBounded(t *testing.T) {
	c := newLimiter(RequestLimits{RateLimit: 1, RateBurst: 1})
	for i := range 3 * tableSize {
		_, _ = c.Allow(strconv.Itoa(i))
	}
	if c.buckets.Len() != tableSize {
		t.Errorf("%d clients are kept; want %d", c.buckets.Len(), tableSize)
	}
}

func TestClientKeyOfIPv6IsItsNetwork(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.7": "192.0.2.7", "::ffff:192.0.2.7": "192.0.2.7",
		"2001:db8:1:2ff:3:4:5:6": "2001:db8:1:200::/56", "fe80::1%eth0": "fe80::/56", "::1": "::/56",
	} {
		if got := ClientKey(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s counts as %s; want %s", addr, got, want)
		}
	}
	if got := ClientKey(netip.Addr{}); got != "" {
		t.Errorf("the zero Addr counts as %s", got)
	}
}

func TestValidateNamesTheFaultySetting(t *testing.T) {
	for setting, name := range map[RequestLimits]string{
		{RateLimit: -1, RateBurst: 1}: "RATE_LIMIT", {RateLimit: math.Inf(1), RateBurst: 1}: "RATE_LIMIT", {RateLimit: 1e-9, RateBurst: 1}: "RATE_LIMIT",
		{RateLimit: math.NaN(), RateBurst: 1}: "RATE_LIMIT", {RateLimit: 1}: "RATE_BURST",
	} {
		if err := setting.Validate(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%+v: %v", setting, err)
		}
	}
}
