package service

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// What does not answer behind requests without a body does not take all connections:
// the next is told at once.
func TestMoreRequestsThanMayBeUnderWayAreRefusedAtOnce(t *testing.T) {
	settings := relaxed
	settings.MaxUploads = 2 // eight connections
	release := make(chan struct{})
	r := start(t, settings, alwaysReady, nil, map[string]http.HandlerFunc{
		"/long": func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			<-release
		},
		"/quick": func(http.ResponseWriter, *http.Request) {},
	})
	const get, put = "GET /long HTTP/1.1\r\nHost: x\r\n\r\n", "PUT /long HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"
	var open []*dialed
	under := func(raw string) {
		t.Helper()
		d := r.dial(t)
		d.send(raw)
		open = append(open, d)
		eventually(t, "it", func() bool { return number(t, r, `test_http_requests_in_flight`) == float64(len(open)) })
	}
	refused := func(what, raw string) {
		t.Helper()
		began := time.Now()
		d := r.dial(t)
		d.send(raw)
		if s := d.status(); s != http.StatusServiceUnavailable || time.Since(began) > 2*time.Second {
			t.Errorf("%s: %d after %v", what, s, time.Since(began))
		}
	}
	for range 4 {
		under(get)
	}
	refused("a fifth without a body", get)
	for range 3 {
		under(put)
	}
	refused("an upload beyond all that may be under way", put)
	refused("another without a body", "GET /quick HTTP/1.1\r\nHost: x\r\n\r\n")
	close(release)
	for i, d := range open {
		if s := d.status(); s != 200 {
			t.Errorf("number %d: %d", i, s)
		}
	}
	d := r.dial(t)
	d.send("GET /quick HTTP/1.1\r\nHost: x\r\n\r\n")
	if s := d.status(); s != 200 {
		t.Errorf("one after those: %d", s)
	}
	if lines := r.log.lines(t, "request"); len(lines) < 3 || !strings.HasPrefix(fmt.Sprint(lines[0]["error"]), "overloaded") {
		t.Errorf("the log has %v", lines)
	}
}

// What was refused amid its body is read on for a while, and does not keep others out.
func TestARefusedBodyIsAtRest(t *testing.T) {
	settings := relaxed
	settings.MaxUploads = 1
	r := start(t, settings, alwaysReady, nil, map[string]http.HandlerFunc{
		"/refuse": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) },
		"/quick":  func(http.ResponseWriter, *http.Request) {},
	})
	for range 8 {
		d := r.dial(t)
		d.send("PUT /refuse HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx")
		if s := d.status(); s != http.StatusTeapot {
			t.Fatalf("a refusal: %d", s)
		}
	}
	began := time.Now()
	d := r.dial(t)
	d.send("GET /quick HTTP/1.1\r\nHost: x\r\n\r\n")
	if s := d.status(); s != 200 || time.Since(began) > drainTimeout/2 {
		t.Errorf("%d after %v", s, time.Since(began))
	}
}

// Of bodies, twice as many wait as are read.
func TestMoreBodiesThanMayWaitAreRefusedAtOnce(t *testing.T) {
	settings := relaxed
	settings.MaxUploads = 2
	r := start(t, settings, alwaysReady, nil, map[string]http.HandlerFunc{"/up": func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			http.Error(w, fmt.Sprint(err), http.StatusServiceUnavailable)
		}
	}})
	var open []*dialed
	for i := range 6 { // two that are read, and four that wait
		d := r.dial(t)
		d.send("PUT /up HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nx")
		open = append(open, d)
		eventually(t, "it", func() bool { return number(t, r, `test_http_requests_in_flight`) == float64(i+1) })
	}
	began := time.Now()
	d := r.dial(t)
	d.send("PUT /up HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nx")
	if s := d.status(); s != http.StatusServiceUnavailable || time.Since(began) > bodyWait/2 {
		t.Errorf("one too many: %d after %v", s, time.Since(began))
	}
	for i, d := range open {
		d.send("x")
		if s := d.status(); s == 0 { // on a slow machine it may have had to make way
			t.Errorf("body %d has no answer", i)
		}
	}
}

// Bodies that have ended count until they are answered, so that what is slow behind
// them leaves connections for others.
func TestBodiesWithoutAnAnswerLeaveConnectionsForOthers(t *testing.T) {
	settings := relaxed
	settings.MaxUploads = 2
	release := make(chan struct{})
	r := start(t, settings, alwaysReady, nil, map[string]http.HandlerFunc{
		"/up": func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			<-release
		},
		"/quick": func(http.ResponseWriter, *http.Request) {},
	})
	const up = "PUT /up HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"
	var stored []*dialed
	for i := range perPlace * settings.MaxUploads {
		d := r.dial(t)
		d.send(up)
		stored = append(stored, d)
		eventually(t, "it", func() bool { return number(t, r, `test_http_requests_in_flight`) == float64(i+1) })
	}
	d := r.dial(t)
	d.send(up)
	if s := d.status(); s != http.StatusServiceUnavailable {
		t.Errorf("one too many: %d", s)
	}
	d = r.dial(t)
	d.send("GET /quick HTTP/1.1\r\nHost: x\r\n\r\n")
	if s := d.status(); s != 200 {
		t.Errorf("a GET meanwhile: %d", s)
	}
	close(release)
	for _, d := range stored {
		if s := d.status(); s != 200 {
			t.Errorf("one that was stored: %d", s)
		}
	}
	d = r.dial(t)
	d.send(up)
	if s := d.status(); s != 200 {
		t.Errorf("one after those: %d", s)
	}
}
