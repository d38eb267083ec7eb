package httpserver

import (
	"errors"
	"net/http"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

const getQuick = "GET /quick HTTP/1.1\r\nHost: x\r\n\r\n"

var quick = handlers{"/quick": func(http.ResponseWriter, *http.Request) {}}

func TestManyConnectionsCloseAfterTheirResponse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		settings := relaxed
		settings.MaxUploads = 2
		r := start(t, settings, quick)
		for n := 1; n <= keptConnections*settings.MaxUploads+1; n++ {
			if status, closes := r.dial(t).send(getQuick).response(); status != 200 || closes != (n > keptConnections*settings.MaxUploads) {
				t.Errorf("connection %d: %d, closes: %t", n, status, closes)
			}
		}
	})
}

func TestConnectionsBeyondTheTotalWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		settings := relaxed
		settings.MaxUploads = 1 // eight connections
		r := start(t, settings, quick)
		var open []*client
		for range 8 {
			open = append(open, r.dial(t).send(getQuick[:10]))
		}
		waiting := r.dial(t).send(getQuick)
		if n := r.metric(t, `cats_test_pool_slots_taken{pool="connections"}`); n != 8 {
			t.Errorf("%v connections are open; want 8", n)
		}
		if s := open[0].send(getQuick[10:]).status(); s != 200 {
			t.Errorf("an open connection: %d", s)
		}
		if s := waiting.status(); s != 200 { // the response has closed the other connection
			t.Errorf("the connection that waited: %d", s)
		}
	})
}

func TestConnectionsBeyondAShareAreClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		settings := relaxed
		settings.MaxUploads, settings.ClientShare = 8, 0.0625 // 64 connections, 4 from one address
		r := start(t, settings, quick)
		served := func(address string, want int) *client { // 0 for a connection that is closed
			t.Helper()
			c := r.dialFrom(t, address)
			if s := c.send(getQuick).status(); s != want {
				t.Errorf("a connection from %s: %d; want %d", address, s, want)
			}
			return c
		}
		first := served("127.0.0.2", 200)
		for range 3 {
			served("127.0.0.2", 200)
		}
		served("127.0.0.2", 0)
		served("127.0.0.3", 200)
		for range 5 {
			served("127.0.1.1", 200) // a trusted proxy has no share
		}
		if n := r.metric(t, `cats_test_pool_rejected_total{limit="client",pool="connections"}`); n != 1 {
			t.Errorf("%v connections were counted as rejected; want 1", n)
		}
		_ = first.conn.Close()
		synctest.Wait()
		if n := r.metric(t, `cats_test_pool_slots_taken{pool="connections"}`); n != 9 {
			t.Errorf("%v slots are taken after one connection was closed; want 9", n)
		}
		served("127.0.0.2", 200)
	})
}

// A header that arrives byte by byte never stalls.
func TestSlowHeadersEndTheirConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, relaxed, quick)
		c, began := r.dial(t), time.Now()
		go func() {
			for s := "GET /quick HTTP/1.1\r\nX: "; ; s = "x" {
				if _, err := c.conn.Write([]byte(s)); err != nil {
					return
				}
				time.Sleep(100 * time.Millisecond)
			}
		}()
		if _, closes := c.response(); !closes || time.Since(began) != headerTimeout {
			t.Errorf("closed: %t after %v; want %v", closes, time.Since(began), headerTimeout)
		}
		time.Sleep(time.Second) // until the client has noticed
	})
}

func TestUnreadResponseEndsItsConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wrote := make(chan error, 1)
		r := start(t, relaxed, handlers{"/large": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", r.URL.RawQuery)
			_, err := w.Write(make([]byte, 1<<20))
			wrote <- err
		}})
		for size, want := range map[string]time.Duration{"": 10 * time.Second, "1638400": 110 * time.Second} {
			began := time.Now()
			r.dial(t).send("GET /large?" + size + " HTTP/1.1\r\nHost: x\r\n\r\n")
			if err := <-wrote; !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) != want {
				t.Errorf("Content-Length %q: writing returned %v after %v; want %v", size, err, time.Since(began), want)
			}
		}
	})
}

func TestUnreadContinueEndsItsConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan struct{})
		r := start(t, relaxed, handlers{"/": func(_ http.ResponseWriter, r *http.Request) {
			_, _ = r.Body.Read(make([]byte, 1))
			close(ended)
		}})
		began := time.Now()
		r.dial(t).send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\nbody")
		<-ended
		if took := time.Since(began); took != responseTimeout {
			t.Errorf("the 100 Continue was given up after %v; want %v", took, responseTimeout)
		}
	})
}
