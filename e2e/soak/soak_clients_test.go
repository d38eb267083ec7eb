package soak

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"cats.example/e2e/harness"
)

// said is an answer as far as it matters here; status 0 is none.
type said struct {
	unsent       bool // nobody was there to be asked
	status       int
	ETag         string `json:"etag"`
	Code, Detail string
	Outcome      string
	MD5          []byte `json:"content_md5"`
	URL          string `json:"picture_url"`
	header       http.Header
	body         []byte
}

func (a said) String() string { return fmt.Sprintf("%d %.200s", a.status, a.body) }

// heard reads an answer, and checks what holds for all of the public API's.
func (s *soak) heard(resp *http.Response, began time.Time) said {
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	a := said{status: resp.StatusCode, header: resp.Header, body: body}
	if err != nil {
		if !s.excused(began) {
			s.fault("an answer %d broke off: %v", resp.StatusCode, err)
		}
		return said{}
	}
	if len(body) > 0 {
		if err := json.Unmarshal(body, &a); err != nil {
			s.fault("%d %q is not JSON: %v", resp.StatusCode, body, err)
		}
	}
	s.count(strconv.Itoa(a.status) + " " + a.Code)
	if a.status >= 500 && a.status != 503 {
		s.fault("%v", a)
	}
	if a.status == 503 && !s.excused(began) {
		s.count("503 while nothing was amiss")
	}
	return a
}

// ask sends a request to the public API.
func (s *soak) ask(method, path string, header http.Header, body io.Reader, size int64) said {
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.sys.URL+path, body)
	if err != nil {
		s.fault("%v", err)
		return said{}
	}
	req.ContentLength = size
	if header != nil {
		req.Header = header
	}
	resp, err := s.client.Do(req)
	if err != nil {
		s.count("no answer")
		if !s.excused(began) {
			s.fault("%s %s: %v", method, path, err)
		}
		time.Sleep(50 * time.Millisecond) // nobody is there
		return said{unsent: errors.Is(err, syscall.ECONNREFUSED)}
	}
	return s.heard(resp, began)
}

// write has one writer of a name do something to it.
func (s *soak) write(h *history, alone bool, r *rand.Rand) {
	switch n := r.IntN(100); {
	case n < 72:
		s.upload(h, alone, r)
	case n < 80:
		s.breakOff(h, r)
	case n < 91:
		s.delete(h, r)
	case n < 95:
		s.refusedUpload(h, r)
	default:
		s.trickle(h, r)
	}
	if r.IntN(3) == 0 {
		s.look(h)
	}
}

// size is small more often than large.
func size(r *rand.Rand) int {
	const least = 1 << 10
	return int(least * math.Exp(math.Pow(r.Float64(), 5)*math.Log(soakSize/least)))
}

// upload stores a picture, in any way, perhaps on a condition.
func (s *soak) upload(h *history, alone bool, r *rand.Rand) {
	n := size(r)
	s.budget(n)
	w, content := h.begin(n)
	header := http.Header{}
	var match *write
	switch r.IntN(8) {
	case 0:
		header.Set("If-None-Match", "*")
	case 1:
		if match = h.find(func(v *write) bool { return v.etag != "" && r.IntN(2) == 0 }); match != nil {
			header.Set("If-Match", match.etag)
		}
	}
	wrong := r.IntN(30) == 0
	if wrong || r.IntN(5) == 0 {
		sum := sha256.Sum256(content)
		if wrong {
			sum[r.IntN(len(sum))] ^= 1
		}
		header.Set("Content-Digest", "sha-256=:"+base64.StdEncoding.EncodeToString(sum[:])+":")
	}
	var a said
	from, late := time.Now(), s.late.Load()
	switch way := r.IntN(4); {
	case way == 0:
		a = s.ask(http.MethodPut, "/cat/"+h.user, header, bytes.NewReader(content), int64(n))
	case way == 1:
		a = s.ask(http.MethodPut, "/cat/"+h.user, header, harness.Chunked{Reader: bytes.NewReader(content)}, -1)
	case way == 2 || len(header) > 0:
		contentType, body := harness.Form(s.t, content)
		header.Set("Content-Type", contentType)
		if header.Get("Content-Digest") != "" { // of all of it, where it is in the header of the request
			sum := sha256.Sum256(body)
			if wrong {
				sum[0] ^= 1
			}
			header.Set("Content-Digest", "sha-256=:"+base64.StdEncoding.EncodeToString(sum[:])+":")
		}
		a = s.ask(http.MethodPost, "/cat/"+h.user, header, bytes.NewReader(body), int64(len(body)))
	default:
		all := harness.RawUploads(s.t, h.user, content)
		u := all[r.IntN(len(all))]
		a = s.inPieces(r, u, len(u.Body))
	}
	to := time.Now()
	s.ended(h, w, a)
	quiet := !s.excused(from)
	switch {
	case a.status == 200:
		s.stored.Add(int64(n))
		// A blob made of blocks above 4 MiB has no MD5.
		if a.ETag == "" || (a.MD5 != nil || n <= 4<<20) && !bytes.Equal(a.MD5, w.md5) || a.header.Get("ETag") != a.ETag || wrong {
			s.fault("%s: picture %d is answered with %v", h.user, w.seq, a)
		}
		if header.Get("If-None-Match") != "" && quiet {
			s.must(h.sawNothing(from, to, w))
		}
		if match != nil && quiet {
			s.must(h.saw(match, from, to))
		}
	case a.status == 412 && header.Get("If-None-Match") != "" && quiet:
		if h.find(func(v *write) bool { return v.size > 0 && v != w }) == nil {
			s.fault("%s: created only where nothing is, and refused where nothing was", h.user)
		}
	case a.status == 412 && match != nil && quiet:
		if !h.others(match, from, to) {
			s.fault("%s: picture %d is there, and a condition on it does not hold", h.user, match.seq)
		}
	case a.status == 0 && quiet, a.status == 503, a.status == 0:
	case a.status == 400 && a.Code == "digest_mismatch" && wrong:
	case a.status == 412 && (match != nil || header.Get("If-None-Match") != ""):
	case a.status == 409 && (!alone || !quiet):
	case s.stalled(a, late):
	default:
		s.fault("%s: an upload of %d bytes, %v: %v", h.user, n, header, a)
	}
}

// ended takes down what became of a write.
func (s *soak) ended(h *history, w *write, a said) {
	switch {
	case a.status == 200 && w.size > 0, a.status == 204 && w.size == 0:
		h.stored(w, a.ETag)
	case a.status == 0 && !a.unsent, a.status == 503 && a.Outcome == "unknown":
		h.unclear(w, time.Now().Add(lingers))
	case a.Outcome == "unknown": // by the signer's first try: there was another picture when it tried again
		h.unclear(w, time.Now())
	default:
		s.must(h.refused(w))
	}
}

// breakOff sends a part of a picture, which must leave what was there.
func (s *soak) breakOff(h *history, r *rand.Rand) {
	n := size(r)
	s.budget(n)
	w, content := h.begin(n)
	all := harness.RawUploads(s.t, h.user, content)
	u := all[r.IntN(len(all))]
	s.inPieces(r, u, r.IntN(len(u.Body))) // what lacks its last byte is not whole
	s.must(h.refused(w))
}

func (s *soak) delete(h *history, r *rand.Rand) {
	header := http.Header{}
	var match *write
	if r.IntN(3) == 0 {
		if match = h.find(func(v *write) bool { return v.etag != "" }); match != nil {
			header.Set("If-Match", match.etag)
		}
	}
	w, _ := h.begin(0)
	from := time.Now()
	a := s.ask(http.MethodDelete, "/cat/"+h.user, header, nil, 0)
	to := time.Now()
	s.ended(h, w, a)
	quiet := !s.excused(from)
	switch {
	case a.status == 204 && match != nil && quiet:
		s.must(h.saw(match, from, to))
	case a.status == 404:
		s.must(h.sawNothing(from, to, w))
	case a.status == 412 && match != nil && quiet:
		if !h.others(match, from, to) {
			s.fault("%s: picture %d is there, and a condition on it does not hold", h.user, match.seq)
		}
	case a.status == 204, a.status == 503, a.status == 0, a.status == 412 && match != nil, a.status == 409 && !quiet:
	default:
		s.fault("%s: a deletion: %v", h.user, a)
	}
}

// refusedUpload sends what no picture is.
func (s *soak) refusedUpload(h *history, r *rand.Rand) {
	from := time.Now()
	path, want := "/cat/"+h.user, 415
	content := bytes.Repeat([]byte("text"), 1+r.IntN(20_000))
	switch r.IntN(3) {
	case 0:
		content = nil
		want = 422
	case 1:
		path, want = "/cat/%2e%2e", 422
	}
	if a := s.ask(http.MethodPut, path, nil, bytes.NewReader(content), int64(len(content))); a.status != want && a.status != 503 && a.status != 0 {
		s.fault("PUT %s of %d bytes that are no picture, %v ago: %v", path, len(content), time.Since(from), a)
	}
	if n := int64(1 << 40); r.IntN(3) == 0 {
		a := s.inPieces(r, harness.RawUpload{Name: "a terabyte", Header: fmt.Sprintf("PUT /cat/%s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n", h.user, n), Body: "x"}, 1)
		if a.status != 413 && a.status != 503 && a.status != 0 {
			s.fault("a terabyte: %v", a)
		}
	}
}

// trickle sends a picture slowly: so that it is taken, or so that it is not.
func (s *soak) trickle(h *history, r *rand.Rand) {
	w, content := h.begin(leastSize + r.IntN(10_000))
	all := harness.RawUploads(s.t, h.user, content)
	u := all[r.IntN(len(all))]
	from, late := time.Now(), s.late.Load()
	conn, err := s.dial()
	if err != nil {
		s.count("no connection")
		if !s.excused(from) {
			s.fault("%v", err)
		}
		s.must(h.refused(w))
		return
	}
	defer conn.Close()
	steps := 2 + r.IntN(6)
	sent := 0
	_, _ = io.WriteString(conn, u.Header)
	for i := range steps {
		end := len(u.Body) * (i + 1) / steps
		if r.IntN(40) == 0 { // it stays away
			s.must(h.refused(w))
			return
		}
		_, _ = io.WriteString(conn, u.Body[sent:end])
		sent = end
		if i < steps-1 {
			time.Sleep(time.Duration(100+r.IntN(500)) * time.Millisecond)
		}
	}
	a := s.answerOn(conn, from)
	s.ended(h, w, a)
	if a.status != 200 && a.status != 503 && a.status != 0 && a.status != 409 && !s.stalled(a, late) {
		s.fault("%s: a slow upload: %v", h.user, a)
	}
}

func (s *soak) dial() (net.Conn, error) {
	//lint:ignore noctx the timeout is enough
	conn, err := net.DialTimeout("tcp", strings.TrimPrefix(s.sys.URL, "http://"), 5*time.Second)
	if err != nil {
		time.Sleep(50 * time.Millisecond) // nobody is there
	}
	return conn, err
}

// answerOn reads the answer that comes on conn.
func (s *soak) answerOn(conn net.Conn, began time.Time) said {
	_ = conn.SetReadDeadline(time.Now().Add(2 * time.Minute))
	in := bufio.NewReader(conn)
	for {
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			s.count("no answer")
			if !s.excused(began) {
				s.fault("no answer: %v", err)
			}
			return said{}
		}
		if resp.StatusCode != http.StatusContinue {
			return s.heard(resp, began)
		}
	}
}

// inPieces sends so much of an upload, in pieces of any size and with pauses, and
// returns the answer; none for a part of one, or where it cannot be sent.
func (s *soak) inPieces(r *rand.Rand, u harness.RawUpload, sent int) said {
	began := time.Now()
	conn, err := s.dial()
	if err != nil {
		s.count("no connection")
		if !s.excused(began) {
			s.fault("%v", err)
		}
		return said{unsent: true}
	}
	defer conn.Close()
	rest := u.Header + u.Body[:sent]
	most := 1 << r.IntN(22)
	for pauses := 0; len(rest) > 0; {
		n := min(len(rest), 1+r.IntN(most), 1<<20)
		if len(rest) > 200*most { // not forever
			n = len(rest) / 100
		}
		if _, err := io.WriteString(conn, rest[:n]); err != nil {
			break // the answer may be there all the same
		}
		rest = rest[n:]
		if pauses < 20 && r.IntN(4) == 0 {
			pauses++
			time.Sleep(time.Duration(r.IntN(3000)) * time.Microsecond)
		}
	}
	if sent == len(u.Body) {
		return s.answerOn(conn, began)
	}
	if r.IntN(2) == 0 {
		_ = conn.(*net.TCPConn).SetLinger(0) // a reset, in place of an end
	}
	return said{}
}

// look gets a link and what is behind it.
func (s *soak) look(h *history) {
	from := time.Now()
	a := s.ask(http.MethodGet, "/cat/"+h.user, nil, nil, 0)
	to := time.Now()
	switch a.status {
	case 200:
		// What is said of it may be as old as what is known of it.
		if a.MD5 != nil {
			s.must(h.sawMD5(a.MD5, from.Add(-existenceTTL-time.Second), to))
		}
		s.fetch(h, a.URL)
	case 404:
		s.must(h.sawNothing(from, to, nil))
	case 503, 0:
	default:
		s.fault("GET /cat/%s: %v", h.user, a)
	}
}

// fetch gets a picture as whoever has the link to it does: from storage.
func (s *soak) fetch(h *history, url string) {
	from := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		s.fault("%v", err)
		return
	}
	resp, err := s.client.Do(req)
	if err != nil {
		s.fault("a link: %v", err)
		return
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	to := time.Now()
	switch {
	case err != nil:
		s.count("storage broke off") // Azurite does, where it is replaced amid that
	case resp.StatusCode == 404:
		s.must(h.sawNothing(from, to, nil))
	case resp.StatusCode != 200:
		s.fault("a link: %d %.200s", resp.StatusCode, content)
	default:
		s.count("fetched")
		s.must(h.sawContent(content, from, to))
	}
}

// garbage sends what is nearly a request.
func (s *soak) garbage(r *rand.Rand) {
	templates := []string{
		"GET /cat/garbage HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"GET /cat/garbage/picture?ttl=1m&download=x.png HTTP/1.1\r\nHost: localhost\r\nIf-None-Match: \"1\", *\r\n\r\n",
		"PUT /cat/garbage HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\nContent-MD5: AAAA\r\n\r\n" + string(harness.Cat[:100]),
		"PUT /cat/garbage HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n40\r\n" + string(harness.Cat[:64]) + "\r\n0\r\n\r\n",
		"POST /cat/garbage HTTP/1.1\r\nHost: localhost\r\nContent-Type: " + harness.FormType + "\r\nContent-Length: 300\r\n\r\n" + harness.FormFile(harness.Cat[:100]) + harness.LastBoundary,
		"DELETE /cat/garbage HTTP/1.1\r\nHost: localhost\r\nIf-Match: \"1\"\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
	}
	raw := []byte(templates[r.IntN(len(templates))] + templates[r.IntN(len(templates))])
	for range r.IntN(6) {
		at := r.IntN(len(raw))
		switch r.IntN(3) {
		case 0:
			raw[at] = byte(r.IntN(256))
		case 1:
			raw = slices.Insert(raw, at, raw[r.IntN(at+1):at]...)
		case 2:
			raw = slices.Delete(raw, at, min(len(raw), at+1+r.IntN(8)))
		}
	}
	conn, err := s.dial()
	if err != nil {
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	_, _ = conn.Write(raw)
	_ = conn.(*net.TCPConn).CloseWrite()
	got, _ := io.ReadAll(conn)
	if len(got) > 0 {
		_, after, _ := bytes.Cut(got, []byte(" ")) // HTTP/1.0 is answered in kind
		status, _, _ := bytes.Cut(after, []byte(" "))
		s.count("garbage: " + string(status))
		if n, err := strconv.Atoi(string(status)); err != nil || n == 500 || n == 502 {
			s.fault("%q is answered with %q", raw, got)
		}
	}
}
