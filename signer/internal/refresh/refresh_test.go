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

func TestKeepWaitsForTheReturnedTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Hour+time.Minute)
		defer cancel()
		n := 0
		Keep(ctx, slog.New(slog.DiscardHandler), "failed", nil, func(context.Context) (time.Duration, error) {
			n++
			return time.Hour, nil
		})
		if n != 11 {
			t.Errorf("%d fetches in 10 hours; want one at the start and one each hour", n)
		}
	})
}

func TestKeepFetchesEarlyUnlessItFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
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
		wake := func() {
			select {
			case early <- struct{}{}:
			default:
			}
			synctest.Wait()
		}
		time.Sleep(time.Minute)
		if wake(); n.Load() != 2 {
			t.Errorf("%d fetches; want one more at once", n.Load())
		}
		for range 100 {
			time.Sleep(100 * time.Millisecond)
			wake()
		}
		synctest.Wait()
		if n.Load() < 10 || n.Load() > 13 {
			t.Errorf("%d fetches in ten seconds; want one a second", n.Load()-2)
		}
		down.Store(true)
		n.Store(0)
		for range 600 {
			time.Sleep(time.Second)
			wake()
		}
		if n.Load() < 15 || n.Load() > 60 {
			t.Errorf("%d fetches that fail in ten minutes", n.Load())
		}
		if lines := strings.Count(log.String(), `"level":"ERROR","msg":"token exchange failed","error":"down","retry_in":"`); int64(lines) != n.Load() {
			t.Errorf("%d lines of %d failures: %s", lines, n.Load(), &log)
		}
		cancel()
	})
}
