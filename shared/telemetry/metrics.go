package telemetry

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	versioncollector "github.com/prometheus/client_golang/prometheus/collectors/version"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.opentelemetry.io/otel/trace"
)

// NewRegistry returns a registry with the metrics of the Go runtime, the process and the build.
func NewRegistry(name string) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		versioncollector.NewCollector("cats_"+name),
	)
	return reg
}

// NewCounterVec registers a counter with one label. The series of values begin at 0, so that a rate includes their first
// increment.
func NewCounterVec(reg prometheus.Registerer, name, help, label string, values ...string) *prometheus.CounterVec {
	counters := promauto.With(reg).NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	for _, v := range values {
		counters.WithLabelValues(v)
	}
	return counters
}

// Observe adds a duration in seconds to h. If the trace of ctx is sampled, the observation has its ID as exemplar.
func Observe(ctx context.Context, h prometheus.Observer, seconds float64) {
	span := trace.SpanContextFromContext(ctx)
	if e, ok := h.(prometheus.ExemplarObserver); ok && span.IsSampled() {
		e.ObserveWithExemplar(seconds, prometheus.Labels{"trace_id": span.TraceID().String()})
		return
	}
	h.Observe(seconds)
}
