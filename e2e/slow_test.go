package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"cats.example/local/stand"
)

// A client that sends a byte now and then is never still, and must not be able to
// keep a place for hours all the same.
func TestAClientThatTricklesIsGivenUp(t *testing.T) {
	t.Parallel()
	sys := start(t, stand.SystemOptions{FrontendEnv: map[string]string{"STALL_TIMEOUT": "1s"}}) // 240 bytes in each
	old := random(5000, 1)
	put(t, sys, "trickle", old)
	var wg sync.WaitGroup
	for _, u := range uploads(t, "trickle", random(50_000, 2)) {
		wg.Go(func() {
			conn := dial(t, sys)
			_, _ = io.WriteString(conn, u.header+u.body[:5000])
			began := time.Now()
			done := make(chan struct{})
			go func() {
				for i := 5000; ; i++ {
					select {
					case <-done:
						return
					case <-time.After(20 * time.Millisecond):
						_, _ = conn.Write([]byte{u.body[i]})
					}
				}
			}()
			status := statusOf(t, conn)
			close(done)
			if took := time.Since(began); status != 408 || took > 10*time.Second {
				t.Errorf("%s: %d after %v", u.name, status, took)
			}
		})
	}
	wg.Wait()
	if !bytes.Equal(served(t, sys, "trickle"), old) {
		t.Error("the old picture is gone")
	}
}

// Slow clients may take all places only as long as nobody else wants one.
func TestSlowClientsDoNotKeepOthersOut(t *testing.T) {
	t.Parallel()
	const places = 6
	env := map[string]string{"MAX_UPLOADS": fmt.Sprint(places)}
	sys := start(t, stand.SystemOptions{FrontendEnv: env, SignerEnv: env})
	statuses := make(chan int, places)
	stop := make(chan struct{})
	for i := range places {
		u := uploads(t, fmt.Sprintf("slow-%d", i), random(1<<20, 1))[i%3]
		conn := dial(t, sys)
		if _, err := io.WriteString(conn, u.header+u.body[:5000]); err != nil {
			t.Fatal(err)
		}
		go func() { statuses <- statusOf(t, conn) }()
		go func() {
			for at := 5000; ; at += 100 {
				select {
				case <-stop:
					return
				case <-time.After(100 * time.Millisecond):
					_, _ = io.WriteString(conn, u.body[at:at+100])
				}
			}
		}()
	}
	defer close(stop)
	eventually(t, func() error {
		if n := sum(t, sys.SignerOps, "cats_signer_http_requests_in_flight"); n < places {
			return fmt.Errorf("%v uploads are under way", n)
		}
		return nil
	})
	for i := range 3 {
		content := random(100_000, uint64(i))
		began := time.Now()
		put(t, sys, "fast", content)
		if took := time.Since(began); took > 8*time.Second {
			t.Errorf("a fast upload took %v", took)
		}
		if !bytes.Equal(served(t, sys, "fast"), content) {
			t.Error("others are served")
		}
	}
	if first := <-statuses; first != http.StatusRequestTimeout {
		t.Errorf("one that gave way was told %d", first)
	}
	if gone := places - 1 - len(statuses); gone < 1 {
		t.Error("all slow ones had to go, for three uploads one after the other")
	}
}

// Connections that do nothing are bounded, the oldest make room, and nobody else is
// kept waiting, while 550 stall and 300 are idle.
func TestConnectionsThatDoNothingAreFew(t *testing.T) {
	t.Parallel()
	const most = 4 * 128
	sys := start(t, stand.SystemOptions{})
	put(t, sys, "seen", cat)
	quick := func() {
		t.Helper()
		began := time.Now()
		link(t, sys, "seen", "")
		put(t, sys, "seen", cat)
		if took := time.Since(began); took > 8*time.Second {
			t.Errorf("a GET and an upload took %v", took)
		}
		if n := sum(t, sys.FrontendOps, "cats_connections"); n > most+10 { // those of the ops port, too
			t.Errorf("%v connections are open", n)
		}
	}
	for i, kind := range []struct {
		n    int
		sent string
	}{
		{300, "GET /service HTTP/1.1\r\nHost: localhost\r\n\r\n"},
		{350, "GET /service HTT"},
		{200, "PUT /cat/stalled HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n\x89PNG"},
	} {
		for range kind.n {
			if _, err := io.WriteString(dial(t, sys), kind.sent); err != nil {
				t.Fatal(err)
			}
		}
		quick()
		if i == 1 && sum(t, sys.FrontendOps, "cats_connections_evicted_total") < 300+350-most {
			t.Error("none had to make room")
		}
	}
	quick()
}
