package httpserver

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// shortLines returns n bytes of header lines with different names.
func shortLines(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "%03x:\n", i)
	}
	return b.String()
}

// net/http needs 100 bytes of memory for each header line.
func TestHeadersWithManyLinesAreRejected(t *testing.T) {
	const get, put, chunked = "GET /quick HTTP/1.1\r\nHost: x\r\n", "PUT /quick HTTP/1.1\r\nHost: x\r\n", "Transfer-Encoding: chunked\r\n\r\n"
	post := strings.Replace(put, "PUT", "POST", 1) + "Content-Length: 1\r\n\r\nx"
	newlines, many, hundred := strings.Repeat("\n", 3000), shortLines(15<<10), get+strings.Repeat("X: y\r\n", 100)+"\r\n"
	few, some := get+"\r\n", get+shortLines(3500) // which fits into one read of net/http
	trailers := "1\r\nx\r\n0\r\n" + shortLines(3000) + "end:\r\n\r\n"
	for name, c := range map[string]struct {
		sent, then string // then is sent after the first response
		statuses   []int
	}{
		"a hundred, twice":              {hundred + hundred, "", []int{200, 200}},
		"thousands":                     {get + many, "", []int{400, 0}},
		"hundreds right behind another": {few + some, "", []int{200, 400, 0}},
		"empty lines before them":       {"\r\n\n" + get + many, "", []int{400, 0}},
		"lines that are almost empty":   {get + "\r\r\n" + many, "", []int{400, 0}},
		"behind a body of nothing else": {put + "Content-Length: 3000\r\n\r\n" + newlines + few, "", []int{200, 200}},
		"behind chunks of nothing else": {put + chunked + "bb8\r\n" + newlines + "\r\n0\r\n\r\n" + few, "", []int{200, 200}},
		"hundreds behind trailers":      {put + chunked + trailers + some, "", []int{200, 400, 0}},
		"hundreds behind a body":        {put + "Content-Length: 1100\r\n\r\n" + newlines[:1100] + some, "", []int{200, 400, 0}},
		// After a POST, net/http skips blank lines before the next header.
		"few behind blank lines":       {post, "\r\n\r\n" + few, []int{200, 200}},
		"thousands behind blank lines": {post, "\r\n\r\n" + get + many, []int{200, 400}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := start(t, relaxed, quick)
				began, d := time.Now(), r.dial(t).send(c.sent)
				for i, want := range c.statuses {
					if i == 1 && c.then != "" {
						d.send(c.then)
					}
					if s := d.status(); s != want && (want != 400 || s != 0) { // net/http may close the connection without a response
						t.Errorf("response %d is %d; want %d", i, s, want)
					}
				}
				if took := time.Since(began); took > time.Second { // net/http waits for 500 ms before it closes a connection with unread bytes
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// Trailers are not used. One header line can announce thousands.
func TestTrailersAreNotKept(t *testing.T) {
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	names := strings.ReplaceAll(shortLines(15<<10), ":\n", ",") + "x"
	for name, sent := range map[string]string{
		"announced": "PUT /held HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: " + names + "\r\n\r\n",
		"sent":      "PUT /held HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nRead: yes\r\n\r\n1\r\nx\r\n0\r\n" + shortLines(3900) + "end:\r\n\r\n",
	} {
		synctest.Test(t, func(t *testing.T) {
			held := 0
			r := start(t, relaxed, handlers{"/held": func(_ http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Read") != "" {
					_, _ = io.Copy(io.Discard, r.Body)
				}
				held++
				time.Sleep(time.Minute)
				if len(r.Trailer) > 0 {
					t.Error("there is a trailer")
				}
			}})
			const many = 20
			before := heap()
			for i := range many {
				if r.dial(t).send(sent); held != i+1 {
					t.Fatalf("%d requests in progress; want %d", held, i+1)
				}
			}
			if each := (heap() - before) / many; each > 48<<10 {
				t.Errorf("trailers %s: %d bytes of memory for each request", name, each)
			}
			time.Sleep(2 * time.Minute)
		})
	}
}

// FuzzHeaderLines compares the number of lines and the end of a header with net/textproto, which net/http uses, for any split of
// the header into two reads.
func FuzzHeaderLines(f *testing.F) {
	for _, s := range []string{"a: b\r\n\r\nrest", "a:\n\n", "\r\n\r\n", "a\r\r\n\r\n", "a:b\r\n c\r\n\r\n", strings.Repeat("a:\n", 200), "a: \r"} {
		f.Add(s, 3)
	}
	f.Fuzz(func(t *testing.T, s string, at int) {
		s = "GET / HTTP/1.1\r\n" + s
		at = min(max(at, 0), len(s))
		var whole, pieces headerLines
		few := whole.add([]byte(s))
		if got := pieces.add([]byte(s[:at])) && pieces.add([]byte(s[at:])); got != few || few && pieces != whole {
			t.Fatalf("cut at %d: %v %+v; whole: %v %+v", at, got, pieces, few, whole)
		}
		r := textproto.NewReader(bufio.NewReader(strings.NewReader(s[:strings.LastIndex(s, "\n")+1])))
		for lines := 0; ; lines++ {
			line, err := r.ReadLineBytes()
			ends := err == nil && len(bytes.Trim(line, "\r")) == 0 // net/http rejects a line of carriage returns
			if !ends && err == nil {
				continue
			}
			if few != (lines <= maxHeaderLines) || few && whole.ended != ends {
				t.Fatalf("%d lines, and an end: %t; got %v %+v", lines, ends, few, whole)
			}
			return
		}
	})
}
