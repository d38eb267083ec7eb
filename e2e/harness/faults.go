package harness

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cats.example/local/stack"
)

// ParseFaults parses faults that are separated by "then"; "none" is no fault.
func ParseFaults(t *testing.T, text string) (faults []Fault) {
	t.Helper()
	for each := range strings.SplitSeq(text, " then ") {
		if each != "none" {
			faults = append(faults, ParseFault(t, each))
		}
	}
	return faults
}

// ParseFault parses a fault: drop, abort, cutoff, respond STATUS BODY, or problem STATUS CODE OUTCOME, with the outcome as
// JSON. Behind "done", it carries out the request first; behind "wait SECONDS", it adds Retry-After.
func ParseFault(t *testing.T, text string) Fault {
	t.Helper()
	word, rest, _ := strings.Cut(text, " ")
	next, more, _ := strings.Cut(rest, " ")
	status, _ := strconv.Atoi(next)
	switch word {
	case "drop":
		return Done(Abort)
	case "abort":
		return Abort
	case "cutoff":
		return CutOff
	case "respond":
		return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.WriteHeader(status)
			_, _ = io.WriteString(w, more)
		}
	case "problem":
		code, outcome, found := strings.Cut(more, " ")
		if found {
			outcome = `,"outcome":` + outcome
		}
		return ParseFault(t, fmt.Sprintf(`respond %d {"title":"x","status":%d,"detail":"why","code":%q%s}`, status, status, code, outcome))
	case "wait":
		f := ParseFault(t, more)
		return func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
			w.Header().Set("Retry-After", next)
			f(w, r, healthy)
		}
	case "done":
		return Done(ParseFault(t, rest))
	}
	t.Fatalf("unknown fault %q", text)
	return nil
}

// CutOff closes the connection in the middle of the response.
func CutOff(w http.ResponseWriter, r *http.Request, _ http.Handler) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Length", "100")
	_, _ = io.WriteString(w, `{"etag":`)
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// Fault responds in place of a server that works, which is healthy.
type Fault func(w http.ResponseWriter, r *http.Request, healthy http.Handler)

// StorageProxy is a fault proxy in front of the stack's storage account. It injects faults for the blobs of one user, so that
// tests can share a system, or for everything else.
type StorageProxy struct {
	URL, Address string

	Healthy http.Handler
	server  *http.Server

	mu     sync.Mutex
	faults map[string]Fault // by user, "" for what is about no blob, others for what has no fault of its own
}

const others = "/"

// NewStorageProxy starts a proxy without faults for the duration of the test.
func NewStorageProxy(t *testing.T) *StorageProxy {
	t.Helper()
	st := Stack(t)
	a := &StorageProxy{faults: map[string]Fault{}, Healthy: forward(t, st.Storage.URL, st.Client().Transport)}
	a.Up(t, "127.0.0.1:0")
	t.Cleanup(a.Down)
	return a
}

// forward returns a proxy to the URL to. If there is no response, it closes the connection.
func forward(t *testing.T, to string, transport http.RoundTripper) http.Handler {
	t.Helper()
	target, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host
		},
		Transport:    transport,
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		ErrorLog:     slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
}

// Up listens at address.
func (a *StorageProxy) Up(t *testing.T, address string) {
	t.Helper()
	l, err := tls.Listen("tcp", address, &tls.Config{Certificates: []tls.Certificate{Stack(t).CA.Leaf}, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	a.Address = l.Addr().String()
	a.URL = fmt.Sprintf("https://%s.blob.localhost:%d", stack.Account, l.Addr().(*net.TCPAddr).Port)
	a.server = &http.Server{
		Handler: a, ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		ConnState: func(c net.Conn, state http.ConnState) {
			// By default, the kernel can hold a whole picture that a fault does not read.
			if secure, ok := c.(*tls.Conn); ok && state == http.StateNew {
				_ = secure.NetConn().(*net.TCPConn).SetReadBuffer(256 << 10)
			}
		},
	}
	go func() { _ = a.server.Serve(l) }() // until it is closed
}

// Down closes the port and all connections.
func (a *StorageProxy) Down() { _ = a.server.Close() }

// Set injects f into requests for the blobs of user; nil removes the fault.
func (a *StorageProxy) Set(user string, f Fault) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.faults[user] = f
}

// SetAll injects f into requests without a fault of their own; nil removes it.
func (a *StorageProxy) SetAll(f Fault) { a.Set(others, f) }

func (a *StorageProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user := ""
	if segments := strings.Split(r.URL.Path, "/"); len(segments) == 4 { // "", container, user, blob
		user = segments[2]
	}
	a.mu.Lock()
	f := a.faults[user]
	if f == nil {
		f = a.faults[others]
	}
	a.mu.Unlock()
	orHealthy(f)(w, r, a.Healthy)
}

// orHealthy returns f, or a fault that does not inject anything if f is nil.
func orHealthy(f Fault) Fault {
	if f == nil {
		return func(w http.ResponseWriter, r *http.Request, healthy http.Handler) { healthy.ServeHTTP(w, r) }
	}
	return f
}

// Reject responds with an error in the format of Blob Storage.
func Reject(status int, code string, header ...string) Fault {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("X-Ms-Error-Code", code)
		w.Header().Set("X-Ms-Request-Id", "the-request-id")
		w.Header().Set("Content-Type", "application/xml")
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		fmt.Fprintf(w, `<?xml version="1.0" encoding="utf-8"?><Error><Code>%s</Code><Message>Refused.</Message></Error>`, code)
	}
}

// Reset resets the connection, in the middle of the request body if there is one.
func Reset(w http.ResponseWriter, r *http.Request, _ http.Handler) {
	_, _ = io.CopyN(io.Discard, r.Body, r.ContentLength/2)
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	if c, ok := conn.(*tls.Conn).NetConn().(*net.TCPConn); ok {
		_ = c.SetLinger(0)
		_ = c.Close()
	}
}

// Done carries out the request and injects then in place of the response.
func Done(then Fault) Fault {
	return withResponse(func(w http.ResponseWriter, r *http.Request, _ *httptest.ResponseRecorder) { then(w, r, nil) })
}

// withResponse carries out the request and calls then with the response.
func withResponse(then func(http.ResponseWriter, *http.Request, *httptest.ResponseRecorder)) Fault {
	return func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		// If a handler panics or hijacks the connection while ReverseProxy still reads the body, as it does after an early response,
		// net/http can wait for the client forever: at the end of the body, connReader.startBackgroundRead clears the deadline with
		// which abortPendingRead has interrupted the read.
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		r.Header.Del("Expect") // the recorder would keep 100 Continue as the response
		recorded := httptest.NewRecorder()
		healthy.ServeHTTP(recorded, r)
		r.Body, r.ContentLength = http.NoBody, 0
		then(w, r, recorded)
	}
}

// replay responds with a recorded response.
func replay(w http.ResponseWriter, recorded *httptest.ResponseRecorder) {
	maps.Copy(w.Header(), recorded.Header())
	w.WriteHeader(recorded.Code)
	_, _ = w.Write(recorded.Body.Bytes())
}

// LoseResponse carries out the request and then resets the connection.
func LoseResponse(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
	Done(Reset)(w, r, healthy)
}

// Once injects f into the first request of each kind (HEAD, a block, …) for each blob.
func Once(f Fault) Fault {
	var seen sync.Map
	return func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		injected := f
		if _, again := seen.LoadOrStore(r.Method+r.URL.Query().Get("comp")+r.URL.Path, true); again {
			injected = orHealthy(nil)
		}
		injected(w, r, healthy)
	}
}

// FaultProxy starts an HTTP proxy in front of the URL to that injects fault, and returns its URL.
func FaultProxy(t *testing.T, to string, fault Fault) string {
	t.Helper()
	proxy := forward(t, to, nil)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fault(w, r, proxy) }))
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return server.URL
}

// Abort closes the connection without a response.
func Abort(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) }

// Gate is a FaultProxy whose fault can change.
type Gate struct {
	URL   string
	fault atomic.Pointer[Fault]
}

// NewGate starts a Gate without a fault in front of the URL to.
func NewGate(t *testing.T, to string) *Gate {
	t.Helper()
	v := &Gate{}
	v.SetAll(nil)
	v.URL = FaultProxy(t, to, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		(*v.fault.Load())(w, r, healthy)
	})
	return v
}

// SetAll injects f into all requests, also into those that are not for pictures; nil removes the fault.
func (v *Gate) SetAll(f Fault) {
	f = orHealthy(f)
	v.fault.Store(&f)
}

// Set injects f into requests for pictures with this method, "" for all; nil removes the fault.
func (v *Gate) Set(method string, f Fault) {
	v.SetAll(func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		injected := orHealthy(f)
		if method != "" && r.Method != method || !strings.HasPrefix(r.URL.Path, "/cat/") {
			injected = orHealthy(nil)
		}
		injected(w, r, healthy)
	})
}

// Hold delays the responses to requests for pictures with this method until goOn is called. asked is closed once the first of
// these requests has been carried out.
func (v *Gate) Hold(t *testing.T, method string) (asked <-chan struct{}, goOn func()) {
	t.Helper()
	first, opened := make(chan struct{}), make(chan struct{})
	var once sync.Once
	goOn = sync.OnceFunc(func() { close(opened) })
	t.Cleanup(goOn)
	v.Set(method, withResponse(func(w http.ResponseWriter, _ *http.Request, recorded *httptest.ResponseRecorder) {
		once.Do(func() { close(first) })
		<-opened
		replay(w, recorded)
	}))
	return first, goOn
}

// InTurn injects faults into the first requests, one each. It counts the requests in asked, without those that spared selects.
func InTurn(asked *atomic.Int64, faults []Fault, spared func(*http.Request) bool) Fault {
	return func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		if !spared(r) {
			if n := int(asked.Add(1)); n <= len(faults) {
				faults[n-1](w, r, healthy)
				return
			}
		}
		healthy.ServeHTTP(w, r)
	}
}

// Changes reports whether storage changes the visible picture when it carries out r.
func Changes(r *http.Request) bool {
	return r.Method == http.MethodDelete || r.Method == http.MethodPut && r.URL.Query().Get("comp") != "block"
}

// CRC64 adds the CRC64 sum to the responses to writes.
func CRC64(sum string) Fault {
	return withResponse(func(w http.ResponseWriter, r *http.Request, recorded *httptest.ResponseRecorder) {
		if Changes(r) {
			recorded.Header().Set("X-Ms-Content-Crc64", sum)
		}
		replay(w, recorded)
	})
}
