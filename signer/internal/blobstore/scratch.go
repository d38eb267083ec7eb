package blobstore

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"

	"cats.example/shared/signerapi"
)

const (
	// ScratchPrefix begins the name of every scratch blob.
	ScratchPrefix = "cats-api-doctor-"
	// scratchTTL is the life of a link to one.
	scratchTTL = 5 * time.Minute
)

// FetchKey gets a user delegation key once, has the store sign with it, and
// returns when it ends. It is for a store that does not Run. The error is, or
// wraps, a *Refusal where storage answered.
func (s *Store) FetchKey(ctx context.Context) (end time.Time, err error) {
	k, err := s.fetchKey(impatient(ctx, opKey))
	if err != nil {
		return time.Time{}, cmp.Or(errors.Unwrap(err), err)
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

// Put stores the blob, whose content is its name. Unlike a picture's, the upload ends with ctx. After an error that is not a
// *Refusal, storage may have stored the blob.
func (c *Scratch) Put(ctx context.Context) error {
	_, err := c.client.Upload(impatient(ctx, opPut), streaming.NopCloser(strings.NewReader(c.name)), nil)
	return brief(err, contributorRole)
}

// Delete removes the blob. That it was not there is no error.
func (c *Scratch) Delete(ctx context.Context) error {
	_, err := c.client.Delete(impatient(ctx, opDelete), deleteOptions(signerapi.Preconditions{}))
	if err == nil || bloberror.HasCode(err, bloberror.BlobNotFound) {
		return nil
	}
	return fmt.Errorf("the scratch blob may be left behind, delete it by hand: %s in the container %s: %w",
		c.name, c.store.opts.Container, brief(err, contributorRole))
}

// Read returns an error unless a signed URL, as of a picture, returns the blob, as to a client without a token. base is the
// account's URL or LinkBaseURL.
func (c *Scratch) Read(ctx context.Context, base string) error {
	link, err := c.store.readURL(base, c.name, scratchTTL, "")
	if err != nil {
		return err
	}
	client, err := c.store.anonymous(link)
	if err != nil {
		return err
	}
	resp, err := client.DownloadStream(impatient(ctx, opTrial), nil)
	if err != nil {
		return brief(err, contributorRole)
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(io.LimitReader(resp.Body, int64(len(c.name))+1))
	if err == nil && string(content) != c.name {
		err = errors.New("a signed link gives other bytes than were stored; fix: something between here and storage answers in its place")
	}
	return brief(err, contributorRole)
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

// ClockAhead returns how far this machine's clock is ahead of storage's. It needs no token: storage may reject the request, and its
// response has a date nevertheless.
func (s *Store) ClockAhead(ctx context.Context) (time.Duration, error) {
	client, err := s.anonymous(signerapi.SignedURL(s.container.URL()))
	if err != nil {
		return 0, err
	}
	var resp *http.Response
	_, err = client.GetProperties(policy.WithCaptureResponse(impatient(ctx, opTrial), &resp), nil)
	if resp == nil {
		return 0, brief(err, "")
	}
	return aheadOf(s.now(), resp.Header.Get("Date"))
}

// impatient has the SDK try op twice. Each try takes less than half of the time of a
// check. So the error tells what the network did, and not that the time was up.
func impatient(ctx context.Context, op string) context.Context {
	return policy.WithRetryOptions((&operation{name: op}).under(ctx), retries(1, 6*time.Second))
}
