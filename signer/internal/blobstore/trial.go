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
	trialRefused = "refused"
	trialUnclear = "unclear"
)

// gave has a link like the one that user was given just now tried soon. It never
// waits.
func (d *delegation) gave(user signerapi.User) {
	select {
	case d.given <- user:
	default: // there is one to try already
	}
}

// watch tries links of the key until ctx is done: the first link that is given out, and then about one a minute while links are
// given out. If storage refuses a link, watch drops the key and sends to dropped.
func (d *delegation) watch(ctx context.Context, try tryLink, dropped chan<- struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case user := <-d.given:
			k := d.key.Load()
			if k == nil {
				continue
			}
			err := try(ctx, k, user)
			switch {
			case errors.Is(err, errLinkRefused):
				d.lastErr.Store(&err) // before the key goes, for whoever asks why
				d.refused.Store(&user)
				d.drop() // also if another one was stored meanwhile: no link of it was tried
				d.log.Error("the user delegation key is refused: dropped, and fetched anew", "error", err.Error())
				select {
				case dropped <- struct{}{}:
				default: // run knows of an earlier one
				}
			case err != nil && ctx.Err() == nil:
				d.log.Warn("a link could not be tried, which says nothing about the key", "error", err.Error())
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(jittered(d.trialEvery)):
		}
	}
}

// jittered is d, give or take a quarter, so that replicas do not ask together.
func jittered(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.75 + 0.5*rand.Float64())) //nolint:gosec // jitter needs no secrecy
}

// tryLink tries a link of a key to the picture of a user.
type tryLink func(context.Context, *delegationKey, signerapi.User) error

// tryLink asks storage, as a client would, for the picture of user by a link of k
// and without a token. It returns nil when storage takes the link, whether the
// picture is there or not, and errLinkRefused when it does not because of the key.
// Any other error says nothing about the key: no answer, one of a proxy, or one
// about the network that this comes from, which need not be the clients'.
func (s *Store) tryLink(ctx context.Context, k *delegationKey, user signerapi.User) error {
	outcome, err := s.tryOut(ctx, k, user)
	s.metrics.trials.WithLabelValues(outcome).Inc()
	return err
}

func (s *Store) tryOut(ctx context.Context, k *delegationKey, user signerapi.User) (outcome string, err error) {
	end := s.now().UTC().Add(trialLife).Truncate(time.Second)
	if end.After(k.end) {
		end = k.end
	}
	link, err := s.signed(k, s.opts.AccountURL, s.blobName(user), s.readOnly(k.start, end, opaque, ""))
	if err != nil {
		return trialUnclear, err
	}
	client, err := s.anonymous(link)
	if err != nil {
		return trialUnclear, err
	}
	var resp *http.Response
	_, err = client.GetProperties(policy.WithCaptureResponse(withOp(ctx, opTrial), &resp), nil)
	if resp != nil {
		s.key.clock.compare(s.now(), resp.Header.Get("Date"))
	}
	err = brief(err, contributorRole)
	r, answered := errors.AsType[*Refusal](err)
	switch {
	case err == nil, answered && r.Status == http.StatusNotFound:
		return trialOK, nil
	case !answered, r.Status != http.StatusForbidden, r.Code == "", r.Code == string(bloberror.AuthorizationFailure), r.Code == string(bloberror.AccountIsDisabled):
		return trialUnclear, fmt.Errorf("trying a link: %w", err)
	}
	return trialRefused, fmt.Errorf("%w: %w", errLinkRefused, r)
}

// anonymous returns a client of the blob at link, without a token. A call is tried once.
func (s *Store) anonymous(link signerapi.SignedURL) (*blob.Client, error) {
	return blob.NewClientWithNoCredential(string(link), &blob.ClientOptions{ClientOptions: policy.ClientOptions{
		Transport: s.opts.Transport, PerRetryPolicies: []policy.Policy{s.metrics}, Retry: retries(-1, trialTimeout),
	}})
}
