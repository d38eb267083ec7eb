package service

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/common/version"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

const (
	otlpTimeout = 10 * time.Second // for one export, its retries included, unless OTEL_EXPORTER_OTLP_TIMEOUT says otherwise
	otlpWait    = time.Second      // before a retry that the collector does not ask to wait for
	otlpAnswer  = 64 << 10         // that is read of a collector's answer, in bytes
)

// otlpClient sends spans to a collector by OTLP over HTTP, as binary protobuf. The
// exporter of OpenTelemetry for that (otlptracehttp 1.47) brings all of gRPC into the
// process, a server's gateway to it among that, and six MiB of memory for the two.
type otlpClient struct {
	url     string
	header  http.Header
	timeout time.Duration
	http    *http.Client
}

// newOTLPClient reads the variables of the OTLP exporter, the ones for traces before
// those for all signals. Its errors hold no value, which may be the key to a collector.
func newOTLPClient(vars map[string]string) (*otlpClient, error) {
	get := func(name string) string {
		if v := vars["OTEL_EXPORTER_OTLP_TRACES_"+name]; v != "" {
			return v
		}
		return vars["OTEL_EXPORTER_OTLP_"+name]
	}
	bad := func(name, want string) error { return fmt.Errorf("OTEL_EXPORTER_OTLP_%s: %s", name, want) }
	u, err := url.Parse(get("ENDPOINT"))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, bad("ENDPOINT", "want a URL such as http://COLLECTOR:4318")
	}
	if vars["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] == "" { // which is taken as it is
		u = u.JoinPath("v1", "traces")
	}
	c := &otlpClient{url: u.String(), timeout: otlpTimeout, header: http.Header{
		"Content-Type": {"application/x-protobuf"}, "User-Agent": {"cats-api/" + version.Version},
	}}
	if p := get("PROTOCOL"); p != "" && p != "http/protobuf" {
		return nil, bad("PROTOCOL", "only http/protobuf is possible, which collectors speak at port 4318")
	}
	switch get("COMPRESSION") {
	case "", "none":
	case "gzip":
		c.header.Set("Content-Encoding", "gzip")
	default:
		return nil, bad("COMPRESSION", "want gzip or none")
	}
	if s := get("TIMEOUT"); s != "" {
		ms, err := strconv.ParseUint(s, 10, 31)
		if err != nil || ms == 0 {
			return nil, bad("TIMEOUT", "want milliseconds")
		}
		c.timeout = time.Duration(ms) * time.Millisecond
	}
	for pair := range strings.SplitSeq(get("HEADERS"), ",") {
		if strings.TrimSpace(pair) == "" {
			continue
		}
		name, value, ok := strings.Cut(pair, "=")
		value, err := url.PathUnescape(strings.TrimSpace(value))
		if name = strings.TrimSpace(name); !ok || err != nil || name == "" || strings.ContainsAny(name+value, "\r\n") {
			return nil, bad("HEADERS", "want NAME=VALUE, percent-encoded, with commas between several")
		}
		c.header.Set(name, value)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // net/http's own
	if file := get("CERTIFICATE"); file != "" {
		roots := x509.NewCertPool()
		if text, err := os.ReadFile(file); err != nil || !roots.AppendCertsFromPEM(text) { //nolint:gosec // of the settings
			return nil, bad("CERTIFICATE", "want a file of PEM certificates")
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	if get("CLIENT_CERTIFICATE")+get("CLIENT_KEY") != "" {
		return nil, bad("CLIENT_CERTIFICATE", "a certificate of the client's own is not possible; a header is")
	}
	c.http = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return c, nil
}

// Start and Stop implement the client of otlptrace.
func (c *otlpClient) Start(context.Context) error { return nil }

// Stop closes the connections.
func (c *otlpClient) Stop(context.Context) error {
	c.http.CloseIdleConnections()
	return nil
}

// UploadTraces sends spans, again while the collector asks for that and time is left.
func (c *otlpClient) UploadTraces(ctx context.Context, spans []*tracepb.ResourceSpans) error {
	body, err := proto.Marshal(&tracepb.TracesData{ResourceSpans: spans}) // on the wire, it is the request
	if err != nil {
		return fmt.Errorf("writing spans: %w", err)
	}
	if c.header.Get("Content-Encoding") != "" {
		var packed bytes.Buffer
		w := gzip.NewWriter(&packed)
		_, _ = w.Write(body) // to memory
		_ = w.Close()
		body = packed.Bytes()
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	for {
		wait, err := c.send(ctx, body)
		if wait == 0 {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return err
		}
	}
}

// send sends spans once, and returns how long to wait before it is tried again, 0 for
// not at all.
func (c *otlpClient) send(ctx context.Context, body []byte) (wait time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return 0, errors.New("the collector's address makes no sense")
	}
	req.Header = c.header
	resp, err := c.http.Do(req)
	if err != nil {
		if outer, ok := errors.AsType[*url.Error](err); ok {
			err = outer.Err // without the URL, which may hold a password
		}
		return 0, fmt.Errorf("the collector does not answer: %w", err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, otlpAnswer)) // so that the connection is used again
	switch resp.StatusCode {
	case http.StatusOK:
		return 0, nil
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		wait = otlpWait
		if s, err := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 16); err == nil && s > 0 {
			wait = time.Duration(s) * time.Second
		}
	}
	return wait, fmt.Errorf("the collector answered %s", resp.Status)
}
