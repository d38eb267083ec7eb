package service

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
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
	_ = d.conn.SetReadDeadline(time.Now().Add(2 * headerTimeout))
	resp, err := http.ReadResponse(d.in, nil) //nolint:bodyclose // it closes nothing
	if err != nil {
		if ne, ok := err.(net.Error); ok && ne.Timeout() { //nolint:errorlint // as it came
			d.t.Fatal("neither an answer nor an end")
		}
		return 0
	}
	return resp.StatusCode
}

func TestConnectionsAtRestMakeRoomTheOldestFirst(t *testing.T) {
	settings := relaxed
	settings.MaxUploads = 1 // four connections
	release := make(chan struct{})
	var atWork atomic.Int64
	r := start(t, settings, alwaysReady, nil, map[string]http.HandlerFunc{
		"/quick": func(http.ResponseWriter, *http.Request) {},
		"/unbounded/long": func(http.ResponseWriter, *http.Request) {
			atWork.Add(1)
			defer atWork.Add(-1)
			<-release
		},
	})
	const quick, long = "GET /quick HTTP/1.1\r\nHost: x\r\n\r\n", "GET /unbounded/long HTTP/1.1\r\nHost: x\r\n\r\n"
	busy, half, idle, late := r.dial(t), r.dial(t), r.dial(t), r.dial(t)
	busy.send(long)
	half.send("GET /quick HT")
	idle.send(quick)
	if s := idle.status(); s != 200 {
		t.Fatalf("the first request: %d", s)
	}
	eventually(t, "one at work and three at rest", func() bool {
		return atWork.Load() == 1 && number(t, r, `cats_connections{listener="work"}`) == 4
	})
	time.Sleep(50 * time.Millisecond) // idle is at rest when its answer is out
	late.send(quick)
	if s := late.status(); s != 200 {
		t.Fatalf("the last of four: %d", s)
	}

	// Those at rest are half, then idle, then late.
	fifth, sixth := r.dial(t), r.dial(t)
	for _, d := range []*dialed{fifth, sixth} {
		d.send(quick)
		if s := d.status(); s != 200 {
			t.Errorf("one that needs room: %d", s)
		}
	}
	if s := half.status(); s != 0 {
		t.Errorf("the one at rest for longest was answered %d", s)
	}
	if s := idle.status(); s != 0 {
		t.Errorf("the next one was answered %d", s)
	}
	late.send(quick)
	if s := late.status(); s != 200 {
		t.Errorf("a younger one had to go: %d", s)
	}
	if n := number(t, r, `cats_connections_evicted_total{listener="work"}`); n != 2 {
		t.Errorf("%v connections had to go; want 2", n)
	}

	// While all are at work, the next waits.
	for _, d := range []*dialed{late, fifth, sixth} {
		d.send(long)
	}
	eventually(t, "all at work", func() bool { return atWork.Load() == 4 })
	waiting := r.dial(t)
	waiting.send(quick)
	answered := make(chan int, 1)
	go func() { answered <- waiting.status() }()
	select {
	case s := <-answered:
		t.Errorf("a fifth connection was answered %d", s)
	case <-time.After(200 * time.Millisecond):
	}
	close(release)
	if s := <-answered; s != 200 {
		t.Errorf("the one that waited: %d", s)
	}
	for _, d := range []*dialed{busy, late, fifth, sixth} {
		if s := d.status(); s != 200 && s != 0 {
			t.Errorf("one at work: %d", s)
		}
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
	for range 6 {
		r.dial(t).send("GET /unbounded/long HTTP/1.1\r\nHost: x\r\n\r\n")
	}
	eventually(t, "all at work", func() bool { return atWork.Load() == 4 })
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

// One that opens connection after connection takes its own places, and not those of
// a client whose request takes longer to come than all places take to be filled.
func TestAFloodFromOneAddressCostsNobodyElseTheirPlace(t *testing.T) {
	t.Parallel()
	settings := relaxed
	settings.MaxUploads = 4 // 16 connections
	r := start(t, settings, alwaysReady, nil, map[string]http.HandlerFunc{"/quick": func(http.ResponseWriter, *http.Request) {}})
	flooding, stop := context.WithCancel(t.Context())
	defer stop()
	var flood sync.WaitGroup
	var opened atomic.Int64
	for range 4 {
		flood.Go(func() {
			dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.2")}}
			for flooding.Err() == nil {
				conn, err := dialer.DialContext(flooding, "tcp", strings.TrimPrefix(r.work, "http://"))
				if err != nil {
					continue // it has run out of ports, or is to stop
				}
				opened.Add(1)
				tcp, _ := conn.(*net.TCPConn)
				_ = tcp.SetLinger(0) // or it has no ports left
				time.AfterFunc(100*time.Millisecond, func() { _ = conn.Close() })
			}
		})
	}
	evicted := func() float64 { return number(t, r, `cats_connections_evicted_total{listener="work"}`) }
	eventually(t, "a flood", func() bool { return evicted() > 200 })
	slow := r.dialFrom(t, "127.0.0.3")
	before := evicted()
	for _, b := range []byte("GET /quick HTTP/1.1\r\nHost: x\r\n\r\n") {
		slow.send(string(b))
		time.Sleep(20 * time.Millisecond)
	}
	if s := slow.status(); s != 200 {
		t.Errorf("a slow client meanwhile: %d", s)
	}
	t.Logf("%d connections opened, %.0f had to go while the slow client sent", opened.Load(), evicted()-before)
	if evicted()-before < 20*16 {
		t.Error("that was no flood")
	}
	stop()
	flood.Wait()
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

// Who holds most gives way, and trusted proxies together only beyond half.
func TestWhoHoldsMostGivesWay(t *testing.T) {
	settings := relaxed
	settings.MaxUploads = 2 // eight connections
	r := start(t, settings, alwaysReady, nil, map[string]http.HandlerFunc{"/quick": func(http.ResponseWriter, *http.Request) {}})
	const quick, one, two = "GET /quick HTTP/1.1\r\nHost: x\r\n\r\n", "127.0.0.2", "127.0.0.3"
	const proxy, other = "127.0.1.1", "127.0.1.2"
	var open []*dialed
	dial := func(addresses ...string) {
		for _, address := range addresses {
			d := r.dialFrom(t, address)
			d.send(quick)
			if s := d.status(); s != 200 {
				t.Fatalf("number %d, from %s: %d", len(open), address, s)
			}
			open = append(open, d)
		}
		time.Sleep(20 * time.Millisecond) // they are at rest when their answers are out
	}
	gone := func(want ...int) {
		t.Helper()
		for _, i := range want {
			if s := open[i].status(); s != 0 {
				t.Errorf("number %d was answered %d", i, s)
			}
		}
		if n := number(t, r, `cats_connections_evicted_total{listener="work"}`); int(n) != len(open)-8 {
			t.Errorf("%v had to go; want %d", n, len(open)-8)
		}
	}
	dial(one, two, two, two, two, two, two, two) // alone, one may have them all, and nearly does
	dial(one)
	gone(1) // and not the oldest
	dial(one, proxy)
	gone(1, 2, 3) // two holds four, one three, the proxies one
	dial(other, proxy, proxy)
	gone(1, 2, 3, 4, 0, 5) // of those that hold as many, the one at rest for longest; the proxies hold four, and that is half
	dial(proxy, other)
	gone(1, 2, 3, 4, 0, 5, 10, 11) // beyond half, their own
	for i, d := range open {
		if slices.Contains([]int{0, 1, 2, 3, 4, 5, 10, 11}, i) {
			continue
		}
		d.send(quick)
		if s := d.status(); s != 200 {
			t.Errorf("number %d had to go: %d", i, s)
		}
	}
}

// A client that asks and asks, and reads no answer, must not stay for it.
func TestOneThatReadsNoAnswerMakesRoom(t *testing.T) {
	settings := relaxed
	settings.MaxUploads = 1
	r := start(t, settings, alwaysReady, nil, map[string]http.HandlerFunc{"/quick": func(http.ResponseWriter, *http.Request) {}})
	const quick = "GET /quick HTTP/1.1\r\nHost: x\r\n\r\n"
	for range 4 {
		d := r.dial(t)
		if tcp, ok := d.conn.(*net.TCPConn); ok {
			_ = tcp.SetReadBuffer(4 << 10)
		}
		for many, err := strings.Repeat(quick, 1000), error(nil); err == nil; _, err = io.WriteString(d.conn, many) {
			_ = d.conn.SetWriteDeadline(time.Now().Add(500 * time.Millisecond)) // until it is stuck
		}
	}
	d := r.dial(t)
	d.send(quick)
	if s := d.status(); s != 200 {
		t.Errorf("another client: %d", s)
	}
}

// recordingConn keeps the last write deadline.
type recordingConn struct {
	net.Conn
	until time.Time
}

func (c *recordingConn) SetWriteDeadline(t time.Time) error { c.until = t; return nil }

func TestEachAnswerHasADeadline(t *testing.T) {
	under := &recordingConn{}
	c := &watchedConn{Conn: under}
	now := time.Now()
	for range 20 {
		now = now.Add(writeTimeout / 3)
		c.answerWithin(now)
		if left := under.until.Sub(now); left < writeTimeout || left > 2*writeTimeout {
			t.Fatalf("%v are left for an answer", left)
		}
		_ = c.SetWriteDeadline(time.Time{}) // as net/http does after each request
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
