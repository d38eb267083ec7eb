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
	"cats.example/signer/internal/signing"
)

const (
	maxCached   = 8192 // pictures; each takes some 2 KiB with a link
	maxLookups  = 128  // at once
	maxPending  = 512  // lookups in progress or waiting for their turn; the client of one may have disconnected
	lookupQueue = 2 * time.Second
)

// existenceCache remembers for ttl the properties of pictures that exist, and nothing about pictures that do not. Concurrent
// requests for one picture share a lookup.
type existenceCache struct {
	ttl     time.Duration
	look    func(context.Context, signerapi.User) (signerapi.Info, error)
	found   *lru.Cache[signerapi.User, *found]
	flight  singleflight.Group
	lookups *semaphore.Weighted
	pending *semaphore.Weighted
	seed    maphash.Seed
	changes [256]atomic.Uint64 // of the pictures of users with that hash
}

// found is a picture that exists.
type found struct {
	info  signerapi.Info
	until time.Time
	link  atomic.Pointer[signing.Link] // the last one that shows the picture
}

func newExistenceCache(ttl time.Duration, look func(context.Context, signerapi.User) (signerapi.Info, error)) *existenceCache {
	cache, _ := lru.New[signerapi.User, *found](maxCached) // fails only for a size below 1
	return &existenceCache{ttl: ttl, look: look, found: cache, lookups: semaphore.NewWeighted(maxLookups), pending: semaphore.NewWeighted(maxPending), seed: maphash.MakeSeed()}
}

// get returns the picture of user.
func (c *existenceCache) get(ctx context.Context, user signerapi.User) (*found, error) {
	if f, ok := c.found.Get(user); ok && time.Now().Before(f.until) {
		return f, nil
	}
	done := c.flight.DoChan(user.String(), func() (any, error) {
		return c.lookup(context.WithoutCancel(ctx), user) // for the other requests, if the first one is canceled
	})
	select {
	case r := <-done:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*found), nil
	case <-ctx.Done():
		return nil, apierror.ErrIncomplete.Wrap(context.Cause(ctx))
	}
}

func (c *existenceCache) lookup(ctx context.Context, user signerapi.User) (*found, error) {
	if !c.pending.TryAcquire(1) {
		return nil, apierror.ErrOverloaded.Wrap(fmt.Errorf("%d lookups are in progress or wait", maxPending))
	}
	defer c.pending.Release(1)
	queue, cancel := context.WithTimeout(ctx, lookupQueue)
	defer cancel()
	if err := c.lookups.Acquire(queue, 1); err != nil {
		return nil, apierror.ErrOverloaded.Wrap(fmt.Errorf("%d lookups are in progress", maxLookups))
	}
	defer c.lookups.Release(1)
	before := c.change(user).Load()
	info, err := c.look(ctx, user)
	if err != nil {
		return nil, err
	}
	f := &found{info: info, until: time.Now().Add(c.ttl)}
	if last, ok := c.found.Peek(user); ok {
		f.link.Store(last.link.Load())
	}
	if c.change(user).Load() == before {
		c.found.Add(user, f)
		if c.change(user).Load() != before {
			c.found.Remove(user)
		}
	}
	return f, nil
}

// forget removes the picture of user. Call it before and after a change of the picture. A lookup in progress is not cached, and
// not shared with later requests.
func (c *existenceCache) forget(user signerapi.User) {
	c.change(user).Add(1)
	c.found.Remove(user)
	c.flight.Forget(user.String())
}

func (c *existenceCache) change(user signerapi.User) *atomic.Uint64 {
	return &c.changes[maphash.Comparable(c.seed, user)%uint64(len(c.changes))]
}
