package e2e

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"sync"
	"sync/atomic"
	"testing"

	"cats.example/local/stack"
)

func TestConditionsAreKept(t *testing.T) {
	t.Parallel()
	sys := public(t)
	for _, size := range []int{5000, oneBlob + 5000} {
		url := sys.URL + "/cat/conditional"
		first, second := random(size, 1), random(size, 2)
		first2 := ask(t, "PUT", url, string(first), "If-None-Match", "*").want(t, 200)
		etag := first2.Header.Get("ETag")
		if etag == "" || first2.field(t, "etag") != etag {
			t.Fatalf("ETag %q, and %s", etag, first2.body)
		}
		ask(t, "PUT", url, string(second), "If-None-Match", "*").problem(t, 412, "precondition_failed")
		ask(t, "PUT", url, string(second), "If-Match", `"0xNOTHING"`).problem(t, 412, "precondition_failed")
		ask(t, "PUT", url, string(second), "If-Match", "nonsense").problem(t, 422, "invalid_argument")
		if !bytes.Equal(served(t, sys, "conditional"), first) {
			t.Fatal("a refused picture is there")
		}
		contentType, whole := form(t, second)
		ask(t, "POST", url, string(whole), "Content-Type", contentType, "If-None-Match", "*").problem(t, 412, "precondition_failed")

		got := do(t, "GET", url, "", nil).want(t, 200)
		if got.Header.Get("ETag") != etag {
			t.Errorf("a GET has the ETag %q; the PUT had %q", got.Header.Get("ETag"), etag)
		}
		if a := ask(t, "GET", url, "", "If-None-Match", `"other", W/`+etag).want(t, 304); len(a.body) > 0 || a.Header.Get("ETag") != etag {
			t.Errorf("a 304 with %q and the ETag %q", a.body, a.Header.Get("ETag"))
		}
		ask(t, "GET", url, "", "If-None-Match", `"other"`).want(t, 200)

		next := ask(t, "POST", url, string(whole), "Content-Type", contentType, "If-Match", etag).want(t, 200).Header.Get("ETag")
		ask(t, "GET", url, "", "If-None-Match", etag).want(t, 200)
		ask(t, "DELETE", url, "", "If-Match", etag).problem(t, 412, "precondition_failed")
		ask(t, "DELETE", url, "", "If-Match", next).want(t, 204)
		ask(t, "PUT", url, string(first), "If-Match", next).problem(t, 412, "precondition_failed")
		do(t, "GET", url, "", nil).problem(t, 404, "not_found")
	}
}

// Of many who create one name at once, one is told that it did.
func TestOfManyWhoCreateOneDoes(t *testing.T) {
	t.Parallel()
	sys := public(t)
	for round := range 3 {
		url := sys.URL + "/cat/created"
		var created atomic.Int64
		var winner []byte
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				content := random(oneBlob/2+i%2*oneBlob, uint64(10*round+i))
				switch a := ask(t, "PUT", url, string(content), "If-None-Match", "*"); a.StatusCode {
				case 200:
					created.Add(1)
					winner = content
				case 409, 412:
				default:
					t.Errorf("%d %s", a.StatusCode, a.body)
				}
			})
		}
		wg.Wait()
		if created.Load() != 1 || !bytes.Equal(served(t, sys, "created"), winner) {
			t.Errorf("%d created it", created.Load())
		}
		do(t, "DELETE", url, "", nil).want(t, 204)
	}
}

func TestDigestsAreChecked(t *testing.T) {
	t.Parallel()
	sys := public(t)
	url := sys.URL + "/cat/digest"
	old := random(3000, 9)
	put(t, sys, "digest", old)
	for i, size := range []int{5000, oneBlob + 5000} {
		content := random(size, uint64(i))
		b64 := base64.StdEncoding.EncodeToString
		sum, sha := md5.Sum(content), sha256.Sum256(content)
		contentType, whole := form(t, content)
		ofForm := sha256.Sum256(whole)
		for _, wrong := range [][]string{
			{"Content-MD5", b64(make([]byte, 16))},
			{"Content-Digest", "sha-256=:" + b64(make([]byte, 32)) + ":"},
			{"Content-MD5", b64(sum[:]), "Content-Digest", "sha-512=:" + b64(make([]byte, 64)) + ":"},
		} {
			ask(t, "PUT", url, string(content), wrong...).problem(t, 400, "digest_mismatch")
			ask(t, "POST", url, string(whole), append(wrong, "Content-Type", contentType)...).problem(t, 400, "digest_mismatch")
		}
		for _, malformed := range [][]string{{"Content-MD5", "short"}, {"Content-MD5", b64(sum[:8])}, {"Content-Digest", "sha-256=nonsense"}, {"Content-Digest", ";;"}} {
			ask(t, "PUT", url, string(content), malformed...).problem(t, 422, "invalid_argument")
		}
		if !bytes.Equal(served(t, sys, "digest"), old) {
			t.Fatal("a refused picture is there")
		}
		a := ask(t, "PUT", url, string(content), "Content-MD5", b64(sum[:]), "Content-Digest", "sha-256=:"+b64(sha[:])+":, unknown=:AA==:").want(t, 200)
		if a.field(t, "content_md5") != b64(sum[:]) {
			t.Errorf("the answer is %s", a.body)
		}
		ask(t, "POST", url, string(whole), "Content-Type", contentType, "Content-Digest", "sha-256=:"+b64(ofForm[:])+":").want(t, 200)
		if do(t, "GET", url, "", nil).field(t, "content_md5") != b64(sum[:]) {
			t.Error("a GET has another MD5")
		}
		old = content
	}
}

// What is known of a picture is forgotten with this replica's own put and delete,
// and a missing one is never remembered.
func TestWhatIsKnownIsNeverStaleHere(t *testing.T) {
	t.Parallel()
	sys := start(t, stack.SystemOptions{SignerEnv: map[string]string{"EXISTENCE_CACHE_TTL": "10m"}})
	url := sys.URL + "/cat/known"
	for i := range uint64(5) {
		do(t, "GET", url, "", nil).problem(t, 404, "not_found")
		put(t, sys, "known", random(1000, i))
		first := do(t, "GET", url, "", nil).want(t, 200)
		for range 3 {
			if again := do(t, "GET", url, "", nil).want(t, 200); again.field(t, "etag") != first.field(t, "etag") {
				t.Errorf("%s, then %s", first.body, again.body)
			}
		}
		put(t, sys, "known", random(2000, i))
		if after := do(t, "GET", url, "", nil).want(t, 200); after.field(t, "size") != 2000.0 {
			t.Errorf("after another put: %s", after.body)
		}
		do(t, "DELETE", url, "", nil).want(t, 204)
	}
	if heads := metric(t, sys.SignerOps, `cats_signer_storage_requests_total{code="200",operation="head_blob"}`); heads != 10 {
		t.Errorf("%v HEADs, want one after each put", heads)
	}
}
