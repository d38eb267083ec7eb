package blobstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/service"
	"github.com/cenkalti/backoff/v5"

	"cats.example/shared/signerapi"
)

const (
	keyTimeout    = 15 * time.Second // one try to get a key, the SDK's retries included
	keyFirstRetry = time.Second
	keyLastRetry  = 30 * time.Second
	keySkew       = 15 * time.Minute // how far our clock may be ahead of storage's
	maxKeyLife    = 7 * 24 * time.Hour
)

// keyLifetime leaves, from the renewal at half of it on, at least the longest
// link. Storage gives keys for at most 7 days.
func keyLifetime(longestLink time.Duration) time.Duration {
	return min(2*longestLink+time.Hour, maxKeyLife)
}

// delegationKey is a user delegation key and its validity period.
type delegationKey struct {
	credential *service.UserDelegationCredential
	start, end time.Time
}

// delegation keeps a user delegation key at hand. Requests only read it; run,
// alone, replaces it, well before its end.
type delegation struct {
	account  *service.Client
	renew    func() // has the token fetched anew
	lifetime time.Duration
	log      *slog.Logger
	metrics  *metrics
	now      func() time.Time
	clock    clock

	key     atomic.Pointer[delegationKey]
	lastErr atomic.Pointer[error] // of the last fetch or trial, for whoever asks why there is no key

	given      chan signerapi.User // whose link could be tried, at most one
	trialEvery time.Duration
	tried      time.Time // when one was last
}

var errNoContainer = errors.New("the container does not exist")

// covering returns the user delegation key if it does not expire before end. Otherwise the error is ErrIdentityUnavailable.
func (d *delegation) covering(end time.Time) (*delegationKey, error) {
	k := d.key.Load()
	switch {
	case k != nil && !end.After(k.end):
		return k, nil
	case k != nil && d.now().Before(k.end):
		return nil, signerapi.ErrIdentityUnavailable.Wrap(fmt.Errorf("the user delegation key ends at %v, before the link, and was not renewed", k.end.UTC()))
	}
	if err := d.lastErr.Load(); err != nil {
		return nil, signerapi.ErrIdentityUnavailable.Wrap(fmt.Errorf("no user delegation key: %w", *err))
	}
	return nil, signerapi.ErrIdentityUnavailable.Wrap(errors.New("no user delegation key yet"))
}

// run fetches a key and renews it until ctx is done. As soon as storage answers, it looks for the container once. While the
// container does not exist, there is no key, so that the signer is not ready. Now and then it has a link of the key tried; a key that
// is refused is dropped at once, and the next one used only when a link of it is
// taken.
func (d *delegation) run(ctx context.Context, checkContainer func(context.Context) error, try tryLink) {
	retry := backoff.NewExponentialBackOff()
	retry.InitialInterval, retry.MaxInterval = keyFirstRetry, keyLastRetry
	checked := false
	var refused, nobody signerapi.User // to whose picture a link of the last key was refused
	for {
		var wait time.Duration
		k, err := d.fetch(ctx)
		var unchecked error
		if err == nil && !checked {
			unchecked = checkContainer(ctx)
			checked = unchecked == nil
			if errors.Is(unchecked, errNoContainer) {
				err = unchecked
			}
		}
		if err == nil && refused != nobody {
			if err = try(ctx, k, refused); err == nil {
				refused = nobody
			}
		}
		if err == nil {
			d.key.Store(k)
			d.metrics.keyExpiry.Set(float64(k.end.Unix()))
			wait = renewKeyIn(k, d.now())
			d.log.Info("user delegation key obtained", "expires_at", k.end.UTC(), "renew_in", wait.Round(time.Second).String())
			err = unchecked
		}
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			d.lastErr.Store(&err)
			wait = retry.NextBackOff()
			log := d.log.With("error", err.Error(), "retry_in", wait.Round(time.Millisecond).String())
			if errors.Is(err, errNoContainer) {
				log.Error("the container does not exist")
			} else {
				log.Error("storage does not accept the identity, or does not answer")
			}
		default:
			retry.Reset()
		}
		if user := d.watch(ctx, time.After(wait), try); user != nobody {
			refused = user
		}
	}
}

// renewKeyIn is somewhat under half of the key's life, at random, so that
// replicas do not ask together.
func renewKeyIn(k *delegationKey, now time.Time) time.Duration {
	return time.Duration(float64(k.end.Sub(now)) * (0.4 + 0.1*rand.Float64())) //nolint:gosec // jitter needs no secrecy
}

func (d *delegation) fetch(ctx context.Context) (*delegationKey, error) {
	ctx, cancel := context.WithTimeout(withOp(ctx, opKey), keyTimeout)
	defer cancel()
	now := d.now().UTC().Truncate(time.Second)
	k := &delegationKey{start: now.Add(-keySkew), end: now.Add(d.lifetime)}
	var resp *http.Response
	credential, err := d.account.GetUserDelegationCredential(policy.WithCaptureResponse(ctx, &resp), service.KeyInfo{
		Start:  new(k.start.Format(sas.TimeFormat)),
		Expiry: new(k.end.Format(sas.TimeFormat)),
	}, nil)
	if resp != nil {
		d.clock.compare(d.now(), resp.Header.Get("Date"))
	}
	if err != nil {
		d.metrics.keyRefresh.WithLabelValues("error").Inc()
		if resp, ok := errors.AsType[*azcore.ResponseError](err); ok && resp.StatusCode == http.StatusUnauthorized {
			d.renew()
		}
		return nil, explainKey(fmt.Errorf("getting a user delegation key: %w", err))
	}
	d.metrics.keyRefresh.WithLabelValues("ok").Inc()
	k.credential = credential
	return k, nil
}
