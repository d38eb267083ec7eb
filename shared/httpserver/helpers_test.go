package httpserver

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cats.example/shared/apierror"
	"cats.example/shared/ratelimit"
	"cats.example/shared/telemetry"
)

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

func (l *pipeListener) Addr() net.Addr { return clientAddress }

var clientAddress = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}

type pipeConn struct{ net.Conn }

func (pipeConn) RemoteAddr() net.Addr { return clientAddress }

// running is a server in a synctest bubble.
type running struct {
	work        *pipeListener
	connections *ratelimit.Pool
	middleware  *Middleware
	log         bytes.Buffer // read it with lines
	stop        context.CancelFunc
	done        chan error // the result of Run
}

var relaxed = Settings{StallTimeout: time.Minute, MinUploadRate: 1, MaxUploads: 16, DrainTimeout: 5 * time.Second}

type handlers map[string]http.HandlerFunc

// start runs a server until the test ends. Its routes are those of handlers. change may change it.
func start(t *testing.T, settings Settings, handlers handlers, change ...func(*Server, *MiddlewareOptions)) *running {
	t.Helper()
	r := &running{work: newPipeListener(), done: make(chan error, 1)}
	log, reg := telemetry.NewLogger(&r.log, slog.LevelDebug, "test"), telemetry.NewRegistry("test")
	pools := ratelimit.NewPools("test", settings.ClientShare, reg)
	r.connections = pools.New("connections", 8*settings.MaxUploads)
	mux := http.NewServeMux()
	s := Server{Settings: settings, Log: log, Registry: reg, Name: "work", Handler: mux, Connections: r.connections}
	options := MiddlewareOptions{
		Name: "test", Settings: settings, Log: log, Registry: reg, Uploads: pools.New("uploads", settings.MaxUploads),
		WriteError: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, "sorry", apierror.AsError(err).Status)
		},
	}
	for _, c := range change {
		c(&s, &options)
	}
	r.middleware = NewMiddleware(options)
	for path, h := range handlers {
		mux.Handle(path, r.middleware.Route(path, h))
	}
	var ctx context.Context
	ctx, r.stop = context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.done <- s.serve(ctx, r.work, newPipeListener())
	}()
	t.Cleanup(func() { r.stop(); <-ended })
	return r
}

// lines returns the log lines with the message msg after all goroutines are blocked.
func (r *running) lines(t *testing.T, msg string) (found []map[string]any) {
	t.Helper()
	synctest.Wait()
	for line := range strings.Lines(r.log.String()) {
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

// get returns the header and the body of a GET request. header is whole lines.
func get(path, header string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: x\r\n" + header + "\r\n"
}

// client is a client's connection.
type client struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
	out  chan string // to be sent in the background: the server may stop reading
}

func (r *running) dial(t *testing.T) *client {
	t.Helper()
	conn, server := net.Pipe()
	r.work.queue <- pipeConn{server}
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

type response struct {
	status int // 0 if the connection was closed before the end of the body
	header http.Header
	body   string
	closes bool // whether the connection is closed after it
}

// response returns the next response.
func (c *client) response() response {
	c.t.Helper()
	_ = c.conn.SetReadDeadline(time.Now().Add(2 * headerTimeout))
	defer func() { _ = c.conn.SetReadDeadline(time.Time{}) }()
	var body []byte
	resp, err := http.ReadResponse(c.in, nil)
	if err == nil {
		body, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	if err == nil {
		return response{resp.StatusCode, resp.Header, string(body), resp.Close}
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		c.t.Error("neither a response nor the end of the connection")
	}
	return response{closes: true}
}

func (c *client) status() int { c.t.Helper(); return c.response().status }
