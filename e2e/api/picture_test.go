package api

import (
	"bytes"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cats.example/e2e/harness"
)

func TestPictureIsStoredServedAndDeleted(t *testing.T) {
	t.Parallel()
	sys, user := harness.Shared(t), harness.User(t)
	at := sys.URL + "/cat/" + user
	var picture string
	for _, content := range [][]byte{harness.Cat, harness.Random(sizes[1], 1), harness.Pixel(t, "image/jpeg")} {
		contentType, body := harness.Form(t, content)
		uploaded := harness.Do(t, "POST", at, contentType, body).Want(t, 200)
		header, stored, err := sys.Storage.Read(t.Context(), sys.Container, user+"/cat")
		if err != nil || !bytes.Equal(stored, content) {
			t.Fatalf("%d bytes are stored of %d: %v", len(stored), len(content), err)
		}
		want := []any{map[string]any{"name": user}, header.Get("ETag"), header.Get("Content-Type"), float64(len(content)), "no-store"}
		for _, a := range []harness.Response{uploaded, harness.Do(t, "GET", at, "", nil).Want(t, 200)} {
			got := []any{a.Field(t, "owner"), a.Field(t, "etag"), a.Field(t, "content_type"), a.Field(t, "size"), a.Header.Get("Cache-Control")}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s (- storage, + response):\n%s", a.Request.Method, diff)
			}
		}
		picture, _ = harness.Link(t, sys, user, "")
		if !bytes.Equal(wantServed(t, "picture", picture, header.Get("Content-Type"), "inline", "cat"+extensions[header.Get("Content-Type")]), content) {
			t.Error("another picture is served")
		}
	}
	harness.Do(t, "DELETE", at, "", nil).Want(t, 204)
	for _, k := range []harness.Call{call("DELETE", "/cat/"+user), call("GET", "/cat/"+user), call("GET", "/cat/"+user+"/picture")} {
		a := k.Do(t, sys)
		a.WantProblem(t, 404, "not_found")
		if a.Field(t, "detail") != "Cat not found" || a.Header.Get("Location") != "" { // the tutorial's detail
			t.Errorf("after DELETE, %s %s: %s", k.Method, k.Target, a.Body)
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
	var users, blobs []string
	for i, escaped := range []string{
		"%D0%9C%D1%83%D1%80", "a%20b", "%F0%9F%90%B1", "a+b", "%252F", ".hidden", "a..b", "picture", "%3Fx=1%23y", "a&b=c", "e%CC%81",
		"%EF%BF%BC", "%F0%BF%BF%BD", strings.Repeat("x", 128-len(unique)),
	} {
		escaped += unique
		name, err := url.PathUnescape(escaped)
		if err != nil {
			t.Fatal(err)
		}
		users, blobs = append(users, name), append(blobs, name+"/cat")
		content := append(bytes.Clone(harness.Cat), byte(i))
		harness.Put(t, sys, escaped, content)
		harness.WantPicture(t, sys, escaped, content)
		owner := harness.Do(t, "GET", sys.URL+"/cat/"+escaped, "", nil).Field(t, "owner")
		if diff := cmp.Diff(map[string]any{"name": name}, owner); diff != "" {
			t.Errorf("%s: %s", escaped, diff)
		}
	}
	slices.Sort(blobs)
	if diff := cmp.Diff(blobs, harness.BlobNames(t, sys, users...)); diff != "" {
		t.Error(diff)
	}
}
