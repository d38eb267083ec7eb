package auth

import (
	"context"
	"io"

	"cats.example/shared/access"
	"cats.example/shared/signerapi"
)

// Guard returns s for authenticated callers only: each call needs a token that permits it.
func (c *Callers) Guard(s signerapi.Signer) signerapi.Signer { return guard{s, c} }

// guard does not embed the signer: after a new call of the contract, this package does not
// compile until guard has a method that decides who may make it.
type guard struct {
	signer  signerapi.Signer
	callers *Callers
}

var _ signerapi.Signer = guard{}

func (g guard) Put(ctx context.Context, user signerapi.User, body io.Reader, opts signerapi.PutOptions) (signerapi.Info, error) {
	who, err := g.callers.permitted(ctx, user, access.Own)
	if err != nil {
		return signerapi.Info{}, err
	}
	return g.signer.Put(signerapi.WithCaller(ctx, who.id), user, body, opts)
}

func (g guard) Link(ctx context.Context, user signerapi.User, opts signerapi.LinkOptions) (signerapi.Link, error) {
	if _, err := g.callers.permitted(ctx, user, g.callers.opts.ReadAccess); err != nil {
		return signerapi.Link{}, err
	}
	return g.signer.Link(ctx, user, opts)
}

func (g guard) Delete(ctx context.Context, user signerapi.User, conditions signerapi.Preconditions) error {
	if _, err := g.callers.permitted(ctx, user, access.Own); err != nil {
		return err
	}
	return g.signer.Delete(ctx, user, conditions)
}

func (g guard) StartUpload(ctx context.Context, user signerapi.User, size int64) (signerapi.UploadSession, error) {
	if _, err := g.callers.permitted(ctx, user, access.Own); err != nil {
		return signerapi.UploadSession{}, err
	}
	return g.signer.StartUpload(ctx, user, size)
}

func (g guard) CommitUpload(ctx context.Context, user signerapi.User, ticket string, opts signerapi.CommitOptions) (signerapi.Info, error) {
	who, err := g.callers.permitted(ctx, user, access.Own)
	if err != nil {
		return signerapi.Info{}, err
	}
	return g.signer.CommitUpload(signerapi.WithCaller(ctx, who.id), user, ticket, opts)
}

// About needs no token. It adds the claim that holds the user name.
func (g guard) About(ctx context.Context) (signerapi.About, error) {
	about, err := g.signer.About(ctx)
	about.UserClaim = g.callers.opts.Claim
	return about, err
}

func (g guard) Ready(ctx context.Context) error {
	if err := g.signer.Ready(ctx); err != nil {
		return err
	}
	return g.callers.Ready()
}
