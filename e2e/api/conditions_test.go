package api

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"sync"
	"sync/atomic"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestConditionsAreKept(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	for _, size := range []int{5000, harness.OneBlob + 5000} {
		url := sys.URL + "/cat/conditional"
		first, second := harness.Random(size, 1), harness.Random(size, 2)
		first2 := harness.Send(t, "PUT", url, string(first), "If-None-Match", "*").Want(t, 200)
		etag := first2.Header.Get("ETag")
		if etag == "" || first2.Field(t, "etag") != etag {
			t.Fatalf("ETag %q, and %s", etag, first2.Body)
		}
		harness.Send(t, "PUT", url, string(second), "If-None-Match", "*").WantProblem(t, 412, "precondition_failed")
		harness.Send(t, "PUT", url, string(second), "If-Match", `"0xNOTHING"`).WantProblem(t, 412, "precondition_failed")
		harness.Send(t, "PUT", url, string(second), "If-Match", "nonsense").WantProblem(t, 422, "invalid_argument")
		if !bytes.Equal(harness.Served(t, sys, "conditional"), first) {
			t.Fatal("a refused picture is there")
		}
		contentType, whole := harness.Form(t, second)
		harness.Send(t, "POST", url, string(whole), "Content-Type", contentType, "If-None-Match", "*").WantProblem(t, 412, "precondition_failed")

		got := harness.Do(t, "GET", url, "", nil).Want(t, 200)
		if got.Header.Get("ETag") != etag {
			t.Errorf("a GET has the ETag %q; the PUT had %q", got.Header.Get("ETag"), etag)
		}
		if a := harness.Send(t, "GET", url, "", "If-None-Match", `"other", W/`+etag).Want(t, 304); len(a.Body) > 0 || a.Header.Get("ETag") != etag {
			t.Errorf("a 304 with %q and the ETag %q", a.Body, a.Header.Get("ETag"))
		}
		harness.Send(t, "GET", url, "", "If-None-Match", `"other"`).Want(t, 200)

		next := harness.Send(t, "POST", url, string(whole), "Content-Type", contentType, "If-Match", etag).Want(t, 200).Header.Get("ETag")
		harness.Send(t, "GET", url, "", "If-None-Match", etag).Want(t, 200)
		harness.Send(t, "DELETE", url, "", "If-Match", etag).WantProblem(t, 412, "precondition_failed")
		harness.Send(t, "DELETE", url, "", "If-Match", next).Want(t, 204)
		harness.Send(t, "PUT", url, string(first), "If-Match", next).WantProblem(t, 412, "precondition_failed")
		harness.Do(t, "GET", url, "", nil).WantProblem(t, 404, "not_found")
	}
}

// Of many who create one name at once, one is told that it did.
func TestOfManyWhoCreateOneDoes(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	for round := range 3 {
		url := sys.URL + "/cat/created"
		var created atomic.Int64
		var winner []byte
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				content := harness.Random(harness.OneBlob/2+i%2*harness.OneBlob, uint64(10*round+i))
				switch a := harness.Send(t, "PUT", url, string(content), "If-None-Match", "*"); a.StatusCode {
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
		if created.Load() != 1 || !bytes.Equal(harness.Served(t, sys, "created"), winner) {
			t.Errorf("%d created it", created.Load())
		}
		harness.Do(t, "DELETE", url, "", nil).Want(t, 204)
	}
}

func TestDigestsAreChecked(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	url := sys.URL + "/cat/digest"
	old := harness.Random(3000, 9)
	harness.Put(t, sys, "digest", old)
	for i, size := range []int{5000, harness.OneBlob + 5000} {
		content := harness.Random(size, uint64(i))
		b64 := base64.StdEncoding.EncodeToString
		sum, sha := md5.Sum(content), sha256.Sum256(content)
		contentType, whole := harness.Form(t, content)
		ofForm := sha256.Sum256(whole)
		for _, wrong := range [][]string{
			{"Content-MD5", b64(make([]byte, 16))},
			{"Content-Digest", "sha-256=:" + b64(make([]byte, 32)) + ":"},
			{"Content-MD5", b64(sum[:]), "Content-Digest", "sha-512=:" + b64(make([]byte, 64)) + ":"},
		} {
			harness.Send(t, "PUT", url, string(content), wrong...).WantProblem(t, 400, "digest_mismatch")
			harness.Send(t, "POST", url, string(whole), append(wrong, "Content-Type", contentType)...).WantProblem(t, 400, "digest_mismatch")
		}
		for _, malformed := range [][]string{{"Content-MD5", "short"}, {"Content-MD5", b64(sum[:8])}, {"Content-Digest", "sha-256=nonsense"}, {"Content-Digest", ";;"}} {
			harness.Send(t, "PUT", url, string(content), malformed...).WantProblem(t, 422, "invalid_argument")
		}
		if !bytes.Equal(harness.Served(t, sys, "digest"), old) {
			t.Fatal("a refused picture is there")
		}
		a := harness.Send(t, "PUT", url, string(content), "Content-MD5", b64(sum[:]), "Content-Digest", "sha-256=:"+b64(sha[:])+":, unknown=:AA==:").Want(t, 200)
		if a.Field(t, "content_md5") != b64(sum[:]) {
			t.Errorf("the answer is %s", a.Body)
		}
		harness.Send(t, "POST", url, string(whole), "Content-Type", contentType, "Content-Digest", "sha-256=:"+b64(ofForm[:])+":").Want(t, 200)
		if harness.Do(t, "GET", url, "", nil).Field(t, "content_md5") != b64(sum[:]) {
			t.Error("a GET has another MD5")
		}
		old = content
	}
}

// What is known of a picture is forgotten with this replica's own put and delete,
// and a missing one is never remembered.
func TestWhatIsKnownIsNeverStaleHere(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{SignerEnv: map[string]string{"EXISTENCE_CACHE_TTL": "10m"}})
	url := sys.URL + "/cat/known"
	for i := range uint64(5) {
		harness.Do(t, "GET", url, "", nil).WantProblem(t, 404, "not_found")
		harness.Put(t, sys, "known", harness.Random(1000, i))
		first := harness.Do(t, "GET", url, "", nil).Want(t, 200)
		for range 3 {
			if again := harness.Do(t, "GET", url, "", nil).Want(t, 200); again.Field(t, "etag") != first.Field(t, "etag") {
				t.Errorf("%s, then %s", first.Body, again.Body)
			}
		}
		harness.Put(t, sys, "known", harness.Random(2000, i))
		if after := harness.Do(t, "GET", url, "", nil).Want(t, 200); after.Field(t, "size") != 2000.0 {
			t.Errorf("after another put: %s", after.Body)
		}
		harness.Do(t, "DELETE", url, "", nil).Want(t, 204)
	}
	if heads := harness.Series(t, sys.SignerOps, `cats_signer_storage_requests_total{code="200",operation="head_blob"}`); heads != 10 {
		t.Errorf("%v HEADs, want one after each put", heads)
	}
}
