package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// Wrong digests are among the rows of TestBrokenChangesKeepOldPicture in e2e/faults.
func TestPicturesOfEverySizeAreUnchanged(t *testing.T) {
	t.Parallel()
	sys := harness.Shared(t)
	const one = harness.OneBlob
	for i, size := range []int{65, 3072, 100_000, one - 1, one, one + 1, 2*one + 2, 2*one + 3, 32 << 20} {
		user, content := harness.User(t), harness.Random(size, uint64(i))
		method, contentType, body := "PUT", "", content
		if i%3 == 2 {
			method = "POST"
			contentType, body = harness.Form(t, content)
		}
		length := int64(len(body))
		if i%3 == 1 {
			length = -1
		}
		sha := sha256.Sum256(body)
		digests := fmt.Sprintf("md5=:%s:, sha-256=:%s:, unknown=:AA==:", harness.MD5(body), base64.StdEncoding.EncodeToString(sha[:]))
		a := harness.SendStream(t, method, sys.URL+"/cat/"+user, bytes.NewReader(body), length, "Content-Type", contentType,
			"Content-Digest", digests).Want(t, 200)
		if a.Field(t, "size") != float64(size) || (method == "PUT" || size <= one) && a.Field(t, "content_md5") != harness.MD5(content) {
			t.Errorf("%d bytes: %s", size, a.Body)
		}
		harness.WantPicture(t, sys, user, content)
	}
}

func TestPreconditionsAreChecked(t *testing.T) {
	t.Parallel()
	sys := harness.Shared(t)
	for _, size := range sizes {
		user, first, second := harness.User(t), harness.Random(size, 1), harness.Random(size, 2)
		at := sys.URL + "/cat/" + user
		contentType, form := harness.Form(t, second)
		put := func(header ...string) harness.Response { return harness.Send(t, "PUT", at, string(second), header...) }
		post := func(header ...string) harness.Response {
			return harness.Send(t, "POST", at, string(form), append(header, "Content-Type", contentType)...)
		}
		etag := harness.Send(t, "PUT", at, string(first), "If-None-Match", "*").Want(t, 200).Header.Get("ETag")
		put("If-None-Match", "*").WantProblem(t, 412, "precondition_failed")
		put("If-Match", `"0xNOTHING"`).WantProblem(t, 412, "precondition_failed")
		post("If-None-Match", "*").WantProblem(t, 412, "precondition_failed")
		put("If-None-Match", etag).WantProblem(t, 412, "precondition_failed")
		harness.WantPicture(t, sys, user, first)
		harness.Send(t, "GET", at, "", "If-None-Match", `"other", W/`+etag).Want(t, 304)
		next := post("If-Match", etag).Want(t, 200).Header.Get("ETag")
		got := harness.Send(t, "GET", at, "", "If-None-Match", etag).Want(t, 200)
		if got.Header.Get("ETag") != next || got.Field(t, "etag") != next {
			t.Errorf("GET returns ETag %q and %s; POST returned %q", got.Header.Get("ETag"), got.Body, next)
		}
		picture, _ := harness.Link(t, sys, user, "")
		harness.Send(t, "DELETE", at, "", "If-Match", etag).WantProblem(t, 412, "precondition_failed")
		harness.Send(t, "DELETE", at, "", "If-Match", next).Want(t, 204)
		put("If-Match", next).WantProblem(t, 412, "precondition_failed")
		harness.Do(t, "DELETE", at, "", nil).WantProblem(t, 404, "not_found")
		harness.Do(t, "GET", picture, "", nil).Want(t, 404)
		a := harness.Do(t, "GET", at, "", nil)
		if a.WantProblem(t, 404, "not_found"); a.Field(t, "detail") != "Cat not found" { // the tutorial's detail
			t.Errorf("after DELETE: %s", a.Body)
		}
	}
}

// One of the first writers creates the picture. Readers get one whole picture at any time, and in the end one of a writer that got 200.
func TestReadersSeeWholePicturesWhileManyWrite(t *testing.T) {
	t.Parallel()
	sys, user := harness.Shared(t), harness.User(t)
	var contents [12][]byte
	var statuses [len(contents)]int // of the last writes
	for i := range contents {
		contents[i] = harness.Random([]int{3000, harness.OneBlob + 300_000, harness.OneBlob + 600_000}[i%3]+i, uint64(i))
	}
	write := func(header ...string) {
		harness.Each(len(contents), func(i int) {
			call := harness.Call{Method: "PUT", Target: "/cat/" + user, Body: contents[i], Header: header}
			if i%2 == 1 {
				contentType, form := harness.Form(t, contents[i])
				call = harness.Call{Method: "POST", Target: call.Target, Body: form}.With(append(header, "Content-Type", contentType)...)
			}
			statuses[i] = call.Do(t, sys).StatusCode
		})
	}
	write("If-None-Match", "*")
	winner := slices.Index(statuses[:], 200)
	for i, status := range statuses {
		if winner < 0 || i != winner && status != 409 && status != 412 {
			t.Fatalf("the statuses are %v", statuses)
		}
	}
	read := func() (writer int) {
		got := harness.Served(t, sys, user)
		return slices.IndexFunc(contents[:], func(content []byte) bool { return bytes.Equal(got, content) })
	}
	if got := read(); got != winner {
		t.Errorf("the picture is of writer %d; want %d", got, winner)
	}
	var writing atomic.Bool
	writing.Store(true)
	go func() {
		write()
		writing.Store(false)
	}()
	for writing.Load() {
		if read() < 0 {
			t.Error("a reader got a picture that nobody sent")
		}
	}
	last := read()
	for i, status := range statuses {
		if status != 200 && status != 409 || i == last && status != 200 {
			t.Errorf("writer %d got %d; the picture is of %d", i, status, last)
		}
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
		header, stored, err := sys.Storage.Read(t.Context(), sys.Container, name+"/cat")
		if err != nil || !bytes.Equal(stored, content) {
			t.Fatalf("%d bytes are stored of %d: %v", len(stored), len(content), err)
		}
		a := harness.Do(t, "GET", sys.URL+"/cat/"+escaped, "", nil)
		got := []any{a.Field(t, "owner"), a.Field(t, "etag"), a.Field(t, "content_type"), a.Field(t, "size")}
		want := []any{map[string]any{"name": name}, header.Get("ETag"), header.Get("Content-Type"), float64(len(content))}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (- storage, + response):\n%s", escaped, diff)
		}
	}
	slices.Sort(blobs)
	if diff := cmp.Diff(blobs, harness.BlobNames(t, sys, users...)); diff != "" {
		t.Error(diff)
	}
}

// In the containers, each way of uploading must use the settings, not their defaults.
func TestSettingsLimitEveryUpload(t *testing.T) {
	t.Parallel()
	limits := map[string]string{"ACCEPTED_TYPES": "image/png", "MAX_PIXELS": "100"}
	sys := harness.StartDirect(t, stack.SystemOptions{FrontendEnv: limits, SignerEnv: limits})
	for name, c := range map[string]struct {
		content []byte
		status  int
	}{
		"gif":  {harness.Pixel(t, "image/gif"), http.StatusUnsupportedMediaType},
		"wide": {harness.PNG(101, 1), http.StatusRequestEntityTooLarge},
		"png":  {harness.PNG(100, 1), http.StatusOK},
	} {
		for way, a := range sendAll(t, sys, name, c.content) {
			if a.StatusCode != c.status {
				t.Errorf("%s of %s: %d %s; want %d", way, name, a.StatusCode, a.Body, c.status)
			}
		}
	}
}
