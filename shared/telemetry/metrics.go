package telemetry

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	versioncollector "github.com/prometheus/client_golang/prometheus/collectors/version"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// NewCounterVec registers a counter with one label, whose series of values begin at 0: a rate then includes their first increment.
func NewCounterVec(reg prometheus.Registerer, name, help, label string, values ...string) *prometheus.CounterVec {
	counters := promauto.With(reg).NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	for _, v := range values {
		counters.WithLabelValues(v)
	}
	return counters
}

// NewRegistry returns a registry of its own that holds the Go runtime's, the
// process's and the build's metrics.
func NewRegistry(name string) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		versioncollector.NewCollector("cats_"+name),
	)
	return reg
}
