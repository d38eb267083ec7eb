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
	"sync"
	"testing"
	"time"

	"github.com/docker/go-units"
	"github.com/google/go-cmp/cmp"

	"cats.example/local/stand"
)

// direct is a system that gives tickets.
func direct(t *testing.T, opts stand.SystemOptions) *stand.System {
	t.Helper()
	opts.SignerEnv = over(map[string]string{"MAX_DIRECT_SIZE": "5GiB"}, opts.SignerEnv)
	return start(t, opts)
}

// ticket is what a client knows of an upload straight to storage.
type ticket struct {
	ID        string    `json:"id"`
	URL       string    `json:"upload_url"`
	ExpiresAt time.Time `json:"expires_at"`
	BlockSize int64     `json:"block_size"`
}

func ticketFor(t *testing.T, sys *stand.System, user string, size int64) (got ticket) {
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
	list := struct {
		XMLName xml.Name `xml:"BlockList"`
		Latest  []string
	}{}
	for sent := int64(0); sent < size; sent += k.BlockSize {
		id := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%08d", len(list.Latest)))
		n := min(k.BlockSize, size-sent)
		toStorage(t, "PUT", k.URL+"&comp=block&blockid="+url.QueryEscape(id), nil, io.LimitReader(content, n), n).want(t, 201)
		list.Latest = append(list.Latest, id)
	}
	body, err := xml.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	toStorage(t, "PUT", k.URL+"&comp=blocklist", nil, bytes.NewReader(body), int64(len(body))).want(t, 201)
}

// commit asks for what was sent to be the picture of user.
func (k ticket) commit(t *testing.T, sys *stand.System, user, query string) answer {
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
	sys := direct(t, stand.SystemOptions{})
	put(t, sys, "mia", append(bytes.Clone(cat), "the old one"...))
	before := sum(t, sys.SignerOps, "cats_signer_http_received_bytes_total")
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
	if after := sum(t, sys.SignerOps, "cats_signer_http_received_bytes_total"); after != before {
		t.Errorf("%v bytes of it went through the signer", after-before)
	}
}

// 130 MiB, which storage copies in three blocks, or what CATS_DIRECT_SIZE says, such as 2GiB.
func TestALargePictureMovesNothingInThePods(t *testing.T) {
	t.Parallel()
	sys := direct(t, stand.SystemOptions{})
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
			bytes += sum(t, ops, "cats_"+name+"_http_received_bytes_total")
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
	sys := direct(t, stand.SystemOptions{})
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

func TestWhatWasSentIsCheckedBeforeItIsThePicture(t *testing.T) {
	t.Parallel()
	sys := direct(t, stand.SystemOptions{SignerEnv: map[string]string{"MAX_PIXELS": "200000"}, FrontendEnv: map[string]string{"MAX_PIXELS": "200000"}})
	put(t, sys, "mia", cat) // 451 x 300
	bomb := append([]byte("\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x40\x00\x00\x00\x40\x00"), make([]byte, 1000)...)
	etag := do(t, "GET", sys.URL+"/cat/mia", "", nil).Header.Get("ETag")
	for _, c := range []struct {
		what      string
		content   []byte
		announced int
		query     string
		status    int
		code      string
	}{
		{"a page", []byte("<!doctype html><script>alert(1)</script>"), 0, "", 415, "unsupported_media_type"},
		{"too many pixels", bomb, 0, "", 413, "too_large"},
		{"a header that is cut off", cat[:20], 0, "", 415, "unsupported_media_type"},
		{"less than was announced", cat, len(cat) + 1, "", 400, "incomplete"},
		{"more than was announced", cat, len(cat) - 1, "", 400, "incomplete"},
		{"another digest", cat, 0, "?content_md5=" + url.QueryEscape(md5Of(nil)), 400, "digest_mismatch"},
		{"no digest", cat, 0, "?content_md5=x", 422, "invalid_argument"},
	} {
		announced := c.announced
		if announced == 0 {
			announced = len(c.content)
		}
		k := ticketFor(t, sys, "mia", int64(announced))
		k.send(t, bytes.NewReader(c.content), int64(len(c.content)))
		k.commit(t, sys, "mia", c.query).problem(t, c.status, c.code)
		if got := do(t, "GET", sys.URL+"/cat/mia", "", nil).Header.Get("ETag"); got != etag {
			t.Fatalf("%s: the picture was changed", c.what)
		}
	}
	// Blocks, where storage does not know the digest before it copies them.
	k := ticketFor(t, sys, "mia", 65<<20)
	k.send(t, large(65<<20), 65<<20)
	k.commit(t, sys, "mia", "?content_md5="+url.QueryEscape(md5Of(nil))).problem(t, 400, "digest_mismatch")
	if got := do(t, "GET", sys.URL+"/cat/mia", "", nil).Header.Get("ETag"); got != etag {
		t.Error("a wrong digest: the picture was changed")
	}
}

func TestACommitKeepsItsConditions(t *testing.T) {
	t.Parallel()
	sys := direct(t, stand.SystemOptions{})
	commit := func(header, value string) answer {
		t.Helper()
		k := ticketFor(t, sys, "mia", int64(len(cat)))
		k.send(t, bytes.NewReader(cat), int64(len(cat)))
		return toStorage(t, "POST", sys.URL+"/cat/mia/upload/"+k.ID+"/commit", http.Header{header: {value}}, nil, 0)
	}
	commit("If-Match", "*").problem(t, 412, "precondition_failed")
	first := commit("If-None-Match", "*").want(t, 200)
	commit("If-None-Match", "*").problem(t, 412, "precondition_failed")
	etag, _ := first.field(t, "etag").(string)
	second := commit("If-Match", etag).want(t, 200)
	commit("If-Match", etag).problem(t, 412, "precondition_failed")
	if got := do(t, "GET", sys.URL+"/cat/mia", "", nil); got.field(t, "etag") != second.field(t, "etag") {
		t.Errorf("the picture is %s", got.body)
	}
}

// As the signer finds them when it starts, and every ten minutes: blobs, blocks that
// never became one, and a blob that somebody has leased, under the right to write.
func TestAbandonedUploadsAreRemoved(t *testing.T) {
	t.Parallel()
	sys := direct(t, stand.SystemOptions{})
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
	if removed := sum(t, sys.SignerOps, "cats_signer_staged_uploads_removed_total"); removed != 3 {
		t.Errorf("%v were counted", removed)
	}
}

func TestWithoutASizeForItThereAreNoTickets(t *testing.T) {
	t.Parallel()
	sys := start(t, stand.SystemOptions{})
	do(t, "POST", sys.URL+"/cat/mia/upload?size=1", "", nil).problem(t, 413, "too_large")
	if a := do(t, "GET", sys.URL+"/about", "", nil).want(t, 200); a.field(t, "max_direct_size") != float64(0) || a.field(t, "max_picture_size") != float64(32<<20) {
		t.Errorf("/about is %s", a.body)
	}
}

// What goes wrong while storage copies, each once: the picture that was there stays,
// and the commit can be asked for again.
func TestACommitThatFailsChangesNothing(t *testing.T) {
	t.Parallel()
	storage := newAccount(t)
	sys := direct(t, stand.SystemOptions{StorageURL: storage.URL})
	put(t, sys, "mia", cat)
	etag := do(t, "GET", sys.URL+"/cat/mia", "", nil).Header.Get("ETag")
	content := append(bytes.Clone(cat), "another one"...)
	const size = 65 << 20 // which needs a ticket to write
	copies := func(r *http.Request) bool { return r.Header.Get("X-Ms-Copy-Source") != "" }
	var k ticket
	var changed sync.Once // of k, under the first of several copies at once, which the others wait for
	for _, c := range []struct {
		what    string
		when    func(*http.Request) bool
		fault   fault
		status  int
		code    string
		changes bool // the picture is the new one all the same
	}{
		{"the copy gets no answer", copies, reset, 503, "storage_unavailable", false},
		{"the copy is refused", copies, refuse(403, "AuthorizationPermissionMismatch"), 502, "identity_unavailable", false},
		{"the copy is throttled for long", copies, refuse(503, "ServerBusy", "Retry-After", "60"), 503, "throttled", false},
		{"what was sent is sent anew, under the copy", copies, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
			changed.Do(func() {
				toStorage(t, "PUT", k.URL, http.Header{"X-Ms-Blob-Type": {"BlockBlob"}}, bytes.NewReader(content), int64(len(content))).want(t, 201)
			})
			healthy.ServeHTTP(w, r)
		}, 409, "conflict", false},
		{"what was sent is gone, under the copy", copies, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
			changed.Do(func() {
				u, err := url.Parse(k.URL)
				if err == nil {
					err = sys.Storage.Delete(r.Context(), sys.Container, strings.TrimPrefix(u.Path, "/"+sys.Container+"/"))
				}
				if err != nil {
					t.Error(err)
				}
			})
			healthy.ServeHTTP(w, r)
		}, 409, "conflict", false},
		{"the blocks are not made one", func(r *http.Request) bool { return r.URL.Query().Get("comp") == "blocklist" }, reset, 503, "storage_unavailable", false},
		{"the last answer is lost", func(r *http.Request) bool { return r.URL.Query().Get("comp") == "blocklist" }, loseAnswer, 200, "", true},
	} {
		n := int64(len(content))
		body := io.Reader(bytes.NewReader(content))
		if strings.Contains(c.what, "anew") {
			n, body = size, large(size)
		}
		k, changed = ticketFor(t, sys, "mia", n), sync.Once{}
		k.send(t, body, n)
		storage.set("mia", func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
			if c.when(r) {
				c.fault(w, r, healthy)
				return
			}
			healthy.ServeHTTP(w, r)
		})
		a := k.commit(t, sys, "mia", "")
		storage.set("mia", nil)
		if c.changes {
			a.want(t, c.status)
			if !bytes.Equal(served(t, sys, "mia"), content) {
				t.Errorf("%s: another picture is there", c.what)
			}
			continue
		}
		a.problem(t, c.status, c.code)
		if got := do(t, "GET", sys.URL+"/cat/mia", "", nil).Header.Get("ETag"); got != etag {
			t.Fatalf("%s: the picture was changed", c.what)
		}
	}
}

// Whoever got no answer asks again, and so does the page: what was told as stored is
// told so again, by the same tag, and what was not is stored then.
func TestACommitCanBeAskedForAgain(t *testing.T) {
	t.Parallel()
	storage := newAccount(t)
	sys := direct(t, stand.SystemOptions{StorageURL: storage.URL})
	of := func(more string) []byte { return append(bytes.Clone(cat), more...) }
	commit := func(k ticket, header ...string) answer {
		t.Helper()
		return ask(t, "POST", sys.URL+"/cat/mia/upload/"+k.ID+"/commit", "", header...)
	}
	send := func(k ticket, content []byte) { t.Helper(); k.send(t, bytes.NewReader(content), int64(len(content))) }
	k := ticketFor(t, sys, "mia", int64(len(of("1"))))
	sent := func(method string, f fault) fault { // breaks what is done to what was sent
		return func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
			if r.Method == method && strings.Contains(r.URL.Path, "/upload/") {
				f(w, r, healthy)
				return
			}
			healthy.ServeHTTP(w, r)
		}
	}

	send(k, of("1"))
	storage.set("", sent("GET", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Content-Length", "100000")
		_, _ = w.Write(cat[:100])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	commit(k).problem(t, 503, "storage_unavailable") // and not 415, and it is still there
	storage.set("", sent("DELETE", refuse(403, "AuthorizationPermissionMismatch")))
	first := commit(k, "If-None-Match", "*").want(t, 200)
	for _, again := range []answer{commit(k, "If-None-Match", "*"), commit(k, "If-Match", `"before"`), commit(k)} {
		if again.want(t, 200).field(t, "etag") != first.field(t, "etag") {
			t.Errorf("asked again, what was sent being there still: %s; at first %s", again.body, first.body)
		}
	}
	storage.set("", nil)
	commit(k, "If-None-Match", "*").want(t, 200)
	if diff := cmp.Diff([]string{"mia/cat"}, names(t, sys)); diff != "" {
		t.Error(diff)
	}
	if again := commit(k, "If-None-Match", "*").want(t, 200); again.field(t, "etag") != first.field(t, "etag") {
		t.Errorf("asked again, what was sent being gone: %s; at first %s", again.body, first.body)
	}
	storage.set("mia", refuse(500, "InternalError"))
	commit(k).problem(t, 503, "storage_unavailable") // and not 404: nobody said that it is not there

	// Under the same ticket, something else: what is there is not that.
	send(k, of("2"))
	storage.set("mia", func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		if r.URL.Query().Get("comp") == "blocklist" {
			refuse(500, "InternalError")(w, r, healthy)
			return
		}
		healthy.ServeHTTP(w, r)
	})
	commit(k).problem(t, 503, "storage_unavailable")
	storage.set("mia", nil)
	if got := served(t, sys, "mia"); !bytes.Equal(got, of("1")) {
		t.Errorf("the picture was changed to %d bytes", len(got))
	}
	commit(k).want(t, 200)
	if got := served(t, sys, "mia"); !bytes.Equal(got, of("2")) {
		t.Errorf("the picture is not what was sent last, but %d bytes", len(got))
	}

	// Several at once.
	send(k, of("3"))
	copying, goOn := make(chan struct{}), make(chan struct{})
	storage.set("mia", func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		if r.Header.Get("X-Ms-Copy-Source") != "" {
			close(copying)
			<-goOn
		}
		healthy.ServeHTTP(w, r)
	})
	done := make(chan answer)
	go func() { done <- commit(k) }()
	<-copying
	commit(k).problem(t, 503, "overloaded")
	close(goOn)
	(<-done).want(t, 200)
	if got := served(t, sys, "mia"); !bytes.Equal(got, of("3")) {
		t.Errorf("after two at once it is %d bytes", len(got))
	}
}
