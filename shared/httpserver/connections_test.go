package httpserver

import (
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

var quick = handlers{"/quick": func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }}

func TestManyConnectionsCloseAfterTheirResponse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		settings := relaxed
		settings.MaxUploads = 2
		r := start(t, settings, quick)
		for n := 1; n <= keptConnections*settings.MaxUploads+1; n++ {
			resp := r.dial(t).send(get("/quick", "")).response()
			if resp.status != 200 || resp.closes != (n > keptConnections*settings.MaxUploads) {
				t.Errorf("connection %d: %d, closes: %t", n, resp.status, resp.closes)
			}
		}
	})
}

func TestConnectionsBeyondTheTotalWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		settings := relaxed
		settings.MaxUploads = 1 // eight connections
		r := start(t, settings, quick)
		request := get("/quick", "")
		var open []*client
		for range 8 {
			open = append(open, r.dial(t).send(request[:10]))
		}
		waiting := r.dial(t).send(request)
		if n := r.connections.Taken(); n != 8 {
			t.Errorf("%v connections are open; want 8", n)
		}
		if s := open[0].send(request[10:]).status(); s != 200 {
			t.Errorf("an open connection: %d", s)
		}
		if s := waiting.status(); s != 200 { // the response has closed the other connection
			t.Errorf("the connection that waited: %d", s)
		}
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
		if resp := c.response(); !resp.closes || time.Since(began) != headerTimeout {
			t.Errorf("closed: %t after %v; want %v", resp.closes, time.Since(began), headerTimeout)
		}
		time.Sleep(time.Second) // until the client has noticed
	})
}

func TestUnreadResponsesEndTheirConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan struct{})
		r := start(t, relaxed, handlers{
			"/large": func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", r.URL.RawQuery)
				_, _ = w.Write(make([]byte, 1<<20))
				ended <- struct{}{}
			},
			"/continue": func(_ http.ResponseWriter, r *http.Request) {
				_, _ = r.Body.Read(make([]byte, 1))
				ended <- struct{}{}
			},
		})
		for request, want := range map[string]time.Duration{
			get("/large", ""):         10 * time.Second,
			get("/large?1638400", ""): 110 * time.Second,
			"POST /continue HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\nbody": 10 * time.Second,
		} {
			began := time.Now()
			r.dial(t).send(request)
			if <-ended; time.Since(began) != want {
				t.Errorf("%q ended after %v; want %v", request, time.Since(began), want)
			}
		}
	})
}

// net/http would answer these itself.
func TestHandlerAnswersOptionsForTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, relaxed, quick)
		if s := r.dial(t).send("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n").status(); s != http.StatusBadRequest {
			t.Errorf("got %d; want the 400 of ServeMux", s)
		}
	})
}
