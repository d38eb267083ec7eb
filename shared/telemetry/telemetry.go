// Package telemetry creates the logger, the metrics registry and the traces of a process.
package telemetry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	versioncollector "github.com/prometheus/client_golang/prometheus/collectors/version"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/common/version"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"

	"cats.example/shared/apierror"
)

// maxLoggedError is the maximum length of an error in the log, in bytes. Some libraries put input of clients into their errors.
const maxLoggedError = 512

// NewLogger returns the logger of a process. It writes JSON lines to w, without a buffer.
func NewLogger(w io.Writer, level slog.Level, name string) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level})).With("service.name", name)
}

// LogVersion writes the first line of a process's log, with its version and the revision of its source.
func LogVersion(log *slog.Logger) {
	log.Info("starting", "service.version", cmp.Or(version.Version, "dev"), "revision", version.GetRevision())
}

// Truncate returns the first 512 bytes of the text of an error.
func Truncate(s string) string { return s[:min(len(s), maxLoggedError)] }

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

// NewCounter registers a counter.
func NewCounter(reg prometheus.Registerer, name, help string) prometheus.Counter {
	return promauto.With(reg).NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}

// NewGauge registers a gauge.
func NewGauge(reg prometheus.Registerer, name, help string) prometheus.Gauge {
	return promauto.With(reg).NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
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

// TracesHelp is the text of --help about the variables that [NewTraces] reads.
const TracesHelp = "OTEL_EXPORTER_OTLP_ENDPOINT, such as http://COLLECTOR:4318, turns traces on. The other variables OTEL_* have the\n" +
	"meaning that OpenTelemetry defines. gRPC is not supported."

// exportedAttributes are the attributes that are exported. They contain nothing that a client chooses or that identifies one, and
// no URL, which may be signed. Other attributes, which libraries add to their spans, are dropped.
var exportedAttributes = map[attribute.Key]bool{
	semconv.HTTPRequestMethodKey: true, semconv.HTTPRouteKey: true, semconv.HTTPResponseStatusCodeKey: true,
	semconv.HTTPRequestBodySizeKey: true, semconv.HTTPResponseBodySizeKey: true,
	semconv.ErrorTypeKey: true,
	// The Azure SDK uses an older convention, in which net.peer.name is the host of the server.
	"http.method": true, "http.status_code": true, "net.peer.name": true,
	"az.service_request_id": true,
}

// clientAttributes are exported of client spans only. In a server span, they come from the Host header, which the client chooses.
var clientAttributes = map[attribute.Key]bool{semconv.ServerAddressKey: true, semconv.ServerPortKey: true}

// Traces exports the spans of a process to an OpenTelemetry collector. A nil *Traces is valid: it makes no spans.
type Traces struct{ *sdktrace.TracerProvider }

// NewTraces returns nil unless the standard variables in environ turn traces on: OTEL_EXPORTER_OTLP_ENDPOINT or
// OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is set, OTEL_SDK_DISABLED is not true, and OTEL_TRACES_EXPORTER is not none. environ must be
// the environment of the process: the SDK reads the other variables there. The name of the service is cats-NAME unless
// OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES sets another.
//
// Spans that cannot be exported are lost; log has a warning at most once a minute. If more than OTEL_BSP_MAX_QUEUE_SIZE spans
// wait for export, more are dropped without a warning. Errors and log lines contain no value that may be a secret: no header, and
// no credentials or path of the endpoint.
func NewTraces(ctx context.Context, name string, environ []string, log *slog.Logger) (*Traces, error) {
	endpoint, err := tracesEndpoint(environ)
	if endpoint == nil || err != nil {
		return nil, err
	}
	otel.SetLogger(logr.FromSlogHandler(settingErrors{log.Handler()}))
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn(settingIgnored, "error", err.Error()) }))
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("creating the trace exporter: %w", err)
	}
	service := resource.WithAttributes(semconv.ServiceName("cats-"+name), semconv.ServiceVersion(cmp.Or(version.Version, "dev")))
	about, err := resource.New(ctx, service, resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil { // about has the valid part
		otel.Handle(err)
	}
	t := &Traces{sdktrace.NewTracerProvider(sdktrace.WithResource(about), sdktrace.WithBatcher(redactingExporter{exporter}))}
	lost := rate.Sometimes{First: 1, Interval: time.Minute}
	path := strings.TrimRight(endpoint.EscapedPath(), "/")
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		lost.Do(func() {
			text := strings.ReplaceAll(err.Error(), path, "")                        // has no effect if path is ""
			log.Warn("trace export failed; spans are lost", "error", Truncate(text)) // the error contains the response of the collector
		})
	}))
	log.Info("trace export enabled", "endpoint", endpoint.Scheme+"://"+endpoint.Host)
	return t, nil
}

// tracesEndpoint returns the endpoint of the collector, or nil if traces are off.
func tracesEndpoint(environ []string) (*url.URL, error) {
	vars := env.ToMap(environ)
	get := func(name string) string {
		return strings.TrimSpace(cmp.Or(vars["OTEL_EXPORTER_OTLP_TRACES_"+name], vars["OTEL_EXPORTER_OTLP_"+name]))
	}
	exporterName, protocol := vars["OTEL_TRACES_EXPORTER"], get("PROTOCOL")
	if get("ENDPOINT") == "" || strings.EqualFold(vars["OTEL_SDK_DISABLED"], "true") || exporterName == "none" {
		return nil, nil // traces are off
	}
	endpoint, err := url.Parse(get("ENDPOINT"))
	switch {
	case exporterName != "" && exporterName != "otlp":
		return nil, errors.New("OTEL_TRACES_EXPORTER: want otlp or none")
	case protocol != "" && protocol != "http/protobuf":
		return nil, errors.New("OTEL_EXPORTER_OTLP_PROTOCOL: only http/protobuf is supported; the port of a collector for it is 4318")
	case err != nil || endpoint.Scheme != "http" && endpoint.Scheme != "https" || endpoint.Host == "" || endpoint.User != nil:
		return nil, errors.New("OTEL_EXPORTER_OTLP_ENDPOINT: want a URL such as http://COLLECTOR:4318; credentials belong in OTEL_EXPORTER_OTLP_HEADERS")
	}
	return endpoint, nil
}

const settingIgnored = "invalid trace setting ignored"

// settingErrors handles the log records of OpenTelemetry's packages: it logs the message of errors, such as "parse headers",
// without the attributes, which contain the values of variables.
type settingErrors struct{ slog.Handler }

// Enabled implements [slog.Handler].
func (settingErrors) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelError
}

// Handle implements [slog.Handler].
func (e settingErrors) Handle(ctx context.Context, r slog.Record) error {
	slog.New(e.Handler).WarnContext(ctx, settingIgnored, "error", r.Message)
	return nil
}

// Close exports the remaining spans, for at most five seconds. There are no spans after Close.
func (t *Traces) Close() {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := t.Shutdown(ctx); err != nil {
		otel.Handle(err)
	}
}

// propagator propagates the traceparent header only: a client chooses the content of a tracestate header.
type propagator struct{ propagation.TraceContext }

// Extract implements [propagation.TextMapPropagator].
func (p propagator) Extract(ctx context.Context, from propagation.TextMapCarrier) context.Context {
	return p.TraceContext.Extract(ctx, propagation.MapCarrier{"traceparent": from.Get("traceparent")})
}

// Inject adds the traceparent header (W3C Trace Context) of the span in ctx to h, if there is one.
func Inject(ctx context.Context, h http.Header) {
	propagator{}.Inject(ctx, propagation.HeaderCarrier(h))
}

// Handler returns h with a span for each request, in the trace that the request's header names. If public is true, each request
// starts a trace of its own, with a link to that trace: a client must not choose trace IDs, nor which traces are sampled. If t is
// nil, the context of a request has the trace that its header names.
func (t *Traces) Handler(route string, public bool, h http.Handler) http.Handler {
	if t == nil {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Traceparent") != "" {
				r = r.WithContext(propagator{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header)))
			}
			h.ServeHTTP(w, r)
		})
	}
	h = otelhttp.NewHandler(h, route, otelhttp.WithTracerProvider(t), otelhttp.WithPropagators(propagator{}),
		otelhttp.WithPublicEndpointFn(func(*http.Request) bool { return public }))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Pattern = route // otelhttp uses it for the span's name and http.route, if it contains a slash
		h.ServeHTTP(w, r)
	})
}

// SetErrorType sets error.type of the span in ctx to the code of err.
func SetErrorType(ctx context.Context, err error) {
	if span := trace.SpanFromContext(ctx); err != nil && span.IsRecording() {
		span.SetAttributes(semconv.ErrorTypeKey.String(apierror.AsError(err).Code))
	}
}

// Transport returns next with a span for each call that is part of a trace, and adds the traceparent header. The paths of the
// calls must be from a closed set: the names of the spans contain them. If t is nil, Transport returns next.
func (t *Traces) Transport(next http.RoundTripper) http.RoundTripper {
	if t == nil {
		return next
	}
	return otelhttp.NewTransport(next, otelhttp.WithTracerProvider(t), otelhttp.WithPropagators(propagator{}),
		otelhttp.WithFilter(func(r *http.Request) bool { return trace.SpanContextFromContext(r.Context()).IsValid() }),
		otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string { return r.Method + " " + r.URL.Path }))
}

// redactingExporter removes attributes that are not in a list, events, and the descriptions of errors, which can contain whole
// requests.
type redactingExporter struct{ sdktrace.SpanExporter }

// ExportSpans implements [sdktrace.SpanExporter].
func (d redactingExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	redacted := make([]sdktrace.ReadOnlySpan, len(spans))
	for i, s := range spans {
		redacted[i] = redactedSpan{s}
	}
	return d.SpanExporter.ExportSpans(ctx, redacted)
}

type redactedSpan struct{ sdktrace.ReadOnlySpan }

func (s redactedSpan) Attributes() []attribute.KeyValue {
	return slices.DeleteFunc(slices.Clone(s.ReadOnlySpan.Attributes()), func(a attribute.KeyValue) bool {
		return !exportedAttributes[a.Key] && (s.SpanKind() != trace.SpanKindClient || !clientAttributes[a.Key])
	})
}

func (s redactedSpan) Events() []sdktrace.Event { return nil }

func (s redactedSpan) Status() sdktrace.Status {
	return sdktrace.Status{Code: s.ReadOnlySpan.Status().Code}
}
