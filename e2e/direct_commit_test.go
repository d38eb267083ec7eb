package e2e

import (
	"bytes"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cats.example/local/stack"
)

func TestWhatWasSentIsCheckedBeforeItIsThePicture(t *testing.T) {
	t.Parallel()
	sys := direct(t, stack.SystemOptions{SignerEnv: map[string]string{"MAX_PIXELS": "200000"}, FrontendEnv: map[string]string{"MAX_PIXELS": "200000"}})
	put(t, sys, "mia", cat) // 451 x 300
	bomb := append(pngOf(16384, 16384), make([]byte, 1000)...)
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

// A rejection that another argument can change leaves the staged blob for the next commit.
func TestCommitCanBeCorrected(t *testing.T) {
	t.Parallel()
	sys := direct(t, stack.SystemOptions{})
	etag := do(t, "PUT", sys.URL+"/cat/mia", "", pixel(t, "image/gif")).want(t, 200).Header.Get("ETag")
	commit := func(k ticket, query, condition string) answer {
		t.Helper()
		return ask(t, "POST", sys.URL+"/cat/mia/upload/"+k.ID+"/commit"+query, "", "If-Match", condition)
	}
	right, wrong := "?content_md5="+url.QueryEscape(md5Of(cat)), "?content_md5="+url.QueryEscape(md5Of(nil))
	for _, stored := range []string{"", md5Of(cat)} { // what storage knows of the blob's MD5
		k := ticketFor(t, sys, "mia", int64(len(cat)))
		header := http.Header{"X-Ms-Blob-Type": {"BlockBlob"}}
		if stored != "" {
			header.Set("X-Ms-Blob-Content-Md5", stored)
		}
		toStorage(t, "PUT", k.URL, header, bytes.NewReader(cat), int64(len(cat))).want(t, 201)
		commit(k, wrong, "*").problem(t, 400, "digest_mismatch")
		commit(k, "?content_md5=x", "*").problem(t, 422, "invalid_argument")
		commit(k, right, `"0x0"`).problem(t, 412, "precondition_failed")
		commit(k, wrong, "*").problem(t, 400, "digest_mismatch")
		if got := do(t, "GET", sys.URL+"/cat/mia", "", nil).Header.Get("ETag"); got != etag {
			t.Fatal("the picture was changed")
		}
		etag = commit(k, right, etag).want(t, 200).Header.Get("ETag")
	}
	if diff := cmp.Diff([]string{"mia/cat"}, names(t, sys)); diff != "" {
		t.Error(diff)
	}
}

// The holder of an upload URL for blocks may upload again at any time.
func TestCommitKeepsLaterVersions(t *testing.T) {
	t.Parallel()
	storage := newAccount(t)
	sys := direct(t, stack.SystemOptions{StorageURL: storage.URL})
	const size = 65 << 20
	for what, c := range map[string]struct {
		first  io.Reader
		status int
	}{"committed": {large(size), 200}, "rejected": {io.LimitReader(zeros{}, size), 415}} {
		k := ticketFor(t, sys, "mia", size)
		k.send(t, c.first, size)
		var again sync.Once
		storage.set("", func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
			if r.Method == http.MethodDelete {
				again.Do(func() { k.sendBlocks(t, large(size), 1, size) }) // one block: this request must not time out
			}
			healthy.ServeHTTP(w, r)
		})
		a := k.commit(t, sys, "mia", "")
		storage.set("", nil)
		if a.StatusCode != c.status || len(names(t, sys)) < 2 && what == "committed" {
			t.Errorf("%s: %d %s; left are %q", what, a.StatusCode, a.body, names(t, sys))
		}
		k.commit(t, sys, "mia", "").want(t, 200)
		if diff := cmp.Diff([]string{"mia/cat"}, names(t, sys)); diff != "" {
			t.Error(diff)
		}
	}
}

func TestACommitKeepsItsConditions(t *testing.T) {
	t.Parallel()
	sys := direct(t, stack.SystemOptions{})
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

// What goes wrong while storage copies, each once: the picture that was there stays,
// and the commit can be asked for again.
func TestACommitThatFailsChangesNothing(t *testing.T) {
	t.Parallel()
	storage := newAccount(t)
	sys := direct(t, stack.SystemOptions{StorageURL: storage.URL})
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
	sys := direct(t, stack.SystemOptions{StorageURL: storage.URL})
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
