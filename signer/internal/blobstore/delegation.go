package blobstore

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/service"

	"cats.example/shared/apierror"
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

// errFetching is the reason for no key as long as no request for one and no trial has failed.
var errFetching error = apierror.ErrSignerUnavailable.Wrap(errors.New("it is being fetched"))

// delegation holds the user delegation key. Requests only read it. keepKey replaces it well before its end, and tryLink drops it
// if storage refuses a link.
type delegation struct {
	key     atomic.Pointer[delegationKey]
	lastErr atomic.Pointer[error] // why there is no key, if there is none

	given   chan signerapi.User            // whose link could be tried, at most one
	refused atomic.Pointer[signerapi.User] // to whose picture storage refused a link; nil once it takes one of a new key
}

// keyCovering returns the user delegation key if it does not expire before end. Otherwise the error is ErrIdentityUnavailable, or one
// with status 503 if storage did not answer or the first key is still being fetched.
func (s *Store) keyCovering(end time.Time) (*delegationKey, error) {
	if k := s.key.key.Load(); k != nil && !end.After(k.end) {
		return k, nil
	}
	err := *s.key.lastErr.Load()
	e := apierror.AsError(err)
	if e.Status != http.StatusServiceUnavailable {
		e = apierror.ErrIdentityUnavailable
	}
	return nil, e.Wrap(fmt.Errorf("no user delegation key that is valid until %v: %w", end.UTC(), err))
}

// keepKey fetches a key and renews it until ctx is done. While the container does not exist, there is no key, so that the signer
// is not ready. After a key was dropped, the next one is used only when storage takes a link of it.
func (s *Store) keepKey(ctx context.Context) {
	dropped, checked := make(chan struct{}, 1), false
	var watching sync.WaitGroup
	watching.Go(func() { s.watchKey(ctx, dropped) })
	defer watching.Wait()
	refresh.Keep(ctx, s.log, "storage does not accept the identity, or does not answer", dropped, func(ctx context.Context) (time.Duration, error) {
		k, err := s.fetchKey(ctx)
		if err == nil && !checked {
			err = s.checkContainer(ctx)
			if errors.Is(err, apierror.ErrIdentityUnavailable) { // a role can allow pictures without the container's properties
				s.log.Warn("whether the container exists is not known", "error", err.Error())
				err = nil
			}
			checked = err == nil
		}
		if user := s.key.refused.Load(); err == nil && user != nil {
			if err = s.tryLink(ctx, k, *user); err == nil {
				s.key.refused.CompareAndSwap(user, nil)
			}
		}
		if err != nil {
			s.key.lastErr.Store(&err)
			return 0, err
		}
		s.key.lastErr.Store(&errFetching)
		s.setKey(k)
		wait := refresh.BeforeHalf(k.end.Sub(s.now()))
		s.log.Info("user delegation key obtained", "expires_at", k.end.UTC(), "renew_in", wait.Round(time.Second).String())
		return wait, nil
	})
}

// setKey has links signed with k, or none if it is nil.
func (s *Store) setKey(k *delegationKey) {
	end := 0.0
	if k != nil {
		end = float64(k.end.Unix())
	}
	s.key.key.Store(k)
	s.metrics.keyExpiry.Set(end)
}

func (s *Store) fetchKey(ctx context.Context) (_ *delegationKey, err error) {
	op := &operation{name: opKey}
	ctx, end := runtime.StartSpan(op.under(ctx), op.name, s.tracer, nil)
	defer func() { s.endSpan(ctx, op, end, err) }()
	ctx, cancel := context.WithTimeout(ctx, keyTimeout)
	defer cancel()
	longest := s.opts.LinkMaxTTL
	if s.opts.MaxDirectUploadSize > 0 {
		longest = max(longest, ticketLife)
	}
	now := s.now().UTC().Truncate(time.Second)
	k := &delegationKey{start: now.Add(-keySkew), end: now.Add(keyLifetime(longest))}
	k.credential, err = s.account.GetUserDelegationCredential(ctx, service.KeyInfo{
		Start:  new(k.start.Format(sas.TimeFormat)),
		Expiry: new(k.end.Format(sas.TimeFormat)),
	}, nil)
	if err != nil {
		s.metrics.keyRefresh.WithLabelValues("error").Inc()
		return nil, s.storageError(ctx, "getting a user delegation key", delegatorRole, err)
	}
	s.metrics.keyRefresh.WithLabelValues("ok").Inc()
	return k, nil
}
