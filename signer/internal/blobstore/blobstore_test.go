package blobstore

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"cats.example/shared/picture"
	"cats.example/shared/service"
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
	blocks map[string]string
	fault  func(http.ResponseWriter, *http.Request) bool // true when it has answered
}

func (s *storage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
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
		w.WriteHeader(http.StatusCreated)
	case r.Method == http.MethodPut:
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
	if err := service.Parse(&limits, nil); err != nil {
		t.Fatal(err)
	}
	c := &cred{}
	opts := Options{
		AccountURL: "https://acct.blob.localhost:" + srv.URL[strings.LastIndex(srv.URL, ":")+1:],
		Container:  "cats", BlobName: "cat", LinkTTL: time.Hour, LinkMaxTTL: 24 * time.Hour,
		Limits: limits, Memory: 24 << 20, MemoryWait: 50 * time.Millisecond, Credential: c, Transport: client,
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

// withKey is newStore with a key at hand.
func withKey(t testing.TB, change func(*Options)) (*Store, *storage, *cred) {
	t.Helper()
	s, back, c := newStore(t, change)
	k, err := s.key.fetch(t.Context())
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

func TestAPictureUpTo4MiBIsOneRoundTripAndALargerOneIsWhole(t *testing.T) {
	const mib = 1 << 20
	for size, want := range map[int][]string{
		100:         {"PUT"},
		4*mib - 1:   {"PUT"},
		4 * mib:     {"PUT"},
		4*mib + 1:   {"PUT block", "PUT block", "PUT blocklist"},
		4*mib + 2:   {"PUT block", "PUT block", "PUT blocklist"},
		8 * mib:     {"PUT block", "PUT block", "PUT blocklist"},
		8*mib + 1:   {"PUT block", "PUT block", "PUT block", "PUT blocklist"},
		9*mib + 777: {"PUT block", "PUT block", "PUT block", "PUT blocklist"},
	} {
		s, back, _ := newStore(t, nil)
		content := pngOf(size)
		sum := md5.Sum([]byte(content))
		info, err := s.Put(t.Context(), user(t, "Мурчик"), iotest.HalfReader(strings.NewReader(content)), unknown)
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if diff := cmp.Diff(signerapi.Info{ETag: `"0x1"`, ContentType: "image/png", Size: int64(size), MD5: sum[:]}, info); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(want, back.called()); diff != "" {
			t.Errorf("%d bytes: %s", size, diff)
		}
		if got := back.blobs["/cats/Мурчик/cat"]; got != content {
			t.Errorf("%d bytes: %d arrived, or others", size, len(got))
		}
		if got := back.types["/cats/Мурчик/cat"]; got != "image/png" {
			t.Errorf("%d bytes: stored as %q", size, got)
		}
		if used := s.memory.inUse(); used != 0 {
			t.Errorf("%d bytes of buffers were not given back", used)
		}
	}
}

func TestABrokenBodyIsNotStored(t *testing.T) {
	for _, cause := range []error{signerapi.ErrIncomplete, io.ErrUnexpectedEOF, fmt.Errorf("reading: %w", io.EOF)} {
		for _, at := range []int{0, 10, 1 << 20, 4<<20 - 1, 4 << 20, 4<<20 + 1, 9 << 20} {
			s, back, _ := newStore(t, nil)
			body := io.MultiReader(strings.NewReader(pngOf(10 << 20)[:at]), iotest.ErrReader(cause))
			if _, err := s.Put(t.Context(), user(t, "x"), body, unknown); err != cause { //nolint:errorlint // as it came
				t.Errorf("cut at %d by %v: %v", at, cause, err)
			}
			if len(back.blobs) > 0 {
				t.Errorf("cut at %d by %v: stored all the same", at, cause)
			}
		}
	}
}

func TestTheSignerChecksSizeAndTypeAgain(t *testing.T) {
	s, back, _ := newStore(t, func(o *Options) { o.Limits.MaxSize = 1000 })
	for _, c := range []struct {
		content string
		size    int64
		want    error
	}{
		{pngOf(1001), -1, signerapi.ErrTooLarge},
		{pngOf(10), 1001, signerapi.ErrTooLarge},
		{pngOf(500), 501, signerapi.ErrIncomplete},
		{"hello", -1, signerapi.ErrUnsupportedMediaType},
		{"", -1, signerapi.ErrEmpty},
	} {
		if _, err := s.Put(t.Context(), user(t, "x"), strings.NewReader(c.content), signerapi.PutOptions{Size: c.size}); !errors.Is(err, c.want) {
			t.Errorf("%d bytes announced as %d: %v; want %v", len(c.content), c.size, err, c.want)
		}
	}
	if calls := back.called(); len(calls) > 0 {
		t.Errorf("storage was called: %v", calls)
	}
}

func TestMoreUploadsThanMemoryAreOverload(t *testing.T) {
	s, _, _ := newStore(t, func(o *Options) { o.Memory, o.MemoryWait = 2*pageBytes, 2*slowPage+slowPage/2 })
	release := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			body := io.MultiReader(strings.NewReader(pngOf(5000)), waiting{release})
			if _, err := s.Put(t.Context(), user(t, "slow"), body, unknown); err != nil {
				t.Error(err)
			}
		})
	}
	for s.memory.inUse() < 2*pageBytes {
		time.Sleep(time.Millisecond)
	}
	_, err := s.Put(t.Context(), user(t, "x"), strings.NewReader(pngOf(100)), unknown)
	if !errors.Is(err, signerapi.ErrOverloaded) || signerapi.AsError(err).RetryAfter == 0 {
		t.Errorf("got %v; want ErrOverloaded with a time to wait", err)
	}
	close(release)
	wg.Wait()
	if _, err := s.Put(t.Context(), user(t, "x"), strings.NewReader(pngOf(100)), unknown); err != nil {
		t.Errorf("after they were done: %v", err)
	}
}

type waiting struct{ until chan struct{} }

func (w waiting) Read([]byte) (int, error) { <-w.until; return 0, io.EOF }

func TestALentBufferIsNotReadOnceItIsBack(t *testing.T) {
	l := lend([][]byte{[]byte("sec"), []byte("ret of the next upload")})
	if b := make([]byte, 6); true {
		if n, err := l.Read(b); n != 6 || err != nil {
			t.Fatal(n, err)
		}
	}
	if _, err := l.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	l.takeBack()
	if n, err := l.Read(make([]byte, 6)); n != 0 || err == nil || err == io.EOF { //nolint:errorlint // EOF would end the body cleanly
		t.Errorf("read %d, %v after takeBack", n, err)
	}
	if _, err := l.Seek(0, io.SeekStart); err == nil {
		t.Error("sought after takeBack")
	}
}

func TestMetricsPassPromlint(t *testing.T) {
	reg := prometheus.NewRegistry()
	newMetrics(reg).watch(reg, newMemory(1, 0))
	problems, err := testutil.GatherAndLint(reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}
