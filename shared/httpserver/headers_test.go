package httpserver

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// shortLines are as many header lines as fit into n bytes, no two of one name.
func shortLines(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "%03x:\n", i)
	}
	return b.String()
}

// A line of a header costs net/http a hundred bytes, however short it is.
func TestAHeaderHasFewLines(t *testing.T) {
	r := start(t, relaxed, alwaysReady, nil, map[string]http.HandlerFunc{
		"/quick": func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) },
	})
	const quick = "GET /quick HTTP/1.1\r\nHost: x\r\n"
	pages := strings.Repeat("\n", 3000)
	for name, c := range map[string]struct {
		sent     string
		statuses []int
	}{
		"a hundred":                       {quick + strings.Repeat("X: y\r\n", 100) + "\r\n", []int{200}},
		"a hundred, twice":                {strings.Repeat(quick+strings.Repeat("X: y\r\n", 100)+"\r\n", 2), []int{200, 200}},
		"thousands":                       {quick + shortLines(15<<10) + "\r\n", []int{400, 0}},
		"thousands, and no end":           {quick + shortLines(15<<10), []int{400, 0}},
		"thousands behind another":        {quick + "\r\n" + quick + shortLines(15<<10), []int{200, 400, 0}},
		"hundreds right behind another":   {quick + "\r\n" + quick + shortLines(3500), []int{200, 400, 0}},
		"empty lines before them":         {"\r\n\n" + quick + shortLines(15<<10), []int{400, 0}},
		"lines that are almost empty":     {quick + "\r\r\n" + shortLines(15<<10), []int{400, 0}},
		"behind a body of nothing else":   {"PUT /quick HTTP/1.1\r\nHost: x\r\nContent-Length: 3000\r\n\r\n" + pages + quick + "\r\n", []int{200, 200}},
		"behind the end of a body":        {"PUT /quick HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nx\nx" + quick + "\r\n", []int{200, 200}},
		"behind chunks of nothing else":   {"PUT /quick HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nbb8\r\n" + pages + "\r\n0\r\n\r\n" + quick + "\r\n", []int{200, 200}},
		"thousands behind trailers":       {"PUT /quick HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n" + shortLines(3000) + "end:\r\n\r\n" + quick + shortLines(3500), []int{200, 400, 0}},
		"thousands behind a body":         {"PUT /quick HTTP/1.1\r\nHost: x\r\nContent-Length: 1100\r\n\r\n" + strings.Repeat("x", 1100) + quick + shortLines(3500), []int{200, 400, 0}},
		"of a body and its header, small": {"PUT /quick HTTP/1.1\nHost: x\nContent-Length: 3000\n\n" + pages, []int{200}},
	} {
		d, began := r.dial(t), time.Now()
		go func() { _, _ = io.WriteString(d.conn, c.sent) }() // it may well be cut off amid that
		for i, want := range c.statuses {
			// The 400 may be lost to the reset.
			if s := d.status(); s != want && (want != 400 || s != 0) {
				t.Errorf("%s: answer %d is %d; want %d", name, i, s, want)
			} else if s == 400 || s == 0 {
				break
			}
		}
		if took := time.Since(began); took > headerTimeout/2 {
			t.Errorf("%s: it took %v", name, took)
		}
	}
}

// After a POST, net/http skips blank lines before the next header.
func TestBlankLinesDoNotEndAHeader(t *testing.T) {
	r := start(t, relaxed, alwaysReady, nil, map[string]http.HandlerFunc{"/": func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }})
	for lines, want := range map[string]int{"": 200, shortLines(15 << 10): 400} {
		d := r.dial(t)
		d.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx")
		if s := d.status(); s != 200 {
			t.Fatalf("the POST: %d", s)
		}
		go func() { _, _ = io.WriteString(d.conn, "\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n"+lines+"\r\n") }()
		if s := d.status(); s != want && (want != 400 || s != 0) { // the 400 may be lost to the reset
			t.Errorf("a header of %d bytes: %d; want %d", len(lines), s, want)
		}
	}
}

// Trailers are lines of a header behind the body, and one line of the header may
// announce thousands. Nobody here asks for any.
func TestTrailersAreNotKept(t *testing.T) {
	var held atomic.Int64
	release, heap := make(chan struct{}), func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	r := start(t, relaxed, alwaysReady, nil, map[string]http.HandlerFunc{"/held": func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Read") != "" {
			_, _ = io.Copy(io.Discard, r.Body)
		}
		held.Add(1)
		<-release
		if len(r.Trailer) > 0 {
			t.Error("there is a trailer")
		}
	}})
	defer close(release)
	names := strings.ReplaceAll(shortLines(15<<10), ":\n", ",") + "x"
	sum := int64(0)
	for name, sent := range map[string]string{
		"announced": "PUT /held HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: " + names + "\r\n\r\n",
		"sent":      "PUT /held HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nRead: yes\r\n\r\n1\r\nx\r\n0\r\n" + shortLines(3900) + "end:\r\n\r\n",
	} {
		const many = 20
		before := heap()
		for range many {
			r.dial(t).send(sent)
		}
		sum += many
		eventually(t, name, func() bool { return held.Load() == sum })
		if each := (heap() - before) / many; each > 48<<10 {
			t.Errorf("%s: %d bytes are held for each", name, each)
		}
	}
}

// However it comes in pieces, a header has as many lines as net/textproto, which
// net/http reads it with, makes of it, and ends where that says.
func FuzzHeaderLines(f *testing.F) {
	for _, s := range []string{"a: b\r\n\r\nrest", "a:\n\n", "\r\n\r\n", "a\r\r\n\r\n", "a:b\r\n c\r\n\r\n", strings.Repeat("a:\n", 200), "a: \r"} {
		f.Add(s, 3)
	}
	f.Fuzz(func(t *testing.T, s string, at int) {
		s = "GET / HTTP/1.1\r\n" + s
		at = min(max(at, 0), len(s))
		var whole, pieces headerLines
		few := whole.take([]byte(s))
		if got := pieces.take([]byte(s[:at])) && pieces.take([]byte(s[at:])); got != few || few && pieces != whole {
			t.Fatalf("cut at %d: %v %+v; whole: %v %+v", at, got, pieces, few, whole)
		}
		r := textproto.NewReader(bufio.NewReader(strings.NewReader(s)))
		lines := 0
		for {
			line, err := r.ReadLineBytes()
			if err != nil {
				break
			}
			if lines++; len(line) == 0 {
				if few && !whole.ended || !few && lines <= maxHeaderLines {
					t.Fatalf("it ends after %d lines: %v %+v", lines, few, whole)
				}
				return
			}
		}
		if whole.ended || few && lines > maxHeaderLines+1 {
			t.Fatalf("%d lines and no end: %v %+v", lines, few, whole)
		}
	})
}
