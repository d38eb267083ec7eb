package e2e

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
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

// largeSize is above what the signer stores in one piece, and makes two blocks.
const largeSize = 6 << 20

// picture returns a picture of n bytes that differs from others in all but its type.
func picture(n int, fill byte) []byte {
	return append(bytes.Clone(cat[:4<<10]), bytes.Repeat([]byte{fill}, n-(4<<10))...)
}

// challenge is what storage adds to a 401.
const challenge = "Bearer authorization_uri=https://login.microsoftonline.com/" + stack.TenantID + "/oauth2/authorize resource_id=https://storage.azure.com"

// fault answers in place of storage; healthy is storage itself.
type fault func(w http.ResponseWriter, r *http.Request, healthy http.Handler)

// account is the stand's storage account behind a proxy that breaks as told: for
// one user's blob, so that many tests can share a system, or for everything else.
type account struct {
	URL, address string

	healthy http.Handler
	server  *http.Server

	mu     sync.Mutex
	faults map[string]fault // by user, "" for what is about no blob
	all    fault            // of what has no fault of its own
}

// newAccount returns an account without faults, closed when the test ends.
func newAccount(t *testing.T) *account {
	t.Helper()
	needStand(t)
	storage, err := url.Parse(st.Storage.URL)
	if err != nil {
		t.Fatal(err)
	}
	a := &account{faults: map[string]fault{}, healthy: &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = storage.Scheme, storage.Host
			r.Out.Host = r.In.Host
		},
		Transport: st.Client().Transport,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			panic(http.ErrAbortHandler) // storage says nothing, so neither do we
		},
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}}
	a.up(t, "127.0.0.1:0")
	t.Cleanup(a.down)
	return a
}

// up listens; down closes the port and cuts every connection.
func (a *account) up(t *testing.T, address string) {
	t.Helper()
	l, err := tls.Listen("tcp", address, &tls.Config{Certificates: []tls.Certificate{st.CA.Leaf}, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	a.address = l.Addr().String()
	a.URL = fmt.Sprintf("https://%s.blob.localhost:%d", stack.Account, l.Addr().(*net.TCPAddr).Port)
	a.server = &http.Server{Handler: a, ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	go func() { _ = a.server.Serve(l) }() // until it is closed
}

func (a *account) down() { _ = a.server.Close() }

// set breaks what is about the blob of user, nil mends it.
func (a *account) set(user string, f fault) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.faults[user] = f
}

// setAll breaks what is not broken by set, nil mends it.
func (a *account) setAll(f fault) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all = f
}

func (a *account) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user := ""
	if segments := strings.Split(r.URL.Path, "/"); len(segments) == 4 { // "", container, user, blob
		user = segments[2]
	}
	a.mu.Lock()
	f := a.faults[user]
	if f == nil {
		f = a.all
	}
	a.mu.Unlock()
	if f == nil {
		a.healthy.ServeHTTP(w, r)
		return
	}
	f(w, r, a.healthy)
}

// refuse is an answer as Blob Storage words it.
func refuse(status int, code string, header ...string) fault {
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

// reset breaks the connection off with a RST, during the body if there is one.
func reset(w http.ResponseWriter, r *http.Request, _ http.Handler) {
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

// loseAnswer has storage do what it is asked, and then resets the connection.
func loseAnswer(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
	healthy.ServeHTTP(httptest.NewRecorder(), r)
	r.ContentLength = 0
	reset(w, r, nil)
}

// slow takes a second over each answer, which on a loaded machine is still well
// within what a try may take.
func slow(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
	select {
	case <-time.After(time.Second):
		healthy.ServeHTTP(w, r)
	case <-r.Context().Done():
	}
}

// late has storage do what it is asked at once, and answers when the try that
// asked is over.
func late(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
	if r.Method == http.MethodHead {
		healthy.ServeHTTP(w, r)
		return
	}
	healthy.ServeHTTP(httptest.NewRecorder(), r)
	select {
	case <-time.After(25 * time.Second):
		w.WriteHeader(http.StatusCreated)
	case <-r.Context().Done():
	}
}

// once lets f have the first request of each kind (HEAD, a block, …) for each
// blob, and storage the others.
func once(f fault) fault {
	var seen sync.Map
	return func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		if _, again := seen.LoadOrStore(r.Method+r.URL.Query().Get("comp")+r.URL.Path, true); again {
			healthy.ServeHTTP(w, r)
			return
		}
		f(w, r, healthy)
	}
}

// problem checks that an answer is a problem document of the given status and
// code that a client can use and that tells a stranger nothing of our insides.
func (a answer) problem(t *testing.T, status int, code string) {
	t.Helper()
	a.want(t, status)
	if got := a.Header.Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("Content-Type %q: %s", got, a.body)
	}
	if a.field(t, "code") != code || a.field(t, "status") != float64(status) || a.field(t, "detail") == "" ||
		a.field(t, "request_id") != a.Header.Get("X-Request-Id") || a.Header.Get("X-Request-Id") == "" {
		t.Errorf("%s; want a problem document with code %s, and a detail and a request id", a.body, code)
	}
	if (status == http.StatusServiceUnavailable) != (a.Header.Get("Retry-After") != "") {
		t.Errorf("%d with Retry-After %q", status, a.Header.Get("Retry-After"))
	}
	for _, secret := range []string{"AADSTS", "localhost", jwtHeader, "sig=", "/tmp"} {
		if bytes.Contains(a.body, []byte(secret)) {
			t.Errorf("%q is shown to strangers: %s", secret, a.body)
		}
	}
}

// attempt sends a GET, a small PUT and a large one for user, at the same time, and
// returns the answers.
func attempt(t *testing.T, sys *stack.System, user string, small, large []byte) (got [3]answer) {
	t.Helper()
	var wg sync.WaitGroup
	for i, body := range [][]byte{nil, small, large} {
		wg.Go(func() {
			method := http.MethodPut
			if body == nil {
				method = http.MethodGet
			}
			a, err := try(t.Context(), method, sys.URL+"/cat/"+user, "", bytes.NewReader(body))
			if err != nil {
				t.Error(err)
			}
			got[i] = a
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return got
}

func TestAFailureOfStorageIsToldAndChangesNoPicture(t *testing.T) {
	t.Parallel()
	storage := newAccount(t)
	sys := start(t, stack.SystemOptions{StorageURL: storage.URL})
	pids := [2]int{sys.Frontend.Pid(), sys.Signer.Pid()}
	small, large := picture(100<<10, 's'), picture(largeSize, 'l')

	t.Run("faults", func(t *testing.T) {
		for _, c := range []struct {
			name       string
			fault      fault
			status     int
			code       string
			retryAfter string // exactly; "" for any
			tries      int64  // at most, of the GET, the small PUT, the two blocks and a look at what became of it; 0 for any
			says       string // in the signer's log
		}{
			{"resets", reset, 503, "storage_unavailable", "5", 0, "connection reset"},
			{"container-is-gone", refuse(404, "ContainerNotFound"), 500, "internal", "", 4, "create the container"},
			{"answers-are-no-azure", refuse(404, ""), 500, "internal", "", 4, "404"},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				put(t, sys, c.name, cat)
				var tries atomic.Int64
				storage.set(c.name, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
					tries.Add(1)
					c.fault(w, r, healthy)
				})
				mark, began := sys.Signer.Log.Mark(), time.Now()
				for _, a := range attempt(t, sys, c.name, small, large) {
					a.problem(t, c.status, c.code)
					if c.retryAfter != "" && a.Header.Get("Retry-After") != c.retryAfter {
						t.Errorf("Retry-After is %s, want %s", a.Header.Get("Retry-After"), c.retryAfter)
					}
					if bytes.Contains(a.body, []byte("Cat not found")) {
						t.Errorf("a failure is told as a missing picture: %s", a.body)
					}
				}
				if took := time.Since(began); took > 15*time.Second {
					t.Errorf("it took %v to say so", took)
				}
				if n := tries.Load(); c.tries != 0 && (n < c.tries*3/5 || n > c.tries) {
					t.Errorf("storage was asked %d times, want at most %d", n, c.tries)
				}
				logged(t, sys.Signer.Log, mark, c.says)
				storage.set(c.name, nil)
				if !bytes.Equal(served(t, sys, c.name), cat) {
					t.Error("the picture has changed")
				}
				put(t, sys, c.name, large)
				if !bytes.Equal(served(t, sys, c.name), large) {
					t.Error("after the failure, what is served is not what was stored")
				}
			})
		}
	})
	if now := [2]int{sys.Frontend.Pid(), sys.Signer.Pid()}; now != pids {
		t.Errorf("processes were restarted: %v, then %v", pids, now)
	}
	keepsSecrets(t, sys)
}

func TestAPassingFailureOfStorageIsNotSeenByClients(t *testing.T) {
	t.Parallel()
	storage := newAccount(t)
	sys := start(t, stack.SystemOptions{StorageURL: storage.URL})
	for name, f := range map[string]fault{
		"slow":        slow,
		"throttled":   once(refuse(503, "ServerBusy", "Retry-After", "1")),
		"broken":      once(refuse(500, "InternalError")),
		"timeout":     once(refuse(408, "OperationTimedOut")),
		"reset":       once(reset),
		"answer-lost": once(loseAnswer),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// The signer buffers both, so that it can send them again.
			for i, content := range [][]byte{picture(50<<10, 's'), picture(1<<20, 'f')} {
				user := name + strconv.Itoa(i)
				var faults atomic.Int64
				storage.set(user, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
					faults.Add(1)
					f(w, r, healthy)
				})
				var body io.Reader = bytes.NewReader(content)
				if i > 0 {
					body = io.MultiReader(body) // without a length
				}
				a, err := try(t.Context(), http.MethodPut, sys.URL+"/cat/"+user, "", body)
				if err != nil {
					t.Fatal(err)
				}
				a.want(t, http.StatusOK)
				if !bytes.Equal(served(t, sys, user), content) {
					t.Error("another picture is served than was stored")
				}
				if faults.Load() == 0 {
					t.Error("no fault happened")
				}
			}
		})
	}
}

func TestTheSignerHasALimitOfItsOwn(t *testing.T) {
	t.Parallel()
	sys := startDiffering(t, stack.SystemOptions{SignerEnv: map[string]string{"MAX_PICTURE_SIZE": "5MiB"}})
	put(t, sys, "u", cat)
	a, err := try(t.Context(), http.MethodPut, sys.URL+"/cat/u", "", io.MultiReader(bytes.NewReader(picture(largeSize, 'l')))) // of no known length
	if err != nil {
		t.Fatal(err)
	}
	a.problem(t, http.StatusRequestEntityTooLarge, "too_large")
	if !bytes.Equal(served(t, sys, "u"), cat) {
		t.Error("the picture has changed")
	}
}

func TestATokenThatStorageRefusesIsReplaced(t *testing.T) {
	t.Parallel()
	storage := newAccount(t)
	sys := start(t, stack.SystemOptions{StorageURL: storage.URL})
	put(t, sys, "u", cat)
	var revoked atomic.Value
	refused := refuse(401, "InvalidAuthenticationInfo", "WWW-Authenticate", challenge)
	storage.set("u", func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		token := r.Header.Get("Authorization")
		revoked.CompareAndSwap(nil, token)
		if token == revoked.Load() {
			refused(w, r, healthy)
			return
		}
		healthy.ServeHTTP(w, r)
	})
	do(t, http.MethodGet, sys.URL+"/cat/u", "", nil).problem(t, http.StatusBadGateway, "identity_unavailable")
	eventually(t, func() error {
		a := do(t, http.MethodGet, sys.URL+"/cat/u", "", nil)
		if a.StatusCode != http.StatusOK {
			return fmt.Errorf("still %d %s", a.StatusCode, a.body)
		}
		return nil
	})
	if got := sys.Issuer.Issued(); got != 2 {
		t.Errorf("%d tokens were exchanged, want the first and one more", got)
	}
}
