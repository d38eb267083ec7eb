package httpserver

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"cats.example/shared/ratelimit"
)

func TestPanicsAre500(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, relaxed, handlers{
			"/panic": func(http.ResponseWriter, *http.Request) { panic("oops") },
			"/half": func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, strings.Repeat("half", 10_000)) // sent in chunks
				panic("oops")
			},
			"/fine": func(http.ResponseWriter, *http.Request) {},
		})
		for _, c := range []struct {
			path   string
			status int // 0 for a response that is cut off
		}{{"/panic", 500}, {"/half", 0}, {"/fine", 200}} {
			if resp := r.dial(t).send(get(c.path, "")).response(); resp.status != c.status || strings.Contains(resp.body, "oops") {
				t.Errorf("%s: %d %q; want %d", c.path, resp.status, resp.body, c.status)
			}
		}
		if lines := r.lines(t, "panic"); len(lines) != 2 || lines[0]["panic"] != "oops" {
			t.Errorf("the log has %v", lines)
		}
		if n := testutil.ToFloat64(r.middleware.panics); n != 2 {
			t.Errorf("%v panics are counted; want 2", n)
		}
	})
}

func TestRequestsAreLoggedWithTheirID(t *testing.T) {
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	synctest.Test(t, func(t *testing.T) {
		var seen string
		propagated := http.Header{}
		r := start(t, relaxed, handlers{"/{x}": func(_ http.ResponseWriter, r *http.Request) {
			seen = RequestID(r.Context())
			Propagate(r.Context(), propagated)
			SetError(r.Context(), errors.New("why"))
			time.Sleep(time.Second)
		}})
		for i, sent := range []string{"abc-1", "bad id", strings.Repeat("x", 129), ""} {
			resp := r.dial(t).send(get("/p?sig=secret", "X-Request-Id: "+sent+"\r\nTraceparent: "+trace+"\r\n")).response()
			id := resp.header.Get("X-Request-Id")
			if id == "" || id != seen || (id == sent) != (i == 0) {
				t.Errorf("sent %q: the response has %q, the handler saw %q", sent, id, seen)
			}
			want := map[string]any{
				"request_id": id, "http.route": "/{x}", "http.request.method": "GET",
				"http.response.status_code": 200.0, "http.request.body.size": 0.0, "http.response.body.size": 0.0, "http.server.request.duration": 1.0,
				"network.peer.address": "127.0.0.1:1", "error": "why", "service.name": "test", "level": "INFO", "msg": "request",
				"trace_id": trace[3:35], "span_id": trace[36:52],
			}
			line := r.lines(t, "request")[i]
			delete(line, "time")
			if diff := cmp.Diff(want, line); diff != "" {
				t.Errorf("log line (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(http.Header{"X-Request-Id": {id}, "Traceparent": {trace}}, propagated); diff != "" {
				t.Errorf("propagated (-want +got):\n%s", diff)
			}
		}
	})
}

func TestBodiesMayBeSlowButNotStalled(t *testing.T) {
	settings := relaxed
	settings.StallTimeout, settings.MinUploadRate = time.Second, 1000
	const sized, chunk = "Content-Length: 3000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\nbb8\r\n"
	for name, c := range map[string]struct {
		header              string
		pieces, bytes, want int
		change              func(*Server, *MiddlewareOptions)
	}{
		"slow, of known size":     {sized, 10, 300, 200, traced(true)},
		"slow, in one chunk":      {chunk, 10, 300, 200, traced(false)},
		"too slow, of known size": {sized, 30, 100, 408, traced(true)},
		"too slow, in one chunk":  {chunk, 30, 100, 408, func(*Server, *MiddlewareOptions) {}},
		"stalled":                 {chunk, 1, 300, 408, traced(false)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := start(t, settings, handlers{"/": func(w http.ResponseWriter, r *http.Request) {
					_, err := io.Copy(io.Discard, r.Body)
					if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
						w.WriteHeader(http.StatusRequestTimeout)
					} else if err != nil {
						w.WriteHeader(http.StatusBadRequest)
					}
				}}, c.change)
				d := r.dial(t).send("POST / HTTP/1.1\r\nHost: x\r\n" + c.header)
				for range c.pieces {
					time.Sleep(200 * time.Millisecond) // less than the timeout each, and more in total
					d.send(strings.Repeat("x", c.bytes))
				}
				if c.want == http.StatusOK {
					d.send("\r\n0\r\n\r\n")
				}
				if s := d.status(); s != c.want {
					t.Errorf("the status is %d; want %d", s, c.want)
				}
			})
		})
	}
}

// While more than half of the slots for uploads are taken, a body must bring 16 KiB/s.
func TestBusyPoolRaisesTheMinimumRate(t *testing.T) {
	uploads := ratelimit.NewPools("busy", 0, prometheus.NewRegistry()).New("uploads", 2)
	settings := Settings{StallTimeout: 30 * time.Second, MinUploadRate: 2 << 10}
	m := &Middleware{options: MiddlewareOptions{Settings: settings, Uploads: uploads}}
	for taken, want := range []int64{2 << 10, 2 << 10, 16 << 10} {
		if got := m.windowBytes(); got != 30*want {
			t.Errorf("with %d of 2 slots taken: %d bytes in 30 s; want %d", taken, got, 30*want)
		}
		_, _ = uploads.Take("")
	}
}

// Many clients read the response only after they have sent the whole body.
func TestRejectionsReachClientsThatSendTheWholeBody(t *testing.T) {
	for name, c := range map[string]struct {
		expect string
		takes  time.Duration
		size   int
	}{
		"at once":                               {size: 1 << 20}, // more than net/http would read
		"while a client waits for 100 Continue": {expect: "Expect: 100-continue\r\n", size: 100},
		"after it has stopped waiting":          {expect: "Expect: 100-continue\r\n", takes: continueTimeout, size: 1 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := start(t, relaxed, handlers{"/": func(w http.ResponseWriter, r *http.Request) {
					if c.expect == "" {
						_, _ = io.CopyN(io.Discard, r.Body, 10)
					}
					time.Sleep(c.takes)
					http.Error(w, "no", http.StatusTeapot)
				}})
				d, began := r.dial(t), time.Now()
				var received strings.Builder
				ended := make(chan struct{})
				go func() { defer close(ended); _, _ = io.Copy(&received, d.conn) }() // the kernel would buffer the response
				_, err := fmt.Fprintf(d.conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n", c.size, c.expect)
				if c.expect == "" || c.takes > 0 {
					_, err = io.WriteString(d.conn, strings.Repeat("x", c.size))
				}
				<-ended
				got := received.String()
				if err != nil || !strings.HasPrefix(got, "HTTP/1.1 418 ") || !strings.Contains(got, "Connection: close\r\n") || !strings.Contains(got, "no\n") {
					t.Errorf("sending returned %v; received %q", err, got)
				}
				if took := time.Since(began); took >= drainTimeout {
					t.Errorf("the connection was closed after %v", took)
				}
			})
		})
	}
}

func TestRejectionsReachClientsThatStopSending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, relaxed, handlers{"/": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "0") // else the response ends with the connection
			w.WriteHeader(http.StatusTeapot)
		}})
		d, began := r.dial(t).send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx"), time.Now()
		if resp := d.response(); resp.status != http.StatusTeapot || !resp.closes || time.Since(began) > 0 {
			t.Errorf("the response is %d after %v and closes the connection: %t", resp.status, time.Since(began), resp.closes)
		}
	})
}

// An expired read deadline would look like a client that has left, and cancel the request.
func TestHandlersMayTakeLongerThanStallTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, relaxed, handlers{"/": func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			select {
			case <-r.Context().Done():
				w.WriteHeader(http.StatusTeapot)
			case <-time.After(10 * relaxed.StallTimeout):
			}
		}})
		d := r.dial(t).send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody")
		time.Sleep(10 * relaxed.StallTimeout)
		if s := d.status(); s != 200 {
			t.Errorf("the status is %d; want 200", s)
		}
	})
}
