package httpserver

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestDrainEndsAfterRequestsInProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		settings := relaxed
		settings.DrainDelay = 50 * time.Millisecond
		release, background := make(chan struct{}), make(chan struct{})
		r := start(t, settings, handlers{"/slow": func(w http.ResponseWriter, _ *http.Request) {
			<-release
			_, _ = io.WriteString(w, "done")
		}}, func(s *Server) {
			s.Background = func(ctx context.Context) error {
				<-ctx.Done()
				close(background)
				return nil
			}
		})
		body := make(chan string, 1)
		go func() {
			resp, _ := r.get(t, "http://work/slow")
			body <- resp.body
		}()
		synctest.Wait()
		r.stop()
		synctest.Wait()
		if code, _ := r.mustGet(t, "http://ops/readyz"); code != 503 {
			t.Errorf("/readyz after the stop: %d; want 503", code)
		}
		if r.dial(t).send("GET / HTTP/1.1\r\nHost: x\r\n\r\n").status() != 404 {
			t.Error("a request during DRAIN_DELAY is not served")
		}
		time.Sleep(settings.DrainDelay)
		synctest.Wait()
		if _, err := r.work.dial("127.0.0.1"); err == nil {
			t.Error("the work listener is open after DRAIN_DELAY")
		}
		select {
		case <-background:
			t.Error("the background work ended before the last request")
		default:
		}
		close(release)
		if got := <-body; got != "done" {
			t.Errorf("the request in progress got %q", got)
		}
		if err := <-r.done; err != nil {
			t.Errorf("Run returned %v; want nil", err)
		}
		<-background
	})
}

// A request may arrive on an idle connection while the drain begins.
func TestDrainServesIdleConnectionsOnceMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		settings := relaxed
		settings.DrainDelay = time.Minute
		r := start(t, settings, handlers{"/": func(http.ResponseWriter, *http.Request) {}})
		c := r.dial(t)
		for _, want := range []bool{false, true} {
			if status, closes := c.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n").response(); status != 200 || closes != want {
				t.Errorf("the response is %d and closes the connection: %t; want %t", status, closes, want)
			}
			r.stop()
			synctest.Wait()
		}
	})
}

func TestDrainTimeoutCutsRequestsOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, relaxed, handlers{"/": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }})
		r.dial(t).send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		began := time.Now()
		r.stop()
		if err := <-r.done; err == nil || !strings.Contains(err.Error(), "cut off") || time.Since(began) != relaxed.DrainTimeout {
			t.Errorf("Run returned %v after %v; want an error after %v", err, time.Since(began), relaxed.DrainTimeout)
		}
	})
}

func TestBackgroundErrorStopsTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failed := errors.New("no container")
		r := start(t, relaxed, nil, func(s *Server) { s.Background = func(context.Context) error { return failed } })
		if err := <-r.done; !errors.Is(err, failed) {
			t.Errorf("Run returned %v; want %v", err, failed)
		}
	})
}

func TestArgumentsSelectTheCommand(t *testing.T) {
	defer func(args []string) { os.Args = args }(os.Args)
	program := Program{Name: "example", Command: Command{Name: "look", Run: func(context.Context, []string, io.Writer) int { return 3 }}}
	for args, want := range map[string]int{"look": 3, "look --help": 0, "look -h": 0, "look closer": 2, "Look": 2, "--version look": 2} {
		os.Args = append([]string{"example"}, strings.Fields(args)...)
		if code := Main(program); code != want {
			t.Errorf("%s: exit code %d; want %d", args, code, want)
		}
	}
}
