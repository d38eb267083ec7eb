package httpserver

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A request may arrive on an idle connection while the drain begins.
func TestDrainServesIdleConnectionsOnceMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		settings := relaxed
		settings.DrainDelay = time.Minute
		r := start(t, settings, quick)
		c := r.dial(t)
		for _, want := range []bool{false, true} {
			if resp := c.send(get("/quick", "")).response(); resp.status != 200 || resp.closes != want {
				t.Errorf("the response is %d and closes the connection: %t; want %t", resp.status, resp.closes, want)
			}
			r.stop()
			synctest.Wait()
		}
	})
}

func TestBackgroundWorkOutlivesRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, background := time.Now(), time.Duration(0)
		untilDone := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
		r := start(t, relaxed, handlers{"/": untilDone}, func(s *Server, _ *MiddlewareOptions) {
			s.Background = func(ctx context.Context) {
				<-ctx.Done()
				background = time.Since(began)
			}
		})
		r.dial(t).send(get("/", ""))
		r.stop()
		if err := <-r.done; err == nil || !strings.Contains(err.Error(), "cut off") || background != relaxed.DrainTimeout {
			t.Errorf("Run returned %v; the background work ended after %v; want %v", err, background, relaxed.DrainTimeout)
		}
	})
}
