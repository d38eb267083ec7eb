package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
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
	for _, c := range []struct {
		request, header string // without the last line end
		status          int
	}{
		{"PUT /cat/x", "Content-Length: 33554433", 413},
		{"PUT /cat/x", "Content-Length: 1099511627776", 413},
		{"POST /cat/x", "Content-Length: 1000000000\r\nContent-Type: " + harness.FormType, 413},
		{"PUT /cat/a%5Cb", "Content-Length: 1000", 422},
		{"POST /cat/x", "Content-Length: 1000\r\nContent-Type: image/png", 422},
		{"PUT /cat/x", "Content-Length: 1000\r\nContent-Range: bytes 0-999/5000", 400},
		{"POST /cat/x", "Content-Length: 1000\r\nContent-Encoding: gzip\r\nContent-Type: " + harness.FormType, 415},
		{"PUT /service", "Content-Length: 1000", 405},
		{"PUT /dog/x", "Transfer-Encoding: chunked", 404},
		{"PUT /cat/" + user, fmt.Sprintf("Content-Length: %d", len(harness.Cat)), http.StatusContinue},
	} {
		conn := harness.Dial(t, sys)
		fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n%s\r\n\r\n", c.request, c.header)
		if got := harness.ReadStatus(t, conn); got != c.status {
			t.Errorf("%s with %q: %d; want %d", c.request, c.header, got, c.status)
		}
		if c.status == http.StatusContinue {
			_, _ = conn.Write(harness.Cat)
			if got := harness.ReadStatus(t, conn); got != http.StatusOK {
				t.Errorf("after 100: %d", got)
			}
		}
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
		var created atomic.Int64
		var winner []byte
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				content := harness.Random(harness.OneBlob/2+i%2*harness.OneBlob, uint64(i))
				switch a := harness.Send(t, "PUT", sys.URL+"/cat/"+user, string(content), "If-None-Match", "*"); a.StatusCode {
				case 200:
					created.Add(1)
					winner = content
				case 409, 412:
				default:
					t.Errorf("%d %s", a.StatusCode, a.Body)
				}
			})
		}
		wg.Wait()
		if created.Load() != 1 {
			t.Fatalf("%d created it", created.Load())
		}
		harness.WantPicture(t, sys, user, winner)
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
	const writers, rounds = 6, 2
	var mu sync.Mutex
	sent, stored := map[string]bool{}, map[string]bool{} // contents
	write := func(method string, content []byte) {
		mu.Lock()
		sent[string(content)] = true
		mu.Unlock()
		contentType, body := "", content
		if method == "POST" {
			contentType, body = harness.Form(t, content)
		}
		switch a, err := harness.Try(t.Context(), method, sys.URL+"/cat/"+user, contentType, bytes.NewReader(body)); {
		case err != nil:
			t.Error(err)
		case a.StatusCode == http.StatusConflict:
			a.WantProblem(t, 409, "conflict")
		case a.StatusCode != http.StatusOK:
			t.Errorf("a writer of %d bytes: %d %s", len(body), a.StatusCode, a.Body)
		default:
			mu.Lock()
			stored[string(content)] = true
			mu.Unlock()
		}
	}
	write("PUT", harness.Random(1000, 999))
	ctx, done := context.WithCancel(t.Context())
	var writing, reading sync.WaitGroup
	for i := range writers {
		writing.Go(func() {
			for round := range rounds {
				size := []int{3000, harness.OneBlob + 300_000, harness.OneBlob + 600_000}[i%3]
				write([]string{"PUT", "POST"}[i*2/writers], harness.Random(size+i, uint64(1+i*rounds+round)))
			}
		})
	}
	var reads atomic.Int64
	for range 2 {
		reading.Go(func() {
			for ctx.Err() == nil {
				a, err := harness.Try(t.Context(), "GET", sys.URL+"/cat/"+user+"/picture", "", nil)
				if err == nil {
					a, err = harness.Try(t.Context(), "GET", a.Header.Get("Location"), "", nil)
				}
				mu.Lock()
				if err != nil || a.StatusCode != 200 || !sent[string(a.Body)] {
					t.Errorf("a reader got %d bytes that nobody sent: %d, %v", len(a.Body), a.StatusCode, err)
				}
				mu.Unlock()
				reads.Add(1)
			}
		})
	}
	writing.Wait()
	done()
	reading.Wait()
	if t.Logf("%d stored, %d reads", len(stored), reads.Load()); reads.Load() == 0 || !stored[string(harness.Served(t, sys, user))] {
		t.Error("nothing was read, or the picture is not one of those that got 200")
	}
}
