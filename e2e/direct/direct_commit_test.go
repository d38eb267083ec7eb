package direct

import (
	"bytes"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestWhatWasSentIsCheckedBeforeItIsThePicture(t *testing.T) {
	t.Parallel()
	sys := harness.StartDirect(t, stack.SystemOptions{SignerEnv: map[string]string{"MAX_PIXELS": "200000"}, FrontendEnv: map[string]string{"MAX_PIXELS": "200000"}})
	harness.Put(t, sys, "mia", harness.Cat) // 451 x 300
	bomb := append(harness.PNG(16384, 16384), make([]byte, 1000)...)
	etag := harness.Do(t, "GET", sys.URL+"/cat/mia", "", nil).Header.Get("ETag")
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
		{"less than was announced", harness.Cat, len(harness.Cat) + 1, "", 400, "incomplete"},
		{"more than was announced", harness.Cat, len(harness.Cat) - 1, "", 400, "incomplete"},
		{"another digest", harness.Cat, 0, "?content_md5=" + url.QueryEscape(harness.MD5(nil)), 400, "digest_mismatch"},
		{"no digest", harness.Cat, 0, "?content_md5=x", 422, "invalid_argument"},
	} {
		announced := c.announced
		if announced == 0 {
			announced = len(c.content)
		}
		k := harness.NewUploadSession(t, sys, "mia", int64(announced))
		k.Send(t, bytes.NewReader(c.content), int64(len(c.content)))
		k.Commit(t, sys, "mia", c.query).WantProblem(t, c.status, c.code)
		if got := harness.Do(t, "GET", sys.URL+"/cat/mia", "", nil).Header.Get("ETag"); got != etag {
			t.Fatalf("%s: the picture was changed", c.what)
		}
	}
	// Blocks, where storage does not know the digest before it copies them.
	k := harness.NewUploadSession(t, sys, "mia", 65<<20)
	k.Send(t, harness.Large(65<<20), 65<<20)
	k.Commit(t, sys, "mia", "?content_md5="+url.QueryEscape(harness.MD5(nil))).WantProblem(t, 400, "digest_mismatch")
	if got := harness.Do(t, "GET", sys.URL+"/cat/mia", "", nil).Header.Get("ETag"); got != etag {
		t.Error("a wrong digest: the picture was changed")
	}
}

// A rejection that another argument can change leaves the staged blob for the next commit.
func TestCommitCanBeCorrected(t *testing.T) {
	t.Parallel()
	sys := harness.StartDirect(t, stack.SystemOptions{})
	etag := harness.Do(t, "PUT", sys.URL+"/cat/mia", "", harness.Pixel(t, "image/gif")).Want(t, 200).Header.Get("ETag")
	commit := func(k harness.UploadSession, query, condition string) harness.Response {
		t.Helper()
		return harness.Send(t, "POST", sys.URL+"/cat/mia/upload/"+k.ID+"/commit"+query, "", "If-Match", condition)
	}
	right, wrong := "?content_md5="+url.QueryEscape(harness.MD5(harness.Cat)), "?content_md5="+url.QueryEscape(harness.MD5(nil))
	for _, stored := range []string{"", harness.MD5(harness.Cat)} { // what storage knows of the blob's MD5
		k := harness.NewUploadSession(t, sys, "mia", int64(len(harness.Cat)))
		header := http.Header{"X-Ms-Blob-Type": {"BlockBlob"}}
		if stored != "" {
			header.Set("X-Ms-Blob-Content-Md5", stored)
		}
		harness.SendToStorage(t, "PUT", k.URL, header, bytes.NewReader(harness.Cat), int64(len(harness.Cat))).Want(t, 201)
		commit(k, wrong, "*").WantProblem(t, 400, "digest_mismatch")
		commit(k, "?content_md5=x", "*").WantProblem(t, 422, "invalid_argument")
		commit(k, right, `"0x0"`).WantProblem(t, 412, "precondition_failed")
		commit(k, wrong, "*").WantProblem(t, 400, "digest_mismatch")
		if got := harness.Do(t, "GET", sys.URL+"/cat/mia", "", nil).Header.Get("ETag"); got != etag {
			t.Fatal("the picture was changed")
		}
		etag = commit(k, right, etag).Want(t, 200).Header.Get("ETag")
	}
	if diff := cmp.Diff([]string{"mia/cat"}, harness.BlobNames(t, sys)); diff != "" {
		t.Error(diff)
	}
}

// The holder of an upload URL for blocks may upload again at any time.
func TestCommitKeepsLaterVersions(t *testing.T) {
	t.Parallel()
	storage := harness.NewStorageProxy(t)
	sys := harness.StartDirect(t, stack.SystemOptions{StorageURL: storage.URL})
	const size = 65 << 20
	for what, c := range map[string]struct {
		first  io.Reader
		status int
	}{"committed": {harness.Large(size), 200}, "rejected": {io.LimitReader(harness.Zeros{}, size), 415}} {
		k := harness.NewUploadSession(t, sys, "mia", size)
		k.Send(t, c.first, size)
		var again sync.Once
		storage.Set("", func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
			if r.Method == http.MethodDelete {
				again.Do(func() { k.SendBlocks(t, harness.Large(size), 1, size) }) // one block: this request must not time out
			}
			healthy.ServeHTTP(w, r)
		})
		a := k.Commit(t, sys, "mia", "")
		storage.Set("", nil)
		if a.StatusCode != c.status || len(harness.BlobNames(t, sys)) < 2 && what == "committed" {
			t.Errorf("%s: %d %s; left are %q", what, a.StatusCode, a.Body, harness.BlobNames(t, sys))
		}
		k.Commit(t, sys, "mia", "").Want(t, 200)
		if diff := cmp.Diff([]string{"mia/cat"}, harness.BlobNames(t, sys)); diff != "" {
			t.Error(diff)
		}
	}
}

func TestACommitKeepsItsConditions(t *testing.T) {
	t.Parallel()
	sys := harness.StartDirect(t, stack.SystemOptions{})
	commit := func(header, value string) harness.Response {
		t.Helper()
		k := harness.NewUploadSession(t, sys, "mia", int64(len(harness.Cat)))
		k.Send(t, bytes.NewReader(harness.Cat), int64(len(harness.Cat)))
		return harness.SendToStorage(t, "POST", sys.URL+"/cat/mia/upload/"+k.ID+"/commit", http.Header{header: {value}}, nil, 0)
	}
	commit("If-Match", "*").WantProblem(t, 412, "precondition_failed")
	first := commit("If-None-Match", "*").Want(t, 200)
	commit("If-None-Match", "*").WantProblem(t, 412, "precondition_failed")
	etag, _ := first.Field(t, "etag").(string)
	second := commit("If-Match", etag).Want(t, 200)
	commit("If-Match", etag).WantProblem(t, 412, "precondition_failed")
	if got := harness.Do(t, "GET", sys.URL+"/cat/mia", "", nil); got.Field(t, "etag") != second.Field(t, "etag") {
		t.Errorf("the picture is %s", got.Body)
	}
}

// What goes wrong while storage copies, each once: the picture that was there stays,
// and the commit can be asked for again.
func TestACommitThatFailsChangesNothing(t *testing.T) {
	t.Parallel()
	storage := harness.NewStorageProxy(t)
	sys := harness.StartDirect(t, stack.SystemOptions{StorageURL: storage.URL})
	harness.Put(t, sys, "mia", harness.Cat)
	etag := harness.Do(t, "GET", sys.URL+"/cat/mia", "", nil).Header.Get("ETag")
	content := append(bytes.Clone(harness.Cat), "another one"...)
	const size = 65 << 20 // which needs a ticket to write
	copies := func(r *http.Request) bool { return r.Header.Get("X-Ms-Copy-Source") != "" }
	var k harness.UploadSession
	var changed sync.Once // of k, under the first of several copies at once, which the others wait for
	for _, c := range []struct {
		what    string
		when    func(*http.Request) bool
		fault   harness.Fault
		status  int
		code    string
		changes bool // the picture is the new one all the same
	}{
		{"the copy gets no answer", copies, harness.Reset, 503, "storage_unavailable", false},
		{"the copy is refused", copies, harness.Reject(403, "AuthorizationPermissionMismatch"), 502, "identity_unavailable", false},
		{"the copy is throttled for long", copies, harness.Reject(503, "ServerBusy", "Retry-After", "60"), 503, "throttled", false},
		{"what was sent is sent anew, under the copy", copies, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
			changed.Do(func() {
				harness.SendToStorage(t, "PUT", k.URL, http.Header{"X-Ms-Blob-Type": {"BlockBlob"}}, bytes.NewReader(content), int64(len(content))).Want(t, 201)
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
		{"the blocks are not made one", func(r *http.Request) bool { return r.URL.Query().Get("comp") == "blocklist" }, harness.Reset, 503, "storage_unavailable", false},
		{"the last answer is lost", func(r *http.Request) bool { return r.URL.Query().Get("comp") == "blocklist" }, harness.LoseResponse, 200, "", true},
	} {
		n := int64(len(content))
		body := io.Reader(bytes.NewReader(content))
		if strings.Contains(c.what, "anew") {
			n, body = size, harness.Large(size)
		}
		k, changed = harness.NewUploadSession(t, sys, "mia", n), sync.Once{}
		k.Send(t, body, n)
		storage.Set("mia", func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
			if c.when(r) {
				c.fault(w, r, healthy)
				return
			}
			healthy.ServeHTTP(w, r)
		})
		a := k.Commit(t, sys, "mia", "")
		storage.Set("mia", nil)
		if c.changes {
			a.Want(t, c.status)
			if !bytes.Equal(harness.Served(t, sys, "mia"), content) {
				t.Errorf("%s: another picture is there", c.what)
			}
			continue
		}
		a.WantProblem(t, c.status, c.code)
		if got := harness.Do(t, "GET", sys.URL+"/cat/mia", "", nil).Header.Get("ETag"); got != etag {
			t.Fatalf("%s: the picture was changed", c.what)
		}
	}
}

// Whoever got no answer asks again, and so does the page: what was told as stored is
// told so again, by the same tag, and what was not is stored then.
func TestACommitCanBeAskedForAgain(t *testing.T) {
	t.Parallel()
	storage := harness.NewStorageProxy(t)
	sys := harness.StartDirect(t, stack.SystemOptions{StorageURL: storage.URL})
	of := func(more string) []byte { return append(bytes.Clone(harness.Cat), more...) }
	commit := func(k harness.UploadSession, header ...string) harness.Response {
		t.Helper()
		return harness.Send(t, "POST", sys.URL+"/cat/mia/upload/"+k.ID+"/commit", "", header...)
	}
	send := func(k harness.UploadSession, content []byte) {
		t.Helper()
		k.Send(t, bytes.NewReader(content), int64(len(content)))
	}
	k := harness.NewUploadSession(t, sys, "mia", int64(len(of("1"))))
	sent := func(method string, f harness.Fault) harness.Fault { // breaks what is done to what was sent
		return func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
			if r.Method == method && strings.Contains(r.URL.Path, "/upload/") {
				f(w, r, healthy)
				return
			}
			healthy.ServeHTTP(w, r)
		}
	}

	send(k, of("1"))
	storage.Set("", sent("GET", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Content-Length", "100000")
		_, _ = w.Write(harness.Cat[:100])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	commit(k).WantProblem(t, 503, "storage_unavailable") // and not 415, and it is still there
	storage.Set("", sent("DELETE", harness.Reject(403, "AuthorizationPermissionMismatch")))
	first := commit(k, "If-None-Match", "*").Want(t, 200)
	for _, again := range []harness.Response{commit(k, "If-None-Match", "*"), commit(k, "If-Match", `"before"`), commit(k)} {
		if again.Want(t, 200).Field(t, "etag") != first.Field(t, "etag") {
			t.Errorf("asked again, what was sent being there still: %s; at first %s", again.Body, first.Body)
		}
	}
	storage.Set("", nil)
	commit(k, "If-None-Match", "*").Want(t, 200)
	if diff := cmp.Diff([]string{"mia/cat"}, harness.BlobNames(t, sys)); diff != "" {
		t.Error(diff)
	}
	if again := commit(k, "If-None-Match", "*").Want(t, 200); again.Field(t, "etag") != first.Field(t, "etag") {
		t.Errorf("asked again, what was sent being gone: %s; at first %s", again.Body, first.Body)
	}
	storage.Set("mia", harness.Reject(500, "InternalError"))
	commit(k).WantProblem(t, 503, "storage_unavailable") // and not 404: nobody said that it is not there

	// Under the same ticket, something else: what is there is not that.
	send(k, of("2"))
	storage.Set("mia", func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		if r.URL.Query().Get("comp") == "blocklist" {
			harness.Reject(500, "InternalError")(w, r, healthy)
			return
		}
		healthy.ServeHTTP(w, r)
	})
	commit(k).WantProblem(t, 503, "storage_unavailable")
	storage.Set("mia", nil)
	if got := harness.Served(t, sys, "mia"); !bytes.Equal(got, of("1")) {
		t.Errorf("the picture was changed to %d bytes", len(got))
	}
	commit(k).Want(t, 200)
	if got := harness.Served(t, sys, "mia"); !bytes.Equal(got, of("2")) {
		t.Errorf("the picture is not what was sent last, but %d bytes", len(got))
	}

	// Several at once.
	send(k, of("3"))
	copying, goOn := make(chan struct{}), make(chan struct{})
	storage.Set("mia", func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		if r.Header.Get("X-Ms-Copy-Source") != "" {
			close(copying)
			<-goOn
		}
		healthy.ServeHTTP(w, r)
	})
	done := make(chan harness.Response)
	go func() { done <- commit(k) }()
	<-copying
	commit(k).WantProblem(t, 503, "overloaded")
	close(goOn)
	(<-done).Want(t, 200)
	if got := harness.Served(t, sys, "mia"); !bytes.Equal(got, of("3")) {
		t.Errorf("after two at once it is %d bytes", len(got))
	}
}
