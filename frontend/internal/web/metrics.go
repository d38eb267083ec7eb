package web

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"cats.example/shared/apierror"
	"cats.example/shared/telemetry"
)

// metrics are the metrics of the public API, in addition to those of package httpserver.
type metrics struct {
	signerRequests  *prometheus.CounterVec
	uploadsRejected *prometheus.CounterVec
	uploadBytes     prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	auto := promauto.With(reg)
	m := &metrics{
		signerRequests: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "cats_frontend_signer_requests_total", Help: "Requests to the signer by operation and outcome: ok, or the error code.",
		}, []string{"operation", "outcome"}),
		uploadsRejected: telemetry.NewCounterVec(reg, "cats_frontend_uploads_rejected_total",
			"Uploads that were rejected or failed, by error code.", "reason",
			apierror.ErrIncomplete.Code, apierror.ErrStalled.Code, apierror.ErrTooLarge.Code, apierror.ErrUnsupportedMediaType.Code,
			apierror.ErrOverloaded.Code, apierror.ErrDigestMismatch.Code, apierror.ErrPreconditionFailed.Code),
		uploadBytes: auto.NewCounter(prometheus.CounterOpts{
			Name: "cats_frontend_upload_bytes_total", Help: "Bytes of pictures stored, including direct uploads.",
		}),
	}
	for _, op := range []string{"put", "link", "delete", "start_upload", "commit_upload", "about"} {
		m.signerRequests.WithLabelValues(op, "ok")
		m.signerRequests.WithLabelValues(op, apierror.ErrSignerUnavailable.Code)
	}
	return m
}

// countSignerRequest counts a request to the signer that returned err.
func (m *metrics) countSignerRequest(operation string, err error) {
	outcome := "ok"
	if err != nil {
		outcome = apierror.AsError(err).Code
	}
	m.signerRequests.WithLabelValues(operation, outcome).Inc()
}
