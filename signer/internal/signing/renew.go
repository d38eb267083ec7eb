package signing

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"cats.example/shared/apierror"
	"cats.example/signer/internal/refresh"
	"cats.example/signer/internal/storage"
)

const (
	probeInterval = time.Minute // on average, with jitter
	probeTTL      = time.Hour   // of a signed URL that is probed; no client gets it
)

// errKeyRejected means that storage rejects signed URLs because of their key: it was revoked, or its identity has lost its role.
var errKeyRejected = errors.New("storage rejects a signed URL of the user delegation key")

// Run keeps the key fresh and probes signed URLs until ctx is done.
func (k *Keys) Run(ctx context.Context) {
	dropped := make(chan struct{}, 1) // the key was dropped
	var probing sync.WaitGroup
	defer probing.Wait()
	probing.Go(func() { k.probeLinks(ctx, dropped) })
	containerChecked := false
	refresh.Keep(ctx, k.log, "user delegation key not obtained", dropped, func(ctx context.Context) (time.Duration, error) {
		key, err := k.fetch(ctx)
		if err == nil && !containerChecked { // without a container there is no key, so the signer is not ready
			err = k.checkContainer(ctx)
			containerChecked = err == nil
		}
		if err == nil {
			err = k.verify(ctx, key)
		}
		if err != nil {
			k.reason.Store(&err)
			return 0, err
		}
		k.reason.Store(&errFetching)
		k.set(key)
		wait := refresh.BeforeHalf(time.Until(key.end))
		k.log.Info("user delegation key obtained", "expires_at", key.end.UTC(), "renew_in", wait.Round(time.Second).String())
		return wait, nil
	})
}

// checkContainer returns an error if the container does not exist. A role can permit access to blobs without the container's
// properties: that is no error.
func (k *Keys) checkContainer(ctx context.Context) error {
	err := k.storage.CheckContainer(ctx)
	if errors.Is(err, apierror.ErrIdentityUnavailable) {
		k.log.Warn("container check not permitted; assuming that the container exists", "error", err.Error())
		return nil
	}
	return err
}

// probeLinks probes signed URLs until ctx is done: with the first link, and then about once a minute while clients get links. If
// storage rejects one because of the key, it sends to dropped.
func (k *Keys) probeLinks(ctx context.Context, dropped chan<- struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case blob := <-k.linked:
			key := k.key.Load()
			if key == nil {
				continue
			}
			switch err := k.probe(ctx, key, blob); {
			case errors.Is(err, errKeyRejected):
				k.log.Error("storage rejected the user delegation key; fetching a new one", "error", err.Error())
				select {
				case dropped <- struct{}{}:
				default: // an earlier drop is not handled yet
				}
			case err != nil && ctx.Err() == nil:
				k.log.Warn("probe of a signed URL was inconclusive", "error", err.Error())
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(refresh.Jitter(probeInterval)):
		}
	}
}

// verify probes a new key if the previous one was dropped. Any error means that the new key must not be used.
func (k *Keys) verify(ctx context.Context, key *delegationKey) error {
	blob := k.rejected.Load()
	if blob == nil {
		return nil
	}
	if err := k.probe(ctx, key, *blob); err != nil {
		return err
	}
	k.rejected.CompareAndSwap(blob, nil)
	return nil
}

// probe makes one request with a signed URL of the blob name. It returns nil if storage accepts the URL, whether the blob exists
// or not. It returns errKeyRejected, and drops the current key, if storage rejects the URL because of the key. Other errors are
// inconclusive: no answer, an answer of a proxy, or a rejection of this client's network, which need not be the clients'.
func (k *Keys) probe(ctx context.Context, key *delegationKey, name string) error {
	outcome := probeInconclusive
	defer func() { k.metrics.probes.WithLabelValues(outcome).Inc() }()
	end := time.Now().UTC().Add(probeTTL).Truncate(time.Second)
	if end.After(key.end) {
		end = key.end
	}
	url, err := key.sign(k.storage.AccountURL, k.storage.Container, name, readOnly(key.start, end, "", k.storage.BlobName, ""))
	if err != nil {
		return err
	}
	date, err := k.storage.Probe(ctx, url, func(ctx context.Context, client *blob.Client) error {
		_, err := client.GetProperties(ctx, nil)
		return err
	})
	k.compareClock(date)
	r, answered := errors.AsType[*storage.ResponseError](err)
	switch {
	case err == nil, errors.Is(err, apierror.ErrNotFound), answered && r.Status == http.StatusNotFound:
		outcome = probeOK
		return nil
	case !answered, r.Status != http.StatusForbidden, r.Code == "", r.HasCode(bloberror.AuthorizationFailure, bloberror.AccountIsDisabled):
		return err
	}
	outcome, err = probeRejected, fmt.Errorf("%w: %w", errKeyRejected, r)
	k.reason.Store(&err)
	k.rejected.Store(&name)
	k.set(nil) // even if it is not key any more: no URL of the other one was probed
	return err
}
