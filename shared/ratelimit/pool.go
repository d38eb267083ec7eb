// Package ratelimit limits what clients use: slots that are taken at once, in all and per client, and the rate of requests per
// client. The frontend identifies clients by their addresses, the signer by their verified tokens.
package ratelimit

import (
	"fmt"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"cats.example/shared/apierror"
)

// Pools makes the pools of a process, which have one policy and one set of metrics.
type Pools struct {
	share        float64
	slots, taken *prometheus.GaugeVec
	rejected     *prometheus.CounterVec
}

// NewPools returns a Pools whose metrics are in reg, named cats_NAME_pool_…. share is the part of each pool that one client may
// take, from 0 to 1; 0 means that a client may take all.
func NewPools(name string, share float64, reg prometheus.Registerer) *Pools {
	prefix, auto := "cats_"+name+"_pool_", promauto.With(reg)
	return &Pools{
		share: share,
		slots: auto.NewGaugeVec(prometheus.GaugeOpts{Name: prefix + "slots", Help: "Slots of a pool."}, []string{"pool"}),
		taken: auto.NewGaugeVec(prometheus.GaugeOpts{Name: prefix + "slots_taken", Help: "Slots that are taken now."}, []string{"pool"}),
		rejected: auto.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "rejected_total", Help: "Requests and connections without a slot: their client had its share (client), or the pool was full (total).",
		}, []string{"pool", "limit"}),
	}
}

// New returns a pool of total slots. kind is the plural that names it in error details, and in metrics with _ for spaces.
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

// Pool is a number of slots. It is safe for concurrent use.
type Pool struct {
	kind         string
	total, share int

	gauge                prometheus.Gauge // of taken
	overShare, overTotal prometheus.Counter

	mu      sync.Mutex
	taken   int
	clients map[string]int // slots that each client has taken, none of zero
}

// Take takes a slot for client until release is called, which must happen exactly once. "" is a client without a share.
//
// The error is ErrRateLimited if the client has its share, and ErrOverloaded if all slots are taken. There is no release then.
func (p *Pool) Take(client string) (release func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case client != "" && p.clients[client] >= p.share && p.share < p.total:
		p.overShare.Inc()
		return nil, apierror.ErrRateLimited.WithDetail(fmt.Sprintf("too many %s from this client at once: %d are possible; try again when one has ended", p.kind, p.share))
	case p.taken >= p.total:
		p.overTotal.Inc()
		return nil, apierror.ErrOverloaded
	}
	p.taken++
	p.clients[client]++
	p.gauge.Inc()
	return func() { p.give(client) }, nil
}

func (p *Pool) give(client string) {
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
