package service

import (
	"container/list"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// shortAgain is after how long a lack of file descriptors is told again.
const shortAgain = 10 * time.Second

// restShort is how long a connection may be at rest where file descriptors are short.
const restShort = time.Second

// connections bounds how many connections a listener has open, and so what they
// cost: net/http takes some 17 KiB for each, idle ones included. Where there are as
// many, the next takes the place of the one that has been at rest for longest:
// that has no request under way, or has its answer. While none is, it waits.
type connections struct {
	limit   int
	log     *slog.Logger
	evicted prometheus.Counter
	short   time.Time // when a lack of file descriptors was last told; the listener's own

	mu     sync.Mutex
	change sync.Cond                      // of what follows
	open   map[*watchedConn]*list.Element // in atRest; nil for those at work
	atRest list.List                      // of *watchedConn, the first since longest
}

// newConnections has its metrics in reg, for the listener called name.
func newConnections(limit int, log *slog.Logger, reg prometheus.Registerer, name string) *connections {
	labels := prometheus.Labels{"listener": name}
	c := &connections{
		limit: limit, log: log, open: map[*watchedConn]*list.Element{},
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
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.open) >= s.limit {
		if !s.evict(0) {
			s.change.Wait()
		}
	}
	c.since = time.Now()
	s.open[c] = s.atRest.PushBack(c)
}

// evict closes the connection that has been at rest for longest, if for longer than
// least, and returns false when there is none. s.mu is held.
func (s *connections) evict(least time.Duration) bool {
	oldest := s.atRest.Front()
	if oldest == nil {
		return false
	}
	other := oldest.Value.(*watchedConn)
	if time.Since(other.since) < least {
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
	return s.evict(restShort)
}

// drop forgets c. s.mu is held.
func (s *connections) drop(c *watchedConn) {
	if e := s.open[c]; e != nil {
		s.atRest.Remove(e)
	}
	delete(s.open, c)
	s.change.Broadcast()
}

// work has c no longer at rest. It returns false when its place is already gone.
func (s *connections) work(c *watchedConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.open[c]
	if e != nil {
		s.atRest.Remove(e)
		s.open[c] = nil
	}
	return ok
}

// rest has c at rest from now on.
func (s *connections) rest(c *watchedConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.open[c]; ok && e == nil {
		c.since = time.Now()
		s.open[c] = s.atRest.PushBack(c)
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
			c.answerWithin(time.Now())
			defer s.rest(c) // and not later: a client that does not read the answer must not stay for it
		}
		h.ServeHTTP(w, r)
	})
}
