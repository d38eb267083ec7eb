package service

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// logBuffer is a log that the test reads while the service writes it.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// lines returns the log's lines with the message msg.
func (l *logBuffer) lines(t *testing.T, msg string) []map[string]any {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []map[string]any
	for line := range strings.Lines(l.b.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("not a line of JSON: %q", line)
		}
		if m["msg"] == msg {
			found = append(found, m)
		}
	}
	return found
}

// running is a service under test.
type running struct {
	work, ops string // base URLs
	log       *logBuffer
	reg       *prometheus.Registry
	stop      context.CancelFunc
	done      chan error
}

// start runs a service whose routes are those of handlers, until the test ends.
func start(t *testing.T, settings Settings, ready func(context.Context) error, background func(context.Context) error, handlers map[string]http.HandlerFunc) *running {
	t.Helper()
	r := &running{log: &logBuffer{}, reg: NewRegistry("test"), done: make(chan error, 1)}
	log := NewLogger(r.log, slog.LevelDebug, "test")
	requests := NewRequests("test", r.reg, log, settings.StallTimeout, func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "sorry", http.StatusInternalServerError)
	})
	mux := http.NewServeMux()
	for path, h := range handlers {
		mux.Handle(path, requests.Route(path, h))
	}
	ctx, cancel := context.WithCancel(t.Context())
	r.stop = cancel
	go func() {
		r.done <- Service{
			Settings: settings, Log: log, Registry: r.reg, Name: "work", Address: "127.0.0.1:0", Handler: mux,
			OpsAddress: "127.0.0.1:0", Ready: ready, Background: background,
		}.Run(ctx)
	}()
	eventually(t, "both listeners", func() bool { return len(r.log.lines(t, "listening")) == 2 })
	for _, l := range r.log.lines(t, "listening") {
		if l["listener"] == "work" {
			r.work = fmt.Sprintf("http://%v", l["address"])
		} else {
			r.ops = fmt.Sprintf("http://%v", l["address"])
		}
	}
	return r
}

func (r *running) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-r.done:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("the service did not stop")
		return nil
	}
}

var relaxed = Settings{StallTimeout: time.Minute, DrainTimeout: 5 * time.Second}

func alwaysReady(context.Context) error { return nil }

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting for %s", what)
		}
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestReadyFollowsReadyAndLiveDoesNot(t *testing.T) {
	fault := errors.New("no key yet")
	var mu sync.Mutex
	r := start(t, relaxed, func(context.Context) error { mu.Lock(); defer mu.Unlock(); return fault }, nil, nil)
	if code, body := get(t, r.ops+"/readyz"); code != 503 || !strings.Contains(body, "no key yet") {
		t.Errorf("not ready: %d %q", code, body)
	}
	if code, _ := get(t, r.ops+"/livez"); code != 200 {
		t.Errorf("live: %d", code)
	}
	mu.Lock()
	fault = nil
	mu.Unlock()
	if code, _ := get(t, r.ops+"/readyz"); code != 200 {
		t.Errorf("ready: %d", code)
	}
}

func TestStopDrainsWhatIsUnderWayAndLetsNothingNewIn(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	background := make(chan struct{})
	settings := relaxed
	settings.DrainDelay = 50 * time.Millisecond
	r := start(t, settings, alwaysReady, func(ctx context.Context) error {
		<-ctx.Done()
		close(background)
		return nil
	}, map[string]http.HandlerFunc{"/slow": func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-release
		_, _ = io.WriteString(w, "done")
	}})
	answer := make(chan string, 1)
	go func() {
		_, body := get(t, r.work+"/slow")
		answer <- body
	}()
	<-entered
	r.stop()
	eventually(t, "not ready", func() bool { code, _ := get(t, r.ops+"/readyz"); return code == 503 })
	eventually(t, "a closed listener", func() bool {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(r.work, "http://"))
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	select {
	case <-background:
		t.Error("background work ended before the last request")
	default:
	}
	close(release)
	if got := <-answer; got != "done" {
		t.Errorf("the request under way got %q", got)
	}
	if err := r.wait(t); err != nil {
		t.Errorf("Run returned %v; want nil", err)
	}
	<-background
}

func TestARequestThatOutlastsTheDrainIsCutAndTold(t *testing.T) {
	entered := make(chan struct{})
	settings := relaxed
	settings.DrainTimeout = 30 * time.Millisecond
	r := start(t, settings, alwaysReady, nil, map[string]http.HandlerFunc{"/": func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
	}})
	go func() {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, r.work, nil)
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
		}
	}()
	<-entered
	r.stop()
	if err := r.wait(t); err == nil || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("Run returned %v", err)
	}
}

func TestABackgroundErrorStopsTheService(t *testing.T) {
	broken := errors.New("no container")
	r := start(t, relaxed, alwaysReady, func(context.Context) error { return broken }, nil)
	if err := r.wait(t); !errors.Is(err, broken) {
		t.Errorf("Run returned %v", err)
	}
}

func TestATakenAddressIsOneClearError(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = Service{Log: slog.New(slog.DiscardHandler), Name: "public", Address: l.Addr().String()}.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "public") || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("got %v", err)
	}
}

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
		Note(r.Context(), errors.New("why"))
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
		"request_id": "abc-1", "trace_id": trace[3:35], "route": "/{x}", "method": "GET", "status": 200.0, "error": "why", "service": "test", "level": "INFO",
	} {
		if line[key] != want {
			t.Errorf("%s is %v; want %v", key, line[key], want)
		}
	}
	if strings.Contains(r.log.b.String(), "secret") {
		t.Error("the query string is in the log")
	}
}

func TestPropagatePassesIDAndTraceOn(t *testing.T) {
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	next := make(chan http.Header, 1)
	inner := start(t, relaxed, alwaysReady, nil, map[string]http.HandlerFunc{"/": func(_ http.ResponseWriter, r *http.Request) { next <- r.Header }})
	client := &http.Client{Transport: Propagate(http.DefaultTransport)}
	outer := start(t, relaxed, alwaysReady, nil, map[string]http.HandlerFunc{"/": func(_ http.ResponseWriter, r *http.Request) {
		req, _ := http.NewRequestWithContext(r.Context(), http.MethodGet, inner.work, nil)
		if resp, err := client.Do(req); err == nil {
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
		"a slow body of a known length":    {"Content-Length: 10\r\n\r\n", 10, 200},
		"a slow body in one long chunk":    {"Transfer-Encoding: chunked\r\n\r\na\r\n", 10, 200},
		"a stalled body of a known length": {"Content-Length: 100\r\n\r\n", 1, 408},
		"a stalled body in one long chunk": {"Transfer-Encoding: chunked\r\n\r\n64\r\n", 1, 408},
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
				_, _ = io.WriteString(conn, "x")
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
	// The connection is as good as new.
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if resp, err = http.ReadResponse(in, nil); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
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
