package main

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"
)

func TestRequestsWaitForTheFirstKey(t *testing.T) {
	for _, row := range []struct {
		name          string
		readyAfter    time.Duration
		disconnected  bool
		least, atMost time.Duration
	}{
		{"ready", 0, false, 0, 0},
		{"ready soon", time.Second, false, time.Second, time.Second + 20*time.Millisecond},
		{"never ready", time.Hour, false, settleTime, settleTime + 20*time.Millisecond},
		{"client disconnected", time.Hour, true, 0, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			served := time.Duration(-1)
			h := waitUntilReady(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served = time.Since(began) }),
				func(context.Context) error {
					if time.Since(began) < row.readyAfter {
						return errors.New("no key yet")
					}
					return nil
				}, began.Add(settleTime))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if row.disconnected {
				cancel()
			}
			h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil))
			if served < row.least || served > row.atMost {
				t.Errorf("%s: served after %v, want %v to %v", row.name, served, row.least, row.atMost)
			}
		})
	}
}
