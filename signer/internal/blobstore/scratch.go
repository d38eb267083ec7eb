package blobstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"

	"cats.example/shared/signerapi"
)

const (
	// ScratchPrefix begins the name of every scratch blob.
	ScratchPrefix = "cats-api-doctor-"
	scratchType   = "image/png"
	// scratchTTL is the life of a link to one.
	scratchTTL = 5 * time.Minute
)

// FetchKey gets a user delegation key once, has the store sign with it, and
// returns when it ends. It is for a store that does not Run. The error is, or
// wraps, a *Refusal where storage answered.
func (s *Store) FetchKey(ctx context.Context) (end time.Time, err error) {
	k, err := s.fetchKey(impatient(ctx, opKey))
	if err != nil {
		return time.Time{}, err
	}
	s.key.key.Store(k)
	return k.end, nil
}

// Scratch is one blob in the container of the pictures, to try storage out with.
// Its name is random and has no slash; a picture's has one always, so that none
// is ever touched. Its errors are, or wrap, a *Refusal where storage answered.
type Scratch struct {
	store  *Store
	name   string
	client *blockblob.Client
}

// NewScratch names a scratch blob. It calls nobody.
func (s *Store) NewScratch() *Scratch {
	name := ScratchPrefix + rand.Text()
	return &Scratch{store: s, name: name, client: s.container.NewBlockBlobClient(name)}
}

// Name returns the name of the blob.
func (c *Scratch) Name() string { return c.name }

// Put stores content, a small PNG, as a picture is stored. Unlike
// a picture's, it ends with ctx. After an error that is not a *Refusal it may
// have been stored all the same.
func (c *Scratch) Put(ctx context.Context, content []byte) error {
	_, err := c.client.Upload(impatient(ctx, opPut), streaming.NopCloser(bytes.NewReader(content)), &blockblob.UploadOptions{
		HTTPHeaders: &blob.HTTPHeaders{BlobContentType: new(scratchType)},
	})
	return brief(err, contributorRole)
}

// Delete removes the blob. That it was not there is no error.
func (c *Scratch) Delete(ctx context.Context) error {
	_, err := c.client.Delete(impatient(ctx, opDelete), deleteOptions(signerapi.Conditions{}))
	if bloberror.HasCode(err, bloberror.BlobNotFound) {
		return nil
	}
	return brief(err, contributorRole)
}

// Link returns a signed URL of the blob, as of a picture. base is the account's URL or LinkBase.
func (c *Scratch) Link(base string) (signerapi.SignedURL, error) {
	return c.store.readURL(base, c.name, scratchTTL, scratchType)
}

// Copy lets storage copy the blob into a block of itself, as a commit copies a staged blob into a picture.
func (c *Scratch) Copy(ctx context.Context) error {
	source, err := c.store.readURL(c.store.opts.AccountURL, c.name, sourceTTL, "")
	if err != nil {
		return err
	}
	id := base64.StdEncoding.EncodeToString([]byte(c.name))
	_, err = c.client.StageBlockFromURL(impatient(ctx, opCopy), id, string(source), nil)
	return brief(err, contributorRole)
}

// impatient has the SDK try op twice, each for less than half of what a person
// waits for, so that the error is the network's and not that time ran out.
func impatient(ctx context.Context, op string) context.Context {
	return policy.WithRetryOptions((&operation{name: op}).under(ctx), retries(1, 6*time.Second))
}
