package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/version"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"

	"cats.example/shared/signerapi"
)

// AboutTraces is the part of --help on what [NewTraces] reads.
const AboutTraces = "OTEL_EXPORTER_OTLP_ENDPOINT, such as http://COLLECTOR:4318, turns traces on; with it, the other\n" +
	"variables OTEL_* mean what OpenTelemetry says, but for gRPC and a client's certificate, which are not possible."

const (
	flushTimeout = 5 * time.Second // for the last spans, at the end of a process
	exportWarns  = time.Minute     // from one warning that spans are lost to the next, at least
	scope        = "cats.example/shared/service"
)

// spanAttributes are all that leave the process: nothing that a client can choose, or
// by which one is known, and no URL, which may be a signed one. What libraries add to
// their spans is dropped unless it is here.
var spanAttributes = map[attribute.Key]bool{
	semconv.HTTPRequestMethodKey: true, semconv.HTTPRouteKey: true, semconv.HTTPResponseStatusCodeKey: true,
	semconv.HTTPRequestBodySizeKey: true, semconv.HTTPResponseBodySizeKey: true,
	semconv.URLTemplateKey: true, semconv.ServerAddressKey: true, semconv.ServerPortKey: true,
	semconv.ErrorTypeKey: true,
	// The Azure SDK goes by an older convention, in which net.peer.name is the host asked.
	"http.method": true, "http.status_code": true, "net.peer.name": true,
	"az.service_request_id": true,
}

// Traces sends the spans of a process to an OpenTelemetry collector. A nil *Traces
// is a process without any.
type Traces struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
}

// NewTraces returns nil unless the standard variables in environ ask for traces:
// OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is set, and neither
// OTEL_SDK_DISABLED is true nor OTEL_TRACES_EXPORTER none. The SDK reads what is not the
// exporter's itself, from the process's own environment. The service's name is cats-NAME unless
// they say otherwise. Spans that cannot be delivered are lost, which log is told once a
// minute at most; as many wait as OTEL_BSP_MAX_QUEUE_SIZE says, and the rest are dropped
// without a word, as is a number that the SDK cannot read.
func NewTraces(ctx context.Context, name string, environ []string, log *slog.Logger) (*Traces, error) {
	vars := env.ToMap(environ)
	if vars["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"]+vars["OTEL_EXPORTER_OTLP_ENDPOINT"] == "" || strings.EqualFold(vars["OTEL_SDK_DISABLED"], "true") || vars["OTEL_TRACES_EXPORTER"] == "none" {
		return nil, nil //nolint:nilnil // nil is a process without traces
	}
	if e := vars["OTEL_TRACES_EXPORTER"]; e != "" && e != "otlp" {
		return nil, errors.New("OTEL_TRACES_EXPORTER: want otlp or none")
	}
	client, err := newOTLPClient(vars)
	if err != nil {
		return nil, err
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn(notAsAsked, "error", err.Error()) }))
	exporter, err := otlptrace.New(ctx, client)
	if err != nil {
		return nil, fmt.Errorf("making the exporter of traces: %w", err)
	}
	service := []attribute.KeyValue{semconv.ServiceName("cats-" + name)}
	if version.Version != "" {
		service = append(service, semconv.ServiceVersion(version.Version))
	}
	about, err := resource.New(ctx, resource.WithAttributes(service...), resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil { // what could be read of it is there
		otel.Handle(err)
	}
	t := &Traces{provider: sdktrace.NewTracerProvider(sdktrace.WithResource(about), sdktrace.WithBatcher(discreet{exporter}))}
	t.tracer = t.provider.Tracer(scope)
	lost := rate.Sometimes{First: 1, Interval: exportWarns}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		lost.Do(func() { log.Warn("traces are lost", "error", fmt.Sprintf("%.500s", err)) }) // a collector's whole answer is in it
	}))
	log.Info("traces are sent", "endpoint", redacted(client.url))
	return t, nil
}

const notAsAsked = "traces are not set up as asked"

// redacted is a URL without what may be a secret in it.
func redacted(endpoint string) string {
	u, _ := url.Parse(endpoint)
	return u.Scheme + "://" + u.Host
}

// Provider is for libraries that make spans of their own.
func (t *Traces) Provider() trace.TracerProvider { return t.provider }

// close sends the spans that are left, and makes no more. It takes no longer than limit.
func (t *Traces) close(limit time.Duration) {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		otel.Handle(err)
	}
}

// begin starts the span of a request to route, and returns the context that it is in.
// Where strangers send requests, theirs is a trace of its own, with a link to the one
// that they name: or they would decide what is sampled, and under which id.
func (t *Traces) begin(ctx context.Context, rec *record, route, method string, strangers bool, at time.Time) context.Context {
	name, attributes := "HTTP", []attribute.KeyValue{semconv.HTTPRequestMethodOther}
	if label := methodLabel(method); label == method {
		name, attributes[0] = method, semconv.HTTPRequestMethodKey.String(method)
	}
	if route != otherRoute {
		name += " " + route
		attributes = append(attributes, semconv.HTTPRoute(route))
	}
	options := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(attributes...), trace.WithTimestamp(at)}
	if rec.traceParent != "" {
		remote := propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": rec.traceParent})
		if strangers {
			options = append(options, trace.WithLinks(trace.LinkFromContext(remote)))
		} else {
			ctx = remote
		}
	}
	ctx, rec.span = t.tracer.Start(ctx, name, options...)
	own := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, own)
	rec.traceParent = own["traceparent"]
	return ctx
}

// end ends the span of a request, if it has one.
func (rec *record) end(a *answer, received int64, at time.Time) {
	if rec.span == nil {
		return
	}
	rec.span.SetAttributes(semconv.HTTPRequestBodySize(int(received)), semconv.HTTPResponseBodySize(int(a.n)))
	if a.status > 0 {
		rec.span.SetAttributes(semconv.HTTPResponseStatusCode(a.status))
	}
	if rec.err != nil {
		rec.span.SetAttributes(semconv.ErrorTypeKey.String(signerapi.AsError(rec.err).Code))
	}
	if a.status == 0 || a.status >= http.StatusInternalServerError { // what a client did wrong is no error of ours
		rec.span.SetStatus(codes.Error, "")
	}
	rec.span.End(trace.WithTimestamp(at))
}

// Transport returns next with each call as a span of the trace that its context is in,
// which the other side is told. Calls outside of one are only passed on. The paths
// must come from a closed set, as they are in the spans.
func (t *Traces) Transport(next http.RoundTripper) http.RoundTripper {
	return tracedCalls{next, t.tracer}
}

type tracedCalls struct {
	next   http.RoundTripper
	tracer trace.Tracer
}

// RoundTrip implements [http.RoundTripper]. It adds to the header of req.
func (c tracedCalls) RoundTrip(req *http.Request) (*http.Response, error) {
	if !trace.SpanContextFromContext(req.Context()).IsValid() {
		return c.next.RoundTrip(req)
	}
	port, _ := strconv.Atoi(req.URL.Port())
	ctx, span := c.tracer.Start(req.Context(), req.Method+" "+req.URL.Path, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(
		semconv.HTTPRequestMethodKey.String(req.Method), semconv.URLTemplate(req.URL.Path),
		semconv.ServerAddress(req.URL.Hostname()), semconv.ServerPort(port)))
	defer span.End()
	propagation.TraceContext{}.Inject(ctx, propagation.HeaderCarrier(req.Header))
	resp, err := c.next.RoundTrip(req.WithContext(ctx))
	switch {
	case err != nil:
		span.SetStatus(codes.Error, "")
		span.SetAttributes(semconv.ErrorTypeKey.String("no_answer"))
	default:
		span.SetAttributes(semconv.HTTPResponseStatusCode(resp.StatusCode))
		if resp.StatusCode >= http.StatusBadRequest {
			span.SetStatus(codes.Error, "")
		}
	}
	return resp, err
}

// Observe has h count seconds, with the trace that ctx is in as the example of it
// where that trace is recorded.
func Observe(ctx context.Context, h prometheus.Observer, seconds float64) {
	if span := trace.SpanContextFromContext(ctx); span.IsSampled() {
		if e, ok := h.(prometheus.ExemplarObserver); ok {
			e.ObserveWithExemplar(seconds, prometheus.Labels{"trace_id": span.TraceID().String()})
			return
		}
	}
	h.Observe(seconds)
}

// discreet exports what may be known of spans: no attribute but those of
// spanAttributes, no event, and that something went wrong but not the text of it, in
// which libraries tell whole requests.
type discreet struct{ sdktrace.SpanExporter }

// ExportSpans implements [sdktrace.SpanExporter].
func (d discreet) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	said := make([]sdktrace.ReadOnlySpan, len(spans))
	for i, s := range spans {
		said[i] = discreetSpan{s}
	}
	return d.SpanExporter.ExportSpans(ctx, said)
}

type discreetSpan struct{ sdktrace.ReadOnlySpan }

func (s discreetSpan) Attributes() []attribute.KeyValue {
	var said []attribute.KeyValue
	for _, a := range s.ReadOnlySpan.Attributes() {
		if spanAttributes[a.Key] {
			said = append(said, a)
		}
	}
	return said
}

func (s discreetSpan) Events() []sdktrace.Event { return nil }

func (s discreetSpan) Status() sdktrace.Status {
	return sdktrace.Status{Code: s.ReadOnlySpan.Status().Code}
}
