package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cats.example/e2e/harness"
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
		reader := io.Reader(bytes.NewReader(body))
		if i%3 == 1 {
			reader = harness.Chunked{Reader: reader}
		}
		req, err := http.NewRequestWithContext(t.Context(), method, sys.URL+"/cat/"+user, reader)
		if err != nil {
			t.Fatal(err)
		}
		sha := sha256.Sum256(body)
		digests := fmt.Sprintf("md5=:%s:, sha-256=:%s:, unknown=:AA==:", harness.MD5(body), base64.StdEncoding.EncodeToString(sha[:]))
		req.Header = http.Header{"Content-Type": {contentType}, "Content-Digest": {digests}}
		a := harness.RoundTrip(t, harness.Client(), req).Want(t, 200)
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

func TestOneOfManyCreatesThePicture(t *testing.T) {
	t.Parallel()
	sys := harness.Shared(t)
	for range 3 { // the requests of one round may happen to overlap little
		user := harness.User(t)
		var statuses [8]int
		content := func(i int) []byte { return harness.Random(harness.OneBlob/2+i%2*harness.OneBlob, uint64(i)) }
		var wg sync.WaitGroup
		for i := range statuses {
			wg.Go(func() {
				statuses[i] = harness.Send(t, "PUT", sys.URL+"/cat/"+user, string(content(i)), "If-None-Match", "*").StatusCode
			})
		}
		wg.Wait()
		winner := slices.Index(statuses[:], 200)
		for i, status := range statuses {
			if winner < 0 || i != winner && status != 409 && status != 412 {
				t.Fatalf("the statuses are %v", statuses)
			}
		}
		harness.WantPicture(t, sys, user, content(winner))
	}
}

// Each writer gets 200 or 409. Readers get one whole picture at any time, and in the end one of a writer that got 200.
func TestReadersSeeWholePicturesWhileManyWrite(t *testing.T) {
	t.Parallel()
	sys, user := harness.Shared(t), harness.User(t)
	var stored [12]atomic.Bool
	sent := map[string]*atomic.Bool{} // by content: whether a writer got 200
	for i := range stored {
		size := []int{3000, harness.OneBlob + 300_000, harness.OneBlob + 600_000}[i%3]
		sent[string(harness.Random(size+i, uint64(i)))] = &stored[i]
	}
	harness.Put(t, sys, user, harness.Cat)
	sent[string(harness.Cat)] = new(atomic.Bool)
	var writing sync.WaitGroup
	var writers atomic.Int64
	for content, ok := range sent {
		writers.Add(1)
		writing.Go(func() {
			defer writers.Add(-1)
			method, contentType, body := "PUT", "", []byte(content)
			if len(content)%2 == 1 {
				method = "POST"
				contentType, body = harness.Form(t, body)
			}
			a, err := harness.Try(t.Context(), method, sys.URL+"/cat/"+user, contentType, bytes.NewReader(body))
			if err != nil || a.StatusCode != http.StatusOK && a.StatusCode != http.StatusConflict {
				t.Errorf("a writer of %d bytes: %v %s", len(content), err, a.Body)
			} else if a.StatusCode == http.StatusConflict {
				a.WantProblem(t, 409, "conflict")
			}
			ok.Store(err == nil && a.StatusCode == http.StatusOK)
		})
	}
	reads := 0
	for ; writers.Load() > 0; reads++ {
		if content := harness.Served(t, sys, user); sent[string(content)] == nil {
			t.Errorf("a reader got %d bytes that nobody sent", len(content))
		}
	}
	writing.Wait()
	t.Logf("%d reads", reads)
	if ok := sent[string(harness.Served(t, sys, user))]; reads == 0 || ok == nil || !ok.Load() {
		t.Error("nothing was read, or the picture is not one of those that got 200")
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
