package faults

import (
	"bufio"
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// sending is one way to send a picture, and how the signer forwards it to storage.
type sending struct {
	name   string
	size   int
	number int     // in the result of uploads
	begins float64 // share of the body after which the signer has begun a request to storage, at the latest
	blocks bool    // whether the picture becomes blocks and a commit
}

// Numbers in the result of uploads.
const (
	putWithLength = iota
	putInChunks
	postForm
)

var sendings = []sending{
	{"PUT of 10 MiB", 10 << 20, putWithLength, 0.5, false},
	{"PUT of 50 KiB", 50 << 10, putWithLength, 1, false},
	{"chunked PUT of 6 MiB", 6 << 20, putInChunks, 0.9, true},
	{"form of 3 MiB", 3 << 20, postForm, 1, false},
	{"form of 10 MiB", 10 << 20, postForm, 0.5, true},
}

// cutoff is a fault during an upload, and its expected result.
type cutoff struct {
	name   string
	change func(u harness.RawUpload, content []byte) harness.RawUpload // of the request; nil for none
	// share of the body is sent. Then leave is called, or killed is killed. Otherwise the client waits until the fault has happened,
	// and sends the rest.
	share  float64
	leave  func(*net.TCPConn)
	killed *stack.Process
	// fault replaces storage's answers to the requests that at selects; nil for none.
	fault harness.Fault
	at    func(*http.Request) bool

	status  int // 0 for no answer
	code    string
	outcome any    // "unknown", or nil if nothing was stored
	stored  stored // afterwards
}

// stored is a picture that is stored after an upload.
type stored int

const (
	oldPicture stored = iota
	newPicture
	otherPicture // of another writer
)

var otherContent = []byte("\x89PNG\r\n\x1a\n of another writer")

// atData selects the requests that carry the picture's bytes, atCommit those that make it visible.
func atData(r *http.Request) bool {
	return r.Method == http.MethodPut && r.URL.Query().Get("comp") != "blocklist"
}

func atCommit(r *http.Request) bool {
	return r.Method == http.MethodPut && r.URL.Query().Get("comp") != "block"
}

func halfClose(conn *net.TCPConn) { _ = conn.CloseWrite() }

func resetConn(conn *net.TCPConn) {
	_ = conn.SetLinger(0)
	_ = conn.Close()
}

// leaving are the cutoffs by a client that leaves.
func leaving() (all []cutoff) {
	for _, share := range []float64{0, 0.001, 0.5, 0.9999} {
		name := fmt.Sprintf("client gone at %g %%", 100*share)
		all = append(all,
			cutoff{name: name + ", half-close", share: share, leave: halfClose, status: 400, code: "incomplete"},
			cutoff{name: name + ", reset", share: share, leave: resetConn})
	}
	return all
}

// withHeader returns u with a header line of the picture: in the header of the request, or of the file in a form.
func withHeader(u harness.RawUpload, line string) harness.RawUpload {
	if strings.HasPrefix(u.Body, "--") {
		return withBody(u, strings.Replace(u.Body, "\r\n\r\n", "\r\n"+line+"\r\n\r\n", 1))
	}
	u.Header = strings.TrimSuffix(u.Header, "\r\n") + line + "\r\n\r\n"
	return u
}

// withBody returns u with another body, and its length in the header if there is one.
func withBody(u harness.RawUpload, body string) harness.RawUpload {
	u.Body = body
	if !strings.Contains(u.Header, "Content-Length") {
		return u
	}
	return withLength(u, len(body))
}

// withLength returns u with another Content-Length, which is the last line of its header.
func withLength(u harness.RawUpload, length int) harness.RawUpload {
	before, _, _ := strings.Cut(u.Header, "Content-Length: ")
	u.Header = before + fmt.Sprintf("Content-Length: %d\r\n\r\n", length)
	return u
}

// contradictions are the cutoffs by a request whose parts contradict each other.
func contradictions(s sending) []cutoff {
	digest := func(format string, sum func([]byte) []byte) cutoff {
		name, _, _ := strings.Cut(format, "%")
		return cutoff{name: "wrong " + strings.TrimRight(name, ":= "), change: func(u harness.RawUpload, content []byte) harness.RawUpload {
			other := bytes.Clone(content)
			other[len(other)-1] ^= 1
			return withHeader(u, fmt.Sprintf(format, base64.StdEncoding.EncodeToString(sum(other))))
		}, share: 1, status: 400, code: "digest_mismatch"}
	}
	body := func(name, code string, change func(string) string) cutoff {
		return cutoff{name: name, change: func(u harness.RawUpload, _ []byte) harness.RawUpload { return withBody(u, change(u.Body)) }, share: 1, leave: halfClose, status: 400, code: code}
	}
	length := func(name, code string, more int) cutoff {
		return cutoff{name: name, change: func(u harness.RawUpload, _ []byte) harness.RawUpload { return withLength(u, len(u.Body)+more) }, share: 1, leave: halfClose, status: 400, code: code}
	}
	all := []cutoff{
		digest("Content-MD5: %s", func(b []byte) []byte { sum := md5.Sum(b); return sum[:] }),
		digest("Content-Digest: sha-256=:%s:", func(b []byte) []byte { sum := sha256.Sum256(b); return sum[:] }),
		digest("Content-Digest: sha-512=:%s:", func(b []byte) []byte { sum := sha512.Sum512(b); return sum[:] }),
	}
	switch s.number {
	case putWithLength:
		return append(all, length("Content-Length 1 too high", "incomplete", 1), length("Content-Length 64 KiB too high", "incomplete", 64<<10))
	case putInChunks:
		return append(all,
			body("no last chunk", "incomplete", func(b string) string { return strings.TrimSuffix(b, "0\r\n\r\n") }),
			body("half of the last chunk", "incomplete", func(b string) string { return strings.TrimSuffix(b, "\r\n") }),
			body("chunk longer than announced", "incomplete", func(b string) string { return strings.TrimSuffix(b, "\r\n0\r\n\r\n") + "cat\r\n0\r\n\r\n" }))
	}
	return append(all,
		length("Content-Length 1 too high", "incomplete", 1),
		length("Content-Length 100 too low", "malformed_form", -100),
		body("no last boundary", "malformed_form", func(b string) string { return b[:strings.LastIndex(b, "\r\n--")] }))
}

// cutter runs cutoffs of one sending in a system of its own.
type cutter struct {
	sys     *stack.System
	storage *harness.StorageProxy

	mu   sync.Mutex
	open map[string][]net.Conn // that the faults have taken over, by user
}

func newCutter(t *testing.T) *cutter {
	t.Helper()
	c := &cutter{storage: harness.NewStorageProxy(t), open: map[string][]net.Conn{}}
	c.sys = harness.Start(t, stack.SystemOptions{StorageURL: c.storage.URL})
	return c
}

// mend ends the faults for user.
func (c *cutter) mend(user string) {
	c.storage.Set(user, nil)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.open[user] {
		_ = conn.Close()
	}
	c.open[user] = nil
}

// store stores a picture of user in Azurite as another upload does.
func (c *cutter) store(ctx context.Context, user string, content []byte) error {
	_, err := c.sys.Storage.Client.UploadBuffer(ctx, c.sys.Container, user+"/cat", content, &azblob.UploadBufferOptions{
		HTTPHeaders: &blob.HTTPHeaders{BlobContentType: new("image/png")},
		Metadata:    map[string]*string{"catsid": new("ID-OF-ANOTHER-UPLOAD")},
	})
	return err
}

// read returns the ETag and the content of the picture of user in Azurite.
func (c *cutter) read(t *testing.T, user string) (etag string, content []byte) {
	t.Helper()
	header, content, err := c.sys.Storage.Read(t.Context(), c.sys.Container, user+"/cat")
	if err != nil {
		t.Fatal(err)
	}
	return header.Get("ETag"), content
}

// run runs one cutoff of a picture with content. It checks the answer and the stored picture, and that another upload works afterwards.
func (c *cutter) run(t *testing.T, s sending, row cutoff, user string, u harness.RawUpload, content []byte) {
	t.Helper()
	if err := c.store(t.Context(), user, harness.Cat); err != nil {
		t.Fatal(err)
	}
	old, _ := c.read(t, user)
	if row.change != nil {
		u = row.change(u, content)
	}
	u.Header = strings.Replace(u.Header, anyone, user, 1)
	happened := make(chan struct{}) // the fault; or storage has received a request, if there is none
	done := sync.OnceFunc(func() { close(happened) })
	c.storage.Set(user, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		switch {
		case row.fault == nil && atData(r):
			done()
		case row.fault != nil && row.at(r):
			defer done()
			row.fault(w, r, healthy)
			return
		}
		healthy.ServeHTTP(w, r)
	})
	defer c.mend(user)
	a, answered := c.send(t, s, row, u, happened)
	c.mend(user)
	if row.killed != nil {
		harness.Restart(t, row.killed)
		if err := c.sys.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	switch {
	case answered != (row.status != 0):
		t.Errorf("answered: %v, with %s", answered, a.Body)
	case row.status == http.StatusOK:
		a.Want(t, 200)
	case answered:
		a.WantProblem(t, row.status, row.code)
		if got := a.Field(t, "outcome"); got != row.outcome {
			t.Errorf("outcome %v, want %v: %s", got, row.outcome, a.Body)
		}
		if got := a.Header.Get("Retry-After"); row.code == "throttled" && got != "120" {
			t.Errorf("Retry-After is %q, want that of storage", got)
		}
	}
	c.inFlight(t, c.sys.FrontendOps, "cats_frontend", 0)
	c.inFlight(t, c.sys.SignerOps, "cats_signer", 0)
	etag, got := c.read(t, user)
	want := [][]byte{oldPicture: harness.Cat, newPicture: content, otherPicture: otherContent}[row.stored]
	if (etag == old) != (row.stored == oldPicture) || !bytes.Equal(got, want) {
		t.Errorf("the stored picture has %d bytes and ETag %s, the old one %d and %s; want %d bytes", len(got), etag, len(harness.Cat), old, len(want))
	}
	if row.status == http.StatusOK && a.Field(t, "etag") != etag {
		t.Errorf("stored is ETag %s, the answer is %s", etag, a.Body)
	}
	harness.Put(t, c.sys, user, harness.Cat)
}

// send sends u as row says and returns the answer; ok is false if there is none.
func (c *cutter) send(t *testing.T, s sending, row cutoff, u harness.RawUpload, happened <-chan struct{}) (a harness.Response, ok bool) {
	t.Helper()
	conn := harness.Dial(t, c.sys)
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	n := int(row.share * float64(len(u.Body)))
	if row.leave == nil && row.killed == nil {
		go func() {
			_, _ = io.WriteString(conn, u.Header+u.Body[:n]) // it fails once the answer is there
			if n < len(u.Body) {
				<-happened
				_, _ = io.WriteString(conn, u.Body[n:])
			}
		}()
		return receive(t, conn, u)
	}
	if _, err := io.WriteString(conn, u.Header+u.Body[:n]); err != nil {
		t.Fatal(err)
	}
	if row.share < 1 {
		c.inFlight(t, c.sys.FrontendOps, "cats_frontend", 1)
	}
	if row.share >= 0.5 && row.share < 1 {
		c.inFlight(t, c.sys.SignerOps, "cats_signer", 1)
	}
	if row.share >= s.begins && (row.share < 1 || row.fault != nil) {
		wait(t, happened)
	}
	if row.killed != nil {
		row.killed.Kill()
	} else {
		row.leave(conn)
	}
	return receive(t, conn, u)
}

// inFlight waits until a process has no request in flight (0), or at least one (1).
func (c *cutter) inFlight(t *testing.T, ops, prefix string, want float64) {
	t.Helper()
	harness.Eventually(t, func() error {
		if n := harness.Sum(t, ops, prefix+"_http_requests_in_flight"); min(n, 1) != want {
			return fmt.Errorf("%s has %v requests in flight", prefix, n)
		}
		return nil
	})
}

// wait waits until done is closed.
func wait(t *testing.T, done <-chan struct{}) {
	t.Helper()
	harness.Eventually(t, func() error {
		select {
		case <-done:
			return nil
		default:
			return errors.New("storage has not received the request")
		}
	})
}

// receive reads the response to u; ok is false if there is none.
func receive(t *testing.T, conn net.Conn, u harness.RawUpload) (a harness.Response, ok bool) {
	t.Helper()
	method, _, _ := strings.Cut(u.Header, " ")
	req := httptest.NewRequestWithContext(t.Context(), method, "/cat/user", nil)
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return harness.Response{Response: &http.Response{Request: req}}, false
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return harness.Response{Response: resp, Body: body}, err == nil
}

// anyone is the user in an upload whose user is not known yet.
const anyone = "any-user"

// TestBrokenUploadKeepsOldPicture breaks uploads of every kind at every stage.
func TestBrokenUploadKeepsOldPicture(t *testing.T) {
	t.Parallel()
	for _, s := range sendings {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			c := newCutter(t)
			content := harness.Random(s.size, 7)
			u := harness.RawUploads(t, anyone, content)[s.number]
			whole := cutoff{name: "whole", share: 1, status: 200, stored: newPicture}
			for i, row := range slices.Concat(leaving(), contradictions(s), c.refusals(s), c.losses(s), c.kills(), []cutoff{whole}) {
				t.Run(row.name, func(t *testing.T) { c.run(t, s, row, fmt.Sprintf("user-%d", i), u, content) })
			}
			if n := harness.Sum(t, c.sys.SignerOps, "cats_signer_upload_buffers_in_use"); n != 0 {
				t.Errorf("%v upload buffers are still in use", n)
			}
		})
	}
}
