package blobstore

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/minio/crc64nvme"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"cats.example/shared/apierror"
	"cats.example/shared/config"
	"cats.example/shared/picture"
	"cats.example/shared/ratelimit"
	"cats.example/shared/signerapi"
)

// cred always has a token, and counts the calls of Renew.
type cred struct {
	mu      sync.Mutex
	renewed int
	err     error
}

func (c *cred) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: "t", ExpiresOn: time.Now().Add(time.Hour)}, c.err
}

func (c *cred) Renew() { c.mu.Lock(); defer c.mu.Unlock(); c.renewed++ }

// storage is a server that speaks just enough of the protocol: it keeps what is
// put, and answers as fault says when that is set.
type storage struct {
	mu     sync.Mutex
	calls  []string // "METHOD comp path"
	blobs  map[string]string
	types  map[string]string
	marks  map[string]http.Header // metadata
	blocks map[string]string
	fault  func(http.ResponseWriter, *http.Request) bool // true when it has answered
	early  func(http.ResponseWriter, *http.Request) bool // the same, before the body is read
}

func (s *storage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.early != nil && s.early(w, r) {
		return
	}
	body, err := io.ReadAll(r.Body)
	q := r.URL.Query()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, strings.TrimSpace(r.Method+" "+q.Get("comp")))
	if err != nil {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body)) // for a fault that stores it
	if s.fault != nil && s.fault(w, r) {
		return
	}
	w.Header().Set("ETag", `"0x1"`)
	switch {
	case q.Get("comp") == "userdelegationkey":
		var start, end string
		for _, f := range []struct {
			tag string
			to  *string
		}{{"Start", &start}, {"Expiry", &end}} {
			_, after, _ := strings.Cut(string(body), "<"+f.tag+">")
			*f.to, _, _ = strings.Cut(after, "</")
		}
		w.Header().Set("Content-Type", "application/xml")
		fmt.Fprintf(w, `<?xml version="1.0"?><UserDelegationKey><SignedOid>o</SignedOid><SignedTid>t</SignedTid><SignedStart>%s</SignedStart><SignedExpiry>%s</SignedExpiry><SignedService>b</SignedService><SignedVersion>2024-11-04</SignedVersion><Value>a2V5</Value></UserDelegationKey>`, start, end)
	case q.Get("comp") == "block":
		if from, err := url.Parse(r.Header.Get("X-Ms-Copy-Source")); err == nil && from.Path != "" {
			body = []byte(s.blobs[from.Path])
		}
		s.blocks[q.Get("blockid")] = string(body)
		w.Header().Set("X-Ms-Content-Crc64", crcOf(body))
		w.WriteHeader(http.StatusCreated)
	case r.Method == http.MethodPut:
		if q.Get("comp") == "" {
			sum := md5.Sum(body)
			if sent := r.Header.Get("Content-Md5"); sent != "" && sent != base64.StdEncoding.EncodeToString(sum[:]) {
				refuse(w, 400, "Md5Mismatch")
				return
			}
			w.Header().Set("Content-MD5", base64.StdEncoding.EncodeToString(sum[:]))
			w.Header().Set("X-Ms-Content-Crc64", crcOf(body))
		}
		s.stores(r)
		w.WriteHeader(http.StatusCreated)
	default:
		content, ok := s.blobs[r.URL.Path]
		switch {
		case q.Get("restype") == "container":
		case !ok:
			refuse(w, 404, "BlobNotFound")
		case r.Method == http.MethodHead:
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			w.Header().Set("Content-Type", s.types[r.URL.Path])
			sum := md5.Sum([]byte(content))
			w.Header().Set("Content-MD5", base64.StdEncoding.EncodeToString(sum[:]))
			maps.Copy(w.Header(), s.marks[r.URL.Path])
		case r.Method == http.MethodGet:
			_, _ = io.WriteString(w, content)
		case r.Method == http.MethodDelete:
			delete(s.blobs, r.URL.Path)
			w.WriteHeader(http.StatusAccepted)
		}
	}
}

// stores does what a Put Blob or a Put Block List asks for. s.mu is held.
func (s *storage) stores(r *http.Request) {
	body, _ := io.ReadAll(r.Body) // from memory
	if r.URL.Query().Get("comp") == "blocklist" {
		var whole strings.Builder
		for _, item := range strings.Split(string(body), "<Latest>")[1:] {
			id, _, _ := strings.Cut(item, "</")
			whole.WriteString(s.blocks[id])
		}
		body = []byte(whole.String())
	}
	s.blobs[r.URL.Path], s.types[r.URL.Path] = string(body), r.Header.Get("X-Ms-Blob-Content-Type")
	if s.marks == nil {
		s.marks = map[string]http.Header{}
	}
	s.marks[r.URL.Path] = http.Header{}
	for name, values := range r.Header {
		if strings.HasPrefix(name, "X-Ms-Meta-") {
			s.marks[r.URL.Path][name] = values
		}
	}
}

// crcOf returns the CRC64 of body as storage returns it.
func crcOf(body []byte) string {
	return base64.StdEncoding.EncodeToString(binary.LittleEndian.AppendUint64(nil, crc64nvme.Checksum(body)))
}

func (s *storage) called() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := s.calls
	s.calls = nil
	return calls
}

func refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("X-Ms-Error-Code", code)
	w.WriteHeader(status)
}

// newStore returns a store over a new storage. It has no key before Run.
func newStore(t testing.TB, change func(*Options)) (*Store, *storage, *cred) {
	t.Helper()
	back := &storage{blobs: map[string]string{}, types: map[string]string{}, blocks: map[string]string{}}
	srv := httptest.NewTLSServer(back)
	t.Cleanup(srv.Close)
	client := NewTransport()
	tls := client.Transport.(*http.Transport).TLSClientConfig
	tls.RootCAs, tls.ServerName = srv.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs, "example.com"
	t.Cleanup(client.CloseIdleConnections)
	var limits picture.Limits
	if err := config.Parse(&limits, nil); err != nil {
		t.Fatal(err)
	}
	c := &cred{}
	opts := Options{
		Slots: newSlots(),
		Settings: Settings{
			AccountURL: "https://acct.blob.localhost:" + srv.URL[strings.LastIndex(srv.URL, ":")+1:],
			Container:  "cats", BlobName: "cat", LinkTTL: time.Hour, LinkMaxTTL: 24 * time.Hour,
		},
		Limits: limits, Credential: c, Transport: client,
	}
	if change != nil {
		change(&opts)
	}
	s, err := New(opts, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return s, back, c
}

// newSlots returns the pools of a signer with the default settings.
func newSlots() Slots {
	pools := ratelimit.NewPools("test", 0.0625, prometheus.NewRegistry())
	return Slots{Uploads: pools.New("uploads", 192), Commits: pools.New("commits", 16), Chunked: pools.New("chunked uploads", 16)}
}

// withKey is newStore with a key at hand.
func withKey(t testing.TB, change func(*Options)) (*Store, *storage, *cred) {
	t.Helper()
	s, back, c := newStore(t, change)
	k, err := s.fetchKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.key.key.Store(k)
	back.called()
	return s, back, c
}

// unknown is all that is known of a picture in most tests.
var unknown = signerapi.PutOptions{Size: -1}

func user(t testing.TB, name string) signerapi.User {
	t.Helper()
	u, err := signerapi.ParseUser(name)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// pngOf returns n bytes that begin as a PNG of one pixel does, 24 of them at least.
func pngOf(n int) string {
	return ("\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01" + strings.Repeat("0123456789abcdef!", n/17+2))[:n]
}

func TestTheSignerChecksSizeAndTypeAgain(t *testing.T) {
	s, back, _ := newStore(t, func(o *Options) { o.Limits.MaxPictureSize = 1000 })
	for _, c := range []struct {
		content string
		size    int64
		want    error
	}{
		{pngOf(1001), -1, apierror.ErrTooLarge},
		{pngOf(10), 1001, apierror.ErrTooLarge},
		{pngOf(500), 501, apierror.ErrIncomplete},
		{pngOf(501), 500, apierror.ErrIncomplete},
		{"hello", -1, apierror.ErrUnsupportedMediaType},
		{"", -1, apierror.ErrEmpty},
	} {
		if _, err := s.Put(t.Context(), user(t, "x"), strings.NewReader(c.content), signerapi.PutOptions{Size: c.size}); !errors.Is(err, c.want) {
			t.Errorf("%d bytes announced as %d: %v; want %v", len(c.content), c.size, err, c.want)
		}
	}
	if calls := back.called(); len(calls) > 0 {
		t.Errorf("storage was called: %v", calls)
	}
}

func TestMetricsPassPromlint(t *testing.T) {
	reg := prometheus.NewRegistry()
	newMetrics(reg, newBuffers())
	problems, err := testutil.GatherAndLint(reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}
