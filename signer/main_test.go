package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/tracing"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"cats.example/shared/ratelimit"
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
		t.Run(row.name, func(t *testing.T) {
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
					t.Errorf("served after %v, want %v to %v", served, row.least, row.atMost)
				}
			})
		})
	}
}

func TestMetricsPassPromlint(t *testing.T) {
	cfg, err := parse(good)
	if err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	if _, err := newService(cfg, tracing.Provider{}, ratelimit.NewPools(name, 0, reg), slog.New(slog.DiscardHandler), reg); err != nil {
		t.Fatal(err)
	}
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", err, problems)
	}
}
