package telemetry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
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

// TracesHelp is the part of --help on what [NewTraces] reads.
const TracesHelp = "OTEL_EXPORTER_OTLP_ENDPOINT, such as http://COLLECTOR:4318, turns traces on; with it, the other\n" +
	"variables OTEL_* have the meaning that OpenTelemetry defines. gRPC is not supported."

const (
	// FlushTimeout is the maximum time for the export of the last spans at the end of a process.
	FlushTimeout = 5 * time.Second
	exportWarns  = time.Minute // from one warning that spans are lost to the next, at least
)

// spanAttributes are all that leave the process: nothing that a client can choose, or
// by which one is known, and no URL, which may be a signed one. What libraries add to
// their spans is dropped unless it is here.
var spanAttributes = map[attribute.Key]bool{
	semconv.HTTPRequestMethodKey: true, semconv.HTTPRouteKey: true, semconv.HTTPResponseStatusCodeKey: true,
	semconv.HTTPRequestBodySizeKey: true, semconv.HTTPResponseBodySizeKey: true,
	semconv.ErrorTypeKey: true,
	// The Azure SDK goes by an older convention, in which net.peer.name is the host asked.
	"http.method": true, "http.status_code": true, "net.peer.name": true,
	"az.service_request_id": true,
}

// clientAttributes are exported for calls alone. In the span of a request, they are from the header Host, which the client
// chooses.
var clientAttributes = map[attribute.Key]bool{semconv.ServerAddressKey: true, semconv.ServerPortKey: true}

// Traces sends the spans of a process to an OpenTelemetry collector. A nil *Traces
// is a process without any.
type Traces struct{ *sdktrace.TracerProvider }

// NewTraces returns nil unless the standard variables in environ ask for traces:
// OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is set, and neither OTEL_SDK_DISABLED is true nor
// OTEL_TRACES_EXPORTER none. environ must be the environment of the process: the SDK and its exporter read the other
// variables there. The name of the service is cats-NAME unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES has another.
//
// Spans that cannot be delivered are lost, and log has a warning at most once a minute. OTEL_BSP_MAX_QUEUE_SIZE spans wait
// for delivery; more are dropped without a warning. No error and no log line holds a value that may be a secret: a header, or
// credentials or a path of the endpoint.
func NewTraces(ctx context.Context, name string, environ []string, log *slog.Logger) (*Traces, error) {
	vars := env.ToMap(environ)
	get := func(name string) string {
		return strings.TrimSpace(cmp.Or(vars["OTEL_EXPORTER_OTLP_TRACES_"+name], vars["OTEL_EXPORTER_OTLP_"+name]))
	}
	exporterName, protocol := vars["OTEL_TRACES_EXPORTER"], get("PROTOCOL")
	if get("ENDPOINT") == "" || strings.EqualFold(vars["OTEL_SDK_DISABLED"], "true") || exporterName == "none" {
		return nil, nil // nil is a process without traces
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
	otel.SetLogger(logr.FromSlogHandler(settingErrors{log.Handler()}))
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn(settingIgnored, "error", err.Error()) }))
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("creating the trace exporter: %w", err)
	}
	service := resource.WithAttributes(semconv.ServiceName("cats-"+name), semconv.ServiceVersion(cmp.Or(version.Version, "dev")))
	about, err := resource.New(ctx, service, resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil { // what could be read of it is there
		otel.Handle(err)
	}
	t := &Traces{sdktrace.NewTracerProvider(sdktrace.WithResource(about), sdktrace.WithBatcher(RedactSpans(exporter)))}
	lost := rate.Sometimes{First: 1, Interval: exportWarns}
	path := strings.TrimRight(endpoint.EscapedPath(), "/")
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		lost.Do(func() {
			text := strings.ReplaceAll(err.Error(), path, "")    // with "" for path, it stays as it is
			log.Warn("traces are lost", "error", Truncate(text)) // the collector's whole response is in it
		})
	}))
	log.Info("traces are sent", "endpoint", endpoint.Scheme+"://"+endpoint.Host)
	return t, nil
}

const settingIgnored = "invalid trace setting ignored"

// settingErrors logs the message of each error that OpenTelemetry's packages log, such as "parse headers", without the
// attributes, which hold the values of variables.
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

// Close sends the spans that are left, and makes no more. It takes no longer than limit.
func (t *Traces) Close(limit time.Duration) {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := t.Shutdown(ctx); err != nil {
		otel.Handle(err)
	}
}

// propagator passes on the traceparent header alone: a tracestate holds what the client has put there.
type propagator struct{ propagation.TraceContext }

// Extract implements [propagation.TextMapPropagator].
func (p propagator) Extract(ctx context.Context, from propagation.TextMapCarrier) context.Context {
	return p.TraceContext.Extract(ctx, propagation.MapCarrier{"traceparent": from.Get("traceparent")})
}

// TraceParent returns the traceparent header of the span in ctx (W3C Trace Context), "" if there is none.
func TraceParent(ctx context.Context) string {
	header := propagation.MapCarrier{}
	propagator{}.Inject(ctx, header)
	return header["traceparent"]
}

// Handler returns h with a span for each request. The span is part of the trace that the request names. If public is true,
// it begins a trace of its own with a link to that one: a client must not decide which traces are sampled, or their IDs.
// A nil t returns h itself.
func (t *Traces) Handler(route string, public bool, h http.Handler) http.Handler {
	if t == nil {
		return h
	}
	h = otelhttp.NewHandler(h, route, otelhttp.WithTracerProvider(t), otelhttp.WithPropagators(propagator{}),
		otelhttp.WithPublicEndpointFn(func(*http.Request) bool { return public }))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Pattern = route // otelhttp takes the span's name and http.route from it, and neither if it has no slash
		h.ServeHTTP(w, r)
	})
}

// SetErrorType sets error.type of the span in ctx to the code of err.
func SetErrorType(ctx context.Context, err error) {
	if span := trace.SpanFromContext(ctx); err != nil && span.IsRecording() {
		span.SetAttributes(semconv.ErrorTypeKey.String(apierror.AsError(err).Code))
	}
}

// Transport returns next with a span for each call in the trace of its context, which the request names in its header. Calls
// outside of a trace have no span. The paths of the calls must be from a closed set: the names of the spans contain them. A nil
// t returns next itself.
func (t *Traces) Transport(next http.RoundTripper) http.RoundTripper {
	if t == nil {
		return next
	}
	return otelhttp.NewTransport(next, otelhttp.WithTracerProvider(t), otelhttp.WithPropagators(propagator{}),
		otelhttp.WithFilter(func(r *http.Request) bool { return trace.SpanContextFromContext(r.Context()).IsValid() }),
		otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string { return r.Method + " " + r.URL.Path }))
}

// Observe has h count seconds, with the trace that ctx is in as the example of it
// where that trace is recorded.
func Observe(ctx context.Context, h prometheus.Observer, seconds float64) {
	span := trace.SpanContextFromContext(ctx)
	if e, ok := h.(prometheus.ExemplarObserver); ok && span.IsSampled() {
		e.ObserveWithExemplar(seconds, prometheus.Labels{"trace_id": span.TraceID().String()})
		return
	}
	h.Observe(seconds)
}

// RedactSpans returns an exporter that exports what may be known of spans: no attribute but those of
// spanAttributes and clientAttributes, no event, and that something went wrong but not the text of it, in
// which libraries tell whole requests.
func RedactSpans(e sdktrace.SpanExporter) sdktrace.SpanExporter { return redactingExporter{e} }

type redactingExporter struct{ sdktrace.SpanExporter }

// ExportSpans implements [sdktrace.SpanExporter].
func (d redactingExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	said := make([]sdktrace.ReadOnlySpan, len(spans))
	for i, s := range spans {
		said[i] = redactedSpan{s}
	}
	return d.SpanExporter.ExportSpans(ctx, said)
}

type redactedSpan struct{ sdktrace.ReadOnlySpan }

func (s redactedSpan) Attributes() []attribute.KeyValue {
	return slices.DeleteFunc(slices.Clone(s.ReadOnlySpan.Attributes()), func(a attribute.KeyValue) bool {
		return !spanAttributes[a.Key] && (s.SpanKind() != trace.SpanKindClient || !clientAttributes[a.Key])
	})
}

func (s redactedSpan) Events() []sdktrace.Event { return nil }

func (s redactedSpan) Status() sdktrace.Status {
	return sdktrace.Status{Code: s.ReadOnlySpan.Status().Code}
}
