package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cats.example/local/stack"
)

// A request that must never be one, as it comes out of the body of another.
const hidden = "DELETE /cat/x HTTP/1.1\r\nHost: localhost\r\n\r\n"

// answersTo sends raw bytes and returns the status lines of all that comes back
// until the server closes the connection, which it has to do.
func answersTo(t *testing.T, sys *stack.System, what, raw string) []string {
	t.Helper()
	conn := dial(t, sys)
	if err := conn.SetDeadline(time.Now().Add(12 * time.Second)); err != nil {
		t.Error(err)
	}
	go func() { _, _ = io.WriteString(conn, raw) }() // it may well be cut off amid that
	all, err := io.ReadAll(conn)
	if err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("%s: the connection was left open: %v", what, err)
	}
	var lines []string
	for line := range strings.Lines(string(all)) {
		if _, status, ok := strings.Cut(line, "HTTP/1.1 "); ok { // right behind the body of the one before
			lines = append(lines, strings.TrimSpace(status))
		}
	}
	return lines
}

// What is left of a body that was refused, and what does not keep to HTTP, is
// never taken for the next request on the connection.
func TestTheRestOfARefusedRequestIsNeverARequest(t *testing.T) {
	t.Parallel()
	sys := start(t, stack.SystemOptions{FrontendEnv: map[string]string{"MAX_PICTURE_SIZE": "1MiB", "STALL_TIMEOUT": "2s"}, SignerEnv: map[string]string{"MAX_PICTURE_SIZE": "1MiB"}})
	put(t, sys, "x", cat)
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
			got := answersTo(t, sys, name, c.raw)
			// Of what is no HTTP, more than the refusal may be lost to the reset.
			if len(got) > 1 || len(got) == 1 && !strings.HasPrefix(got[0], c.status) || len(got) == 0 && c.status != "431" && c.status != "400" {
				t.Errorf("%s: answered %.90q; want %s and the end of the connection", name, got, c.status)
			}
		})
	}
	wg.Wait()
	if !bytes.Equal(served(t, sys, "x"), cat) {
		t.Error("the picture is gone")
	}
}

// HTTP ends a picture where its length says; what comes then is no part of it.
func TestAPictureEndsWhereItsLengthSays(t *testing.T) {
	t.Parallel()
	sys := public(t)
	for _, size := range sizes {
		content := random(size, 1)
		got := answersTo(t, sys, "more than announced", fmt.Sprintf("PUT /cat/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%sand more\r\n\r\n", size, content))
		if len(got) != 2 || !strings.HasPrefix(got[0], "200") || !strings.HasPrefix(got[1], "400") {
			t.Errorf("%d bytes and then more: answered %q; want 200, and 400 for the rest", size, got)
		}
		if !bytes.Equal(served(t, sys, "x"), content) {
			t.Error("what is stored is not what was announced")
		}
	}
}

// While many write pictures of all sizes to one name, each is told 200 or 409,
// and whoever reads gets one of them whole, at any time.
func TestReadersSeeWholePicturesWhileManyWrite(t *testing.T) {
	t.Parallel()
	sys := public(t)
	const writers, rounds = 6, 2
	put(t, sys, "x", random(1000, 999))
	mine := func(i, round int) []byte {
		size := []int{3000, oneBlob + 300_000, oneBlob + 600_000}[i%3]
		return random(size+i, uint64(1+i*rounds+round))
	}
	known := map[string]bool{string(random(1000, 999)): true}
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
					contentType, body = form(t, body)
				}
				a, err := try(t.Context(), method, sys.URL+"/cat/x", contentType, bytes.NewReader(body))
				switch {
				case err != nil:
					t.Error(err)
				case a.StatusCode == 200:
					stored.Add(1)
				case a.StatusCode == 409:
					conflicts.Add(1)
					if a.field(t, "code") != "conflict" {
						t.Errorf("a conflict is %s", a.body)
					}
				default:
					t.Errorf("a writer of %d bytes: %d %s", len(body), a.StatusCode, a.body)
				}
			}
		})
	}
	for range 2 {
		reading.Go(func() {
			for ctx.Err() == nil {
				a, err := try(t.Context(), "GET", sys.URL+"/cat/x", "", http.NoBody)
				if err != nil || a.StatusCode != 200 {
					t.Errorf("a reader: %d %s, %v", a.StatusCode, a.body, err)
					return
				}
				picture, _ := a.field(t, "picture_url").(string)
				if a, err = try(t.Context(), "GET", picture, "", http.NoBody); err != nil || a.StatusCode != 200 || !known[string(a.body)] {
					t.Errorf("a reader got %d bytes that are no picture of anyone's: %d, %v", len(a.body), a.StatusCode, err)
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
	if stored.Load() == 0 || reads.Load() == 0 || !known[string(served(t, sys, "x"))] {
		t.Error("nothing was shown")
	}
}
