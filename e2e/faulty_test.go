package e2e

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// faulty is a server in front of to that answers as told, where it is told something.
func faulty(t *testing.T, to string, fault func(w http.ResponseWriter, r *http.Request, healthy http.Handler)) string {
	t.Helper()
	target, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite:      func(r *httputil.ProxyRequest) { r.SetURL(target) },
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }, // whoever asked has gone
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fault(w, r, proxy) }))
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return server.URL
}

// abort ends the connection without an answer.
func abort(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) }

// lost has it done, and ends the connection without an answer.
func lost(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
	healthy.ServeHTTP(httptest.NewRecorder(), r)
	abort(w, r, nil)
}

// gate is a way to a system, on which faults can be set.
type gate struct {
	url string

	mu    sync.Mutex
	fault func(w http.ResponseWriter, r *http.Request, healthy http.Handler)
}

func newGate(t *testing.T, to string) *gate {
	t.Helper()
	v := &gate{}
	v.url = faulty(t, to, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		v.mu.Lock()
		f := v.fault
		v.mu.Unlock()
		if f == nil {
			healthy.ServeHTTP(w, r)
			return
		}
		f(w, r, healthy)
	})
	return v
}

// set has f answer the requests for pictures with a method, "" for all; nil lets them
// all go on.
func (v *gate) set(method string, f fault) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.fault = nil
	if f != nil {
		v.fault = func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
			if (method == "" || r.Method == method) && strings.HasPrefix(r.URL.Path, "/cat/") {
				f(w, r, healthy)
				return
			}
			healthy.ServeHTTP(w, r)
		}
	}
}

// hold keeps the answers to requests with a method until goOn is called. asked is
// closed when the first is there, which has been done by then.
func (v *gate) hold(t *testing.T, method string) (asked <-chan struct{}, goOn func()) {
	t.Helper()
	first, opened := make(chan struct{}), make(chan struct{})
	var once sync.Once
	goOn = sync.OnceFunc(func() { close(opened) })
	t.Cleanup(goOn)
	v.set(method, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		healthy.ServeHTTP(&pendingAnswer{ResponseWriter: w, hold: func() { once.Do(func() { close(first) }); <-opened }}, r)
	})
	return first, goOn
}

// pendingAnswer holds an answer before it is given.
type pendingAnswer struct {
	http.ResponseWriter
	hold func()
}

func (l *pendingAnswer) WriteHeader(status int) { l.hold(); l.ResponseWriter.WriteHeader(status) }

func (l *pendingAnswer) Unwrap() http.ResponseWriter { return l.ResponseWriter }

// inTurn injects faults into the first requests, one each. It counts the requests in asked, without those that spared selects.
func inTurn(asked *atomic.Int64, faults []fault, spared func(*http.Request) bool) fault {
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
