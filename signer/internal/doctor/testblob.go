package doctor

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
	"cats.example/signer/internal/signing"
	"cats.example/signer/internal/storage"
)

const (
	// testBlobPrefix begins the name of every test blob.
	testBlobPrefix = "cats-api-doctor-"

	testURLTTL = 5 * time.Minute
)

// testBlob is one blob in the container of the pictures. Its name is random and has no slash; a picture's always has one. So the
// doctor never touches a picture.
type testBlob struct {
	storage *storage.Client
	keys    *signing.Keys
	name    string
}

func newTestBlob(client *storage.Client, keys *signing.Keys) *testBlob {
	return &testBlob{client, keys, testBlobPrefix + rand.Text()}
}

// put stores the blob, whose content is its name. After an error without a storage.ResponseError, storage may have stored it.
func (b *testBlob) put(ctx context.Context) error {
	return b.storage.Call(ctx, &storage.Operation{Name: storage.OpPut}, func(ctx context.Context) error {
		_, err := b.storage.BlobClient(b.name).Upload(ctx, streaming.NopCloser(strings.NewReader(b.name)), nil)
		return err
	})
}

// read returns an error unless a signed URL at base returns the blob without a token. base is the account's URL or LinkBaseURL.
func (b *testBlob) read(ctx context.Context, base string) error {
	url, err := b.keys.ReadURL(base, b.name, testURLTTL)
	if err != nil {
		return err
	}
	var content []byte
	_, err = b.storage.Probe(ctx, url, func(ctx context.Context, client *blob.Client) error {
		resp, err := client.DownloadStream(ctx, nil)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		content, err = io.ReadAll(io.LimitReader(resp.Body, int64(len(b.name))+1))
		return err
	})
	if err == nil && string(content) != b.name {
		return errors.New("a signed URL returns other bytes than were stored; fix: something between this pod and storage answers in its place")
	}
	return err
}

// copy lets storage copy the blob into a block of itself, as the commit of a direct upload does.
func (b *testBlob) copy(ctx context.Context) error {
	url, err := b.keys.ReadURL(b.storage.AccountURL, b.name, testURLTTL)
	if err != nil {
		return err
	}
	return b.storage.Call(ctx, &storage.Operation{Name: storage.OpCopy}, func(ctx context.Context) error {
		_, err := b.storage.BlobClient(b.name).StageBlockFromURL(ctx, base64.StdEncoding.EncodeToString([]byte(b.name)), string(url), nil)
		return err
	})
}

// delete deletes the blob. A missing blob is no error.
func (b *testBlob) delete(ctx context.Context) error {
	err := b.storage.Delete(ctx, &storage.Operation{Name: storage.OpDelete}, b.name, signerapi.Preconditions{})
	if err == nil || errors.Is(err, apierror.ErrNotFound) {
		return nil
	}
	return fmt.Errorf("the test blob may be left behind, delete it: %s in the container %s: %w", b.name, b.storage.Container, cause(err))
}

// cause returns the reason for an error of the API, without the API's error code.
func cause(err error) error {
	if e, ok := errors.AsType[*apierror.Error](err); ok && e.Unwrap() != nil {
		return e.Unwrap()
	}
	return err
}
