package auth

import (
	"context"
	"io"

	"cats.example/shared/access"
	"cats.example/shared/signerapi"
)

// Guard returns a Signer that calls s only for callers whose token permits the call. About and Ready need no token.
func (a *Authenticator) Guard(s signerapi.Signer) signerapi.Signer { return guard{s, a} }

// guard does not embed the Signer, so that a new method of the interface does not compile until guard authorizes it.
type guard struct {
	signer signerapi.Signer
	auth   *Authenticator
}

var _ signerapi.Signer = guard{}

func (g guard) Put(ctx context.Context, user signerapi.User, body io.Reader, opts signerapi.PutOptions) (signerapi.Info, error) {
	who, err := g.auth.authorize(ctx, user, access.Own)
	if err != nil {
		return signerapi.Info{}, err
	}
	return g.signer.Put(signerapi.WithCaller(ctx, who.id), user, body, opts)
}

func (g guard) Link(ctx context.Context, user signerapi.User, opts signerapi.LinkOptions) (signerapi.Link, error) {
	if _, err := g.auth.authorize(ctx, user, g.auth.opts.ReadAccess); err != nil {
		return signerapi.Link{}, err
	}
	return g.signer.Link(ctx, user, opts)
}

func (g guard) Delete(ctx context.Context, user signerapi.User, preconditions signerapi.Preconditions) error {
	if _, err := g.auth.authorize(ctx, user, access.Own); err != nil {
		return err
	}
	return g.signer.Delete(ctx, user, preconditions)
}

func (g guard) StartUpload(ctx context.Context, user signerapi.User, size int64) (signerapi.UploadSession, error) {
	if _, err := g.auth.authorize(ctx, user, access.Own); err != nil {
		return signerapi.UploadSession{}, err
	}
	return g.signer.StartUpload(ctx, user, size)
}

func (g guard) CommitUpload(ctx context.Context, user signerapi.User, uploadID string, opts signerapi.CommitOptions) (signerapi.Info, error) {
	who, err := g.auth.authorize(ctx, user, access.Own)
	if err != nil {
		return signerapi.Info{}, err
	}
	return g.signer.CommitUpload(signerapi.WithCaller(ctx, who.id), user, uploadID, opts)
}

// About adds the claim that contains the user name.
func (g guard) About(ctx context.Context) (signerapi.About, error) {
	about, err := g.signer.About(ctx)
	about.UserClaim = g.auth.opts.UserClaim
	return about, err
}

func (g guard) Ready(ctx context.Context) error {
	if err := g.signer.Ready(ctx); err != nil {
		return err
	}
	return g.auth.Ready()
}
