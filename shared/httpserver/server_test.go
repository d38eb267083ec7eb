package httpserver

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
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"cats.example/shared/apierror"
	"cats.example/shared/ratelimit"
	"cats.example/shared/telemetry"
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

// start runs a service whose routes are those of handlers, until the test ends. Paths
// that begin with /unbounded do not pass through Requests.
func start(t *testing.T, settings Settings, ready func(context.Context) error, background func(context.Context) error, handlers map[string]http.HandlerFunc) *running {
	t.Helper()
	r := &running{log: &logBuffer{}, reg: telemetry.NewRegistry("test"), done: make(chan error, 1)}
	log := telemetry.NewLogger(r.log, slog.LevelDebug, "test")
	pools := ratelimit.NewPools("test", settings.ClientShare, r.reg)
	requests := NewMiddleware(MiddlewareOptions{
		Name: "test", Settings: settings, Log: log, Registry: r.reg, Uploads: pools.New("uploads", settings.MaxUploads),
		WriteError: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, "sorry", apierror.AsError(err).Status)
		},
	})
	mux := http.NewServeMux()
	for path, h := range handlers {
		if strings.HasPrefix(path, "/unbounded") {
			mux.Handle(path, h)
			continue
		}
		mux.Handle(path, requests.Route(path, h))
	}
	ctx, cancel := context.WithCancel(t.Context())
	r.stop = cancel
	go func() {
		r.done <- Server{
			Settings: settings, Log: log, Registry: r.reg, Name: "work", Address: "127.0.0.1:0", Handler: mux,
			OpsAddress: "127.0.0.1:0", Ready: ready, Background: background, Connections: pools.New("connections", 8*settings.MaxUploads), TrustedProxies: testProxies,
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

// testProxies are trusted by every service under test.
var testProxies = []netip.Prefix{netip.MustParsePrefix("127.0.1.0/24")}

var relaxed = Settings{StallTimeout: time.Minute, MinUploadRate: 1, MaxUploads: 16, DrainTimeout: 5 * time.Second}

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

// A request may be on its way in an idle connection when the drain begins.
func TestAnIdleConnectionIsServedOnceMoreInTheDrain(t *testing.T) {
	settings := relaxed
	settings.DrainDelay = time.Minute
	r := start(t, settings, alwaysReady, nil, map[string]http.HandlerFunc{"/": func(http.ResponseWriter, *http.Request) {}})
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(r.work, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answers := bufio.NewReader(conn)
	ask := func() (closes bool, err error) {
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			return false, err
		}
		resp, err := http.ReadResponse(answers, nil)
		if err != nil {
			return false, err
		}
		resp.Body.Close()
		return resp.Close, nil
	}
	if closes, err := ask(); err != nil || closes {
		t.Fatalf("before the drain: closes %v, %v", closes, err)
	}
	r.stop()
	eventually(t, "the drain", func() bool { return len(r.log.lines(t, "draining")) == 1 })
	if closes, err := ask(); err != nil || !closes {
		t.Errorf("in the drain: closes %v, %v; want an answer, and the end", closes, err)
	}
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

func TestNoRequestIsAnsweredPastTheHandler(t *testing.T) {
	r := start(t, relaxed, alwaysReady, nil, nil)
	conn, err := net.Dial("tcp", strings.TrimPrefix(r.work, "http://")) //nolint:noctx // nothing to wait for
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line, "400") {
		t.Errorf("OPTIONS * is answered with %q, %v; want the 400 of the router", line, err)
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
	err = Server{Log: slog.New(slog.DiscardHandler), Name: "public", Address: l.Addr().String()}.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "public") || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("got %v", err)
	}
}
