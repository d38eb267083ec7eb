// Package refresh renews a value that expires, such as a token or a key, in the background.
package refresh

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/time/rate"
)

// Delays after failed fetches grow from FirstRetry to LastRetry, with jitter. Two fetches are at least FirstRetry apart.
const (
	FirstRetry = time.Second
	LastRetry  = 30 * time.Second
)

// Keep calls fetch until ctx is done. It calls fetch again after the returned time, or when early receives a value. After an error,
// Keep logs the message failed with the error and waits for a growing delay, which early does not shorten.
func Keep(ctx context.Context, log *slog.Logger, failed string, early <-chan struct{}, fetch func(context.Context) (time.Duration, error)) {
	retry := backoff.NewExponentialBackOff()
	retry.InitialInterval, retry.MaxInterval = FirstRetry, LastRetry
	pace := rate.NewLimiter(rate.Every(FirstRetry), 1)
	for pace.Wait(ctx) == nil {
		wait, err := fetch(ctx)
		wake := early
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			wait, wake = retry.NextBackOff(), nil
			//lint:ignore sloglint callers pass a constant
			log.Error(failed, "error", err.Error(), "retry_in", wait.Round(time.Millisecond).String())
		default:
			retry.Reset()
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		case <-wake:
		}
	}
}

// BeforeHalf returns 40 to 50 % of life, at random, so that replicas do not renew at the same time.
func BeforeHalf(life time.Duration) time.Duration {
	return time.Duration(float64(life) * (0.4 + 0.1*rand.Float64()))
}

// Jitter returns 75 to 125 % of d, at random, so that replicas do not act at the same time.
func Jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.75 + 0.5*rand.Float64()))
}
