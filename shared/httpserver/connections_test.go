package httpserver

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// dialed is a client's connection to a service.
type dialed struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

func (r *running) dial(t *testing.T) *dialed {
	t.Helper()
	return r.dialFrom(t, "127.0.0.1")
}

// dialFrom dials as a client that has that address of the loopback interface.
func (r *running) dialFrom(t *testing.T, address string) *dialed {
	t.Helper()
	conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}).DialContext(t.Context(), "tcp", strings.TrimPrefix(r.work, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &dialed{t, conn, bufio.NewReader(conn)}
}

func (d *dialed) send(s string) {
	d.t.Helper()
	if _, err := io.WriteString(d.conn, s); err != nil {
		d.t.Fatal(err)
	}
}

// status of the next answer, which has no body to be read; 0 when the connection is closed instead.
func (d *dialed) status() int {
	d.t.Helper()
	status, _ := d.answer()
	return status
}

// answer is like status, and reports whether the answer ends the connection.
func (d *dialed) answer() (status int, last bool) {
	d.t.Helper()
	_ = d.conn.SetReadDeadline(time.Now().Add(2 * headerTimeout))
	resp, err := http.ReadResponse(d.in, nil) //nolint:bodyclose // it closes nothing
	if err != nil {
		if ne, ok := err.(net.Error); ok && ne.Timeout() { //nolint:errorlint // as it came
			d.t.Fatal("neither an answer nor an end")
		}
		return 0, true
	}
	return resp.StatusCode, resp.Close
}

func TestManyConnectionsEndWithTheirResponse(t *testing.T) {
	settings := relaxed
	settings.MaxUploads = 2
	r := start(t, settings, alwaysReady, nil, map[string]http.HandlerFunc{"/quick": func(http.ResponseWriter, *http.Request) {}})
	for n := 1; n <= keptConnections*settings.MaxUploads+1; n++ {
		d := r.dial(t)
		d.send("GET /quick HTTP/1.1\r\nHost: x\r\n\r\n")
		if status, last := d.answer(); status != 200 || last != (n > keptConnections*settings.MaxUploads) {
			t.Errorf("connection %d: %d, ends: %t", n, status, last)
		}
	}
}

func TestConnectionsBeyondTheTotalWait(t *testing.T) {
	settings := relaxed
	settings.MaxUploads = 1 // eight connections
	r := start(t, settings, alwaysReady, nil, map[string]http.HandlerFunc{"/quick": func(http.ResponseWriter, *http.Request) {}})
	const begun, rest = "GET /quick HTT", "P/1.1\r\nHost: x\r\n\r\n"
	var open []*dialed
	for range 8 * settings.MaxUploads {
		d := r.dial(t)
		d.send(begun)
		open = append(open, d)
	}
	eventually(t, "all connections", func() bool {
		return int(number(t, r, `cats_test_pool_slots_taken{pool="connections"}`)) == 8*settings.MaxUploads
	})
	waiting := r.dial(t)
	waiting.send(begun + rest)
	answered := make(chan int, 1)
	go func() { answered <- waiting.status() }()
	if n := number(t, r, `cats_test_pool_slots_taken{pool="connections"}`); int(n) != 8*settings.MaxUploads || len(answered) > 0 {
		t.Errorf("%v connections are open", n)
	}
	open[0].send(rest)
	if s := open[0].status(); s != 200 {
		t.Errorf("a connection that was accepted: %d", s)
	}
	if s := <-answered; s != 200 { // responses of a busy server close their connections
		t.Errorf("the connection that waited: %d", s)
	}
}

func TestConnectionsBeyondAShareAreClosed(t *testing.T) {
	settings := relaxed
	settings.MaxUploads, settings.ClientShare = 8, 0.0625 // 64 connections, 4 from one address
	r := start(t, settings, alwaysReady, nil, map[string]http.HandlerFunc{"/quick": func(http.ResponseWriter, *http.Request) {}})
	const quick = "GET /quick HTTP/1.1\r\nHost: x\r\n\r\n"
	var open []*dialed
	for _, c := range []struct {
		address string
		status  int // 0 for a connection that is closed
	}{
		{"127.0.0.2", 200},
		{"127.0.0.2", 200},
		{"127.0.0.2", 200},
		{"127.0.0.2", 200},
		{"127.0.0.2", 0},
		{"127.0.0.3", 200},
		{"127.0.1.1", 200}, // a trusted proxy has no share
		{"127.0.1.1", 200},
		{"127.0.1.1", 200},
		{"127.0.1.1", 200},
		{"127.0.1.1", 200},
		{"127.0.0.2", 0},
	} {
		d := r.dialFrom(t, c.address)
		_, _ = io.WriteString(d.conn, quick) // it can be closed already
		if s := d.status(); s != c.status {
			t.Errorf("connection %d, from %s: %d; want %d", len(open), c.address, s, c.status)
		}
		open = append(open, d)
	}
	if n := number(t, r, `cats_test_pool_rejected_total{limit="client",pool="connections"}`); n != 2 {
		t.Errorf("%v connections were counted as rejected; want 2", n)
	}
	_ = open[0].conn.Close()
	eventually(t, "a slot", func() bool { return number(t, r, `cats_test_pool_slots_taken{pool="connections"}`) == 9 })
	d := r.dialFrom(t, "127.0.0.2")
	d.send(quick)
	if s := d.status(); s != 200 {
		t.Errorf("after one was closed: %d", s)
	}
}

func TestAServiceStopsWhileConnectionsWait(t *testing.T) {
	settings := relaxed
	settings.MaxUploads = 1
	release := make(chan struct{})
	var atWork atomic.Int64
	r := start(t, settings, alwaysReady, nil, map[string]http.HandlerFunc{"/unbounded/long": func(http.ResponseWriter, *http.Request) {
		atWork.Add(1)
		<-release
	}})
	for range 8*settings.MaxUploads + 2 {
		r.dial(t).send("GET /unbounded/long HTTP/1.1\r\nHost: x\r\n\r\n")
	}
	eventually(t, "all accepted ones", func() bool { return int(atWork.Load()) == 8*settings.MaxUploads })
	r.stop()
	eventually(t, "the end of accepting", func() bool {
		c, err := net.DialTimeout("tcp", strings.TrimPrefix(r.work, "http://"), time.Second) //nolint:noctx // it is refused
		if err == nil {
			_ = c.Close() // or the server waits for a request in it
		}
		return err != nil
	})
	close(release)
	if err := r.wait(t); err != nil {
		t.Error(err)
	}
}

// A header that comes byte by byte is never still, and has ten seconds all the same.
func TestAHeaderThatTakesTooLongIsGivenUp(t *testing.T) {
	t.Parallel()
	r := start(t, relaxed, alwaysReady, nil, map[string]http.HandlerFunc{"/quick": func(http.ResponseWriter, *http.Request) {}})
	d := r.dial(t)
	began := time.Now()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = d.status() // it is never whole, and so has none
	}()
	d.send("GET /quick HTTP/1.1\r\nX: ")
	for again := time.NewTicker(100 * time.Millisecond); ; {
		select {
		case <-again.C:
			_, _ = io.WriteString(d.conn, "x")
			if time.Since(began) < 2*headerTimeout {
				continue
			}
			t.Fatal("it is still waited for")
		case <-ended:
		}
		break
	}
	if took := time.Since(began); took < headerTimeout/2 {
		t.Errorf("it was given up after %v", took)
	}
}

// A client that reads no response loses its connection when the time for the response has passed.
func TestUnreadResponseEndsItsConnection(t *testing.T) {
	t.Parallel()
	wrote := make(chan error, 1)
	r := start(t, relaxed, alwaysReady, nil, map[string]http.HandlerFunc{"/large": func(w http.ResponseWriter, _ *http.Request) {
		_, err := w.Write(make([]byte, 16<<20)) // more than the buffers of both ends hold
		wrote <- err
	}})
	d := r.dial(t)
	d.send("GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
	if err := <-wrote; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("writing the response: %v", err)
	}
}

// deadlines is a response writer that records its last write deadline.
type deadlines struct {
	http.ResponseWriter
	write time.Time
}

func (d *deadlines) SetWriteDeadline(t time.Time) error { d.write = t; return nil }

func TestResponseDeadlineFollowsItsSize(t *testing.T) {
	for size, want := range map[string]time.Duration{"": 10 * time.Second, "0": 10 * time.Second, "16384": 11 * time.Second, "1638400": 110 * time.Second} {
		d := &deadlines{ResponseWriter: httptest.NewRecorder()}
		d.Header().Set("Content-Length", size)
		x := &exchange{ResponseWriter: d, body: &body{control: http.NewResponseController(d)}}
		before := time.Now()
		x.WriteHeader(http.StatusOK)
		if after := time.Now(); d.write.Before(before.Add(want)) || d.write.After(after.Add(want)) {
			t.Errorf("Content-Length %q: %v; want %v", size, d.write.Sub(before), want)
		}
	}
}

// number is the value of a metric, by its name with labels, without "cats_".
func number(t *testing.T, r *running, name string) (value float64) {
	t.Helper()
	_, metrics := get(t, r.ops+"/metrics")
	for line := range strings.Lines(metrics) {
		if rest, ok := strings.CutPrefix(strings.TrimPrefix(line, "cats_"), strings.TrimPrefix(name, "cats_")+" "); ok {
			if _, err := fmt.Sscan(rest, &value); err != nil {
				t.Fatal(err)
			}
		}
	}
	return value
}
