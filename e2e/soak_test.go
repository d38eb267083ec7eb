package e2e

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
	"maps"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cats.example/local/stand"
)

const (
	soakSize  = 20 << 20         // the largest picture, in bytes
	lingers   = time.Minute      // what the signer may still be about when its caller has given up
	aftermath = 10 * time.Second // of a disturbance: what began in it may fail
)

// soak is a random load on a system, and what is known of every picture in it.
type soak struct {
	t       *testing.T
	sys     *stand.System
	storage *account
	client  *http.Client
	seed    uint64
	names   []*history

	rate float64 // bytes that are uploaded, in a second; Azurite keeps what was replaced for 20 minutes
	mu   sync.Mutex
	next time.Time // when the next upload may begin
	told map[string]int
	bad  int

	disturbed   atomic.Int64 // disturbances under way
	undisturbed atomic.Int64 // since when, in Unix nanoseconds
	stored      atomic.Int64 // bytes
}

// TestSoak has clients of all kinds do what they like while processes are killed,
// drained and started again and storage is cut off. What was acknowledged is there to
// the byte, what was refused is not, no answer is a 500, and every answer is one that
// the README has. SOAK=3m goes on for so long, and then finds out, over another two
// thirds of that without kills, whether goroutines, descriptors and memory come back;
// without it, some seconds have each kind of disturbance once. SOAK_SEED makes the
// same load again, as far as it is not up to time.
func TestSoak(t *testing.T) {
	t.Parallel()
	needStand(t)
	long, err := time.ParseDuration(os.Getenv("SOAK"))
	if set := os.Getenv("SOAK"); set != "" && err != nil {
		t.Fatal(err)
	}
	seed, err := strconv.ParseUint(os.Getenv("SOAK_SEED"), 10, 64)
	if err != nil {
		seed = uint64(time.Now().UnixNano()) % 1e6
	}
	t.Logf("SOAK_SEED=%d", seed)
	s := &soak{t: t, seed: seed, rate: 5 << 20, told: map[string]int{}, storage: newAccount(t)}
	users, contested, readers := 24, 4, 8
	both := map[string]string{"STALL_TIMEOUT": "5s", "MAX_PICTURE_SIZE": "20MiB"}
	frontend, signer := maps.Clone(both), maps.Clone(both)
	signer["EXISTENCE_TTL"] = existenceTTL.String()
	if long == 0 {
		users, contested, readers, s.rate = 10, 2, 3, 12<<20
	} else { // as in a pod
		frontend["GOMEMLIMIT"], frontend["PROFILE"] = "28MiB", "true"
		signer["GOMEMLIMIT"], signer["PROFILE"] = "42MiB", "true"
	}
	s.sys = start(t, stand.SystemOptions{StorageURL: s.storage.URL, FrontendEnv: frontend, SignerEnv: signer})
	s.client = client()
	for i := range users + contested {
		s.names = append(s.names, newHistory(fmt.Sprintf("soak-%d", i)))
	}
	load := func(ctx context.Context) *sync.WaitGroup {
		var wg sync.WaitGroup
		run := func(step func(context.Context, *rand.Rand)) {
			n := streams.Add(1)
			wg.Go(func() {
				r := rand.New(rand.NewPCG(s.seed, n))
				for ctx.Err() == nil {
					step(ctx, r)
				}
			})
		}
		for i, name := range s.names {
			writers := 1
			if i >= users {
				writers = 3
			}
			for range writers {
				run(func(_ context.Context, r *rand.Rand) { s.write(name, writers == 1, r) })
			}
		}
		for range readers {
			run(func(ctx context.Context, r *rand.Rand) {
				s.look(s.names[r.IntN(len(s.names))])
				pause(ctx, r, 100*time.Millisecond)
			})
		}
		for range 2 {
			run(func(ctx context.Context, r *rand.Rand) {
				s.garbage(r)
				pause(ctx, r, 100*time.Millisecond)
			})
		}
		return &wg
	}

	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	defer stop()
	wg := load(ctx)
	s.disturb(long*3/5, func() {})
	stop()
	wg.Wait()
	s.check("after the kills")
	if long > 0 && !t.Failed() {
		s.leaks(long*2/5, load)
		s.check("at the end")
	}
	s.logs()
	t.Logf("%s", s.progress())
}

const existenceTTL = 5 * time.Second

// streams counts the clients: each has random numbers of its own.
var streams atomic.Uint64

func pause(ctx context.Context, r *rand.Rand, most time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(rand.N(most) * time.Duration(1+r.IntN(2))):
	}
}

// fault reports what must not be. Of many, the first tell the most.
func (s *soak) fault(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bad++; s.bad <= 20 {
		s.t.Errorf(format, args...)
	}
}

func (s *soak) must(err error) {
	if err != nil {
		s.fault("%v", err)
	}
}

func (s *soak) count(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told[what]++
}

// excused reports whether what began then may have met a disturbance.
func (s *soak) excused(began time.Time) bool {
	return s.disturbed.Load() > 0 || time.Unix(0, s.undisturbed.Load()).Add(aftermath).After(began)
}

// budget waits until so many bytes may be uploaded.
func (s *soak) budget(n int) {
	s.mu.Lock()
	s.next = later(s.next, time.Now().Add(-time.Second))
	wait := time.Until(s.next)
	s.next = s.next.Add(time.Duration(float64(n) / s.rate * float64(time.Second)))
	s.mu.Unlock()
	time.Sleep(wait)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// said is an answer as far as it matters here; status 0 is none.
type said struct {
	unsent       bool // nobody was there to be asked
	status       int
	ETag         string `json:"etag"`
	Code, Detail string
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
	from := time.Now()
	switch way := r.IntN(4); {
	case way == 0:
		a = s.ask(http.MethodPut, "/cat/"+h.user, header, bytes.NewReader(content), int64(n))
	case way == 1:
		a = s.ask(http.MethodPut, "/cat/"+h.user, header, chunked{bytes.NewReader(content)}, -1)
	case way == 2 || len(header) > 0:
		contentType, body := form(s.t, content)
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
		all := uploads(s.t, h.user, content)
		u := all[r.IntN(len(all))]
		a = s.inPieces(r, u, len(u.body))
	}
	to := time.Now()
	s.ended(h, w, a)
	quiet := !s.excused(from)
	switch {
	case a.status == 200:
		s.stored.Add(int64(n))
		if a.ETag == "" || !bytes.Equal(a.MD5, w.md5) || a.header.Get("ETag") != a.ETag || wrong {
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
	default:
		s.fault("%s: an upload of %d bytes, %v: %v", h.user, n, header, a)
	}
}

// ended takes down what became of a write.
func (s *soak) ended(h *history, w *write, a said) {
	switch {
	case a.status == 200 && w.size > 0, a.status == 204 && w.size == 0:
		h.stored(w, a.ETag)
	case a.status == 0 && !a.unsent, a.status == 503 && (w.size == 0 || strings.Contains(a.Detail, "may have been stored")):
		h.unclear(w, time.Now().Add(lingers))
	default:
		s.must(h.refused(w))
	}
}

// breakOff sends a part of a picture, which must leave what was there.
func (s *soak) breakOff(h *history, r *rand.Rand) {
	n := size(r)
	s.budget(n)
	w, content := h.begin(n)
	all := uploads(s.t, h.user, content)
	u := all[r.IntN(len(all))]
	s.inPieces(r, u, r.IntN(len(u.body))) // what lacks its last byte is not whole
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
		a := s.inPieces(r, upload{"a terabyte", fmt.Sprintf("PUT /cat/%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", h.user, n), "x"}, 1)
		if a.status != 413 && a.status != 503 && a.status != 0 {
			s.fault("a terabyte: %v", a)
		}
	}
}

// trickle sends a picture slowly: so that it is taken, or so that it is not.
func (s *soak) trickle(h *history, r *rand.Rand) {
	w, content := h.begin(leastSize + r.IntN(10_000))
	all := uploads(s.t, h.user, content)
	u := all[r.IntN(len(all))]
	from := time.Now()
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
	_, _ = io.WriteString(conn, u.header)
	for i := range steps {
		end := len(u.body) * (i + 1) / steps
		if r.IntN(40) == 0 { // it stays away
			s.must(h.refused(w))
			return
		}
		_, _ = io.WriteString(conn, u.body[sent:end])
		sent = end
		if i < steps-1 {
			time.Sleep(time.Duration(100+r.IntN(500)) * time.Millisecond)
		}
	}
	a := s.answerOn(conn, from)
	s.ended(h, w, a)
	if a.status != 200 && a.status != 503 && a.status != 0 && a.status != 409 {
		s.fault("%s: a slow upload: %v", h.user, a)
	}
}

func (s *soak) dial() (net.Conn, error) {
	conn, err := net.DialTimeout("tcp", strings.TrimPrefix(s.sys.URL, "http://"), 5*time.Second) //nolint:noctx // bounded
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
func (s *soak) inPieces(r *rand.Rand, u upload, sent int) said {
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
	rest := u.header + u.body[:sent]
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
	if sent == len(u.body) {
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
		s.must(h.sawMD5(a.MD5, from.Add(-existenceTTL-time.Second), to))
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
		"GET /cat/garbage HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /cat/garbage/picture?ttl=1m&download=x.png HTTP/1.1\r\nHost: x\r\nIf-None-Match: \"1\", *\r\n\r\n",
		"PUT /cat/garbage HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nContent-MD5: AAAA\r\n\r\n" + string(cat[:100]),
		"PUT /cat/garbage HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n40\r\n" + string(cat[:64]) + "\r\n0\r\n\r\n",
		"POST /cat/garbage HTTP/1.1\r\nHost: x\r\nContent-Type: " + formType + "\r\nContent-Length: 300\r\n\r\n" + file(cat[:100]) + lastBoundary,
		"DELETE /cat/garbage HTTP/1.1\r\nHost: x\r\nIf-Match: \"1\"\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
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
	if status, _, _ := bytes.Cut(bytes.TrimPrefix(got, []byte("HTTP/1.1 ")), []byte(" ")); len(got) > 0 {
		s.count("garbage: " + string(status))
		if n, err := strconv.Atoi(string(status)); err != nil || n == 500 || n == 502 {
			s.fault("%q is answered with %q", raw, got)
		}
	}
}

// disturb kills, drains and starts again, and cuts storage off, for so long: at least
// until each was done once. meanwhile is called every second or so.
func (s *soak) disturb(long time.Duration, meanwhile func()) {
	s.t.Helper()
	r := rand.New(rand.NewPCG(s.seed, 0))
	kill := func(p *stand.Process) func() {
		return func() {
			p.Kill()
			time.Sleep(time.Duration(r.IntN(1500)) * time.Millisecond)
			again(s.t, p)
		}
	}
	drain := func(p *stand.Process) func() {
		return func() {
			ctx, cancel := context.WithTimeout(s.t.Context(), 80*time.Second)
			defer cancel()
			if err := p.Stop(ctx); err != nil {
				s.fault("a drain: %v", err)
			}
			again(s.t, p)
		}
	}
	disturbances := map[string]func(){
		"frontend killed": kill(s.sys.Frontend), "signer killed": kill(s.sys.Signer),
		"frontend drained": drain(s.sys.Frontend), "signer drained": drain(s.sys.Signer),
		"storage cut off": s.cutStorage(r), "answers of storage lost": s.loseAnswers(r),
	}
	s.cycle(r, long, disturbances, meanwhile)
}

func (s *soak) cutStorage(r *rand.Rand) func() {
	return func() {
		s.storage.down()
		time.Sleep(time.Duration(300+r.IntN(1700)) * time.Millisecond)
		s.storage.up(s.t, s.storage.address)
	}
}

// loseAnswers has storage do what it is asked for some names, and say nothing.
func (s *soak) loseAnswers(r *rand.Rand) func() {
	return func() {
		for range len(s.names) / 3 {
			user := s.names[r.IntN(len(s.names))].user
			s.storage.set(user, once(loseAnswer))
			defer s.storage.set(user, nil)
		}
		time.Sleep(time.Duration(500+r.IntN(1500)) * time.Millisecond)
	}
}

// cycle does one disturbance after the other, in any order, with time between them.
func (s *soak) cycle(r *rand.Rand, long time.Duration, disturbances map[string]func(), meanwhile func()) {
	s.t.Helper()
	began, told := time.Now(), time.Now()
	names := slices.Sorted(maps.Keys(disturbances))
	for round := 0; round == 0 || time.Since(began) < long; round++ {
		r.Shuffle(len(names), func(i, k int) { names[i], names[k] = names[k], names[i] })
		for i, name := range names {
			if round > 0 && time.Since(began) >= long {
				break
			}
			between := time.Duration(300+r.IntN(500)) * time.Millisecond
			if long > 0 {
				between = time.Duration(1+r.IntN(8)) * time.Second
				if i == 0 {
					between += aftermath // so that there are times in which nothing is excused
				}
			}
			for until := time.Now().Add(between); time.Now().Before(until); {
				time.Sleep(min(time.Until(until), time.Second))
				meanwhile()
				if time.Since(told) > 10*time.Second {
					told = time.Now()
					s.t.Logf("%v %s", time.Since(began).Round(time.Second), s.progress())
				}
			}
			s.disturbed.Add(1)
			disturbances[name]()
			ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
			err := s.sys.WaitReady(ctx)
			cancel()
			if err != nil {
				s.t.Errorf("after %s: %v", name, err)
			}
			s.count(name)
			s.undisturbed.Store(time.Now().UnixNano())
			s.disturbed.Add(-1)
		}
	}
}

// check lets nothing be under way any more, and looks at every picture.
func (s *soak) check(when string) {
	s.t.Helper()
	for _, p := range []*stand.Process{s.sys.Frontend, s.sys.Signer} {
		p.Signal(syscall.SIGTERM)
		ends(s.t, p)
	}
	for _, h := range s.names {
		h.settle()
	}
	for _, p := range []*stand.Process{s.sys.Signer, s.sys.Frontend} {
		again(s.t, p)
	}
	recovers(s.t, s.sys)
	s.undisturbed.Store(0)
	pictures := 0
	for _, h := range s.names {
		a := s.ask(http.MethodGet, "/cat/"+h.user, nil, nil, 0)
		switch a.status {
		case 404:
			s.must(h.sawNothing(time.Now(), time.Now(), nil))
		case 200:
			pictures++
			now := time.Now()
			s.must(h.sawMD5(a.MD5, now, now))
			s.fetch(h, a.URL)
		default:
			s.fault("%s: %v", h.user, a)
		}
	}
	s.t.Logf("%s: %d pictures of %d names compared", when, pictures, len(s.names))
}

// logs looks for what nobody was told.
func (s *soak) logs() {
	s.t.Helper()
	for _, p := range []*stand.Process{s.sys.Frontend, s.sys.Signer} {
		f, err := os.Open(p.Log.Path())
		if err != nil {
			s.t.Fatal(err)
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			for _, bad := range []string{`"status":500`, `"status":502`, `"msg":"panic"`, "DATA RACE", "panic: ", "fatal error: ", "sig=", "eyJ"} {
				if strings.Contains(lines.Text(), bad) {
					s.fault("%s logged: %.2000s", filepath.Base(p.Log.Path()), lines.Text())
				}
			}
		}
		if err := lines.Err(); err != nil {
			s.t.Error(err)
		}
	}
}

func (s *soak) progress() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "%d MiB stored", s.stored.Load()>>20)
	for _, what := range slices.Sorted(maps.Keys(s.told)) {
		fmt.Fprintf(&b, ", %s %d", strings.TrimSpace(what), s.told[what])
	}
	fmt.Fprintf(&b, ", faults %d", s.bad)
	return b.String()
}
