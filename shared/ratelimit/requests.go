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

// tableSize is the number of clients whose requests are counted, some 2 MiB. The client that was not seen for longest is
// forgotten first, and may then send RATE_BURST requests again.
const tableSize = 8 << 10

// RequestLimits are the settings of the rate of each client.
type RequestLimits struct {
	RateLimit float64 `env:"RATE_LIMIT" envDefault:"50" help:"requests a second that one client may make on average: the frontend counts by address (IPv6: /56), the signer by authenticated caller; 0 for no limit"`
	RateBurst int     `env:"RATE_BURST" envDefault:"500" help:"how many of them it may make at once, after a pause"`
}

// The bounds of the settings keep what clients are told of them within what a header
// can say.
const (
	minRate = 1e-3
	maxRate = 1e9
)

// Validate reports the faults of the settings, joined.
func (s RequestLimits) Validate() error {
	var faults []error
	if s.RateLimit != 0 && !(s.RateLimit >= minRate && s.RateLimit <= maxRate) { // nor is it NaN
		faults = append(faults, fmt.Errorf("RATE_LIMIT is %v: want 0 for no limit, or between %v and %v", s.RateLimit, minRate, maxRate))
	}
	if s.RateLimit != 0 && (s.RateBurst < 1 || s.RateBurst > maxRate) {
		faults = append(faults, fmt.Errorf("RATE_BURST is %d: want 1 at least, or nobody could ask for anything", s.RateBurst))
	}
	return errors.Join(faults...)
}

// RequestLimiter counts the requests of each client.
type RequestLimiter struct {
	settings RequestLimits
	rejected *apierror.Error
	buckets  *lru.Cache[string, *rate.Limiter]
	total    prometheus.Counter // rejected requests
}

// NewRequestLimiter returns a RequestLimiter. Its errors call a client by the given noun, such as "address" or "caller". It
// registers the metric cats_NAME_requests_rate_limited_total in reg.
func NewRequestLimiter(name, client string, settings RequestLimits, reg prometheus.Registerer) *RequestLimiter {
	buckets, _ := lru.New[string, *rate.Limiter](tableSize) // it fails for a size below 1 alone
	return &RequestLimiter{
		settings: settings, buckets: buckets,
		rejected: apierror.ErrRateLimited.WithDetail(fmt.Sprintf("too many requests from this %s: %s a second are possible on average; try again later",
			client, strconv.FormatFloat(settings.RateLimit, 'f', -1, 64))),
		total: promauto.With(reg).NewCounter(prometheus.CounterOpts{
			Name: "cats_" + name + "_requests_rate_limited_total", Help: "Requests that were rejected because their client exceeds RATE_LIMIT.",
		}),
	}
}

// Quota is what a client has left.
type Quota struct {
	Remaining int           // requests that it may make now
	Reset     time.Duration // until it has RATE_BURST of them again, if it makes none
}

// Enabled reports whether requests are limited.
func (c *RequestLimiter) Enabled() bool { return c.settings.RateLimit > 0 }

// Allow counts a request of client. The error, an ErrRateLimited, says when it may
// make the next. Without a limit the Quota means nothing.
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
	left := bucket.TokensAt(now)
	state := Quota{max(0, int(left)), c.after(float64(c.settings.RateBurst) - left)}
	if !allowed {
		c.total.Inc()
		return state, c.rejected.WithRetryAfter(max(time.Second, c.after(1-left)))
	}
	return state, nil
}

// after returns how long it takes until n more requests are possible.
func (c *RequestLimiter) after(n float64) time.Duration {
	return time.Duration(math.Ceil(max(0, n) / c.settings.RateLimit * float64(time.Second)))
}

// ClientKey returns the key of a client at addr: the IPv4 address, or the IPv6 /56, of which one client may have all addresses. It
// is "" for the zero Addr.
func ClientKey(addr netip.Addr) string {
	addr = addr.Unmap().WithZone("")
	if addr.Is6() {
		prefix, _ := addr.Prefix(56)
		return prefix.String()
	}
	if !addr.IsValid() {
		return ""
	}
	return addr.String()
}
