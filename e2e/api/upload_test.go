package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"cats.example/e2e/harness"
)

func TestPicturesOfEverySizeAreUnchanged(t *testing.T) {
	t.Parallel()
	sys := harness.Shared(t)
	const one = harness.OneBlob
	for i, size := range []int{65, 3072, 100_000, one - 1, one, one + 1, 2*one + 2, 2*one + 3, 32 << 20} {
		user, content := harness.User(t), harness.Random(size, uint64(i))
		method, contentType, body := "PUT", "", io.Reader(bytes.NewReader(content))
		switch i % 3 {
		case 1:
			body = harness.Chunked{Reader: body}
		case 2:
			form, whole := harness.Form(t, content)
			method, contentType, body = "POST", form, bytes.NewReader(whole)
		}
		a, err := harness.Try(t.Context(), method, sys.URL+"/cat/"+user, contentType, body)
		if err != nil || a.Want(t, 200).Field(t, "size") != float64(size) {
			t.Errorf("%d bytes: %v %s", size, err, a.Body)
		}
		harness.WantPicture(t, sys, user, content)
	}
}

// Clients with "Expect: 100-continue" send the body after the response 100 only.
func TestRejectedUploadGetsNo100Continue(t *testing.T) {
	t.Parallel()
	sys, user := harness.Shared(t), harness.User(t)
	send := func(status int, request, header string) net.Conn {
		t.Helper()
		conn := harness.Dial(t, sys)
		fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n%s\r\n\r\n", request, header)
		if got := harness.ReadStatus(t, conn); got != status {
			t.Errorf("%s with %q: %d; want %d", request, header, got, status)
		}
		return conn
	}
	send(413, "PUT /cat/x", "Content-Length: 33554433")
	send(413, "PUT /cat/x", "Content-Length: 1099511627776")
	send(413, "POST /cat/x", "Content-Length: 1000000000\r\nContent-Type: "+harness.FormType)
	send(422, "PUT /cat/a%5Cb", "Content-Length: 1000")
	send(422, "POST /cat/x", "Content-Length: 1000\r\nContent-Type: image/png")
	send(400, "PUT /cat/x", "Content-Length: 1000\r\nContent-Range: bytes 0-999/5000")
	send(415, "POST /cat/x", "Content-Length: 1000\r\nContent-Encoding: gzip\r\nContent-Type: "+harness.FormType)
	send(405, "PUT /service", "Content-Length: 1000")
	send(404, "PUT /dog/x", "Transfer-Encoding: chunked")
	conn := send(100, "PUT /cat/"+user, fmt.Sprintf("Content-Length: %d", len(harness.Cat)))
	_, _ = conn.Write(harness.Cat)
	if got := harness.ReadStatus(t, conn); got != 200 {
		t.Errorf("after 100: %d", got)
	}
	harness.WantPicture(t, sys, user, harness.Cat)
}

func TestPreconditionsAreChecked(t *testing.T) {
	t.Parallel()
	sys := harness.Shared(t)
	for _, size := range sizes {
		user, first, second := harness.User(t), harness.Random(size, 1), harness.Random(size, 2)
		url := sys.URL + "/cat/" + user
		contentType, form := harness.Form(t, second)
		put := func(header ...string) harness.Response {
			return harness.Send(t, "PUT", url, string(second), header...)
		}
		post := func(header ...string) harness.Response {
			return harness.Send(t, "POST", url, string(form), append(header, "Content-Type", contentType)...)
		}
		created := harness.Send(t, "PUT", url, string(first), "If-None-Match", "*").Want(t, 200)
		etag := created.Header.Get("ETag")
		if etag == "" || created.Field(t, "etag") != etag {
			t.Fatalf("ETag %q, and %s", etag, created.Body)
		}
		put("If-None-Match", "*").WantProblem(t, 412, "precondition_failed")
		put("If-Match", `"0xNOTHING"`).WantProblem(t, 412, "precondition_failed")
		put("If-Match", "nonsense").WantProblem(t, 422, "invalid_argument")
		post("If-None-Match", "*").WantProblem(t, 412, "precondition_failed")
		harness.WantPicture(t, sys, user, first)
		if a := harness.Send(t, "GET", url, "", "If-None-Match", `"other", W/`+etag).Want(t, 304); len(a.Body) > 0 || a.Header.Get("ETag") != etag {
			t.Errorf("a 304 with %q and ETag %q", a.Body, a.Header.Get("ETag"))
		}
		next := post("If-Match", etag).Want(t, 200).Header.Get("ETag")
		if a := harness.Send(t, "GET", url, "", "If-None-Match", etag).Want(t, 200); a.Header.Get("ETag") != next {
			t.Errorf("GET returns ETag %q; POST returned %q", a.Header.Get("ETag"), next)
		}
		harness.Send(t, "DELETE", url, "", "If-Match", etag).WantProblem(t, 412, "precondition_failed")
		harness.Send(t, "DELETE", url, "", "If-Match", next).Want(t, 204)
		put("If-Match", next).WantProblem(t, 412, "precondition_failed")
		harness.Do(t, "GET", url, "", nil).WantProblem(t, 404, "not_found")
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

// Wrong digests are among the rows of TestBrokenUploadKeepsOldPicture in e2e/faults.
func TestDigestsAreVerifiedAndStored(t *testing.T) {
	t.Parallel()
	sys, user := harness.Shared(t), harness.User(t)
	url, base64 := sys.URL+"/cat/"+user, base64.StdEncoding.EncodeToString
	for i, size := range sizes {
		content := harness.Random(size, uint64(i))
		contentType, form := harness.Form(t, content)
		sha, shaOfForm := sha256.Sum256(content), sha256.Sum256(form)
		send := func(method string, body []byte, digest string) harness.Response {
			return harness.Send(t, method, url, string(body), "Content-Type", contentType, "Content-Digest", digest)
		}
		send("PUT", content, "md5=:"+harness.MD5(content)+":, sha-256=:"+base64(sha[:])+":, unknown=:AA==:").Want(t, 200)
		send("POST", form, "sha-256=:"+base64(shaOfForm[:])+":").Want(t, 200)
		send("POST", form, "sha-256=:"+base64(sha[:])+":").WantProblem(t, 400, "digest_mismatch")
		harness.Send(t, "PUT", url, string(content), "Content-MD5", harness.MD5(content)).Want(t, 200)
		if a := harness.Do(t, "GET", url, "", nil); a.Field(t, "content_md5") != harness.MD5(content) {
			t.Errorf("GET returns another MD5: %s", a.Body)
		}
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
