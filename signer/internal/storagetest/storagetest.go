// Package storagetest is an in-memory Blob Storage for tests of the signer. Its network consists of pipes, so tests with it can
// run in a [testing/synctest] bubble, where waiting takes no time.
package storagetest

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/minio/crc64nvme"
	"github.com/prometheus/client_golang/prometheus"

	"cats.example/shared/picture"
	"cats.example/shared/signerapi"
	"cats.example/signer/internal/storage"
)

// AccountURL is the account that every Server has.
const AccountURL = "https://acct.blob.example"

// Handler answers a request in place of the server. It returns false if it has not answered.
type Handler func(http.ResponseWriter, *http.Request) bool

// Blob is a stored blob.
type Blob struct {
	Content, Type, ETag string
	Metadata            http.Header
	Blocks              bool // only uncommitted blocks
}

// Server is the storage account, which does not check credentials, and what makes and observes calls to it.
type Server struct {
	Client     *storage.Client // without retries
	Transport  *http.Client
	Credential Credential
	Log        Log
	Logger     *slog.Logger // to Log
	Registry   *prometheus.Registry

	mu     sync.Mutex
	calls  []string
	blobs  map[string]*Blob // by name
	blocks map[string][]byte
	etags  int
	early  Handler // before the body is read
	fault  Handler // after it was read into memory
}

// New returns a server with the container cats.
func New(t testing.TB, change ...func(*storage.Options)) *Server {
	s := &Server{Transport: storage.NewTransport(), Registry: prometheus.NewRegistry(), blobs: map[string]*Blob{}, blocks: map[string][]byte{}}
	s.Logger = slog.New(slog.NewJSONHandler(&s.Log, nil))
	opts := storage.Options{
		Settings:   storage.Settings{AccountURL: AccountURL, Container: "cats", BlobName: "cat"},
		Credential: &s.Credential, Transport: s.Transport, Retry: &policy.RetryOptions{MaxRetries: -1},
	}
	for _, f := range change {
		f(&opts)
	}
	var err error
	if s.Client, err = storage.New(opts, s.Logger, s.Registry); err != nil {
		t.Fatal(err)
	}
	pipes := pipeListener{make(chan net.Conn), make(chan struct{})}
	server := &http.Server{Handler: s, ReadHeaderTimeout: time.Minute}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(pipes)
	}()
	transport := s.Transport.Transport.(*http.Transport)
	transport.Proxy = nil
	transport.DialTLSContext = func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		select {
		case pipes.conns <- theirs:
			return ours, nil
		case <-pipes.done:
			return nil, net.ErrClosed
		}
	}
	t.Cleanup(func() {
		s.Transport.CloseIdleConnections()
		_ = server.Close()
		<-served
	})
	return s
}

// pipeListener is a listener of the connections that are sent to it.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
}

func (l pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l pipeListener) Close() error   { close(l.done); return nil }
func (l pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

// Put stores a blob and returns its ETag.
func (s *Server) Put(name, content, contentType string) (etag string) {
	s.Change(func(map[string]*Blob) { etag = s.store(name, Blob{Content: content, Type: contentType}) })
	return etag
}

func (s *Server) store(name string, b Blob) (etag string) {
	s.etags++
	b.ETag = fmt.Sprintf(`"0x%d"`, s.etags)
	s.blobs[name] = &b
	return b.ETag
}

// Change lets f change the blobs.
func (s *Server) Change(f func(blobs map[string]*Blob)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s.blobs)
}

// Blob returns the blob name, or the zero Blob.
func (s *Server) Blob(name string) (b Blob) {
	s.Change(func(blobs map[string]*Blob) {
		if blobs[name] != nil {
			b = *blobs[name]
		}
	})
	return b
}

// Names returns the names of all blobs, sorted.
func (s *Server) Names() (names []string) {
	s.Change(func(blobs map[string]*Blob) { names = slices.Sorted(maps.Keys(blobs)) })
	return names
}

// Calls returns the requests since the last call as "METHOD comp".
func (s *Server) Calls() (calls []string) {
	s.Change(func(map[string]*Blob) { calls, s.calls = s.calls, nil })
	return calls
}

// SetFault installs a handler of requests whose body is in memory, nil for none.
func (s *Server) SetFault(h Handler) { s.Change(func(map[string]*Blob) { s.fault = h }) }

// SetEarly installs a handler of requests whose body is not read yet, nil for none.
func (s *Server) SetEarly(h Handler) { s.Change(func(map[string]*Blob) { s.early = h }) }

// Reject answers with an error response.
func Reject(w http.ResponseWriter, status int, code string) {
	if code != "" {
		w.Header().Set("X-Ms-Error-Code", code)
	}
	w.WriteHeader(status)
}

// Rejecting returns a Handler that rejects the requests for which match returns true; nil matches all.
func Rejecting(status int, code string, match func(*http.Request) bool) Handler {
	return func(w http.ResponseWriter, r *http.Request) bool {
		matches := match == nil || match(r)
		if matches {
			Reject(w, status, code)
		}
		return matches
	}
}

// Is returns a function that matches requests with that method and comp parameter, such as "PUT block".
func Is(call string) func(*http.Request) bool {
	return func(r *http.Request) bool { return callOf(r) == call }
}

func callOf(r *http.Request) string {
	return strings.TrimSpace(r.Method + " " + r.URL.Query().Get("comp"))
}

// ServeHTTP implements [http.Handler].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	early, fault := s.early, s.fault
	s.mu.Unlock()
	if early != nil && early(w, r) {
		return
	}
	body := bytes.NewBuffer(make([]byte, 0, max(0, r.ContentLength)+bytes.MinRead)) // it does not have to grow
	_, err := body.ReadFrom(r.Body)
	s.mu.Lock()
	s.calls = append(s.calls, callOf(r))
	s.mu.Unlock()
	if err != nil {
		return
	}
	r.Body = memory{body}
	if fault != nil && fault(w, r) {
		return
	}
	s.Answer(w, r)
}

// memory is the body of a request that was read.
type memory struct{ *bytes.Buffer }

func (memory) Close() error { return nil }

// Answer carries out a request for which the fault handler was called.
func (s *Server) Answer(w http.ResponseWriter, r *http.Request) {
	body := r.Body.(memory).Bytes()
	s.mu.Lock()
	defer s.mu.Unlock()
	q, container := r.URL.Query(), "/cats"
	name := strings.TrimPrefix(r.URL.Path, container+"/")
	switch {
	case q.Get("comp") == "userdelegationkey":
		w.Header().Set("Content-Type", "application/xml")
		fmt.Fprintf(w, `<UserDelegationKey><SignedOid>o</SignedOid><SignedTid>t</SignedTid><SignedStart>%s</SignedStart><SignedExpiry>%s</SignedExpiry>`+
			`<SignedService>b</SignedService><SignedVersion>2024-11-04</SignedVersion><Value>a2V5</Value></UserDelegationKey>`, field(body, "Start"), field(body, "Expiry"))
	case q.Get("comp") == "list":
		s.list(w, q.Get("marker"), q.Get("maxresults"))
	case q.Get("comp") == "block":
		s.putBlock(w, r, body)
	case q.Get("restype") == "container":
	default:
		s.blobRequest(w, r, name, body)
	}
}

// field returns the content of the XML element name in body.
func field(body []byte, name string) string {
	_, after, _ := strings.Cut(string(body), "<"+name+">")
	value, _, _ := strings.Cut(after, "</")
	return value
}

func (s *Server) list(w http.ResponseWriter, marker, size string) {
	names := slices.Sorted(maps.Keys(s.blobs))
	names = slices.DeleteFunc(names, func(n string) bool { return n <= marker })
	next := ""
	if n, _ := strconv.Atoi(size); n > 0 && n < len(names) {
		names, next = names[:n], names[n-1]
	}
	w.Header().Set("Content-Type", "application/xml")
	fmt.Fprint(w, "<EnumerationResults><Blobs>")
	for _, n := range names {
		fmt.Fprintf(w, "<Blob><Name>%s</Name><Properties><Etag>%s</Etag></Properties></Blob>", n, strings.Trim(s.blobs[n].ETag, `"`))
	}
	fmt.Fprintf(w, "</Blobs><NextMarker>%s</NextMarker></EnumerationResults>", next)
}

func (s *Server) putBlock(w http.ResponseWriter, r *http.Request, body []byte) {
	if _, source, copies := strings.Cut(r.Header.Get("X-Ms-Copy-Source"), AccountURL+"/cats/"); copies {
		source, _, _ = strings.Cut(source, "?")
		b := s.blobs[source]
		if b == nil || r.Header.Get("X-Ms-Source-If-Match") != "" && r.Header.Get("X-Ms-Source-If-Match") != b.ETag {
			Reject(w, http.StatusPreconditionFailed, "SourceConditionNotMet")
			return
		}
		body = []byte(b.Content)
	}
	s.blocks[r.URL.Query().Get("blockid")] = body
	w.Header().Set("X-Ms-Content-Crc64", CRC64(body))
	w.WriteHeader(http.StatusCreated)
}

func (s *Server) blobRequest(w http.ResponseWriter, r *http.Request, name string, body []byte) {
	b := s.blobs[name]
	exists := b != nil && !b.Blocks
	match, noneMatch := r.Header.Get("If-Match"), r.Header.Get("If-None-Match")
	unmodified, err := http.ParseTime(r.Header.Get("If-Unmodified-Since"))
	modified := err == nil && unmodified.Before(time.Now().Add(-time.Hour))
	switch {
	case r.Method != http.MethodPut && b == nil:
		Reject(w, http.StatusNotFound, "BlobNotFound")
		return
	case noneMatch == "*" && exists:
		Reject(w, http.StatusConflict, "BlobAlreadyExists")
		return
	case match != "" && (!exists || match != b.ETag), noneMatch != "" && exists && noneMatch == b.ETag, modified && exists:
		Reject(w, http.StatusPreconditionFailed, "ConditionNotMet")
		return
	case !exists && r.Method != http.MethodPut:
		Reject(w, http.StatusNotFound, "BlobNotFound")
		return
	}
	sum := func(content string) string {
		sum := md5.Sum([]byte(content))
		return base64.StdEncoding.EncodeToString(sum[:])
	}
	switch r.Method {
	case http.MethodPut:
		if r.URL.Query().Get("comp") == "blocklist" {
			body = s.join(string(body))
		} else {
			if sent := r.Header.Get("Content-Md5"); sent != "" && sent != sum(string(body)) {
				Reject(w, http.StatusBadRequest, "Md5Mismatch")
				return
			}
			w.Header().Set("Content-MD5", sum(string(body)))
			w.Header().Set("X-Ms-Content-Crc64", CRC64(body))
		}
		metadata := maps.Clone(r.Header)
		maps.DeleteFunc(metadata, func(name string, _ []string) bool { return !strings.HasPrefix(name, "X-Ms-Meta-") })
		w.Header().Set("ETag", s.store(name, Blob{Content: string(body), Type: r.Header.Get("X-Ms-Blob-Content-Type"), Metadata: metadata}))
		w.WriteHeader(http.StatusCreated)
	case http.MethodDelete:
		delete(s.blobs, name)
		w.WriteHeader(http.StatusAccepted)
	default:
		maps.Copy(w.Header(), b.Metadata)
		w.Header().Set("ETag", b.ETag)
		w.Header().Set("Content-Type", b.Type)
		w.Header().Set("Content-MD5", sum(b.Content))
		w.Header().Set("Content-Length", strconv.Itoa(len(b.Content)))
		_, _ = io.WriteString(w, b.Content)
	}
}

// join returns the blocks of a block list.
func (s *Server) join(list string) (content []byte) {
	for _, item := range strings.Split(list, "<Latest>")[1:] {
		id, _, _ := strings.Cut(item, "</")
		content = append(content, s.blocks[id]...)
	}
	return content
}

// CRC64 returns the CRC64 of body as storage returns it.
func CRC64(body []byte) string {
	return base64.StdEncoding.EncodeToString(binary.LittleEndian.AppendUint64(nil, crc64nvme.Checksum(body)))
}

// Hijack returns the connection of a request, which is closed at the end of the test.
func Hijack(t *testing.T, w http.ResponseWriter) net.Conn {
	t.Helper()
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		t.Error(err)
		panic(http.ErrAbortHandler)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// WriteRaw writes a response without a body.
func WriteRaw(conn net.Conn, status int, code, header string) {
	_, _ = fmt.Fprintf(conn, "HTTP/1.1 %d X\r\nX-Ms-Error-Code: %s\r\n%sContent-Length: 0\r\n\r\n", status, code, header)
}

// Credential is a credential with a token, unless Err is set. It notes a call of Renew.
type Credential struct {
	Err     error
	Renewed atomic.Bool
}

// GetToken implements [azcore.TokenCredential].
func (c *Credential) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: "t", ExpiresOn: time.Now().Add(time.Hour)}, c.Err
}

// Renew implements [storage.Credential].
func (c *Credential) Renew() { c.Renewed.Store(true) }

// Log is a log that a test reads while other goroutines write it.
type Log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements [io.Writer].
func (l *Log) Write(p []byte) (int, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.b.Write(p) }

// String returns what was written.
func (l *Log) String() string { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

// Rows returns the lines of a file in testdata that are not comments (#), split at " | ".
func Rows(t testing.TB, file string) (rows [][]string) {
	t.Helper()
	table, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		if !strings.HasPrefix(line, "#") {
			rows = append(rows, strings.Split(strings.TrimSuffix(line, "\n"), " | "))
		}
	}
	return rows
}

// Number returns the number in a row.
func Number(t testing.TB, text string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// User returns the user name.
func User(t testing.TB, name string) signerapi.User {
	t.Helper()
	u, err := signerapi.ParseUser(name)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// PNG returns n bytes, at least 24, that begin like a PNG of one pixel.
func PNG(n int) string {
	return ("\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01" + strings.Repeat("0123456789abcdef!", n/17+2))[:n]
}

// Limits are limits that PNG fits into.
var Limits = picture.Limits{MaxPictureSize: 32 << 20, AcceptedTypes: []string{"image/png", "image/gif"}, MaxPixels: 1000}
