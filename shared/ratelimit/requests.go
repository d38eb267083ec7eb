package ratelimit

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/time/rate"

	"cats.example/shared/apierror"
)

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
	var faults []error
	if s.RateLimit != 0 && !(s.RateLimit >= minRate && s.RateLimit <= maxRate) { // also rejects NaN
		faults = append(faults, fmt.Errorf("RATE_LIMIT is %v: want 0 for no limit, or between %v and %v", s.RateLimit, minRate, maxRate))
	}
	if s.RateLimit != 0 && (s.RateBurst < 1 || s.RateBurst > maxRate) {
		faults = append(faults, fmt.Errorf("RATE_BURST is %d: want 1 to %.0f", s.RateBurst, maxRate))
	}
	return errors.Join(faults...)
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
		total: promauto.With(reg).NewCounter(prometheus.CounterOpts{
			Name: "cats_" + name + "_requests_rate_limited_total", Help: "Requests that were rejected because their client exceeds RATE_LIMIT.",
		}),
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
