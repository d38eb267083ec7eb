// Package ratelimit limits what one client can use: slots of pools (requests, uploads and connections in progress), and requests
// per second.
package ratelimit

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/time/rate"

	"cats.example/shared/apierror"
	"cats.example/shared/config"
	"cats.example/shared/telemetry"
)

// Pools makes the pools of a process. All have the same share and the same metrics.
type Pools struct {
	share        float64
	slots, taken *prometheus.GaugeVec
	rejected     *prometheus.CounterVec
}

// NewPools returns a Pools and registers its metrics, cats_NAME_pool_…. share is the part of each pool that one client may take,
// from 0 to 1; 0 means no shares.
func NewPools(name string, share float64, reg prometheus.Registerer) *Pools {
	prefix, auto := "cats_"+name+"_pool_", promauto.With(reg)
	return &Pools{
		share: share,
		slots: auto.NewGaugeVec(prometheus.GaugeOpts{Name: prefix + "slots", Help: "Slots of the pool."}, []string{"pool"}),
		taken: auto.NewGaugeVec(prometheus.GaugeOpts{Name: prefix + "slots_taken", Help: "Slots that are taken."}, []string{"pool"}),
		rejected: auto.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "rejected_total", Help: "Requests and connections without a slot, by limit: the client's share (client), or the pool (total).",
		}, []string{"pool", "limit"}),
	}
}

// New returns a pool of total slots. kind is the plural noun for error details, and the label of the metrics with _ for spaces.
func (s *Pools) New(kind string, total int) *Pool {
	label := strings.ReplaceAll(kind, " ", "_")
	p := &Pool{
		kind: kind, total: total, share: total, clients: map[string]int{},
		gauge: s.taken.WithLabelValues(label), overShare: s.rejected.WithLabelValues(label, "client"), overTotal: s.rejected.WithLabelValues(label, "total"),
	}
	s.slots.WithLabelValues(label).Set(float64(total))
	if s.share > 0 {
		p.share = max(1, int(s.share*float64(total)))
	}
	return p
}

// Pool is a pool of slots. It is safe for concurrent use.
type Pool struct {
	kind         string
	total, share int

	gauge                prometheus.Gauge // of taken
	overShare, overTotal prometheus.Counter

	mu      sync.Mutex
	taken   int
	clients map[string]int // slots that each client has taken; no zeros
}

// Take takes a slot for client, until release is called. release must be called exactly once. A client "" has no share.
//
// Take returns ErrRateLimited if the client has taken its share, and ErrOverloaded if all slots are taken. release is nil then.
func (p *Pool) Take(client string) (release func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case client != "" && p.clients[client] >= p.share && p.share < p.total:
		p.overShare.Inc()
		return nil, apierror.ErrRateLimited.WithDetail(fmt.Sprintf("too many %s of this client in progress: at most %d are allowed; try again after one has ended", p.kind, p.share))
	case p.taken >= p.total:
		p.overTotal.Inc()
		return nil, apierror.ErrOverloaded
	}
	p.taken++
	p.clients[client]++
	p.gauge.Inc()
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.taken--
		p.gauge.Dec()
		if p.clients[client]--; p.clients[client] == 0 {
			delete(p.clients, client)
		}
	}, nil
}

// Total returns the number of slots.
func (p *Pool) Total() int { return p.total }

// Taken returns the number of slots that are taken now.
func (p *Pool) Taken() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.taken
}

// tableSize is the number of clients whose requests are counted, some 2 MiB. The client that was not seen for the longest time is
// evicted first. It then has RATE_BURST requests again.
const tableSize = 8 << 10

// RequestLimits are the settings of the request rate.
type RequestLimits struct {
	RateLimit float64 `env:"RATE_LIMIT" envDefault:"50" help:"requests per second of one client, on average: the frontend counts by address (IPv6: /56), the signer by authenticated caller; 0 for no limit"`
	RateBurst int     `env:"RATE_BURST" envDefault:"500" help:"requests that one client may send at once after a pause"`
}

// The bounds of the settings keep the numbers in the RateLimit headers within the range of their format.
const (
	minRate = 1e-3
	maxRate = 1e9
)

// Validate returns all validation errors, joined.
func (s RequestLimits) Validate() error {
	off := s.RateLimit == 0
	return errors.Join( // the comparisons also reject NaN
		config.Require(off || s.RateLimit >= minRate && s.RateLimit <= maxRate,
			"RATE_LIMIT is %v: want 0 for no limit, or between %v and %v", s.RateLimit, minRate, maxRate),
		config.Require(off || s.RateBurst >= 1 && s.RateBurst <= maxRate, "RATE_BURST is %d: want 1 to %.0f", s.RateBurst, maxRate),
	)
}

// RequestLimiter limits the request rate of each client with a token bucket. It is safe for concurrent use.
type RequestLimiter struct {
	settings RequestLimits
	rejected *apierror.Error
	buckets  *lru.Cache[string, *rate.Limiter]
	total    prometheus.Counter // of rejected requests
}

// NewRequestLimiter returns a RequestLimiter and registers its metric, cats_NAME_requests_rate_limited_total. client is the noun
// for a client in error details, such as "address" or "caller".
func NewRequestLimiter(name, client string, settings RequestLimits, reg prometheus.Registerer) *RequestLimiter {
	buckets, _ := lru.New[string, *rate.Limiter](tableSize) // fails only for a size below 1
	return &RequestLimiter{
		settings: settings, buckets: buckets,
		rejected: apierror.ErrRateLimited.WithDetail(fmt.Sprintf("too many requests from this %s: %s per second are allowed on average; try again later",
			client, strconv.FormatFloat(settings.RateLimit, 'f', -1, 64))),
		total: telemetry.NewCounter(reg, "cats_"+name+"_requests_rate_limited_total",
			"Requests that were rejected because their client exceeds RATE_LIMIT."),
	}
}

// Quota is the state of a client's bucket after a request.
type Quota struct {
	Remaining int           // requests that the client may send now
	Reset     time.Duration // until the bucket is full again
}

// Enabled reports whether there is a limit.
func (c *RequestLimiter) Enabled() bool { return c.settings.RateLimit > 0 }

// Allow counts one request of client. If the client exceeds its rate, the error is ErrRateLimited, with the time until its next
// request is allowed. Without a limit, the Quota is zero.
func (c *RequestLimiter) Allow(client string) (Quota, error) {
	if !c.Enabled() {
		return Quota{}, nil
	}
	bucket, ok := c.buckets.Get(client)
	if !ok {
		bucket = rate.NewLimiter(rate.Limit(c.settings.RateLimit), c.settings.RateBurst)
		if other, found, _ := c.buckets.PeekOrAdd(client, bucket); found {
			bucket = other
		}
	}
	now := time.Now()
	allowed := bucket.AllowN(now, 1)
	tokens := bucket.TokensAt(now)
	quota := Quota{max(0, int(tokens)), c.timeFor(float64(c.settings.RateBurst) - tokens)}
	if !allowed {
		c.total.Inc()
		return quota, c.rejected.WithRetryAfter(max(time.Second, c.timeFor(1-tokens)))
	}
	return quota, nil
}

// timeFor returns the time in which a bucket gets this many tokens.
func (c *RequestLimiter) timeFor(tokens float64) time.Duration {
	return time.Duration(math.Ceil(max(0, tokens) / c.settings.RateLimit * float64(time.Second)))
}

// ClientKey returns the key of a client at addr: the IPv4 address, or the IPv6 /56, because one client can have all addresses of
// it. It returns "" for the zero Addr.
func ClientKey(addr netip.Addr) string {
	addr = addr.Unmap().WithZone("")
	switch {
	case addr.Is6():
		prefix, _ := addr.Prefix(56)
		return prefix.String()
	case addr.IsValid():
		return addr.String()
	}
	return ""
}
