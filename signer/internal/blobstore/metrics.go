package blobstore

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"cats.example/shared/telemetry"
)

// Operations on storage, as labels of metrics.
const (
	opHead      = "head_blob"
	opPut       = "put_blob"
	opBlock     = "put_block"
	opCommit    = "put_block_list"
	opDelete    = "delete_blob"
	opKey       = "user_delegation_key"
	opContainer = "head_container"
	opTrial     = "link_trial"
	opGet       = "get_blob"
	opCopy      = "put_block_from_url"
	opList      = "list_blobs"
)

// metrics are those of the store.
type metrics struct {
	requests   *prometheus.CounterVec
	duration   *prometheus.HistogramVec
	views      prometheus.Counter
	signed     *prometheus.CounterVec // with the views
	unstaged   *prometheus.CounterVec
	keyExpiry  prometheus.Gauge
	keyRefresh *prometheus.CounterVec
	trials     *prometheus.CounterVec
	clockAhead prometheus.Gauge
	conflicts  prometheus.Counter
	damaged    prometheus.Counter
	circuit    prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer, b *buffers) *metrics {
	const p = "cats_signer_"
	auto := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return auto.NewCounter(prometheus.CounterOpts{Name: p + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return auto.NewGauge(prometheus.GaugeOpts{Name: p + name, Help: help})
	}
	auto.NewGaugeFunc(prometheus.GaugeOpts{
		Name: p + "upload_buffers_in_use", Help: "Buffers in use, of 5 that hold uploads whose size the client did not announce.",
	}, func() float64 { return float64(b.taken()) })
	signed := telemetry.NewCounterVec(reg, p+"signed_urls_total",
		"Signed URLs given out: view shows the picture in place, download saves it under a name, upload is a ticket to send one.", "kind", "view", "download", "upload")
	m := &metrics{
		requests: auto.NewCounterVec(prometheus.CounterOpts{
			Name: p + "storage_requests_total", Help: "Round trips to storage by operation and HTTP status; error means that no answer came.",
		}, []string{"operation", "code"}),
		duration: auto.NewHistogramVec(prometheus.HistogramOpts{
			Name: p + "storage_request_duration_seconds", Help: "Duration of round trips to storage, up to the header of the answer.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"op"}),
		views:  signed.WithLabelValues("view"),
		signed: signed,
		unstaged: telemetry.NewCounterVec(reg, p+"staged_blobs_deleted_total",
			"Blobs that were sent straight to storage and removed, by what became of them.", "outcome", removedCommitted, removedRefused, removedAbandoned),
		keyExpiry:  gauge("user_delegation_key_expiry_timestamp_seconds", "When the user delegation key at hand ends, in Unix time; 0 for none."),
		keyRefresh: telemetry.NewCounterVec(reg, p+"user_delegation_key_requests_total", "Requests for a user delegation key by outcome.", "outcome", "ok", "error"),
		trials: telemetry.NewCounterVec(reg, p+"key_probes_total",
			"Links that the signer tried itself, by outcome: refused is because of the key, unclear says nothing about it.", "outcome", trialOK, trialRefused, trialUnclear),
		clockAhead: gauge("clock_skew_seconds", "How far the clock was ahead of storage's when last compared; below 0 it was behind."),
		conflicts:  counter("uploads_conflicted_total", "Uploads that lost against another one to the same name."),
		damaged:    counter("uploads_damaged_total", "Uploads of which storage stored other bytes than were sent, by its CRC64."),
		circuit:    gauge("storage_circuit_open", "1 while storage is asked nothing because it did not answer, 0 otherwise."),
	}
	for _, op := range []string{opHead, opPut, opBlock, opCommit, opDelete, opKey, opContainer, opTrial, opGet, opCopy, opList} {
		m.duration.WithLabelValues(op)
		m.requests.WithLabelValues(op, "error")
	}
	return m
}
