// Package limit bounds what one client may ask for, so that one cannot use the
// service up for all others. The frontend takes an address for a client, the signer
// a caller whose token it has verified.
package limit

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"cats.example/shared/signerapi"
)

// tableSize is of how many clients it is known what they asked for: some 2 MiB with
// addresses as keys. Who was not seen for longest is forgotten first, and may then
// ask for RATE_BURST anew.
const tableSize = 8 << 10

// PerClient are the settings of what one client may ask for.
type PerClient struct {
	Rate    float64 `env:"RATE_LIMIT" envDefault:"50" help:"requests a second that one client may make on average: the frontend counts by address (IPv6: /64), the signer by caller where callers are known; 0 for no limit"`
	Burst   int     `env:"RATE_BURST" envDefault:"500" help:"how many of them it may make at once, after a pause"`
	Uploads int     `env:"UPLOADS_PER_CLIENT" envDefault:"32" help:"uploads that one client, as for RATE_LIMIT, may have under way at once; 0 for no limit"`
}

// The bounds of the settings keep what clients are told of them within what a header
// can say.
const (
	minRate = 1e-3
	maxRate = 1e9
)

// Validate reports the faults of the settings, joined.
func (s PerClient) Validate() error {
	var faults []error
	if s.Rate != 0 && !(s.Rate >= minRate && s.Rate <= maxRate) { // nor is it NaN
		faults = append(faults, fmt.Errorf("RATE_LIMIT is %v: want 0 for no limit, or between %v and %v", s.Rate, minRate, maxRate))
	}
	if s.Rate != 0 && (s.Burst < 1 || s.Burst > maxRate) {
		faults = append(faults, fmt.Errorf("RATE_BURST is %d: want 1 at least, or nobody could ask for anything", s.Burst))
	}
	if s.Uploads < 0 {
		faults = append(faults, errors.New("UPLOADS_PER_CLIENT must not be negative"))
	}
	return errors.Join(faults...)
}

// Clients counts what each client asks for. K is what one is known by. Of each, a
// table of bounded size keeps how much it has left, and as much memory as K holds.
type Clients[K comparable] struct {
	settings          PerClient
	requests, uploads *signerapi.Error // the refusals
	buckets           *lru.Cache[K, *rate.Limiter]

	mu    sync.Mutex
	open  map[K]int // uploads under way, none of zero
	turns struct{ requests, uploads prometheus.Counter }
}

// New returns a Clients that calls a client who, such as "address" or "caller", in
// its refusals, and whose metric is in reg, named cats_NAME_rate_limited_total.
func New[K comparable](settings PerClient, reg prometheus.Registerer, name, who string) *Clients[K] {
	buckets, err := lru.New[K, *rate.Limiter](tableSize)
	if err != nil {
		panic(err) // the size is ours
	}
	refused := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "cats_" + name + "_rate_limited_total", Help: "Requests that were refused since their client asked for too much, by limit.",
	}, []string{"limit"})
	reg.MustRegister(refused)
	c := &Clients[K]{
		settings: settings, buckets: buckets, open: map[K]int{},
		requests: signerapi.ErrRateLimited.With(fmt.Sprintf("too many requests from this %s: %s a second are possible on average; try again later",
			who, strconv.FormatFloat(settings.Rate, 'f', -1, 64))),
		uploads: signerapi.ErrRateLimited.With(fmt.Sprintf("too many uploads at once from this %s: %d are possible; try again when one has ended", who, settings.Uploads)),
	}
	c.turns.requests, c.turns.uploads = refused.WithLabelValues("requests"), refused.WithLabelValues("uploads")
	return c
}

// State is what a client has left.
type State struct {
	Remaining int           // requests that it may make now
	Full      time.Duration // until it has RATE_BURST of them again, if it makes none
}

// Limited reports whether requests are limited.
func (c *Clients[K]) Limited() bool { return c.settings.Rate > 0 }

// Request counts a request of client. The error, an ErrRateLimited, says when it may
// make the next. Without a limit the State means nothing.
func (c *Clients[K]) Request(client K) (State, error) {
	if !c.Limited() {
		return State{}, nil
	}
	bucket, ok := c.buckets.Get(client)
	if !ok {
		bucket = rate.NewLimiter(rate.Limit(c.settings.Rate), c.settings.Burst)
		if other, found, _ := c.buckets.PeekOrAdd(client, bucket); found {
			bucket = other
		}
	}
	now := time.Now()
	allowed := bucket.AllowN(now, 1)
	left := bucket.TokensAt(now)
	state := State{max(0, int(left)), c.after(float64(c.settings.Burst) - left)}
	if !allowed {
		c.turns.requests.Inc()
		return State{0, state.Full}, c.requests.After(max(time.Second, c.after(1-left)))
	}
	return state, nil
}

// after returns how long it takes until n more requests are possible.
func (c *Clients[K]) after(n float64) time.Duration {
	return time.Duration(math.Ceil(max(0, n) / c.settings.Rate * float64(time.Second)))
}

// Upload counts an upload of client as under way until release is called, which has
// to be once. The error is an ErrRateLimited, and then there is no release.
func (c *Clients[K]) Upload(client K) (release func(), err error) {
	if c.settings.Uploads == 0 {
		return func() {}, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open[client] >= c.settings.Uploads {
		c.turns.uploads.Inc()
		return nil, c.uploads
	}
	c.open[client]++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.open[client]--; c.open[client] == 0 {
			delete(c.open, client)
		}
	}, nil
}

// Address returns what a client at addr is known by: one IPv4 address, and of IPv6
// the /64, of which a client has all addresses.
func Address(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	prefix, _ := addr.Prefix(bits) // of the zero Addr, the zero Prefix
	return prefix
}
