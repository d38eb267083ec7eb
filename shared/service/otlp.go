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
	"unicode"

	"github.com/prometheus/common/version"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protowire"
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
		if name = strings.TrimSpace(name); !ok || err != nil || name == "" || strings.ContainsFunc(name, notOfAToken) || strings.ContainsFunc(value, unicode.IsControl) {
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

// notOfAToken reports whether r cannot be in the name of a header (RFC 9110, 5.6.2).
func notOfAToken(r rune) bool {
	return r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
}

// Start and Stop implement the client of otlptrace.
func (c *otlpClient) Start(context.Context) error { return nil }

// Stop closes the connections.
func (c *otlpClient) Stop(context.Context) error {
	c.http.CloseIdleConnections()
	return nil
}

// UploadTraces sends spans, again while the collector asks for that and time is left. A
// connection that breaks is not tried again: those spans are lost.
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
		if end, _ := ctx.Deadline(); wait == 0 || time.Until(end) < wait {
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
	answer, err := io.ReadAll(io.LimitReader(resp.Body, otlpAnswer)) // so that the connection is used again, too
	switch {
	case resp.StatusCode/100 == 2 && err != nil:
		return 0, fmt.Errorf("reading the collector's answer: %w", err)
	case resp.StatusCode/100 == 2:
		return 0, rejected(answer)
	}
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		wait = otlpWait
		if s, err := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 31); err == nil && s > 0 {
			wait = time.Duration(s) * time.Second
		}
	}
	return wait, fmt.Errorf("the collector answered %s", resp.Status)
}

// rejected is an error where an ExportTraceServiceResponse says that spans were not
// taken (partial_success). The package that has its generated type links gRPC.
func rejected(answer []byte) error {
	var spans uint64
	var why []byte
	fields(answer, func(number protowire.Number, _ uint64, partial []byte) {
		if number != 1 {
			return
		}
		fields(partial, func(number protowire.Number, n uint64, text []byte) {
			switch number {
			case 1:
				spans = n
			case 2:
				why = text
			}
		})
	})
	if spans == 0 {
		return nil
	}
	return fmt.Errorf("the collector did not take %d spans: %s", spans, why)
}

// fields tells of each field of a message that is a number or bytes, as far as it is one.
func fields(message []byte, of func(number protowire.Number, n uint64, content []byte)) {
	for len(message) > 0 {
		number, kind, size := protowire.ConsumeTag(message)
		if size < 0 {
			return
		}
		message = message[size:]
		var n uint64
		var content []byte
		switch kind {
		case protowire.VarintType:
			n, size = protowire.ConsumeVarint(message)
		case protowire.BytesType:
			content, size = protowire.ConsumeBytes(message)
		default:
			size = protowire.ConsumeFieldValue(number, kind, message)
		}
		if size < 0 {
			return
		}
		of(number, n, content)
		message = message[size:]
	}
}
