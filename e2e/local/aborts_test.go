package local

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"cats.example/e2e/harness"
)

const (
	downloadSize = 16 << 20         // more than the buffers of a connection hold
	abortTimeout = 30 * time.Second // for a connection that is neither served nor closed

	abortPause = 40 * time.Millisecond // between two of a client, for the duration in ABORTS: Azurite keeps all content for ten minutes
)

// aborts sends requests of every kind to a local stack and aborts them.
type aborts struct {
	t       *testing.T
	l       *localStack
	picture []byte // of the user big

	mu    sync.Mutex
	open  []net.Conn // whose responses are not read, oldest first
	count int
}

// request is one as bytes on the wire, to one of the listeners.
type request struct{ kind, address, text string }

// TestLocalSurvivesAborts aborts requests of every kind to every listener of make run, at random bytes and in every way. It aborts
// each once, or all of them again and again for the duration in ABORTS. Then the stack must still serve, and its processes must
// hold no more than before.
func TestLocalSurvivesAborts(t *testing.T) {
	t.Parallel()
	duration, err := time.ParseDuration(os.Getenv("ABORTS"))
	if set := os.Getenv("ABORTS"); set != "" && err != nil {
		t.Fatal(err)
	}
	l := startLocal(t, "", "RATE_LIMIT=0", "CLIENT_SHARE=0", "EXISTENCE_CACHE_TTL=0s", "STALL_TIMEOUT=5s", "MAX_PICTURE_SIZE=20MiB", "PPROF_ENABLED=true")
	l.waitReady(t)
	a := &aborts{t: t, l: l}
	if a.picture, err = io.ReadAll(harness.Large(downloadSize)); err != nil {
		t.Fatal(err)
	}
	harness.Do(t, http.MethodPut, a.url("/cat/big"), "", a.picture).Want(t, 200)
	start := a.held()
	a.round(rand.New(rand.NewPCG(1, 0)), false) // as much as it takes to have the memory that stays
	before := a.rest(start, 2)
	for name, values := range before {
		copy(values, start[name][:2])
	}
	began := time.Now()
	var clients sync.WaitGroup
	for client := range uint64(4) {
		clients.Go(func() {
			r := rand.New(rand.NewPCG(1, client+1))
			for first := client == 0; first || time.Since(began) < duration; first = false {
				a.round(r, duration > 0)
			}
		})
	}
	clients.Wait()
	a.rest(before, len(harness.Resources))
	t.Logf("%d requests aborted", a.count)

	if got := harness.Do(t, http.MethodGet, a.link(), "", nil).Want(t, 200).Body; !bytes.Equal(got, a.picture) {
		t.Error("the picture is another")
	}
	if text := l.text(); strings.Contains(text, "stopping") {
		t.Errorf("it stopped\n%s", text)
	}
	for _, name := range []string{"frontend", "signer"} {
		harness.WantNoFaults(t, filepath.Join(l.dir, ".local", "logs", name+".log"), func(format string, args ...any) { t.Errorf(format, args...) })
	}
}

func (a *aborts) url(path string) string { return "http://" + a.l.frontend + path }

// link returns a signed URL of the large picture.
func (a *aborts) link() string {
	a.t.Helper()
	url, _ := harness.Do(a.t, http.MethodGet, a.url("/cat/big"), "", nil).Want(a.t, 200).Field(a.t, "picture_url").(string)
	return url
}

// requests returns one of each kind. r chooses users and sizes.
func (a *aborts) requests(r *rand.Rand) []request {
	a.t.Helper()
	user := "u" + strconv.Itoa(r.IntN(8))
	content := harness.Random(1<<10+r.IntN(16<<10), uint64(r.IntN(256)))
	raw := func(kind, address, line, header, body string) request {
		return request{kind, address, line + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + header + "\r\n" + body}
	}
	onStorage := func(kind, method, signed, header, body string) request {
		u, err := url.Parse(signed)
		if err != nil {
			a.t.Fatal(err)
		}
		return raw(kind, a.l.front, method+" "+u.RequestURI(), header, body)
	}
	var k harness.UploadSession
	if err := json.Unmarshal(harness.Do(a.t, http.MethodPost, a.url(fmt.Sprintf("/cat/%s/upload?size=%d", user, len(content))), "", nil).Want(a.t, 201).Body, &k); err != nil {
		a.t.Fatal(err)
	}
	link, length := a.link(), fmt.Sprintf("Content-Length: %d\r\n", len(content))
	const origin = "Origin: http://localhost:1\r\nAccess-Control-Request-Method: PUT\r\n"
	all := []request{
		raw("link", a.l.frontend, "GET /cat/big", "", ""),
		raw("head", a.l.frontend, "HEAD /cat/big", "", ""),
		raw("redirect", a.l.frontend, "GET /cat/big/picture", "", ""),
		onStorage("download", "GET", link, "", ""),
		onStorage("range of a download", "GET", link, "Range: bytes=1000-9000000\r\n", ""),
		onStorage("head of a download", "HEAD", link, "", ""),
		raw("delete", a.l.frontend, "DELETE /cat/"+user, "", ""),
		raw("upload session", a.l.frontend, "POST /cat/"+user+"/upload?size=9", "", ""),
		onStorage("direct upload", "PUT", k.URL, "X-Ms-Blob-Type: BlockBlob\r\n"+length, string(content)),
		onStorage("block of a direct upload", "PUT", k.URL+"&comp=block&blockid=AAAA", length, string(content)),
		raw("commit", a.l.frontend, "POST /cat/"+user+"/upload/"+k.ID+"/commit", "", ""),
		raw("page", a.l.frontend, "GET /", "", ""),
		raw("docs", a.l.frontend, "GET /docs", "", ""),
		raw("service", a.l.frontend, "GET /service", "", ""),
		raw("unknown path", a.l.frontend, "GET /nothing", "", ""),
		raw("frontend's preflight", a.l.frontend, "OPTIONS /cat/"+user, origin, ""),
		onStorage("storage's preflight", "OPTIONS", link, origin, ""),
		raw("unsigned URL", a.l.front, "GET /?comp=list", "Authorization: Bearer "+unsignedToken()+"\r\n", ""),
		raw("unsigned upload", a.l.front, "PUT /cats/x", length, string(content)),
		raw("frontend's metrics", a.l.frontendOps, "GET /metrics", "", ""),
		raw("signer's metrics", a.l.signerOps, "GET /metrics", "", ""),
		raw("signer's link", a.l.signer, "GET /v1/link?user=big", "Cats-Contract: 1\r\n", ""),
	}
	for _, u := range harness.RawUploads(a.t, user, content) {
		all = append(all, request{u.Name, a.l.frontend, strings.Replace(u.Header, "Host:", "Connection: close\r\nHost:", 1) + u.Body})
	}
	if strings.Contains(a.l.text(), "  Prometheus ") {
		all = append(all, raw("Prometheus", a.l.prometheus, "GET /api/v1/query?query=up", "", ""), raw("Prometheus's metrics", a.l.prometheus, "GET /metrics", "", ""))
	}
	return all
}

// round aborts a request of each kind in each way, with pauses if paced is true.
func (a *aborts) round(r *rand.Rand, paced bool) {
	a.t.Helper()
	for _, way := range []string{"reset", "close", "half-close", "reset amid the response", "close amid the response", "never read"} {
		for _, request := range a.requests(r) {
			if paced {
				time.Sleep(abortPause)
			}
			if err := a.abort(request, way, r); err != nil {
				a.t.Errorf("%s, %s: %v", request.kind, way, err)
				return
			}
		}
	}
}

// abort sends a request, or the first part of it, and aborts the connection.
func (a *aborts) abort(request request, way string, r *rand.Rand) error {
	//lint:ignore noctx the timeout is enough
	c, err := net.DialTimeout("tcp", request.address, abortTimeout)
	if err != nil {
		return err
	}
	conn := c.(*net.TCPConn)
	if err := conn.SetDeadline(time.Now().Add(abortTimeout)); err != nil {
		return err
	}
	sent := request.text
	if r.IntN(2) == 0 && !strings.Contains(way, "response") {
		sent = sent[:r.IntN(len(sent))]
	}
	_, _ = io.WriteString(conn, sent) // an error is no fault: the response may come before all is sent
	switch way {
	case "half-close":
		_ = conn.CloseWrite()
		_, _ = io.CopyN(io.Discard, conn, r.Int64N(2*downloadSize))
	case "reset amid the response", "close amid the response":
		_, _ = io.CopyN(io.Discard, conn, 1+r.Int64N(1<<(1+r.IntN(24))))
	}
	if strings.HasPrefix(way, "reset") || r.IntN(2) == 0 && way == "never read" {
		_ = conn.SetLinger(0)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.count++
	if way != "never read" {
		return conn.Close()
	}
	if a.open = append(a.open, conn); len(a.open) > 8 {
		_ = a.open[0].Close()
		a.open = a.open[1:]
	}
	return nil
}

// held returns what each process holds, as [heldBy] does. Of bin/local it is only what the kernel knows.
func (a *aborts) held() map[string][]float64 {
	a.t.Helper()
	proc := fmt.Sprintf("/proc/%d/", a.l.process.Pid)
	descriptors, err := os.ReadDir(proc + "fd")
	if err != nil {
		a.t.Fatal(err)
	}
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		a.t.Fatal(err)
	}
	var resident float64 // KiB
	if _, rss, ok := strings.Cut(string(status), "VmRSS:"); !ok {
		a.t.Fatal("no VmRSS")
	} else if _, err := fmt.Sscan(rss, &resident); err != nil {
		a.t.Fatal(err)
	}
	return map[string][]float64{
		"local":    {0, float64(len(descriptors)), 0, resident / 1024},
		"frontend": harness.ResourcesOf(a.t, "http://"+a.l.frontendOps, true),
		"signer":   harness.ResourcesOf(a.t, "http://"+a.l.signerOps, true),
	}
}

// rest closes the open connections and waits until the processes hold no more than before, of the first kinds in [held].
func (a *aborts) rest(before map[string][]float64, kinds int) map[string][]float64 {
	a.t.Helper()
	for _, conn := range a.open {
		_ = conn.Close()
	}
	a.open = nil
	// The connections of the measurement itself are idle for 2 s.
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(3 * time.Second) {
		now, table, grown := a.held(), "process   what              before   after", false
		for _, name := range []string{"local", "frontend", "signer"} {
			for i, what := range harness.Resources[:kinds] {
				table += fmt.Sprintf("\n%-9s %-16s %7.1f %7.1f", name, what.Name, before[name][i], now[name][i])
				grown = grown || now[name][i] > before[name][i]*(1+what.Share)+what.More
			}
		}
		if !grown {
			a.t.Log(table)
			return now
		}
		if time.Now().After(deadline) {
			a.t.Fatalf("the processes hold more than before\n%s", table)
		}
	}
}
