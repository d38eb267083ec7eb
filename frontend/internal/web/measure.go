package web

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"cats.example/shared/apierror"
	"cats.example/shared/telemetry"
)

// metrics of the public API that go beyond those of any HTTP server.
type metrics struct {
	calls    *prometheus.CounterVec
	rejected *prometheus.CounterVec
	stored   prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	auto := promauto.With(reg)
	m := &metrics{
		calls: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "cats_frontend_signer_requests_total", Help: "Calls to the signer by operation and outcome: ok, or the code of the error.",
		}, []string{"operation", "outcome"}),
		rejected: telemetry.NewCounterVec(reg, "cats_frontend_uploads_rejected_total",
			"Uploads that were refused or not stored, by the code of the error.", "reason",
			apierror.ErrIncomplete.Code, apierror.ErrStalled.Code, apierror.ErrTooLarge.Code, apierror.ErrUnsupportedMediaType.Code,
			apierror.ErrOverloaded.Code, apierror.ErrDigestMismatch.Code, apierror.ErrPreconditionFailed.Code),
		stored: auto.NewCounter(prometheus.CounterOpts{
			Name: "cats_frontend_upload_bytes_total", Help: "Bytes of pictures stored, of those that went straight to storage too.",
		}),
	}
	for _, op := range []string{"put", "link", "delete", "start_upload", "commit_upload", "about"} {
		m.calls.WithLabelValues(op, "ok")
		m.calls.WithLabelValues(op, apierror.ErrSignerUnavailable.Code)
	}
	return m
}

// upload counts what becomes of the uploads that h handles.
func (m *metrics) upload(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		err := h(w, r)
		if err != nil {
			m.rejected.WithLabelValues(apierror.AsError(err).Code).Inc()
		}
		return err
	}
}

// count counts the call op of the signer, which returned err.
func (m *metrics) count(op string, err error) {
	outcome := "ok"
	if err != nil {
		outcome = apierror.AsError(err).Code
	}
	m.calls.WithLabelValues(op, outcome).Inc()
}
