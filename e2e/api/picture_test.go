package api

import (
	"bytes"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestPictureIsStoredServedAndDeleted(t *testing.T) {
	t.Parallel()
	sys, user := harness.Shared(t), harness.User(t)
	at := sys.URL + "/cat/" + user
	if a := harness.Do(t, "GET", sys.URL+"/service", "", nil).Want(t, 200); string(a.Body) != `{"service-name":"cats-api"}` {
		t.Errorf("/service is %q", a.Body)
	}
	var picture string
	for _, content := range [][]byte{harness.Cat, harness.Random(harness.OneBlob+77, 1), append(harness.Pixel(t, "image/jpeg"), harness.Random(999, 2)...)} {
		contentType, body := harness.Form(t, content)
		uploaded := harness.Do(t, "POST", at, contentType, body).Want(t, 200)
		header, stored, err := sys.Storage.Read(t.Context(), sys.Container, user+"/cat")
		if err != nil || !bytes.Equal(stored, content) {
			t.Fatalf("%d bytes are stored of %d: %v", len(stored), len(content), err)
		}
		for what, a := range map[string]harness.Response{"POST": uploaded, "GET": harness.Do(t, "GET", at, "", nil).Want(t, 200)} {
			got := []any{a.Field(t, "owner"), a.Field(t, "etag"), a.Field(t, "content_type"), a.Field(t, "size"), a.Header.Get("Content-Type"), a.Header.Get("Cache-Control")}
			want := []any{map[string]any{"name": user}, header.Get("ETag"), header.Get("Content-Type"), float64(len(content)), "application/json", "no-store"}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s (- storage, + response):\n%s", what, diff)
			}
		}
		picture, _ = harness.Link(t, sys, user, "")
		fetched := harness.Do(t, "GET", picture, "", nil).Want(t, 200)
		if !bytes.Equal(fetched.Body, content) || fetched.Header.Get("Content-Type") != header.Get("Content-Type") {
			t.Errorf("the signed URL returns %d bytes of %s", len(fetched.Body), fetched.Header.Get("Content-Type"))
		}
	}
	for path, status := range map[string]int{"/service": 200, "/cat/" + user: 200, "/cat/" + user + "/picture": 307, "/cat/nobody": 404} {
		if a := harness.Do(t, "HEAD", sys.URL+path, "", nil).Want(t, status); len(a.Body) > 0 {
			t.Errorf("the response to HEAD %s has a body", path)
		}
	}
	harness.Do(t, "DELETE", at, "", nil).Want(t, 204)
	for _, a := range []harness.Response{harness.Do(t, "DELETE", at, "", nil), harness.Do(t, "GET", at, "", nil), harness.Do(t, "GET", at+"/picture", "", nil)} {
		if a.WantProblem(t, 404, "not_found"); a.Field(t, "detail") != "Cat not found" || a.Header.Get("Location") != "" { // the tutorial's detail
			t.Errorf("after DELETE, %s %s: %s", a.Request.Method, a.Request.URL.Path, a.Body)
		}
	}
	harness.Do(t, "GET", picture, "", nil).Want(t, 404)
	if left := harness.BlobNames(t, sys, user); len(left) > 0 {
		t.Errorf("%q are left", left)
	}
}

func TestUserNameIsTheBlobsFolder(t *testing.T) {
	t.Parallel()
	sys, unique := harness.Shared(t), harness.User(t)
	for i, escaped := range []string{
		"%D0%9C%D1%83%D1%80", "a%20b", "%F0%9F%90%B1", "a+b", "%252F", ".hidden", "a..b", "picture", "%3Fx=1%23y", "a&b=c", "e%CC%81", "%EF%BF%BC", "%F0%BF%BF%BD", strings.Repeat("x", 128-len(unique)),
	} {
		name, err := url.PathUnescape(escaped + unique)
		if err != nil {
			t.Fatal(err)
		}
		content := append(bytes.Clone(harness.Cat), byte(i))
		harness.Put(t, sys, escaped+unique, content)
		harness.WantPicture(t, sys, escaped+unique, content)
		owner := harness.Do(t, "GET", sys.URL+"/cat/"+escaped+unique, "", nil).Field(t, "owner")
		if diff := cmp.Diff(map[string]any{"name": name}, owner); diff != "" || len(harness.BlobNames(t, sys, name)) != 1 {
			t.Errorf("%s: %s, blobs %q", escaped, diff, harness.BlobNames(t, sys, name))
		}
	}
	contentType, body := harness.Form(t, harness.Cat)
	for _, path := range []string{"..%2F" + unique, unique + "%5Cb", unique + "%00", "%2e%2e", unique + ".", unique + "%ff", strings.Repeat("x", 129), unique + "%EE%80%80", unique + "%EF%BF%BE"} {
		at := sys.URL + "/cat/" + path
		for _, a := range []harness.Response{
			harness.Do(t, "PUT", at, "", harness.Cat), harness.Do(t, "POST", at, contentType, body), harness.Do(t, "GET", at, "", nil), harness.Do(t, "GET", at+"/picture", "", nil), harness.Do(t, "DELETE", at, "", nil),
		} {
			a.WantProblem(t, 422, "invalid_user")
		}
	}
	if i := slices.IndexFunc(harness.BlobNames(t, sys), func(name string) bool {
		return !strings.HasPrefix(name, "cats-api/upload/") && (strings.Count(name, "/") != 1 || strings.ContainsAny(name, "\\\x00\ue000\ufffe") || strings.HasPrefix(name, "./") || strings.HasPrefix(name, "../"))
	}); i >= 0 {
		t.Errorf("a rejected name is stored: %q", harness.BlobNames(t, sys)[i])
	}
}

// The cache must not outlive a write by the same replica, and must not contain the absence of a picture.
func TestExistenceCacheFollowsWrites(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{SignerEnv: map[string]string{"EXISTENCE_CACHE_TTL": "10m"}})
	at := sys.URL + "/cat/x"
	for i := range uint64(3) {
		harness.Do(t, "GET", at, "", nil).WantProblem(t, 404, "not_found")
		for _, size := range []int{1000, 2000} {
			etag := harness.Do(t, "PUT", at, "", harness.Random(size, i)).Want(t, 200).Field(t, "etag")
			for range 3 {
				if a := harness.Do(t, "GET", at, "", nil).Want(t, 200); a.Field(t, "etag") != etag || a.Field(t, "size") != float64(size) {
					t.Errorf("%s; want ETag %s", a.Body, etag)
				}
			}
		}
		harness.Do(t, "DELETE", at, "", nil).Want(t, 204)
	}
	if heads := harness.Series(t, sys.SignerOps, `cats_signer_storage_requests_total{code="200",operation="head_blob"}`); heads != 6 {
		t.Errorf("storage got %v HEAD requests; want one after each PUT", heads)
	}
}
