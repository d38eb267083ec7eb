package service

import (
	"container/list"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"cats.example/shared/limit"
)

// shortAgain is after how long a lack of file descriptors is told again.
const shortAgain = 10 * time.Second

// restShort is how long a connection may be at rest where file descriptors are short.
const restShort = time.Second

// connections bounds how many connections a listener has open, and so what they
// cost: net/http takes some 17 KiB for each, idle ones included. Where there are as
// many, the next takes the place of one at rest: that has no request under way, or
// has its answer. Of those, whoever holds most gives the one that has been at rest
// for longest, so that one who opens thousands takes the places of their own, and
// nobody else's. While none is at rest, the next waits.
type connections struct {
	limit   int
	proxies []netip.Prefix
	log     *slog.Logger
	evicted prometheus.Counter
	short   time.Time // when a lack of file descriptors was last told; the listener's own

	mu      sync.Mutex
	change  sync.Cond                      // of what follows
	open    map[*watchedConn]*list.Element // in its holder's atRest; nil for those at work
	holders map[netip.Prefix]*holder
}

// holder is who has connections open: an address, in IPv6 a /64; or all trusted
// proxies together, by the zero Prefix. They are many clients: half of the
// connections are theirs, and they give way only when they hold more.
type holder struct {
	by     netip.Prefix
	open   int
	atRest list.List // of *watchedConn, the first since longest
}

// newConnections has its metrics in reg, for the listener called name. proxies are
// the addresses of trusted proxies.
func newConnections(limit int, proxies []netip.Prefix, log *slog.Logger, reg prometheus.Registerer, name string) *connections {
	labels := prometheus.Labels{"listener": name}
	c := &connections{
		limit: limit, proxies: proxies, log: log, open: map[*watchedConn]*list.Element{}, holders: map[netip.Prefix]*holder{},
		evicted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "cats_connections_evicted_total", Help: "Connections at rest that were closed to make room for others.", ConstLabels: labels,
		}),
	}
	c.change.L = &c.mu
	reg.MustRegister(c.evicted, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "cats_connections", Help: "Connections that are open.", ConstLabels: labels,
	}, func() float64 {
		c.mu.Lock()
		defer c.mu.Unlock()
		return float64(len(c.open))
	}))
	return c
}

// add takes c in, once there is room for it.
func (s *connections) add(c *watchedConn) {
	by := s.holderOf(c.RemoteAddr())
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.open) >= s.limit {
		if !s.evict(by, 0) {
			s.change.Wait()
		}
	}
	h := s.holders[by]
	if h == nil {
		h = &holder{by: by}
		s.holders[by] = h
	}
	c.holder = h
	h.open++
	s.toRest(c)
}

// holderOf returns by what the holder of a connection from addr is known.
func (s *connections) holderOf(addr net.Addr) netip.Prefix {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := tcp.AddrPort().Addr().Unmap()
	for _, p := range s.proxies {
		if p.Contains(ip) {
			return netip.Prefix{}
		}
	}
	return limit.Address(ip)
}

// evictee returns the connection that is to go for one more of by; nil when none has
// been at rest for least. s.mu is held.
func (s *connections) evictee(by netip.Prefix, least time.Duration) *watchedConn {
	var found *watchedConn
	most := -1
	for _, h := range s.holders {
		oldest := h.atRest.Front()
		if oldest == nil {
			continue
		}
		c := oldest.Value.(*watchedConn)
		if time.Since(c.since) < least {
			continue
		}
		n := h.open
		if h.by == by {
			n++
		}
		if h.by == (netip.Prefix{}) && n <= s.limit/2 {
			n = 0
		}
		if n > most || n == most && c.since.Before(found.since) {
			found, most = c, n
		}
	}
	return found
}

// toRest has c at rest as the last. s.mu is held.
func (s *connections) toRest(c *watchedConn) {
	c.since = time.Now()
	s.open[c] = c.holder.atRest.PushBack(c)
}

// evict closes a connection that has been at rest for least, for one more of by, and
// returns false when there is none. s.mu is held.
func (s *connections) evict(by netip.Prefix, least time.Duration) bool {
	other := s.evictee(by, least)
	if other == nil {
		return false
	}
	s.drop(other)
	s.evicted.Inc()
	_ = other.Close() // its reader learns of it
	return true
}

// shed makes room where there was no file descriptor for a connection, as err says,
// and returns false when none can be made. The kernel says so whether another one has
// come or not: those that have had no time for their request stay. Only the listener
// calls it.
func (s *connections) shed(err error) bool {
	if time.Since(s.short) > shortAgain {
		s.short = time.Now()
		s.log.Error("no file descriptor for a connection: connections at rest are closed", "error", err.Error()+"; fix: raise the limit of open files (ulimit -n) to four for each of MAX_UPLOADS and more, or lower MAX_UPLOADS")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.evict(netip.Prefix{}, restShort)
}

// drop forgets c. s.mu is held.
func (s *connections) drop(c *watchedConn) {
	e, ok := s.open[c]
	if !ok {
		return
	}
	if e != nil {
		c.holder.atRest.Remove(e)
	}
	delete(s.open, c)
	if c.holder.open--; c.holder.open == 0 {
		delete(s.holders, c.holder.by)
	}
	s.change.Broadcast()
}

// work has c no longer at rest. It returns false when its place is already gone.
func (s *connections) work(c *watchedConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.open[c]
	if e != nil {
		c.holder.atRest.Remove(e)
		s.open[c] = nil
	}
	return ok
}

// rest has c at rest from now on.
func (s *connections) rest(c *watchedConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.open[c]; ok && e == nil {
		s.toRest(c)
		s.change.Broadcast()
	}
}

// state is the [http.Server]'s ConnState.
func (s *connections) state(c net.Conn, state http.ConnState) {
	if watched, ok := c.(*watchedConn); ok && state == http.StateClosed {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.drop(watched)
	}
}

// handler has the connection of each request at work while h has it.
func (s *connections) handler(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(connKey{}).(*watchedConn); ok {
			if !s.work(c) {
				panic(http.ErrAbortHandler) // nobody would hear the answer
			}
			c.readsHeader(false)
			c.request, r.Trailer = r, nil // nobody looks at trailers, and one line announces thousands
			c.answerWithin(time.Now())
			defer func() {
				c.readsHeader(true)
				s.rest(c) // and not later: a client that does not read the answer must not stay for it
			}()
		}
		h.ServeHTTP(w, r)
	})
}
