package blobstore

import (
	"github.com/prometheus/client_golang/prometheus"
)

// Operations on storage, as they are labelled in metrics.
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

// metrics of the store. It is a policy of the SDK's pipeline, behind the retries,
// so that each round trip counts.
type metrics struct {
	requests   *prometheus.CounterVec
	duration   *prometheus.HistogramVec
	views      prometheus.Counter
	downloads  prometheus.Counter
	tickets    prometheus.Counter
	unstaged   *prometheus.CounterVec
	keyExpiry  prometheus.Gauge
	keyRefresh *prometheus.CounterVec
	trials     *prometheus.CounterVec
	clockAhead prometheus.Gauge
	conflicts  prometheus.Counter
	damaged    prometheus.Counter
	circuit    prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	const p = "cats_signer_"
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: p + "storage_requests_total", Help: "Round trips to storage by operation and HTTP status; error means that no answer came.",
		}, []string{"op", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: p + "storage_request_duration_seconds", Help: "Duration of round trips to storage, up to the header of the answer.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"op"}),
		keyExpiry: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: p + "user_delegation_key_expiry_timestamp_seconds", Help: "When the user delegation key at hand ends, in Unix time; 0 for none.",
		}),
		keyRefresh: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: p + "user_delegation_key_refresh_total", Help: "Requests for a user delegation key by outcome.",
		}, []string{"outcome"}),
		trials: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: p + "link_trials_total", Help: "Links that the signer tried itself, by outcome: refused is because of the key, unclear says nothing about it.",
		}, []string{"outcome"}),
		clockAhead: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: p + "clock_skew_seconds", Help: "How far the clock was ahead of storage's when last compared; below 0 it was behind.",
		}),
		conflicts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: p + "upload_conflicts_total", Help: "Uploads that lost against another one to the same name.",
		}),
	}
	m.damaged = prometheus.NewCounter(prometheus.CounterOpts{
		Name: p + "damaged_uploads_total", Help: "Uploads of which storage stored other bytes than were sent, by its CRC64.",
	})
	signed := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: p + "signed_urls_total", Help: "Signed URLs given out: view shows the picture in place, download saves it under a name, upload is a ticket to send one.",
	}, []string{"kind"})
	m.views, m.downloads, m.tickets = signed.WithLabelValues("view"), signed.WithLabelValues("download"), signed.WithLabelValues("upload")
	m.unstaged = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: p + "staged_uploads_removed_total", Help: "Blobs that were sent straight to storage and removed, by what became of them.",
	}, []string{"outcome"})
	m.circuit = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: p + "storage_circuit_open", Help: "1 while storage is asked nothing because it did not answer, 0 otherwise.",
	})
	reg.MustRegister(m.unstaged, m.circuit, m.requests, m.duration, signed, m.keyExpiry, m.keyRefresh, m.trials, m.clockAhead, m.conflicts, m.damaged)
	for _, op := range []string{opHead, opPut, opBlock, opCommit, opDelete, opKey, opContainer, opTrial, opGet, opCopy, opList} {
		m.duration.WithLabelValues(op)
		m.requests.WithLabelValues(op, "error")
	}
	for _, outcome := range []string{"ok", "error"} {
		m.keyRefresh.WithLabelValues(outcome)
	}
	for _, outcome := range []string{removedCommitted, removedRefused, removedAbandoned} {
		m.unstaged.WithLabelValues(outcome)
	}
	for _, outcome := range []string{trialOK, trialRefused, trialUnclear} {
		m.trials.WithLabelValues(outcome)
	}
	return m
}

// watch adds the gauge of the buffers.
func (m *metrics) watch(reg prometheus.Registerer, b *buffers) {
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "cats_signer_upload_buffers_in_use", Help: "Buffers in use, of 5 that hold uploads whose size the client did not announce.",
	}, func() float64 { return float64(b.taken()) }))
}
