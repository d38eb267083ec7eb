package soak

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"cats.example/e2e/harness"
)

// response is a response of the public API. status 0 is no response.
type response struct {
	unsent        bool // there was no connection
	status        int
	ETag          string `json:"etag"`
	Code, Outcome string
	MD5           []byte `json:"content_md5"`
	URL           string `json:"picture_url"`
	body          []byte
}

func (a response) String() string { return fmt.Sprintf("%d %.200s", a.status, a.body) }

// read reads a response and checks what holds for all responses to requests that began at this time.
func (s *soak) read(resp *http.Response, began time.Time) response {
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	a := response{status: resp.StatusCode, body: body}
	if err != nil {
		s.faultUnlessExcused(began, "a response %d is incomplete: %v", resp.StatusCode, err)
		return response{}
	}
	if err := json.Unmarshal(body, &a); len(body) > 0 && err != nil {
		s.fault("%v is not JSON: %v", a, err)
	}
	s.count(strings.TrimSpace(strconv.Itoa(a.status) + " " + a.Code))
	if a.status >= 500 && a.status != 503 || resp.Header.Get("ETag") != a.ETag && a.status == 200 {
		s.fault("%v, ETag %s", a, resp.Header.Get("ETag"))
	}
	return a
}

// exchange sends the first n bytes of the body of a request, in pieces of at most most bytes with random pauses. It returns the
// response, or none if n is less than the whole body.
func (s *soak) exchange(r *rand.Rand, u harness.RawUpload, n, most int, pause time.Duration) response {
	began := time.Now()
	//lint:ignore noctx the timeout is enough
	conn, err := net.DialTimeout("tcp", strings.TrimPrefix(s.sys.URL, "http://"), 5*time.Second)
	if err != nil {
		s.faultUnlessExcused(began, "%v", err)
		time.Sleep(50 * time.Millisecond)
		return response{unsent: errors.Is(err, syscall.ECONNREFUSED) || n < len(u.Body)}
	}
	defer conn.Close()
	rest := u.Header + u.Body[:n]
	for pauses := 0; len(rest) > 0; {
		piece := min(len(rest), 1+r.IntN(most), 1<<20)
		if len(rest) > 200*most { // for a bounded duration
			piece = len(rest) / 100
		}
		if _, err := io.WriteString(conn, rest[:piece]); err != nil {
			break // the response may be there
		}
		if rest = rest[piece:]; pauses < 20 && r.IntN(4) == 0 {
			pauses++
			time.Sleep(rand.N(pause))
		}
	}
	if n < len(u.Body) {
		if r.IntN(2) == 0 {
			_ = conn.(*net.TCPConn).SetLinger(0) // reset the connection
		}
		return response{}
	}
	_ = conn.SetReadDeadline(time.Now().Add(2 * time.Minute))
	method, _, _ := strings.Cut(u.Header, " ")
	for in := bufio.NewReader(conn); ; {
		resp, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil {
			s.count("no response")
			s.faultUnlessExcused(began, "no response to %.80q: %v", u.Header, err)
			return response{}
		}
		if resp.StatusCode != http.StatusContinue {
			return s.read(resp, began)
		}
	}
}

// request returns a request without a body.
func request(method, path, header string) harness.RawUpload {
	return harness.RawUpload{Header: method + " " + path + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + header + "\r\n"}
}

func (s *soak) ask(r *rand.Rand, u harness.RawUpload) response {
	return s.exchange(r, u, len(u.Body), 1<<20, time.Millisecond)
}

// write makes one random request of a client that changes the picture of a user.
func (s *soak) write(h *history, alone bool, r *rand.Rand) {
	if r.IntN(8) > 0 {
		s.upload(h, alone, r)
	} else {
		s.delete(h, r)
	}
	if r.IntN(3) == 0 {
		_ = s.look(h, r)
	}
}

// conditions are the preconditions of a write, and what its result tells about the picture before.
type conditions struct {
	absent bool   // If-None-Match: *
	match  *write // If-Match
}

func (c conditions) header() string {
	switch {
	case c.absent:
		return "If-None-Match: *\r\n"
	case c.match != nil:
		return "If-Match: " + c.match.etag + "\r\n"
	}
	return ""
}

// met reports whether a picture meets the preconditions.
func (c conditions) met(picture int) bool {
	return c.absent && picture == 0 || c.match != nil && picture == c.match.seq || c.header() == ""
}

// ended records the result of a write. It reports whether the status is explained.
func (s *soak) ended(h *history, w *write, c conditions, a response, from time.Time) bool {
	to, excused := time.Now(), s.excused(from)
	switch {
	case a.status == 200 && w.size > 0, a.status == 204 && w.size == 0:
		e := event{what: "stored", before: c.met, write: w}
		if excused { // it may have been carried out twice
			e.before = nil
		}
		w.etag = a.ETag
		h.add(e, from, to)
		return true
	case a.status == 0 && !a.unsent, a.status == 503 && a.Outcome == "unknown":
		h.add(event{what: "unknown", write: w, maybe: true}, from, to.Add(lingers))
	case a.Outcome == "unknown": // of the signer's first attempt; the second one was rejected
		h.add(event{what: "unknown", write: w, maybe: true}, from, to)
	case a.status == 412 && c.header() != "" && !excused:
		h.add(event{what: "precondition failed", before: func(picture int) bool { return !c.met(picture) }}, from, to)
	}
	return a.status == 412 && c.header() != "" || a.status == 503 || a.status == 0
}

// upload uploads a picture in a random way: with a precondition, slowly, or incompletely.
func (s *soak) upload(h *history, alone bool, r *rand.Rand) {
	n := int(math.Exp(math.Log(1<<10) + math.Pow(r.Float64(), 5)*math.Log(soakSize>>10))) // mostly small
	most, pause := 1<<r.IntN(22), 3*time.Millisecond
	if r.IntN(20) == 0 { // slow
		n, most, pause = leastSize+r.IntN(10_000), 2_000, 250*time.Millisecond
	}
	s.budget(n)
	w, content := h.newWrite(n)
	all := harness.RawUploads(s.t, h.user, content)
	u := all[r.IntN(len(all))]
	var c conditions
	switch r.IntN(8) {
	case 0:
		c.absent = true
	case 1:
		c.match = h.recent(r)
	}
	u.Header = strings.Replace(u.Header, "\r\n", "\r\n"+c.header(), 1)
	if r.IntN(10) == 0 {
		s.exchange(r, u, r.IntN(len(u.Body)), most, pause)
		return
	}
	from := time.Now()
	a := s.exchange(r, u, len(u.Body), most, pause)
	explained := s.ended(h, w, c, a, from)
	switch {
	case a.status == 200:
		s.stored.Add(int64(n))
		// A blob of blocks, above 4 MiB, has no MD5.
		if a.ETag == "" || (a.MD5 != nil || n <= 4<<20) && !bytes.Equal(a.MD5, w.md5) {
			s.fault("%s: picture %d is answered with %v", h.user, w.seq, a)
		}
	case explained, a.status == 409 && (!alone || s.excused(from)):
	case a.status == http.StatusRequestTimeout: // on a busy machine, this process may stall
	default:
		s.fault("%s: an upload of %d bytes, %q: %v", h.user, n, u.Header, a)
	}
}

func (s *soak) delete(h *history, r *rand.Rand) {
	var c conditions
	if r.IntN(3) == 0 {
		c.match = h.recent(r)
	}
	from := time.Now()
	a := s.ask(r, request("DELETE", "/cat/"+h.user, c.header()))
	explained := s.ended(h, &write{}, c, a, from)
	switch {
	case a.status == 404:
		h.observed(0, from, time.Now())
	case !explained && (a.status != 409 || !s.excused(from)):
		s.fault("%s: a deletion: %v", h.user, a)
	}
}

// look gets a signed URL and downloads the picture. It returns the status of the first response.
func (s *soak) look(h *history, r *rand.Rand) int {
	from := time.Now()
	a := s.ask(r, request("GET", "/cat/"+h.user, ""))
	to := time.Now()
	switch a.status {
	case 200:
		if a.MD5 != nil { // from the existence cache
			s.must(h.observedSum(a.MD5, from.Add(-existenceTTL-time.Second), to))
		}
		s.download(h, a.URL)
	case 404:
		h.observed(0, from, to)
	case 503, 0:
	default:
		s.fault("GET /cat/%s: %v", h.user, a)
	}
	return a.status
}

func (s *soak) download(h *history, url string) {
	from := time.Now()
	a, err := harness.TryWith(s.t.Context(), s.client, "GET", url, "", nil)
	to := time.Now()
	switch {
	case a.Response == nil:
		s.fault("a signed URL: %v", err)
	case err != nil:
		s.count("incomplete download") // Azurite's, if the picture is replaced meanwhile
	case a.StatusCode == 404:
		h.observed(0, from, to)
	case a.StatusCode != 200:
		s.fault("a signed URL: %d %.200s", a.StatusCode, a.Body)
	default:
		s.count("downloads")
		s.must(h.observedContent(a.Body, from, to))
	}
}
