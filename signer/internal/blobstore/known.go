package blobstore

import (
	"context"
	"fmt"
	"hash/maphash"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
)

const (
	knownUsers = 8192 // pictures that are remembered at most; some 2 KiB each with a link
	maxLooks   = 128  // lookups at once
	maxAsked   = 512  // those that wait for that among them; whoever asked may be gone
	lookWait   = 2 * time.Second
)

// known remembers, for a short time, what storage said of the pictures that are
// there; of those that are not, nothing. Those who ask for the same picture at
// once share one lookup.
type known struct {
	ttl     time.Duration
	look    func(context.Context, signerapi.User) (signerapi.Info, error)
	now     func() time.Time
	there   *lru.Cache[signerapi.User, *existing]
	flight  singleflight.Group
	looks   *semaphore.Weighted
	asked   *semaphore.Weighted
	seed    maphash.Seed
	changes [256]atomic.Uint64 // of the pictures of the users with that hash
}

// existing is a picture that is there.
type existing struct {
	info  signerapi.Info
	until time.Time
	link  atomic.Pointer[signedLink] // the last one that was signed; of info, it goes by the content type
}

func newKnown(ttl time.Duration, now func() time.Time, look func(context.Context, signerapi.User) (signerapi.Info, error)) *known {
	there, _ := lru.New[signerapi.User, *existing](knownUsers) // it fails for a size below 1 alone
	return &known{ttl: ttl, look: look, now: now, there: there, looks: semaphore.NewWeighted(maxLooks), asked: semaphore.NewWeighted(maxAsked), seed: maphash.MakeSeed()}
}

// of returns the picture of user.
func (k *known) of(ctx context.Context, user signerapi.User) (*existing, error) {
	if p, ok := k.there.Get(user); ok && k.now().Before(p.until) {
		return p, nil
	}
	done := k.flight.DoChan(user.String(), func() (any, error) {
		// It does not end with the request that happens to be the first.
		return k.ask(context.WithoutCancel(ctx), user)
	})
	select {
	case r := <-done:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*existing), nil
	case <-ctx.Done():
		return nil, apierror.ErrIncomplete.Wrap(context.Cause(ctx))
	}
}

func (k *known) ask(ctx context.Context, user signerapi.User) (*existing, error) {
	if !k.asked.TryAcquire(1) {
		return nil, apierror.ErrOverloaded.Wrap(fmt.Errorf("%d lookups are under way or wait", maxAsked))
	}
	defer k.asked.Release(1)
	wait, cancel := context.WithTimeout(ctx, lookWait)
	defer cancel()
	if err := k.looks.Acquire(wait, 1); err != nil {
		return nil, apierror.ErrOverloaded.Wrap(fmt.Errorf("%d lookups are under way", maxLooks))
	}
	defer k.looks.Release(1)
	before := k.change(user).Load()
	info, err := k.look(ctx, user)
	if err != nil {
		return nil, err
	}
	p := &existing{info: info, until: k.now().Add(k.ttl)}
	if last, ok := k.there.Peek(user); ok {
		p.link.Store(last.link.Load())
	}
	if k.change(user).Load() == before {
		k.there.Add(user, p)
		if k.change(user).Load() != before {
			k.there.Remove(user)
		}
	}
	return p, nil
}

// forget is called before and after what may change the picture of user. A lookup
// that is under way is not remembered, nor shared with who asks from now on.
func (k *known) forget(user signerapi.User) {
	k.change(user).Add(1)
	k.there.Remove(user)
	k.flight.Forget(user.String())
}

func (k *known) change(user signerapi.User) *atomic.Uint64 {
	return &k.changes[maphash.Comparable(k.seed, user)%uint64(len(k.changes))]
}
