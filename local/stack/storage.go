package stack

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

const (
	// Account is the name of the storage account.
	Account = "davydscats"

	accountHost    = Account + ".blob.localhost"
	storageVersion = "2021-12-02" // x-ms-version of the stack's own calls
	adminToken     = time.Hour
)

// Storage is the storage account of a stack: Azurite, and what a test needs to
// look at it without going through the signer.
type Storage struct {
	// URL is the account's, with a host name that only a browser, curl, the signer
	// and [Stack.Client] resolve, to loopback.
	URL string
	// Process is Azurite. It keeps everything in memory and would listen elsewhere
	// after a restart: for storage that fails, see [SystemOptions].StorageURL.
	Process *Process

	client *http.Client
	token  func(time.Duration) (string, error)
}

var azuriteListens = regexp.MustCompile(`successfully listens on https://(127\.0\.0\.1:\d+)`)

// azurite returns the emulator, not started.
func (s *Stack) azurite() (*Process, error) {
	dir := filepath.Join(s.opts.Dir, "azurite")
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700)); err != nil { // it wants an empty folder
		return nil, fmt.Errorf("making Azurite's folder: %w", err)
	}
	log, err := newLog("azurite", filepath.Join(s.opts.Dir, "logs", "azurite.log"), nil)
	if err != nil {
		return nil, err
	}
	nodeOptions, err := s.clock()
	if err != nil {
		return nil, err
	}
	script := filepath.Join(s.opts.Dir, "azurite.js")
	if err := WriteAzuriteScript(script); err != nil {
		return nil, err
	}
	var key [64]byte
	_, _ = rand.Read(key[:]) // never fails
	return &Process{
		Log:  log,
		name: "azurite",
		path: "node",
		args: []string{
			"--require", script, filepath.Join(s.opts.Root, "local", "node_modules", "azurite", "dist", "src", "blob", "main.js"),
			"--blobHost", "127.0.0.1", "--blobPort", "0",
			"--cert", s.CA.File, "--key", s.CA.KeyFile,
			"--oauth", "basic", "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent",
		},
		dir: dir,
		env: map[string]string{
			"PATH":             os.Getenv("PATH"),
			"HOME":             dir,
			"NODE_OPTIONS":     nodeOptions,
			"AZURITE_ACCOUNTS": Account + ":" + base64.StdEncoding.EncodeToString(key[:]),
		},
		addresses: map[string]string{},
		listeners: map[string]string{"blob": ""},
		listening: func(line string) (listener, address string, ok bool) {
			m := azuriteListens.FindStringSubmatch(line)
			if m == nil {
				return "", "", false
			}
			return "blob", m[1], true
		},
	}, nil
}

// azuriteScript replaces the constant from which Azurite derives every user delegation key: a client that knows the
// constant could sign URLs. It also replaces the method that deletes the content of a replaced blob. Azurite calls it every ten
// minutes for all of them in a row and answers nothing meanwhile; its own sorts all content by ID each time, which takes a minute
// for 6000 blobs.
const azuriteScript = `'use strict'
const { dirname, join } = require('path')
const blob = dirname(require('fs').realpathSync(process.argv[1]))
require(join(blob, 'utils', 'constants.js')).USERDELEGATIONKEY_SIGNING_SEED = process.env.AZURITE_ACCOUNTS
const extents = require(join(blob, '..', 'common', 'persistence', 'LokiExtentMetadataStore.js')).default.prototype
if (!extents.deleteExtent) throw new Error('this version of Azurite deletes content in another way: adapt this script')
extents.deleteExtent = async function (id) {
  const all = this.db.getCollection(this.EXTENTS_COLLECTION)
  const one = all.findOne({ id })
  if (one) all.remove(one)
}
`

// WriteAzuriteScript writes a script that Node.js must load before Azurite (node --require). With it, user delegation keys depend
// on AZURITE_ACCOUNTS, which holds the account's key.
func WriteAzuriteScript(path string) error {
	if err := os.WriteFile(path, []byte(azuriteScript), 0o600); err != nil {
		return fmt.Errorf("writing the script for Azurite: %w", err)
	}
	return nil
}

// newTransport trusts the stack's authority alone and takes the names of its
// certificate for loopback.
func newTransport(ca *CA) *http.Transport {
	var dialer net.Dialer
	return &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			host, port, err := net.SplitHostPort(address)
			if err == nil && ca.local(host) {
				address = net.JoinHostPort("127.0.0.1", port)
			}
			return dialer.DialContext(ctx, network, address)
		},
		TLSClientConfig:     &tls.Config{RootCAs: ca.Pool, MinVersion: tls.VersionTLS12},
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     2 * time.Second, // Azurite drops idle connections after 5 s
		DisableCompression:  true,
	}
}

// NewStorage returns the account at url, which is on this machine under a name of
// ca's certificate. token makes access tokens.
func NewStorage(url string, ca *CA, token func(time.Duration) (string, error)) *Storage {
	return &Storage{URL: url, client: newClient(newTransport(ca)), token: token}
}

// Front returns a handler that serves the account in plain HTTP to clients with a signed URL. It passes their requests on with
// another host, so that signatures stay valid, and streams the responses. It answers other requests with 403, but for CORS
// preflight requests, which carry no credentials. It drops the Authorization header field: Azurite does not verify the
// signature of a bearer token. It answers copies of other blobs with 403: Azurite copies an unsigned source of the same account.
func (st *Storage) Front() (http.Handler, error) {
	target, err := url.Parse(st.URL)
	if err != nil {
		return nil, fmt.Errorf("making the front of the account: %w", err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = target.Scheme, target.Host
			r.Out.Host = target.Host // its first label is the account
			r.Out.Header.Del("Authorization")
		},
		Transport:     st.client.Transport,
		FlushInterval: -1,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, "the storage emulator does not answer: "+err.Error(), http.StatusBadGateway)
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method != http.MethodOptions && r.URL.Query().Get("sig") == "":
			reject(w, "AuthenticationFailed", "The URL has no signature (sig=). This port serves signed URLs only: get one from the public API with GET /cat/{user}.")
			return
		case len(r.Header.Values("X-Ms-Copy-Source")) > 0:
			reject(w, "CannotVerifyCopySource", "This port copies no blobs (x-ms-copy-source). Upload the content.")
			return
		}
		proxy.ServeHTTP(w, r)
	}), nil
}

// reject answers 403 in the form of Azure's error responses.
func reject(w http.ResponseWriter, code, message string) {
	w.Header().Set("Content-Type", "application/xml")
	w.Header().Set("X-Ms-Error-Code", code)
	w.WriteHeader(http.StatusForbidden)
	_, _ = fmt.Fprintf(w, `<?xml version="1.0" encoding="utf-8"?><Error><Code>%s</Code><Message>%s</Message></Error>`, code, message)
}

// Do calls the account with a token of the stack's own, which may do everything.
// path is escaped already and may have a query. An answer outside 2xx is a
// [*StorageError]. The caller closes the body. Do repeats a request that got no answer, twice at most: Azurite under load
// resets a connection now and then.
func (st *Storage) Do(ctx context.Context, method, path string, header http.Header, body []byte) (*http.Response, error) {
	token, err := st.token(adminToken)
	if err != nil {
		return nil, err
	}
	var resp *http.Response
	for range 3 {
		var req *http.Request
		if req, err = http.NewRequestWithContext(ctx, method, st.URL+path, bytes.NewReader(body)); err != nil {
			return nil, fmt.Errorf("asking storage: %w", err)
		}
		req.Header = header.Clone()
		if req.Header == nil {
			req.Header = http.Header{}
		}
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("X-Ms-Version", storageVersion)
		if resp, err = st.client.Do(req); err == nil || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("asking storage: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // as much of the reason as there is
		return nil, &StorageError{Status: resp.StatusCode, Code: resp.Header.Get("X-Ms-Error-Code"), Text: string(text)}
	}
	return resp, nil
}

// StorageError is a refusal by storage.
type StorageError struct {
	Status int
	Code   string // such as BlobNotFound
	Text   string
}

func (e *StorageError) Error() string { return fmt.Sprintf("storage answered %d %s", e.Status, e.Code) }

// call is Do, with the whole answer read.
func (st *Storage) call(ctx context.Context, method, path string, header http.Header, body []byte) (http.Header, []byte, error) {
	resp, err := st.Do(ctx, method, path, header, body)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, nil, fmt.Errorf("reading storage's answer: %w", err)
	}
	return resp.Header, b, nil
}

// corsRules let the pages of all origins send pictures straight to the account, and
// fetch them, as an account has to whose pages do that.
const corsRules = `<?xml version="1.0" encoding="utf-8"?><StorageServiceProperties><Cors><CorsRule>` +
	`<AllowedOrigins>*</AllowedOrigins><AllowedMethods>GET,HEAD,PUT</AllowedMethods>` +
	`<AllowedHeaders>content-type,content-md5,x-ms-*</AllowedHeaders><ExposedHeaders>etag,content-md5,x-ms-*</ExposedHeaders>` +
	`<MaxAgeInSeconds>3600</MaxAgeInSeconds></CorsRule></Cors></StorageServiceProperties>`

// AllowPages sets the account's CORS rules.
func (st *Storage) AllowPages(ctx context.Context) error {
	if _, _, err := st.call(ctx, http.MethodPut, "/?restype=service&comp=properties", http.Header{"Content-Type": {"application/xml"}}, []byte(corsRules)); err != nil {
		return fmt.Errorf("setting the account's CORS rules: %w", err)
	}
	return nil
}

// CreateContainer makes a container, unless it is there.
func (st *Storage) CreateContainer(ctx context.Context, container string) error {
	_, _, err := st.call(ctx, http.MethodPut, "/"+container+"?restype=container", nil, nil)
	if refused, ok := errors.AsType[*StorageError](err); ok && refused.Code == "ContainerAlreadyExists" {
		return nil
	}
	if err != nil {
		return fmt.Errorf("creating container %s: %w", container, err)
	}
	return nil
}

// DeleteContainer deletes a container with all that is in it.
func (st *Storage) DeleteContainer(ctx context.Context, container string) error {
	_, _, err := st.call(ctx, http.MethodDelete, "/"+container+"?restype=container", nil, nil)
	return err
}

// Containers lists the account's containers.
func (st *Storage) Containers(ctx context.Context) ([]string, error) {
	_, b, err := st.call(ctx, http.MethodGet, "/?comp=list", nil, nil)
	if err != nil {
		return nil, err
	}
	var list struct {
		Names []string `xml:"Containers>Container>Name"`
	}
	if err := xml.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("reading the list of containers: %w", err)
	}
	return list.Names, nil
}

// Blob is one picture as storage has it.
type Blob struct {
	Name        string
	Size        int64
	ContentType string
	ETag        string
}

// Blobs lists what is committed in a container, in the order of names.
func (st *Storage) Blobs(ctx context.Context, container string) ([]Blob, error) {
	var blobs []Blob
	for marker := ""; ; {
		_, b, err := st.call(ctx, http.MethodGet, "/"+container+"?restype=container&comp=list&marker="+url.QueryEscape(marker), nil, nil)
		if err != nil {
			return nil, fmt.Errorf("listing container %s: %w", container, err)
		}
		var list struct {
			Blobs []struct {
				Name       string
				Properties struct {
					Size        int64  `xml:"Content-Length"`
					ContentType string `xml:"Content-Type"`
					ETag        string `xml:"Etag"`
				}
			} `xml:"Blobs>Blob"`
			NextMarker string
		}
		if err := xml.Unmarshal(b, &list); err != nil {
			return nil, fmt.Errorf("listing container %s: %w", container, err)
		}
		for _, b := range list.Blobs {
			blobs = append(blobs, Blob{b.Name, b.Properties.Size, b.Properties.ContentType, b.Properties.ETag})
		}
		if marker = list.NextMarker; marker == "" {
			return blobs, nil
		}
	}
}

// Read returns a blob's header and bytes. A missing blob is a [*StorageError]
// with the code BlobNotFound.
func (st *Storage) Read(ctx context.Context, container, name string) (http.Header, []byte, error) {
	header, b, err := st.call(ctx, http.MethodGet, blobPath(container, name), nil, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("reading blob %s: %w", name, err)
	}
	return header, b, nil
}

// Put stores a blob in one piece.
func (st *Storage) Put(ctx context.Context, container, name, contentType string, body []byte) error {
	header := http.Header{"X-Ms-Blob-Type": {"BlockBlob"}, "Content-Type": {contentType}}
	if _, _, err := st.call(ctx, http.MethodPut, blobPath(container, name), header, body); err != nil {
		return fmt.Errorf("putting blob %s: %w", name, err)
	}
	return nil
}

// Delete deletes a blob.
func (st *Storage) Delete(ctx context.Context, container, name string) error {
	if _, _, err := st.call(ctx, http.MethodDelete, blobPath(container, name), nil, nil); err != nil {
		return fmt.Errorf("deleting blob %s: %w", name, err)
	}
	return nil
}

func blobPath(container, name string) string {
	segments := strings.Split(name, "/")
	for i, s := range segments {
		segments[i] = url.PathEscape(s)
	}
	return "/" + container + "/" + strings.Join(segments, "/")
}
