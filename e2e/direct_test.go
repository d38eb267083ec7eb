package e2e

import (
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/docker/go-units"
	"github.com/google/go-cmp/cmp"

	"cats.example/local/stack"
)

// direct is a system that gives tickets.
func direct(t *testing.T, opts stack.SystemOptions) *stack.System {
	t.Helper()
	opts.SignerEnv = over(map[string]string{"MAX_DIRECT_UPLOAD_SIZE": "5GiB"}, opts.SignerEnv)
	return start(t, opts)
}

// ticket is what a client knows of an upload straight to storage.
type ticket struct {
	ID        string    `json:"id"`
	URL       string    `json:"upload_url"`
	ExpiresAt time.Time `json:"expires_at"`
	BlockSize int64     `json:"block_size"`
}

func ticketFor(t *testing.T, sys *stack.System, user string, size int64) (got ticket) {
	t.Helper()
	a := do(t, "POST", fmt.Sprintf("%s/cat/%s/upload?size=%d", sys.URL, user, size), "", nil).want(t, 201)
	if err := json.Unmarshal(a.body, &got); err != nil {
		t.Fatal(err)
	}
	return got
}

// toStorage sends a request as the holder of a ticket.
func toStorage(t *testing.T, method, target string, header http.Header, body io.Reader, size int64) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, target, body)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = size
	if header != nil {
		req.Header = header
	}
	return answerTo(t, client(), req)
}

// send sends content in one piece, or in blocks where the ticket says so.
func (k ticket) send(t *testing.T, content io.Reader, size int64) {
	t.Helper()
	if k.BlockSize == 0 {
		toStorage(t, "PUT", k.URL, http.Header{"X-Ms-Blob-Type": {"BlockBlob"}}, content, size).want(t, 201)
		return
	}
	k.sendBlocks(t, content, size, size)
}

// sendBlocks sends the first bytes of content as blocks. The rest of size are blocks that were sent before.
func (k ticket) sendBlocks(t *testing.T, content io.Reader, first, size int64) {
	t.Helper()
	list := struct {
		XMLName xml.Name `xml:"BlockList"`
		Latest  []string
	}{}
	for sent := int64(0); sent < size; sent += k.BlockSize {
		id := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%08d", len(list.Latest)))
		if n := min(k.BlockSize, size-sent); sent < first {
			toStorage(t, "PUT", k.URL+"&comp=block&blockid="+url.QueryEscape(id), nil, io.LimitReader(content, n), n).want(t, 201)
		}
		list.Latest = append(list.Latest, id)
	}
	body, err := xml.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	toStorage(t, "PUT", k.URL+"&comp=blocklist", nil, bytes.NewReader(body), int64(len(body))).want(t, 201)
}

// commit asks for what was sent to be the picture of user.
func (k ticket) commit(t *testing.T, sys *stack.System, user, query string) answer {
	t.Helper()
	return do(t, "POST", sys.URL+"/cat/"+user+"/upload/"+k.ID+"/commit"+query, "", nil)
}

// large returns a PNG of size bytes, as far as its header goes.
func large(size int64) io.Reader {
	return io.MultiReader(bytes.NewReader(cat), io.LimitReader(zeros{}, size-int64(len(cat))))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func md5Of(b []byte) string {
	sum := md5.Sum(b)
	return base64.StdEncoding.EncodeToString(sum[:])
}

func TestAPictureGoesStraightToStorage(t *testing.T) {
	t.Parallel()
	sys := direct(t, stack.SystemOptions{})
	put(t, sys, "mia", append(bytes.Clone(cat), "the old one"...))
	before := sum(t, sys.SignerOps, "cats_signer_http_request_body_bytes_total")
	k := ticketFor(t, sys, "mia", int64(len(cat)))
	if left := time.Until(k.ExpiresAt); left > time.Hour || left < 59*time.Minute || k.BlockSize != 0 {
		t.Errorf("the ticket is for %v, in blocks of %d", left, k.BlockSize)
	}
	k.commit(t, sys, "mia", "").problem(t, 404, "no_such_upload") // nothing is there
	k.send(t, bytes.NewReader(cat), int64(len(cat)))
	if got := served(t, sys, "mia"); bytes.Equal(got, cat) {
		t.Error("the picture was replaced before it was committed")
	}
	a := k.commit(t, sys, "mia", "?content_md5="+url.QueryEscape(md5Of(cat))).want(t, 200)
	if a.field(t, "content_type") != "image/png" || a.field(t, "size") != float64(len(cat)) || a.field(t, "content_md5") != md5Of(cat) {
		t.Errorf("the answer is %s", a.body)
	}
	if got := do(t, "GET", sys.URL+"/cat/mia", "", nil).want(t, 200); got.field(t, "etag") != a.field(t, "etag") || got.field(t, "content_md5") != md5Of(cat) {
		t.Errorf("the picture is %s, the commit was told %s", got.body, a.body)
	}
	if !bytes.Equal(served(t, sys, "mia"), cat) {
		t.Error("another picture is there")
	}
	if again := k.commit(t, sys, "mia", "").want(t, 200); again.field(t, "etag") != a.field(t, "etag") {
		t.Errorf("asked again: %s; the first time %s", again.body, a.body)
	}
	if diff := cmp.Diff([]string{"mia/cat"}, names(t, sys)); diff != "" {
		t.Error(diff)
	}
	if after := sum(t, sys.SignerOps, "cats_signer_http_request_body_bytes_total"); after != before {
		t.Errorf("%v bytes of it went through the signer", after-before)
	}
}

// 130 MiB, which storage copies in three blocks, or what CATS_DIRECT_SIZE says, such as 2GiB.
func TestALargePictureMovesNothingInThePods(t *testing.T) {
	t.Parallel()
	sys := direct(t, stack.SystemOptions{})
	put(t, sys, "mia", cat)
	size := int64(130 << 20)
	if s := os.Getenv("CATS_DIRECT_SIZE"); s != "" {
		n, err := units.RAMInBytes(s)
		if err != nil {
			t.Fatal(err)
		}
		size = n
	}
	held := func() (bytes, memory float64) {
		for name, ops := range map[string]string{"frontend": sys.FrontendOps, "signer": sys.SignerOps} {
			bytes += sum(t, ops, "cats_"+name+"_http_request_body_bytes_total")
			memory += sum(t, ops, "process_resident_memory_bytes")
		}
		return bytes, memory
	}
	bytesBefore, memoryBefore := held()
	began := time.Now()
	k := ticketFor(t, sys, "mia", size)
	if k.BlockSize == 0 {
		t.Fatal("a large picture is to be sent in one piece")
	}
	k.send(t, large(size), size)
	sent := time.Now()
	a := k.commit(t, sys, "mia", "").want(t, 200)
	bytesAfter, memoryAfter := held()
	t.Logf("%s sent in %v, committed in %v; bodies read by both containers: %.0f bytes, resident memory %.1f MiB before and %.1f MiB after",
		units.BytesSize(float64(size)), sent.Sub(began).Round(time.Millisecond), time.Since(sent).Round(time.Millisecond), bytesAfter-bytesBefore, memoryBefore/(1<<20), memoryAfter/(1<<20))
	if bytesAfter != bytesBefore || memoryAfter > memoryBefore+20<<20 {
		t.Errorf("the containers read %.0f bytes of it, and hold %.1f MiB, before %.1f", bytesAfter-bytesBefore, memoryAfter/(1<<20), memoryBefore/(1<<20))
	}
	if a.field(t, "size") != float64(size) {
		t.Errorf("the answer is %s", a.body)
	}
	location := do(t, "GET", sys.URL+"/cat/mia/picture", "", nil).want(t, 307).Header.Get("Location")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, location, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if diff := same(resp.Body, large(size)); diff != nil {
		t.Error(diff)
	}

	// One of a wrong type, and as large where a size was asked for.
	if os.Getenv("CATS_DIRECT_SIZE") == "" {
		size = 1 << 20
	}
	wrong := ticketFor(t, sys, "mia", size)
	wrong.send(t, io.LimitReader(zeros{}, size), size)
	wrong.commit(t, sys, "mia", "").problem(t, 415, "unsupported_media_type")
	if got := do(t, "GET", sys.URL+"/cat/mia", "", nil); got.field(t, "etag") != a.field(t, "etag") {
		t.Errorf("after a wrong one: %s", got.body)
	}
	if diff := cmp.Diff([]string{"mia/cat"}, names(t, sys)); diff != "" {
		t.Error(diff)
	}
}

// same returns where the two differ.
func same(got, want io.Reader) error {
	a, b := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := 0; ; {
		n, errA := io.ReadFull(got, a)
		m, errB := io.ReadFull(want, b)
		if n != m || !bytes.Equal(a[:n], b[:m]) {
			return fmt.Errorf("they differ behind byte %d (%d and %d more; %w)", at, n, m, errors.Join(errA, errB))
		}
		if errA != nil || errB != nil {
			return nil
		}
		at += n
	}
}

// What storage refuses to the holder of a ticket, and the signer for one.
func TestATicketAllowsOneUploadAndNothingElse(t *testing.T) {
	t.Parallel()
	sys := direct(t, stack.SystemOptions{})
	put(t, sys, "mia", cat)
	size := int64(len(cat))
	blob := http.Header{"X-Ms-Blob-Type": {"BlockBlob"}}
	one, blocks := ticketFor(t, sys, "mia", size), ticketFor(t, sys, "mia", 65<<20)
	other := ticketFor(t, sys, "tom", size)
	name := func(k ticket) string {
		u, err := url.Parse(k.URL)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimPrefix(u.Path, "/"+sys.Container+"/")
	}
	one.send(t, bytes.NewReader(cat), size)
	list := base64.StdEncoding.EncodeToString([]byte("00000000"))
	toStorage(t, "PUT", blocks.URL+"&comp=block&blockid="+url.QueryEscape(list), nil, bytes.NewReader(cat), size).want(t, 201)
	for what, status := range map[string]int{
		"sending it again":               toStorage(t, "PUT", one.URL, blob.Clone(), bytes.NewReader(cat), size).StatusCode,
		"reading what was sent":          do(t, "GET", one.URL, "", nil).StatusCode,
		"reading with a ticket to write": do(t, "GET", blocks.URL, "", nil).StatusCode,
		"its block list":                 do(t, "GET", blocks.URL+"&comp=blocklist&blocklisttype=all", "", nil).StatusCode,
		"deleting it":                    do(t, "DELETE", one.URL, "", nil).StatusCode,
		"deleting what is written":       do(t, "DELETE", blocks.URL, "", nil).StatusCode,
		"the picture itself":             toStorage(t, "PUT", strings.Replace(one.URL, name(one), "mia/cat", 1), blob.Clone(), bytes.NewReader(cat), size).StatusCode,
		"writing another's":              toStorage(t, "PUT", strings.Replace(blocks.URL, name(blocks), name(other), 1), blob.Clone(), bytes.NewReader(cat), size).StatusCode,
		"listing":                        do(t, "GET", strings.Replace(blocks.URL, "/"+name(blocks)+"?", "?restype=container&comp=list&", 1), "", nil).StatusCode,
	} {
		if status != 403 {
			t.Errorf("%s: %d; want 403", what, status)
		}
	}
	// A ticket is for the user that it was given for, and for the size that it says.
	one.commit(t, sys, "tom", "").problem(t, 404, "no_such_upload")
	forged := one
	forged.ID = strings.Replace(one.ID, fmt.Sprintf("-%d-", size), fmt.Sprintf("-%d-", size+1), 1)
	forged.commit(t, sys, "mia", "").problem(t, 404, "no_such_upload")
	blocks.commit(t, sys, "mia", "").problem(t, 404, "no_such_upload") // its blocks are no blob yet
	if got := served(t, sys, "mia"); !bytes.Equal(got, cat) {
		t.Error("the picture was changed")
	}
	for query, want := range map[string]struct {
		status int
		code   string
	}{
		"":                 {422, "invalid_argument"},
		"?size=x":          {422, "invalid_argument"},
		"?size=-1":         {422, "invalid_argument"},
		"?size=1&size=1":   {422, "invalid_argument"},
		"?size=0":          {422, "empty"},
		"?size=5368709121": {413, "too_large"},
	} {
		do(t, "POST", sys.URL+"/cat/mia/upload"+query, "", nil).problem(t, want.status, want.code)
	}
	do(t, "POST", sys.URL+"/cat/..%2Fx/upload?size=1", "", nil).problem(t, 422, "invalid_user")
	do(t, "POST", sys.URL+"/cat/mia/upload/..%2Fx/commit", "", nil).problem(t, 404, "no_such_upload")
	do(t, "GET", sys.URL+"/cat/mia/upload", "", nil).problem(t, 405, "method_not_allowed")
}

// As the signer finds them when it starts, and every ten minutes: blobs, blocks that
// never became one, and a blob that somebody has leased, under the right to write.
func TestAbandonedUploadsAreRemoved(t *testing.T) {
	t.Parallel()
	sys := direct(t, stack.SystemOptions{})
	pictures := []string{"cats-api", "cats-api-upload-1-x", "mia"}
	for _, user := range pictures {
		put(t, sys, user, cat)
	}
	old, fresh := time.Now().Add(-3*time.Hour).Unix(), time.Now().Add(time.Hour).Unix()
	name := func(end int64, id string) string {
		return fmt.Sprintf("cats-api/upload/%d-%s", end, strings.Repeat(id, 32))
	}
	const others = "cats-api/upload/10000000000-x" // before ours, and no reason to look no further
	ctx := t.Context()
	admin := func(method, blob, query string, header http.Header) {
		t.Helper()
		resp, err := sys.Storage.Do(ctx, method, "/"+sys.Container+"/"+blob+query, header, []byte("cat"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	for _, blob := range []string{name(old, "a"), name(old, "b"), name(fresh, "a"), others} {
		if err := sys.Storage.Put(ctx, sys.Container, blob, "image/png", cat); err != nil {
			t.Fatal(err)
		}
	}
	admin("PUT", name(old, "b"), "?comp=lease", http.Header{"X-Ms-Lease-Action": {"acquire"}, "X-Ms-Lease-Duration": {"-1"}})
	admin("PUT", name(old, "c"), "?comp=block&blockid=MDAwMDAwMDA%3D", nil)
	if err := sys.Signer.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	again(t, sys.Signer)
	if err := sys.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		resp, err := sys.Storage.Do(ctx, "GET", "/"+sys.Container+"?restype=container&comp=list&include=uncommittedblobs", nil, nil)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		list, err := io.ReadAll(resp.Body)
		if err == nil && bytes.Contains(list, fmt.Appendf(nil, "upload/%d", old)) {
			err = fmt.Errorf("still there: %s", list)
		}
		return err
	})
	if diff := cmp.Diff([]string{"cats-api-upload-1-x/cat", "cats-api/cat", others, name(fresh, "a"), "mia/cat"}, names(t, sys)); diff != "" {
		t.Error(diff)
	}
	if removed := sum(t, sys.SignerOps, "cats_signer_staged_blobs_deleted_total"); removed != 3 {
		t.Errorf("%v were counted", removed)
	}
}

func TestWithoutASizeForItThereAreNoTickets(t *testing.T) {
	t.Parallel()
	sys := start(t, stack.SystemOptions{})
	do(t, "POST", sys.URL+"/cat/mia/upload?size=1", "", nil).problem(t, 413, "too_large")
	if a := do(t, "GET", sys.URL+"/about", "", nil).want(t, 200); a.field(t, "max_direct_size") != float64(0) || a.field(t, "max_picture_size") != float64(32<<20) {
		t.Errorf("/about is %s", a.body)
	}
}
