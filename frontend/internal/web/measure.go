package web

import (
	"context"
	"io"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"

	"cats.example/shared/signerapi"
)

// metrics of the public API that go beyond those of any HTTP server.
type metrics struct {
	calls    *prometheus.CounterVec
	rejected *prometheus.CounterVec
	stored   prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	const p = "cats_frontend_"
	m := &metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: p + "signer_client_requests_total", Help: "Calls to the signer by operation and outcome: ok, or the code of the error.",
		}, []string{"op", "outcome"}),
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: p + "upload_rejected_total", Help: "Uploads that were refused or not stored, by the code of the error.",
		}, []string{"reason"}),
		stored: prometheus.NewCounter(prometheus.CounterOpts{
			Name: p + "upload_bytes_total", Help: "Bytes of pictures stored, of those that went straight to storage too.",
		}),
	}
	reg.MustRegister(m.calls, m.rejected, m.stored)
	for _, op := range []string{"put", "link", "delete", "ticket", "commit", "about"} {
		m.calls.WithLabelValues(op, "ok")
		m.calls.WithLabelValues(op, signerapi.ErrSignerUnavailable.Code)
	}
	for _, e := range []*signerapi.Error{
		signerapi.ErrIncomplete, signerapi.ErrStalled, signerapi.ErrTooLarge, signerapi.ErrUnsupportedMediaType, signerapi.ErrOverloaded,
		signerapi.ErrDigestMismatch, signerapi.ErrPreconditionFailed,
	} {
		m.rejected.WithLabelValues(e.Code)
	}
	return m
}

// upload counts what becomes of the uploads that h handles.
func (m *metrics) upload(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		err := h(w, r)
		if err != nil {
			m.rejected.WithLabelValues(signerapi.AsError(err).Code).Inc()
		}
		return err
	}
}

// counted is a signer whose calls are counted. It does not embed the signer: after a new
// call of the contract, this package does not compile until counted has the method.
type counted struct {
	signer signerapi.Signer
	m      *metrics
}

var _ signerapi.Signer = counted{}

func (c counted) Put(ctx context.Context, user signerapi.User, body io.Reader, opts signerapi.PutOptions) (signerapi.Info, error) {
	info, err := c.signer.Put(ctx, user, body, opts)
	c.m.count("put", err)
	if err == nil {
		c.m.stored.Add(float64(info.Size))
	}
	return info, err
}

func (c counted) Link(ctx context.Context, user signerapi.User, opts signerapi.LinkOptions) (signerapi.Link, error) {
	link, err := c.signer.Link(ctx, user, opts)
	c.m.count("link", err)
	return link, err
}

func (c counted) Delete(ctx context.Context, user signerapi.User, conditions signerapi.Conditions) error {
	err := c.signer.Delete(ctx, user, conditions)
	c.m.count("delete", err)
	return err
}

func (c counted) Ticket(ctx context.Context, user signerapi.User, size int64) (signerapi.Ticket, error) {
	ticket, err := c.signer.Ticket(ctx, user, size)
	c.m.count("ticket", err)
	return ticket, err
}

func (c counted) Commit(ctx context.Context, user signerapi.User, ticket string, opts signerapi.CommitOptions) (signerapi.Info, error) {
	info, err := c.signer.Commit(ctx, user, ticket, opts)
	c.m.count("commit", err)
	if err == nil {
		c.m.stored.Add(float64(info.Size))
	}
	return info, err
}

func (c counted) About(ctx context.Context) (signerapi.About, error) {
	about, err := c.signer.About(ctx)
	c.m.count("about", err)
	return about, err
}

// Ready is not counted: it is a probe.
func (c counted) Ready(ctx context.Context) error { return c.signer.Ready(ctx) }

func (m *metrics) count(op string, err error) {
	outcome := "ok"
	if err != nil {
		outcome = signerapi.AsError(err).Code
	}
	m.calls.WithLabelValues(op, outcome).Inc()
}
