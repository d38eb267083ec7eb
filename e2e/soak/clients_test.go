package soak

import (
	"bytes"
	"crypto/md5"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
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

// pieces is a request body that is sent in random pieces of at most most bytes, with pauses.
type pieces struct {
	content []byte
	size    int // announced by the request, -1 if unknown
	most    int
	pause   time.Duration
	broken  bool // the client closes the connection in place of the end
}

func (p *pieces) Read(b []byte) (int, error) {
	switch {
	case len(p.content) == 0 && p.broken:
		return 0, io.ErrUnexpectedEOF
	case len(p.content) == 0:
		return 0, io.EOF
	case rand.IntN(4) == 0:
		time.Sleep(rand.N(p.pause))
	}
	most := max(1+rand.IntN(p.most), len(p.content)/100) // for a bounded duration
	n := copy(b[:min(len(b), most)], p.content)
	p.content = p.content[n:]
	return n, nil
}

// send sends a request on a connection of its own, and checks what holds for all responses. body may be nil.
func (s *soak) send(h *history, method string, header http.Header, body *pieces) (a response) {
	began := time.Now()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.sys.URL+"/cat/"+h.user, nil)
	if err != nil {
		s.fault("%v", err)
		return a
	}
	if req.Header = header; body != nil {
		req.Body, req.ContentLength = io.NopCloser(body), int64(body.size)
	}
	resp, err := s.api.Do(req)
	a.unsent = errors.Is(err, syscall.ECONNREFUSED)
	if err == nil {
		a.body, err = io.ReadAll(resp.Body)
		_ = resp.Body.Close()
	}
	if body != nil && body.broken {
		return a
	}
	if err != nil {
		s.count("no response", 1)
		if !s.excused(began) {
			s.fault("no response to %s %s: %v", method, h.user, err)
		}
		time.Sleep(50 * time.Millisecond) // the frontend may be down
		return a
	}
	a.status = resp.StatusCode
	if err := json.Unmarshal(a.body, &a); len(a.body) > 0 && err != nil {
		s.fault("%v is not JSON: %v", a, err)
	}
	s.count(strings.TrimSpace(strconv.Itoa(a.status)+" "+a.Code), 1)
	if a.status >= 500 && a.status != 503 || resp.Header.Get("ETag") != a.ETag && a.status == 200 {
		s.fault("%v, ETag %s", a, resp.Header.Get("ETag"))
	}
	return a
}

// write makes one random request of a client that changes the picture of a user.
func (s *soak) write(h *history, alone bool, r *rand.Rand) {
	w, method, header, body := &write{}, "DELETE", http.Header{}, (*pieces)(nil)
	var met func(picture int) bool // whether a picture meets the preconditions; nil if there are none
	kind := r.IntN(8)
	if recent := h.recent(r); recent != nil && kind == 0 {
		header.Set("If-Match", recent.etag)
		met = func(picture int) bool { return picture == recent.seq }
	}
	if r.IntN(8) > 0 {
		if kind == 1 {
			header.Set("If-None-Match", "*")
			met = func(picture int) bool { return picture == 0 }
		}
		w, method, body = s.upload(h, header, r)
	}
	from := time.Now()
	a := s.send(h, method, header, body)
	to, excused := time.Now(), s.excused(from)
	switch {
	case body != nil && body.broken, a.unsent:
	case a.status == 200 || a.status == 204:
		// A blob of blocks has no MD5; chunks of more than 512 KiB are stored as blocks if they get the spare buffer.
		if a.status == 200 && (a.ETag == "" || (a.MD5 != nil || w.size <= 512<<10) && !bytes.Equal(a.MD5, w.md5)) {
			s.fault("%s: picture %d is answered with %v", h.user, w.seq, a)
		}
		s.count("bytes stored", w.size)
		if excused { // the signer may have carried it out twice, if storage's first response was lost
			met = nil
			h.add(event{what: "perhaps stored before", write: w, maybe: true}, from, to)
		}
		w.etag = a.ETag
		h.add(event{what: "stored", before: met, write: w}, from, to)
	case a.status == 0, a.status == 503 && a.Outcome == "unknown":
		for range 2 { // it may have been carried out twice
			h.add(event{what: "unknown", write: w, maybe: true}, from, to.Add(lingers))
		}
	case a.Outcome == "unknown": // of the signer's first attempt; the second one was rejected
		h.add(event{what: "unknown", write: w, maybe: true}, from, to)
	case a.status == 412 && met != nil:
		if !excused {
			h.add(event{what: "precondition failed", before: func(picture int) bool { return !met(picture) }}, from, to)
		}
	case a.status == 404 && method == "DELETE":
		h.observed(0, from, to)
	case a.status == 503, a.status == 409 && (!alone || excused):
	case a.status == http.StatusRequestTimeout: // on a busy machine, this process may stall
	default:
		s.fault("%s: %s %v of %d bytes: %v", h.user, method, header, w.size, a)
	}
	if r.IntN(3) == 0 {
		_ = s.look(h)
	}
}

// upload returns the upload of a picture in a random way: slowly, or incompletely.
func (s *soak) upload(h *history, header http.Header, r *rand.Rand) (w *write, method string, body *pieces) {
	n := int(math.Exp(math.Log(1<<10) + math.Pow(r.Float64(), 5)*math.Log(soakSize>>10))) // mostly small
	body = &pieces{most: 1 << r.IntN(22), pause: 3 * time.Millisecond, broken: r.IntN(10) == 0}
	if r.IntN(20) == 0 { // slow
		n, body.most, body.pause = 1<<10+r.IntN(10_000), 2_000, 250*time.Millisecond
	}
	if err := s.budget.WaitN(s.t.Context(), n); err != nil {
		s.fault("%v", err)
	}
	w, body.content = h.newWrite(n)
	method, body.size = "PUT", n
	switch r.IntN(3) {
	case 0:
		body.size = -1
	case 1:
		var contentType string
		contentType, body.content = harness.Form(s.t, body.content)
		method, body.size = "POST", len(body.content)
		header.Set("Content-Type", contentType)
	}
	if body.broken {
		body.content = body.content[:r.IntN(len(body.content))]
	}
	return w, method, body
}

// look gets a signed URL and downloads the picture. It returns the status of the first response.
func (s *soak) look(h *history) int {
	from := time.Now()
	a := s.send(h, "GET", http.Header{}, nil)
	to := time.Now()
	switch a.status {
	case 200:
		if a.MD5 != nil { // from the existence cache
			s.saw(h, a.MD5, from.Add(-existenceTTL-time.Second), to)
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
	case err != nil:
		s.count("incomplete download", 1) // Azurite's, if the picture is replaced meanwhile
	case a.StatusCode == 404:
		h.observed(0, from, to)
	case a.StatusCode != 200:
		s.fault("a signed URL: %d %.200s", a.StatusCode, a.Body)
	default:
		s.count("downloads", 1)
		sum := md5.Sum(a.Body)
		s.saw(h, sum[:], from, to)
	}
}

// saw records that a client has seen a picture. It must be one whole picture of the user.
func (s *soak) saw(h *history, sum []byte, from, to time.Time) {
	h.mu.Lock()
	seq, ok := h.sums[string(sum)]
	h.mu.Unlock()
	if !ok {
		s.fault("TORN: %s has a picture with MD5 %x, which is none of its pictures", h.user, sum)
		return
	}
	h.observed(seq, from, to)
}
