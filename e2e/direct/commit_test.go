package direct

import (
	"bytes"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func isCopy(r *http.Request) bool { return r.Header.Get("X-Ms-Copy-Source") != "" }

func isBlockList(r *http.Request) bool { return r.URL.Query().Get("comp") == "blocklist" }

// where injects f into the selected requests.
func where(selected func(*http.Request) bool, f harness.Fault) harness.Fault {
	return func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		if selected(r) {
			f(w, r, healthy)
			return
		}
		healthy.ServeHTTP(w, r)
	}
}

func TestRejectedCommitCanBeCorrected(t *testing.T) {
	t.Parallel()
	sys, user := harness.Shared(t), harness.User(t)
	k := stage(t, sys, user, harness.Cat)
	commit(t, sys, user, k, "", "If-Match", "*").WantProblem(t, 412, "precondition_failed")
	etag := commit(t, sys, user, k, "", "If-None-Match", "*").Want(t, 200).Header.Get("ETag")
	right, wrong := "?content_md5="+url.QueryEscape(harness.MD5(harness.Cat)), "?content_md5="+url.QueryEscape(harness.MD5(nil))
	for _, stored := range []string{"", harness.MD5(harness.Cat)} { // the MD5 that storage has
		k := harness.NewUploadSession(t, sys, user, int64(len(harness.Cat)))
		header := http.Header{"X-Ms-Blob-Type": {"BlockBlob"}}
		if stored != "" {
			header.Set("X-Ms-Blob-Content-Md5", stored)
		}
		harness.SendToStorage(t, "PUT", k.URL, header, bytes.NewReader(harness.Cat), int64(len(harness.Cat))).Want(t, 201)
		commit(t, sys, user, k, wrong).WantProblem(t, 400, "digest_mismatch")
		commit(t, sys, user, k, "?content_md5=x").WantProblem(t, 422, "invalid_argument")
		commit(t, sys, user, k, right, "If-None-Match", "*").WantProblem(t, 412, "precondition_failed")
		commit(t, sys, user, k, right, "If-Match", `"0x0"`).WantProblem(t, 412, "precondition_failed")
		commit(t, sys, user, k, wrong, "If-Match", etag).WantProblem(t, 400, "digest_mismatch")
		if got := harness.Do(t, "GET", sys.URL+"/cat/"+user, "", nil).Header.Get("ETag"); got != etag {
			t.Fatal("the picture was changed")
		}
		etag = commit(t, sys, user, k, right, "If-Match", etag).Want(t, 200).Header.Get("ETag")
		wantNotStaged(t, sys, k)
	}
	for what, more := range map[string]int64{"shorter than announced": 1, "longer than announced": -1} {
		k := harness.NewUploadSession(t, sys, user, int64(len(harness.Cat))+more)
		k.Send(t, bytes.NewReader(harness.Cat), int64(len(harness.Cat)))
		k.Commit(t, sys, user, "").WantProblem(t, 400, "incomplete")
		if got := harness.Do(t, "GET", sys.URL+"/cat/"+user, "", nil).Header.Get("ETag"); got != etag {
			t.Errorf("%s: the picture was changed", what)
		}
	}
}

func TestFailedCommitKeepsThePicture(t *testing.T) {
	t.Parallel()
	storage := harness.NewStorageProxy(t)
	sys := harness.StartDirect(t, stack.SystemOptions{StorageURL: storage.URL})
	for user, c := range map[string]struct {
		fault  harness.Fault
		status int
		code   string
		again  int // status of the next commit, without a fault
	}{
		"copy-reset":      {where(isCopy, harness.Reset), 503, "storage_unavailable", 200},
		"copy-rejected":   {where(isCopy, harness.Reject(403, "AuthorizationPermissionMismatch")), 502, "identity_unavailable", 200},
		"copy-throttled":  {where(isCopy, harness.Reject(503, "ServerBusy", "Retry-After", "60")), 503, "throttled", 200},
		"list-reset":      {where(isBlockList, harness.Reset), 503, "storage_unavailable", 200},
		"list-failed":     {where(isBlockList, harness.Reject(500, "InternalError")), 503, "storage_unavailable", 200},
		"response-lost":   {where(isBlockList, harness.LoseResponse), 200, "", 200},
		"deleted-by-copy": {nil, 409, "conflict", 404},
	} {
		t.Run(user, func(t *testing.T) {
			t.Parallel()
			harness.Put(t, sys, user, harness.Cat)
			etag := harness.Do(t, "GET", sys.URL+"/cat/"+user, "", nil).Header.Get("ETag")
			content := another(user)
			k := stage(t, sys, user, content)
			if c.fault == nil {
				c.fault = where(isCopy, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
					if err := sys.Storage.Delete(r.Context(), sys.Container, k.BlobName(t, sys)); err != nil {
						t.Error(err)
					}
					healthy.ServeHTTP(w, r)
				})
			}
			storage.Set(user, c.fault)
			a := k.Commit(t, sys, user, "")
			storage.Set(user, nil)
			if c.status != 200 {
				a.WantProblem(t, c.status, c.code)
				if got := harness.Do(t, "GET", sys.URL+"/cat/"+user, "", nil).Header.Get("ETag"); got != etag {
					t.Fatal("the picture was changed")
				}
			}
			if again := k.Commit(t, sys, user, "").Want(t, c.again); c.status == 200 && again.Field(t, "etag") != a.Field(t, "etag") {
				t.Errorf("%s; the next commit: %s", a.Body, again.Body)
			}
			if c.again == 200 {
				harness.WantPicture(t, sys, user, content)
				wantNotStaged(t, sys, k)
			}
		})
	}
}

// A client that got no response commits again. The signer finds the picture by the metadata of the first commit.
func TestCommitCanBeRepeated(t *testing.T) {
	t.Parallel()
	storage := harness.NewStorageProxy(t)
	sys := harness.StartDirect(t, stack.SystemOptions{StorageURL: storage.URL})
	staged := func(method string, f harness.Fault) harness.Fault {
		return where(func(r *http.Request) bool { return r.Method == method && strings.Contains(r.URL.Path, "/upload/") }, f)
	}
	k := stage(t, sys, "mia", another("1"))
	storage.Set("", staged("GET", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Content-Length", "100000")
		_, _ = w.Write(harness.Cat[:100])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	k.Commit(t, sys, "mia", "").WantProblem(t, 503, "storage_unavailable") // a truncated head is not another type
	storage.Set("", staged("DELETE", harness.Reject(403, "AuthorizationPermissionMismatch")))
	first := commit(t, sys, "mia", k, "", "If-None-Match", "*").Want(t, 200)
	again := func(header ...string) {
		t.Helper()
		if a := commit(t, sys, "mia", k, "", header...).Want(t, 200); a.Field(t, "etag") != first.Field(t, "etag") {
			t.Errorf("%s; the first commit: %s", a.Body, first.Body)
		}
	}
	again("If-None-Match", "*")
	again("If-Match", `"before"`)
	storage.Set("", nil)
	again("If-None-Match", "*") // deletes the staged blob
	wantNotStaged(t, sys, k)
	again("If-None-Match", "*")
	storage.Set("mia", harness.Reject(500, "InternalError"))
	k.Commit(t, sys, "mia", "").WantProblem(t, 503, "storage_unavailable") // unknown, so not 404
	storage.Set("mia", nil)

	// The same session may upload another picture once the staged blob is deleted.
	second := another("2")
	k.Send(t, bytes.NewReader(second), int64(len(second)))
	storage.Set("mia", where(isBlockList, harness.Reject(500, "InternalError")))
	k.Commit(t, sys, "mia", "").WantProblem(t, 503, "storage_unavailable")
	storage.Set("mia", nil)
	harness.WantPicture(t, sys, "mia", another("1"))
	k.Commit(t, sys, "mia", "").Want(t, 200)
	harness.WantPicture(t, sys, "mia", second)
}
