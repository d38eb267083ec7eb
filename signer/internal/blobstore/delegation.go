package blobstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/service"

	"cats.example/shared/signerapi"
	"cats.example/signer/internal/refresh"
)

const (
	keyTimeout = 15 * time.Second // one try to get a key, the SDK's retries included
	keySkew    = 15 * time.Minute // how far our clock may be ahead of storage's
	maxKeyLife = 7 * 24 * time.Hour
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

// delegation holds the user delegation key. Requests only read it. run replaces it well before its end, and watch drops it if
// storage refuses a link of it.
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
	refused    atomic.Pointer[signerapi.User] // to whose picture storage refused a link; nil once it takes one of a new key
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

// run fetches a key and renews it until ctx is done. While the container does not exist, there is no key, so that the signer is
// not ready. After watch has dropped a key, the next one is used only when storage takes a link of it.
func (d *delegation) run(ctx context.Context, checkContainer func(context.Context) error, try tryLink) {
	dropped, checked := make(chan struct{}, 1), false
	var watching sync.WaitGroup
	watching.Go(func() { d.watch(ctx, try, dropped) })
	defer watching.Wait()
	refresh.Keep(ctx, d.log, "storage does not accept the identity, or does not answer", dropped, func(ctx context.Context) (time.Duration, error) {
		k, err := d.fetch(ctx)
		if err == nil && !checked {
			err = checkContainer(ctx)
			if errors.Is(err, signerapi.ErrIdentityUnavailable) { // a role can allow pictures without the container's properties
				d.log.Warn("whether the container exists is not known", "error", err.Error())
				err = nil
			}
			checked = err == nil
		}
		if user := d.refused.Load(); err == nil && user != nil {
			switch err = try(ctx, k, *user); {
			case err == nil:
				d.refused.CompareAndSwap(user, nil)
			case errors.Is(err, errLinkRefused):
				d.drop() // a key that was stored while another one was tried
			}
		}
		if err != nil {
			d.lastErr.Store(&err)
			return 0, err
		}
		d.key.Store(k)
		d.metrics.keyExpiry.Set(float64(k.end.Unix()))
		wait := refresh.BeforeHalf(k.end.Sub(d.now()))
		d.log.Info("user delegation key obtained", "expires_at", k.end.UTC(), "renew_in", wait.Round(time.Second).String())
		return wait, nil
	})
}

// drop removes the key, so that no link is signed with it.
func (d *delegation) drop() {
	d.key.Store(nil)
	d.metrics.keyExpiry.Set(0)
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
