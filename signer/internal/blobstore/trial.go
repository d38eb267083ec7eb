package blobstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"cats.example/shared/signerapi"
)

const (
	trialEvery   = time.Minute // while links are given out, and jittered
	trialTimeout = 10 * time.Second
	trialLife    = time.Hour // of a link that is tried; nobody else gets it
)

// errLinkRefused is that storage does not take a link because of the key that it is
// signed with: that was revoked, or its identity has lost its role.
var errLinkRefused = errors.New("storage refuses a link of the user delegation key")

// Outcomes of a trial, as they are labelled in metrics. Unclear says nothing about
// the key: no answer, or one about something else.
const (
	trialOK      = "ok"
	trialRefused = "rejected"
	trialUnclear = "inconclusive"
)

// gave has a link like the one that user was given just now tried soon. It never
// waits.
func (s *Store) gave(user signerapi.User) {
	select {
	case s.key.given <- user:
	default: // there is one to try already
	}
}

// watchKey tries links of the key until ctx is done: the first link that is given out, and then about one a minute while links
// are given out. If storage refuses a link, watchKey sends to dropped.
func (s *Store) watchKey(ctx context.Context, dropped chan<- struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case user := <-s.key.given:
			k := s.key.key.Load()
			if k == nil {
				continue
			}
			err := s.tryLink(ctx, k, user)
			switch {
			case errors.Is(err, errLinkRefused):
				s.log.Error("the user delegation key is refused: dropped, and fetched anew", "error", err.Error())
				select {
				case dropped <- struct{}{}:
				default: // keepKey knows of an earlier one
				}
			case err != nil && ctx.Err() == nil:
				s.log.Warn("a link could not be tried, which says nothing about the key", "error", err.Error())
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(jittered(trialEvery)):
		}
	}
}

// jittered is d, give or take a quarter, so that replicas do not ask together.
func jittered(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.75 + 0.5*rand.Float64()))
}

// tryLink asks storage, as a client would, for the picture of user by a link of k
// and without a token. It returns nil when storage takes the link, whether the
// picture is there or not, and errLinkRefused when it does not because of the key.
// Then no links are signed until keepKey has another key.
// Any other error says nothing about the key: no answer, one of a proxy, or one
// about the network that this comes from, which need not be the clients'.
func (s *Store) tryLink(ctx context.Context, k *delegationKey, user signerapi.User) error {
	outcome := trialUnclear
	defer func() { s.metrics.trials.WithLabelValues(outcome).Inc() }()
	end := s.now().UTC().Add(trialLife).Truncate(time.Second)
	if end.After(k.end) {
		end = k.end
	}
	link, err := s.signed(k, s.opts.AccountURL, s.blobName(user), s.readOnly(k.start, end, opaque, ""))
	if err != nil {
		return err
	}
	client, err := s.anonymous(link)
	if err != nil {
		return err
	}
	_, err = client.GetProperties((&operation{name: opTrial}).under(ctx), nil)
	err = brief(err, contributorRole)
	r, answered := errors.AsType[*Refusal](err)
	switch {
	case err == nil, answered && r.Status == http.StatusNotFound:
		outcome = trialOK
		return nil
	case !answered, r.Status != http.StatusForbidden, r.Code == "", r.Code == string(bloberror.AuthorizationFailure), r.Code == string(bloberror.AccountIsDisabled):
		return fmt.Errorf("trying a link: %w", err)
	}
	outcome, err = trialRefused, fmt.Errorf("%w: %w", errLinkRefused, r)
	s.key.lastErr.Store(&err) // before there is no key, so that readiness tells why
	s.key.refused.Store(&user)
	s.setKey(nil) // also if another one than k is stored: no link of that was tried
	return err
}

// anonymous returns a client of the blob at link, without a token. A call is tried once.
func (s *Store) anonymous(link signerapi.SignedURL) (*blob.Client, error) {
	return blob.NewClientWithNoCredential(string(link), &blob.ClientOptions{ClientOptions: policy.ClientOptions{
		Transport: s.opts.Transport, PerRetryPolicies: []policy.Policy{tries{s}}, Retry: retries(-1, trialTimeout),
	}})
}
