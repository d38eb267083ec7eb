package ratelimit

import (
	"errors"
	"math"
	"net/netip"
	"runtime"
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

func newLimiter(t testing.TB, settings RequestLimits) (*RequestLimiter, *prometheus.Registry) {
	t.Helper()
	if err := settings.Validate(); err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	return NewRequestLimiter("test", "caller", settings, reg), reg
}

// retryAfter returns the RetryAfter of an ErrRateLimited.
func retryAfter(t *testing.T, err error) time.Duration {
	t.Helper()
	if !errors.Is(err, apierror.ErrRateLimited) {
		t.Fatalf("got %v; want ErrRateLimited", err)
	}
	return apierror.AsError(err).RetryAfter
}

func TestAllowGrantsTheBurstAndThenTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := newLimiter(t, RequestLimits{RateLimit: 0.5, RateBurst: 10})
		for i := range 10 {
			state, err := c.Allow("mia")
			want := Quota{9 - i, time.Duration(2*(i+1)) * time.Second}
			if err != nil || state != want {
				t.Fatalf("request %d: %+v, %v; want %+v", i, state, err, want)
			}
		}
		for range 3 { // a rejection takes no token
			state, err := c.Allow("mia")
			if wait := retryAfter(t, err); wait != 2*time.Second || state != (Quota{0, 20 * time.Second}) {
				t.Fatalf("one too many: %+v, wait %v", state, wait)
			}
		}
		if _, err := c.Allow("leo"); err != nil {
			t.Errorf("another client: %v", err)
		}
		time.Sleep(2 * time.Second)
		if _, err := c.Allow("mia"); err != nil {
			t.Errorf("after RetryAfter: %v", err)
		}
		if _, err := c.Allow("mia"); err == nil {
			t.Error("two requests after RetryAfter for one")
		}
		time.Sleep(time.Hour)
		if state, err := c.Allow("mia"); err != nil || state.Remaining != 9 {
			t.Errorf("after a long pause: %+v, %v; want no more than the burst", state, err)
		}
	})
}

func TestRejectionNamesTheRate(t *testing.T) {
	c, reg := newLimiter(t, RequestLimits{RateLimit: 0.25, RateBurst: 1})
	_, _ = c.Allow("x")
	_, err := c.Allow("x")
	if want := "too many requests from this caller: 0.25 per second"; retryAfter(t, err) < time.Second || !strings.HasPrefix(apierror.AsError(err).Detail, want) {
		t.Errorf("%v, after %v; want %q", err, apierror.AsError(err).RetryAfter, want)
	}
	if err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP cats_test_requests_rate_limited_total Requests that were rejected because their client exceeds RATE_LIMIT.
# TYPE cats_test_requests_rate_limited_total counter
cats_test_requests_rate_limited_total 1
`)); err != nil {
		t.Error(err)
	}
}

func TestZeroMeansNoLimit(t *testing.T) {
	c, _ := newLimiter(t, RequestLimits{})
	for range 10_000 {
		if _, err := c.Allow("x"); err != nil {
			t.Fatal(err)
		}
	}
	if c.Enabled() || c.buckets.Len() > 0 {
		t.Error("a bucket was kept")
	}
}

func TestConcurrentRequestsShareOneBurst(t *testing.T) {
	c, _ := newLimiter(t, RequestLimits{RateLimit: minRate, RateBurst: 100})
	var allowed atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				if _, err := c.Allow("x"); err == nil {
					allowed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if allowed.Load() != 100 {
		t.Errorf("%d requests; want 100", allowed.Load())
	}
}

func TestTableOfClientsIsBounded(t *testing.T) {
	c := NewRequestLimiter("test", "address", RequestLimits{RateLimit: 1, RateBurst: 1}, prometheus.NewRegistry())
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	for i := range 3 * tableSize {
		_, _ = c.Allow(ClientKey(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})))
	}
	grown := heap() - before
	t.Logf("%d clients take %d KiB", c.buckets.Len(), grown>>10)
	if c.buckets.Len() != tableSize || grown > 4<<20 {
		t.Errorf("%d clients are kept, in %d bytes", c.buckets.Len(), grown)
	}
	runtime.KeepAlive(c)
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
	for name, s := range map[string]RequestLimits{
		"RATE_LIMIT": {RateLimit: -1, RateBurst: 1},
		"RATE_BURST": {RateLimit: 1},
	} {
		if err := s.Validate(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%+v: %v", s, err)
		}
	}
	for _, r := range []float64{math.NaN(), math.Inf(1), 1e-9} {
		if (RequestLimits{RateLimit: r, RateBurst: 1}).Validate() == nil {
			t.Errorf("a rate of %v is valid", r)
		}
	}
}
