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

func TestRequestsWaitForTheFirstKeyForAWhile(t *testing.T) {
	for _, row := range []struct {
		name          string
		readyAfter    time.Duration
		gone          bool
		least, atMost time.Duration
	}{
		{"a key that is there", 0, false, 0, 0},
		{"a key that comes soon", time.Second, false, time.Second, time.Second + 20*time.Millisecond},
		{"a key that does not come", time.Hour, false, settleTime, settleTime + 20*time.Millisecond},
		{"a caller who has gone", time.Hour, true, 0, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				served := time.Duration(-1)
				h := settled(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served = time.Since(began) }),
					func(context.Context) error {
						if time.Since(began) < row.readyAfter {
							return errors.New("no key yet")
						}
						return nil
					}, began.Add(settleTime))
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if row.gone {
					cancel()
				}
				h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil))
				if served < row.least || served > row.atMost {
					t.Errorf("served after %v, want %v to %v", served, row.least, row.atMost)
				}
			})
		})
	}
}
