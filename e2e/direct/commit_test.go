package direct

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestRejectedCommitCanBeCorrected(t *testing.T) {
	t.Parallel()
	sys, user := harness.Shared(t), harness.User(t)
	size, right, wrong := int64(len(harness.Cat)), harness.MD5(harness.Cat), harness.MD5(nil)
	k := harness.NewUploadSession(t, sys, user, size)
	if left := time.Until(k.ExpiresAt); left > time.Hour || left < 59*time.Minute || k.BlockSize != 0 {
		t.Errorf("the session expires in %v and has blocks of %d", left, k.BlockSize)
	}
	k.Commit(t, sys, user, "").WantProblem(t, 404, "no_such_upload")
	k.Send(t, harness.Cat)
	harness.Do(t, "GET", sys.URL+"/cat/"+user, "", nil).WantProblem(t, 404, "not_found")
	commit(t, sys, user, k, "", "If-Match", "*").WantProblem(t, 412, "precondition_failed")
	etag := commit(t, sys, user, k, "", "If-None-Match", "*").Want(t, 200).Header.Get("ETag")
	for _, header := range [][]string{{"X-Ms-Blob-Type", "BlockBlob"}, {"X-Ms-Blob-Type", "BlockBlob", "X-Ms-Blob-Content-Md5", right}} {
		k := harness.NewUploadSession(t, sys, user, size)
		harness.Send(t, "PUT", k.URL, string(harness.Cat), header...).Want(t, 201)
		commit(t, sys, user, k, wrong).WantProblem(t, 400, "digest_mismatch")
		commit(t, sys, user, k, "x").WantProblem(t, 422, "invalid_argument")
		commit(t, sys, user, k, wrong, "If-Match", etag).WantProblem(t, 400, "digest_mismatch")
		if got := harness.Do(t, "GET", sys.URL+"/cat/"+user, "", nil).Header.Get("ETag"); got != etag {
			t.Fatal("the picture was changed")
		}
		a := commit(t, sys, user, k, right, "If-Match", etag).Want(t, 200)
		etag = a.Header.Get("ETag")
		got := []any{a.Field(t, "content_type"), a.Field(t, "size"), a.Field(t, "content_md5"), a.Field(t, "etag")}
		if diff := cmp.Diff([]any{"image/png", float64(size), right, etag}, got); diff != "" {
			t.Error(diff)
		}
		wantNotStaged(t, sys, k)
	}
	k = harness.NewUploadSession(t, sys, user, size-1)
	k.Send(t, harness.Cat)
	k.Commit(t, sys, user, "").WantProblem(t, 400, "incomplete")
	if got := harness.Do(t, "GET", sys.URL+"/cat/"+user, "", nil).Header.Get("ETag"); got != etag {
		t.Error("an upload of another size changed the picture")
	}
}

// More faults during commits are in TestBrokenChangesKeepOldPicture of e2e/faults. After them, the client commits again.
func TestFailedCommitKeepsThePicture(t *testing.T) {
	t.Parallel()
	storage := harness.NewStorageProxy(t)
	sys := harness.StartDirect(t, stack.SystemOptions{StorageURL: storage.URL})
	deleted := func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		for _, name := range harness.BlobNames(t, sys, "cats-api") {
			if err := sys.Storage.Delete(r.Context(), sys.Container, name); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		healthy.ServeHTTP(w, r)
	}
	harness.Put(t, sys, "mia", harness.Cat)
	for _, c := range []struct {
		selected func(*http.Request) bool
		fault    harness.Fault
		status   int
		code     string
		again    int // status of the next commit, without a fault
	}{
		{isCopy, deleted, 409, "conflict", 404},
		{isCopy, harness.Reset, 503, "storage_unavailable", 200},
		{isCopy, harness.Reject(403, "AuthorizationPermissionMismatch"), 502, "identity_unavailable", 200},
		{isBlockList, harness.Reject(500, "InternalError"), 503, "storage_unavailable", 200},
	} {
		before := harness.Served(t, sys, "mia")
		content := another(c.code)
		k := harness.Stage(t, sys, "mia", content)
		storage.Set("mia", where(c.selected, c.fault))
		k.Commit(t, sys, "mia", "").WantProblem(t, c.status, c.code)
		storage.Set("mia", nil)
		harness.WantPicture(t, sys, "mia", before)
		if k.Commit(t, sys, "mia", "").Want(t, c.again); c.again == 200 {
			harness.WantPicture(t, sys, "mia", content)
			wantNotStaged(t, sys, k)
		}
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
	k := harness.Stage(t, sys, "mia", another("1"))
	storage.Set("", staged("GET", func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		_, _ = w.Write(harness.Cat[:100])
		harness.CutOff(w, r, nil)
	}))
	k.Commit(t, sys, "mia", "").WantProblem(t, 503, "storage_unavailable") // a truncated head is not another type
	storage.Set("", staged("DELETE", harness.Reject(403, "AuthorizationPermissionMismatch")))
	storage.Set("mia", where(isBlockList, harness.LoseResponse))
	first := commit(t, sys, "mia", k, "", "If-None-Match", "*").Want(t, 200)
	storage.Set("mia", nil)
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
	k.Send(t, another("2"))
	k.Commit(t, sys, "mia", "").Want(t, 200)
	harness.WantPicture(t, sys, "mia", another("2"))
}
