// Package ratelimit limits what one client can use: slots of pools (requests, uploads and connections in progress), and requests
// per second.
package ratelimit

import (
	"fmt"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"cats.example/shared/apierror"
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
	return func() { p.release(client) }, nil
}

func (p *Pool) release(client string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken--
	p.gauge.Dec()
	if p.clients[client]--; p.clients[client] == 0 {
		delete(p.clients, client)
	}
}

// Total returns the number of slots.
func (p *Pool) Total() int { return p.total }

// Taken returns the number of slots that are taken now.
func (p *Pool) Taken() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.taken
}
