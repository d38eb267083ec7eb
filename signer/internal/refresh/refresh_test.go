package refresh

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestKeepFetchesEarlyUnlessItFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		early := make(chan struct{}, 1)
		var n atomic.Int64
		var down atomic.Bool
		var log bytes.Buffer
		go Keep(ctx, slog.New(slog.NewJSONHandler(&log, nil)), "token exchange failed", early, func(context.Context) (time.Duration, error) {
			n.Add(1)
			if down.Load() {
				return 0, errors.New("down")
			}
			return time.Hour, nil
		})
		fetches := func(what string, least, most int64, wait, wakeEach time.Duration) {
			t.Helper()
			n.Store(0)
			for began := time.Now(); time.Since(began) < wait; time.Sleep(wakeEach) {
				select {
				case early <- struct{}{}:
				default:
				}
				synctest.Wait()
			}
			synctest.Wait() // Keep may have woken at the end of the last sleep
			if got := n.Load(); got < least || got > most {
				t.Errorf("%s: %d fetches in %v", what, got, wait)
			}
		}
		time.Sleep(10*time.Hour + time.Minute)
		if n.Load() != 11 {
			t.Errorf("%d fetches in 10 hours; want one at the start and one each hour", n.Load())
		}
		fetches("woken once", 1, 1, time.Minute, time.Minute)
		fetches("woken all the time", 8, 11, 10*time.Second, 100*time.Millisecond)
		down.Store(true)
		fetches("failing", 15, 60, 10*time.Minute, time.Second)
		if lines := strings.Count(log.String(), `"level":"ERROR","msg":"token exchange failed","error":"down","retry_in":"`); int64(lines) != n.Load() {
			t.Errorf("%d lines of %d failures: %s", lines, n.Load(), &log)
		}
	})
}
