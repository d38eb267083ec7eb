package stack

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/lease"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/service"
)

const (
	// Account is the name of the storage account.
	Account = "davydscats"

	accountHost        = Account + ".blob.localhost"
	adminTokenLifetime = time.Hour
)

// Storage is the storage account of a stack. Its methods bypass the signer, so that tests can inspect what it stored. Errors of
// storage are, or wrap, an [*azcore.ResponseError]; see [bloberror.HasCode].
type Storage struct {
	// URL is the URL of the account. Its host name resolves to loopback in browsers, curl, the signer and [Stack.Client] only.
	URL string
	// Process is Azurite. It keeps all data in memory, and listens on another port after a restart. To test failures of storage, set
	// [SystemOptions].StorageURL to a proxy instead.
	Process *Process
	// Client has full access to the account.
	Client *azblob.Client

	http *http.Client
}

// NewStorage returns the account at url. The host name of url must be a name of ca's certificate. token creates access tokens.
func NewStorage(url string, ca *CA, token func(lifetime time.Duration) (string, error)) (*Storage, error) {
	return newStorage(url, newTransport(ca), token)
}

func newStorage(url string, transport http.RoundTripper, token credential) (*Storage, error) {
	st := &Storage{URL: url, http: newClient(transport)}
	var err error
	st.Client, err = azblob.NewClient(url, token, &azblob.ClientOptions{ClientOptions: azcore.ClientOptions{
		Transport: st.http,
		Retry:     policy.RetryOptions{MaxRetries: 2, RetryDelay: 20 * time.Millisecond}, // Azurite under load resets connections
	}})
	if err != nil {
		return nil, fmt.Errorf("creating the storage client: %w", err)
	}
	return st, nil
}

// credential is an [azcore.TokenCredential] that creates its tokens itself.
type credential func(lifetime time.Duration) (string, error)

// GetToken returns a new token. It expires at once for the SDK, which would cache it: [Stack.SetClock] can invalidate it.
func (c credential) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	token, err := c(adminTokenLifetime)
	return azcore.AccessToken{Token: token, ExpiresOn: time.Now()}, err
}

// newTransport returns a transport that trusts only ca and connects to loopback for each name of ca's certificate.
func newTransport(ca *CA) *http.Transport {
	var dialer net.Dialer
	return &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			host, port, err := net.SplitHostPort(address)
			if err == nil && ca.covers(host) {
				address = net.JoinHostPort("127.0.0.1", port)
			}
			return dialer.DialContext(ctx, network, address)
		},
		TLSClientConfig:     &tls.Config{RootCAs: ca.Pool, MinVersion: tls.VersionTLS12},
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     2 * time.Second, // Azurite closes idle connections after 5 s
		DisableCompression:  true,
	}
}

// AllowPages sets CORS rules that let pages of all origins upload to the account and read from it.
func (st *Storage) AllowPages(ctx context.Context) error {
	_, err := st.Client.ServiceClient().SetProperties(ctx, &service.SetPropertiesOptions{CORS: []*service.CORSRule{{
		AllowedOrigins:  new("*"),
		AllowedMethods:  new("GET,HEAD,PUT"),
		AllowedHeaders:  new("content-type,content-md5,x-ms-*"),
		ExposedHeaders:  new("etag,content-md5,x-ms-*"),
		MaxAgeInSeconds: new(int32(3600)),
	}}})
	if err != nil {
		return fmt.Errorf("setting the account's CORS rules: %w", err)
	}
	return nil
}

// CreateContainer creates a container unless it exists.
func (st *Storage) CreateContainer(ctx context.Context, container string) error {
	_, err := st.Client.CreateContainer(ctx, container, nil)
	if err != nil && !bloberror.HasCode(err, bloberror.ContainerAlreadyExists) {
		return fmt.Errorf("creating container %s: %w", container, err)
	}
	return nil
}

// DeleteContainer deletes a container and its blobs.
func (st *Storage) DeleteContainer(ctx context.Context, container string) error {
	_, err := st.Client.DeleteContainer(ctx, container, nil)
	return err
}

// Containers returns the names of the account's containers.
func (st *Storage) Containers(ctx context.Context) ([]string, error) {
	var names []string
	for pages := st.Client.NewListContainersPager(nil); pages.More(); {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("listing containers: %w", err)
		}
		for _, c := range page.ContainerItems {
			names = append(names, *c.Name)
		}
	}
	return names, nil
}

// Blob describes a stored blob.
type Blob struct {
	Name        string
	Size        int64
	ContentType string
	ETag        string
}

// Blobs lists the committed blobs of a container by name.
func (st *Storage) Blobs(ctx context.Context, container string) ([]Blob, error) {
	var blobs []Blob
	for pages := st.Client.NewListBlobsFlatPager(container, nil); pages.More(); {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("listing container %s: %w", container, err)
		}
		for _, b := range page.Segment.BlobItems {
			blobs = append(blobs, Blob{*b.Name, *b.Properties.ContentLength, *b.Properties.ContentType, string(*b.Properties.ETag)})
		}
	}
	return blobs, nil
}

// Read returns the response header and the content of a blob.
func (st *Storage) Read(ctx context.Context, container, name string) (http.Header, []byte, error) {
	var raw *http.Response
	resp, err := st.Client.DownloadStream(policy.WithCaptureResponse(ctx, &raw), container, name, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("reading blob %s: %w", name, err)
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, nil, fmt.Errorf("reading blob %s: %w", name, err)
	}
	return raw.Header, content, nil
}

// Put stores a blob with one request.
func (st *Storage) Put(ctx context.Context, container, name, contentType string, content []byte) error {
	options := &azblob.UploadBufferOptions{HTTPHeaders: &blob.HTTPHeaders{BlobContentType: &contentType}}
	if _, err := st.Client.UploadBuffer(ctx, container, name, content, options); err != nil {
		return fmt.Errorf("storing blob %s: %w", name, err)
	}
	return nil
}

// Delete deletes a blob.
func (st *Storage) Delete(ctx context.Context, container, name string) error {
	if _, err := st.Client.DeleteBlob(ctx, container, name, nil); err != nil {
		return fmt.Errorf("deleting blob %s: %w", name, err)
	}
	return nil
}

// Lease acquires a lease on a blob that has no end until release is called.
func (st *Storage) Lease(ctx context.Context, container, name string) (release func(context.Context) error, err error) {
	client, err := lease.NewBlobClient(st.Client.ServiceClient().NewContainerClient(container).NewBlobClient(name), nil)
	if err == nil {
		_, err = client.AcquireLease(ctx, -1, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("leasing blob %s: %w", name, err)
	}
	return func(ctx context.Context) error {
		_, err := client.ReleaseLease(ctx, nil)
		return err
	}, nil
}
