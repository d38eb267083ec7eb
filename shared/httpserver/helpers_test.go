package httpserver

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"cats.example/shared/apierror"
	"cats.example/shared/ratelimit"
	"cats.example/shared/telemetry"
)

// logLines returns the log lines with the message msg.
func logLines(t *testing.T, log *bytes.Buffer, msg string) (found []map[string]any) {
	t.Helper()
	for line := range strings.Lines(log.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("not a line of JSON: %q", line)
		}
		if m["msg"] == msg {
			found = append(found, m)
		}
	}
	return found
}

// pipeListener is a listener in a synctest bubble. Its connections are pipes.
type pipeListener struct {
	queue  chan net.Conn
	closed chan struct{}
	close  func()
}

func newPipeListener() *pipeListener {
	l := &pipeListener{queue: make(chan net.Conn, 100), closed: make(chan struct{})}
	l.close = sync.OnceFunc(func() { close(l.closed) })
	return l
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error { l.close(); return nil }

func (l *pipeListener) Addr() net.Addr { return pipeAddr("127.0.0.1") }

// dial opens a connection from a client with this address.
func (l *pipeListener) dial(address string) (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, errors.New("connection refused")
	default:
	}
	client, server := net.Pipe()
	l.queue <- pipeConn{server, pipeAddr(address)}
	return client, nil
}

func pipeAddr(ip string) net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), 1))
}

type pipeConn struct {
	net.Conn
	remote net.Addr
}

func (c pipeConn) RemoteAddr() net.Addr { return c.remote }

// running is a server in a synctest bubble.
type running struct {
	work, ops *pipeListener
	log       bytes.Buffer // read it with lines
	reg       *prometheus.Registry
	stop      context.CancelFunc
	done      chan error // the result of Run
}

// testProxies are the trusted proxies of all servers.
var testProxies = []netip.Prefix{netip.MustParsePrefix("127.0.1.0/24")}

var relaxed = Settings{StallTimeout: time.Minute, MinUploadRate: 1, MaxUploads: 16, DrainTimeout: 5 * time.Second}

type handlers map[string]http.HandlerFunc

// start runs a server until the test ends. Its routes are those of handlers. change may change it.
func start(t *testing.T, settings Settings, handlers handlers, change ...func(*Server)) *running {
	t.Helper()
	r := &running{work: newPipeListener(), ops: newPipeListener(), reg: telemetry.NewRegistry("test"), done: make(chan error, 1)}
	log := telemetry.NewLogger(&r.log, slog.LevelDebug, "test")
	pools := ratelimit.NewPools("test", settings.ClientShare, r.reg)
	m := NewMiddleware(MiddlewareOptions{
		Name: "test", Settings: settings, Log: log, Registry: r.reg, Uploads: pools.New("uploads", settings.MaxUploads),
		WriteError: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, "sorry", apierror.AsError(err).Status)
		},
	})
	mux := http.NewServeMux()
	for path, h := range handlers {
		mux.Handle(path, m.Route(path, h))
	}
	s := Server{
		Settings: settings, Log: log, Registry: r.reg, Name: "work", Handler: mux, Ready: func(context.Context) error { return nil },
		Connections: pools.New("connections", 8*settings.MaxUploads), TrustedProxies: testProxies,
	}
	for _, c := range change {
		c(&s)
	}
	var ctx context.Context
	ctx, r.stop = context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.done <- s.serve(ctx, r.work, r.ops)
	}()
	t.Cleanup(func() { r.stop(); <-ended })
	return r
}

// lines returns the log lines with the message msg after all goroutines are blocked.
func (r *running) lines(t *testing.T, msg string) []map[string]any {
	t.Helper()
	synctest.Wait()
	return logLines(t, &r.log, msg)
}

// response is a response that was read.
type response struct {
	status int
	header http.Header
	body   string
}

// get sends a GET request for http://work/… or http://ops/….
func (r *running) get(t *testing.T, url string, header ...string) (response, error) {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
		if strings.HasPrefix(address, "ops") {
			return r.ops.dial("127.0.0.1")
		}
		return r.work.dial("127.0.0.1")
	}}
	req, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return response{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return response{resp.StatusCode, resp.Header, string(b)}, err
}

// mustGet is get for a request that must succeed. It returns the status and the body.
func (r *running) mustGet(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := r.get(t, url)
	if err != nil {
		t.Fatalf("%s: %v", url, err)
	}
	return resp.status, resp.body
}

// metric returns the value of a metric, given by its name with its labels.
func (r *running) metric(t *testing.T, name string) (value float64) {
	t.Helper()
	_, metrics := r.mustGet(t, "http://ops/metrics")
	for line := range strings.Lines(metrics) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			if _, err := fmt.Sscan(rest, &value); err != nil {
				t.Fatal(err)
			}
		}
	}
	return value
}

// client is a client's connection to the work listener.
type client struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
	out  chan string // to be sent in the background: the server may stop reading
}

func (r *running) dial(t *testing.T) *client { t.Helper(); return r.dialFrom(t, "127.0.0.1") }

func (r *running) dialFrom(t *testing.T, address string) *client {
	t.Helper()
	conn, err := r.work.dial(address)
	if err != nil {
		t.Fatal(err)
	}
	c := &client{t, conn, bufio.NewReader(conn), make(chan string, 100)}
	go func() {
		for s := range c.out {
			_, _ = io.WriteString(conn, s) // the server may close the connection
		}
	}()
	t.Cleanup(func() { close(c.out); _ = conn.Close() })
	return c
}

// send sends s in the background.
func (c *client) send(s string) *client {
	c.out <- s
	synctest.Wait()
	return c
}

// response returns the status of the next response, which has no body, and whether it closes the connection. The status is 0 if
// the connection was closed instead.
func (c *client) response() (status int, closes bool) {
	c.t.Helper()
	_ = c.conn.SetReadDeadline(time.Now().Add(2 * headerTimeout))
	defer func() { _ = c.conn.SetReadDeadline(time.Time{}) }()
	//lint:ignore bodyclose there is no body
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
			c.t.Error("neither a response nor the end of the connection")
		}
		return 0, true
	}
	return resp.StatusCode, resp.Close
}

func (c *client) status() int { c.t.Helper(); status, _ := c.response(); return status }
