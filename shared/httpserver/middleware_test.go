package httpserver

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"cats.example/shared/ratelimit"
)

func TestAPanicIsOne500AndALogLine(t *testing.T) {
	r := start(t, relaxed, alwaysReady, nil, map[string]http.HandlerFunc{
		"/panic": func(http.ResponseWriter, *http.Request) { panic("oops") },
		"/fine":  func(http.ResponseWriter, *http.Request) {},
	})
	if code, body := get(t, r.work+"/panic"); code != 500 || strings.Contains(body, "oops") {
		t.Errorf("got %d %q", code, body)
	}
	if code, _ := get(t, r.work+"/fine"); code != 200 {
		t.Errorf("the process did not live on: %d", code)
	}
	if lines := r.log.lines(t, "panic"); len(lines) != 1 || lines[0]["panic"] != "oops" {
		t.Errorf("log: %v", lines)
	}
	if n, err := testutil.GatherAndCount(r.reg, "cats_test_http_panics_total"); n != 1 || err != nil {
		t.Errorf("metric: %d, %v", n, err)
	}
}

func TestAPanicAfterHalfAnAnswerCutsTheConnection(t *testing.T) {
	r := start(t, relaxed, alwaysReady, nil, map[string]http.HandlerFunc{"/": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, "half")
		panic("oops")
	}})
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, r.work, nil)
	resp, err := http.DefaultClient.Do(req)
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	if err == nil {
		t.Error("the client took half an answer for a whole one")
	}
}

func TestRequestIDsAndTracesAreHonouredAndLogged(t *testing.T) {
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	var seen string
	r := start(t, relaxed, alwaysReady, nil, map[string]http.HandlerFunc{"/{x}": func(_ http.ResponseWriter, r *http.Request) {
		seen = RequestID(r.Context())
		SetError(r.Context(), errors.New("why"))
	}})
	for _, c := range []struct{ sent, want string }{{"abc-1", "abc-1"}, {"bad id\t", ""}, {strings.Repeat("x", 129), ""}, {"", ""}} {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, r.work+"/p?sig=secret", nil)
		req.Header.Set("X-Request-Id", c.sent)
		req.Header.Set("Traceparent", trace)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		got := resp.Header.Get("X-Request-Id")
		if got == "" || got != seen || (c.want != "" && got != c.want) || (c.want == "" && got == c.sent) {
			t.Errorf("sent %q: answered %q, handler saw %q", c.sent, got, seen)
		}
	}
	eventually(t, "four log lines", func() bool { return len(r.log.lines(t, "request")) == 4 })
	line := r.log.lines(t, "request")[0]
	for key, want := range map[string]any{
		"request_id": "abc-1", "trace_id": trace[3:35], "http.route": "/{x}", "http.request.method": "GET", "http.response.status_code": 200.0, "error": "why", "service.name": "test", "level": "INFO",
	} {
		if line[key] != want {
			t.Errorf("%s is %v; want %v", key, line[key], want)
		}
	}
	if strings.Contains(r.log.b.String(), "secret") {
		t.Error("the query string is in the log")
	}
}

func TestLogLinesBoundWhatStrangersSend(t *testing.T) {
	r := start(t, relaxed, alwaysReady, nil, map[string]http.HandlerFunc{"/{x}": func(_ http.ResponseWriter, r *http.Request) {
		SetError(r.Context(), errors.New(r.Header.Get("X-Error")))
	}})
	long := strings.Repeat("X", 9000)
	for method, logged := range map[string]string{long: "other", "PROPFIND": "other", "get": "other", "GET": "GET"} {
		req, _ := http.NewRequestWithContext(t.Context(), method, r.work+"/p", nil)
		req.Header.Set("X-Error", "an error: "+strings.Repeat("é", 3000))
		req.Header.Set("X-Request-Id", "id-"+method[:3])
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		var line map[string]any
		eventually(t, "the request's log line", func() bool {
			lines := r.log.lines(t, "request")
			i := slices.IndexFunc(lines, func(l map[string]any) bool { return l["request_id"] == "id-"+method[:3] })
			if i >= 0 {
				line = lines[i]
			}
			return i >= 0
		})
		text, _ := line["error"].(string)
		if line["http.request.method"] != logged || len(text) > 512+len("…") || !strings.HasPrefix(text, "an error: ") || !utf8.ValidString(text) {
			t.Errorf("%.10s: the method is %v, the error has %d bytes: %.40s", method, line["http.request.method"], len(text), text)
		}
	}
}

func TestPropagatePassesIDAndTraceOn(t *testing.T) {
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	next := make(chan http.Header, 1)
	inner := start(t, relaxed, alwaysReady, nil, map[string]http.HandlerFunc{"/": func(_ http.ResponseWriter, r *http.Request) { next <- r.Header }})
	outer := start(t, relaxed, alwaysReady, nil, map[string]http.HandlerFunc{"/": func(_ http.ResponseWriter, r *http.Request) {
		req, _ := http.NewRequestWithContext(r.Context(), http.MethodGet, inner.work, nil)
		Propagate(r.Context(), req.Header)
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
		}
	}})
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, outer.work, nil)
	req.Header.Set("X-Request-Id", "one")
	req.Header.Set("Traceparent", trace)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if h := <-next; h.Get("X-Request-Id") != "one" || h.Get("Traceparent") != trace {
		t.Errorf("the second hop got %v", h)
	}
}

func TestABodyMayBeSlowButNotStalled(t *testing.T) {
	t.Parallel()
	settings := relaxed
	settings.StallTimeout = time.Second
	r := start(t, settings, alwaysReady, nil, map[string]http.HandlerFunc{"/": func(w http.ResponseWriter, r *http.Request) {
		var ne net.Error
		switch _, err := io.ReadAll(r.Body); {
		case errors.As(err, &ne) && ne.Timeout():
			w.WriteHeader(http.StatusRequestTimeout)
		case err != nil:
			w.WriteHeader(http.StatusBadRequest)
		}
	}})
	var wg sync.WaitGroup
	for name, c := range map[string]struct {
		header       string
		pieces, want int
	}{
		"a slow body of a known length":    {"Content-Length: 3000\r\n\r\n", 10, 200},
		"a slow body in one long chunk":    {"Transfer-Encoding: chunked\r\n\r\nbb8\r\n", 10, 200},
		"a stalled body of a known length": {"Content-Length: 3000\r\n\r\n", 1, 408},
		"a stalled body in one long chunk": {"Transfer-Encoding: chunked\r\n\r\nbb8\r\n", 1, 408},
	} {
		wg.Go(func() {
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(r.work, "http://"))
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: x\r\n"+c.header)
			for range c.pieces {
				time.Sleep(200 * time.Millisecond) // well under the limit, and over it together
				_, _ = io.WriteString(conn, strings.Repeat("x", 300))
			}
			if c.want == http.StatusOK {
				_, _ = io.WriteString(conn, "\r\n0\r\n\r\n")
			}
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			resp.Body.Close()
			if resp.StatusCode != c.want {
				t.Errorf("%s: %d; want %d", name, resp.StatusCode, c.want)
			}
		})
	}
	wg.Wait()
}

// While more than half of the uploads are in progress, a body must bring 16 KiB/s.
func TestBusyPoolRaisesTheMinimumRate(t *testing.T) {
	uploads := ratelimit.NewPools("busy", 0, prometheus.NewRegistry()).New("uploads", 2)
	for taken, want := range []int64{2 << 10, 2 << 10, 16 << 10} {
		for rate, want := range map[int64]int64{2 << 10: want, 20 << 10: 20 << 10} {
			q := &Middleware{options: MiddlewareOptions{Settings: Settings{StallTimeout: 30 * time.Second, MinUploadRate: rate}, Uploads: uploads}}
			if got := q.windowBytes(); got != 30*want {
				t.Errorf("with %d of 2 slots taken and a minimum of %d: %d bytes in 30 s; want %d", taken, rate, got, 30*want)
			}
		}
		_, _ = uploads.Take("")
	}
}

// Many clients send all before they look for an answer.
func TestARefusalReachesAClientThatGoesOnSending(t *testing.T) {
	r := start(t, relaxed, alwaysReady, nil, map[string]http.HandlerFunc{"/": func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.CopyN(io.Discard, r.Body, 10)
		http.Error(w, "no", http.StatusTeapot)
	}})
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(r.work, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const size = 20 << 20 // more than sockets hold, more than net/http drains
	if _, err := fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", size, strings.Repeat("x", size)); err != nil {
		t.Errorf("sending: %v", err)
	}
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusTeapot {
		t.Fatalf("%d, %v", resp.StatusCode, err)
	}
	resp.Body.Close()
	// What is left of a body must not be taken for a request, so there is no next.
	if _, err := in.ReadByte(); err != io.EOF || !resp.Close {
		t.Errorf("the connection was kept: %v", err)
	}
}

// Such a client sends at last what it was not asked for, after a second or so.
func TestARefusalThatTookItsTimeReachesAClientThatIsSending(t *testing.T) {
	t.Parallel()
	r := start(t, relaxed, alwaysReady, nil, map[string]http.HandlerFunc{"/": func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(askTimeout + 300*time.Millisecond)
		http.Error(w, "no", http.StatusTeapot)
	}})
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(r.work, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const size = 20 << 20
	if _, err := fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n%s", size, strings.Repeat("x", size)); err != nil {
		t.Errorf("sending: %v", err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusTeapot {
		t.Errorf("got %d", resp.StatusCode)
	}
}

func TestAClientThatWaitsToBeAskedIsNotAskedForWhatIsRefused(t *testing.T) {
	r := start(t, relaxed, alwaysReady, nil, map[string]http.HandlerFunc{"/": func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no", http.StatusTeapot)
	}})
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(r.work, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n")
	all, _ := io.ReadAll(c)
	if !strings.HasPrefix(string(all), "HTTP/1.1 418 ") || strings.Contains(string(all), "100 Continue") {
		t.Errorf("got %q", all)
	}
}

// A read deadline left behind after the body would, some time later, look like a
// client that has gone and cancel what is being done for it.
func TestAHandlerMayTakeLongerThanABodyMayStall(t *testing.T) {
	settings := relaxed
	settings.StallTimeout = 50 * time.Millisecond
	r := start(t, settings, alwaysReady, nil, map[string]http.HandlerFunc{"/": func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		select {
		case <-r.Context().Done():
			w.WriteHeader(http.StatusTeapot)
		case <-time.After(300 * time.Millisecond):
		}
	}})
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, r.work, strings.NewReader("body"))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Error("the request was cancelled while its client was waiting")
	}
}

func TestMetricsAreCleanAndStrangersMakeNoLabels(t *testing.T) {
	r := start(t, relaxed, alwaysReady, nil, map[string]http.HandlerFunc{"/": func(http.ResponseWriter, *http.Request) {}})
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(r.work, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "BREW /pot HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	want := `
# HELP cats_test_http_requests_total Requests answered.
# TYPE cats_test_http_requests_total counter
cats_test_http_requests_total{code="200",method="other",route="/"} 1
`
	eventually(t, "the request's metric", func() bool {
		return testutil.GatherAndCompare(r.reg, strings.NewReader(want), "cats_test_http_requests_total") == nil
	})
	problems, err := testutil.GatherAndLint(r.reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("promlint: %s: %s", p.Metric, p.Text)
	}
	if code, body := get(t, r.ops+"/metrics"); code != 200 || !strings.Contains(body, "cats_test_build_info{") || !strings.Contains(body, "process_resident_memory_bytes") {
		t.Errorf("/metrics: %d, without what is expected", code)
	}
}
