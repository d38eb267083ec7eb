package api

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// A request that must never be one, as it comes out of the body of another.
const hidden = "DELETE /cat/x HTTP/1.1\r\nHost: localhost\r\n\r\n"

// What is left of a body that was refused, and what does not keep to HTTP, is
// never taken for the next request on the connection.
func TestTheRestOfARefusedRequestIsNeverARequest(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{FrontendEnv: map[string]string{"MAX_PICTURE_SIZE": "1MiB", "STALL_TIMEOUT": "2s"}, SignerEnv: map[string]string{"MAX_PICTURE_SIZE": "1MiB"}})
	harness.Put(t, sys, "x", harness.Cat)
	const chunks = "Transfer-Encoding: chunked\r\n\r\n"
	body := strings.Repeat(hidden, 200)
	start := "PUT /cat/x HTTP/1.1\r\nHost: localhost\r\n"
	var wg sync.WaitGroup
	for name, c := range map[string]struct {
		raw    string
		status string // begins with this
	}{
		"over the limit":                {start + "Content-Length: 1000000000\r\n\r\n" + body, "413"},
		"over the limit, asks first":    {start + "Expect: 100-continue\r\nContent-Length: 1000000000\r\n\r\n" + body, "413"},
		"over the limit, and no more":   {start + "Content-Length: 2000000\r\n\r\n" + body, "413"},
		"no picture":                    {start + "Content-Length: 900000\r\n\r\n" + body, "415"},
		"no picture, and no more":       {start + "Content-Length: 100000\r\n\r\n" + body, "415"},
		"no picture, in chunks":         {start + chunks + "fffff\r\n" + body, "415"},
		"a form without a boundary":     {"POST /cat/x HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data\r\nContent-Length: 900000\r\n\r\n" + body, "400"},
		"a name not valid":              {"PUT /cat/%00 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n\r\n" + body, "422"},
		"no such path":                  {"PUT /dog HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n\r\n" + body, "404"},
		"a wrong method":                {"PATCH /cat/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n\r\n" + body, "405"},
		"two lengths":                   {start + "Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + body, "400"},
		"a list of lengths":             {start + "Content-Length: 5, 6\r\n\r\n" + body, "400"},
		"a length below zero":           {start + "Content-Length: -1\r\n\r\n" + body, "400"},
		"a length with a sign":          {start + "Content-Length: +5\r\n\r\n" + body, "400"},
		"a length in hex":               {start + "Content-Length: 0x5\r\n\r\n" + body, "400"},
		"another encoding":              {start + "Transfer-Encoding: gzip, chunked\r\n\r\n" + body, "501"},
		"chunked twice":                 {start + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + body, "501"},
		"a space before the colon":      {start + "Content-Length : 5\r\n\r\n" + body, "400"},
		"no host":                       {"PUT /cat/x HTTP/1.1\r\nContent-Length: 5\r\n\r\n" + body, "400"},
		"a chunk of no size":            {start + chunks + "zz\r\n" + body, "400"},
		"a chunk longer than its size":  {start + chunks + "4\r\n" + body, "400"},
		"a chunk of an enormous size":   {start + chunks + "fffffffffffffffff\r\n" + body, "400"},
		"a header longer than is taken": {start + "X: " + strings.Repeat("x", 64<<10) + "\r\n\r\n" + body, "431"},
	} {
		wg.Go(func() {
			got := harness.ReadStatuses(t, sys, name, c.raw)
			// Of what is no HTTP, more than the refusal may be lost to the reset.
			if len(got) > 1 || len(got) == 1 && !strings.HasPrefix(got[0], c.status) || len(got) == 0 && c.status != "431" && c.status != "400" {
				t.Errorf("%s: answered %.90q; want %s and the end of the connection", name, got, c.status)
			}
		})
	}
	wg.Wait()
	if !bytes.Equal(harness.Served(t, sys, "x"), harness.Cat) {
		t.Error("the picture is gone")
	}
}

// HTTP ends a picture where its length says; what comes then is no part of it.
func TestAPictureEndsWhereItsLengthSays(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	for _, size := range sizes {
		content := harness.Random(size, 1)
		got := harness.ReadStatuses(t, sys, "more than announced", fmt.Sprintf("PUT /cat/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%sand more\r\n\r\n", size, content))
		if len(got) != 2 || !strings.HasPrefix(got[0], "200") || !strings.HasPrefix(got[1], "400") {
			t.Errorf("%d bytes and then more: answered %q; want 200, and 400 for the rest", size, got)
		}
		if !bytes.Equal(harness.Served(t, sys, "x"), content) {
			t.Error("what is stored is not what was announced")
		}
	}
}

// While many write pictures of all sizes to one name, each is told 200 or 409,
// and whoever reads gets one of them whole, at any time.
func TestReadersSeeWholePicturesWhileManyWrite(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	const writers, rounds = 6, 2
	harness.Put(t, sys, "x", harness.Random(1000, 999))
	mine := func(i, round int) []byte {
		size := []int{3000, harness.OneBlob + 300_000, harness.OneBlob + 600_000}[i%3]
		return harness.Random(size+i, uint64(1+i*rounds+round))
	}
	known := map[string]bool{string(harness.Random(1000, 999)): true}
	for i := range writers {
		for round := range rounds {
			known[string(mine(i, round))] = true
		}
	}
	ctx, done := context.WithCancel(t.Context())
	var stored, conflicts, reads atomic.Int64
	var writing, reading sync.WaitGroup
	for i := range writers {
		writing.Go(func() {
			for round := range rounds {
				method, contentType, body := "PUT", "", mine(i, round)
				if i >= writers/2 {
					method = "POST"
					contentType, body = harness.Form(t, body)
				}
				a, err := harness.Try(t.Context(), method, sys.URL+"/cat/x", contentType, bytes.NewReader(body))
				switch {
				case err != nil:
					t.Error(err)
				case a.StatusCode == 200:
					stored.Add(1)
				case a.StatusCode == 409:
					conflicts.Add(1)
					if a.Field(t, "code") != "conflict" {
						t.Errorf("a conflict is %s", a.Body)
					}
				default:
					t.Errorf("a writer of %d bytes: %d %s", len(body), a.StatusCode, a.Body)
				}
			}
		})
	}
	for range 2 {
		reading.Go(func() {
			for ctx.Err() == nil {
				a, err := harness.Try(t.Context(), "GET", sys.URL+"/cat/x", "", http.NoBody)
				if err != nil || a.StatusCode != 200 {
					t.Errorf("a reader: %d %s, %v", a.StatusCode, a.Body, err)
					return
				}
				picture, _ := a.Field(t, "picture_url").(string)
				if a, err = harness.Try(t.Context(), "GET", picture, "", http.NoBody); err != nil || a.StatusCode != 200 || !known[string(a.Body)] {
					t.Errorf("a reader got %d bytes that are no picture of anyone's: %d, %v", len(a.Body), a.StatusCode, err)
					return
				}
				reads.Add(1)
			}
		})
	}
	writing.Wait()
	done()
	reading.Wait()
	t.Logf("%d stored, %d conflicts, %d reads", stored.Load(), conflicts.Load(), reads.Load())
	if stored.Load() == 0 || reads.Load() == 0 || !known[string(harness.Served(t, sys, "x"))] {
		t.Error("nothing was shown")
	}
}
