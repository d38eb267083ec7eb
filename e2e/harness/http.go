package harness

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"cats.example/local/stack"
)

// Call is a request to the public API.
type Call struct {
	Method, Target string
	Body           []byte
	Header         []string // names and values in turn
}

// With returns the call with more headers.
func (k Call) With(header ...string) Call {
	k.Header = append(slices.Clone(k.Header), header...)
	return k
}

// Request returns the call as a request to sys.
func (k Call) Request(t *testing.T, sys *stack.System) *http.Request {
	t.Helper()
	return request(t, k.Method, sys.URL+k.Target, bytes.NewReader(k.Body), k.Header)
}

func request(t *testing.T, method, url string, body io.Reader, header []string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	req.Host = cmp.Or(req.Header.Get("Host"), req.Host) // net/http ignores it in the header
	return req
}

var internals = regexp.MustCompile("AADSTS|localhost|" + JWTPrefix + "|sig=|/tmp")

// WantProblem fails the test unless the response is a complete problem document with this status and code, and without
// internals.
func (a Response) WantProblem(t *testing.T, status int, code string) {
	t.Helper()
	a.Want(t, status)
	if got := a.Header.Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("Content-Type %q: %s", got, a.Body)
	}
	if a.Field(t, "code") != code || a.Field(t, "status") != float64(status) || a.Field(t, "detail") == "" ||
		a.Field(t, "request_id") != a.Header.Get("X-Request-Id") || a.Header.Get("X-Request-Id") == "" {
		t.Errorf("%s; want a problem document with code %s, and a detail and a request id", a.Body, code)
	}
	if (status == http.StatusServiceUnavailable) != (a.Header.Get("Retry-After") != "") {
		t.Errorf("%d with Retry-After %q", status, a.Header.Get("Retry-After"))
	}
	if secret := internals.Find(a.Body); secret != nil {
		t.Errorf("%q is shown to strangers: %s", secret, a.Body)
	}
}

// Send sends a request with headers, names and values in turn.
func Send(t *testing.T, method, url, body string, header ...string) Response {
	t.Helper()
	return SendWith(t, Client(), method, url, body, header...)
}

// SendWith is Send with another client.
func SendWith(t *testing.T, client *http.Client, method, url, body string, header ...string) Response {
	t.Helper()
	a, err := exchange(client, request(t, method, url, strings.NewReader(body), header))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// SendStream is Send with a body of size bytes, -1 to send it in chunks.
func SendStream(t *testing.T, method, url string, body io.Reader, size int64, header ...string) Response {
	t.Helper()
	req := request(t, method, url, body, header)
	req.ContentLength = size
	a, err := exchange(Client(), req)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func exchange(client *http.Client, req *http.Request) (Response, error) {
	resp, err := client.Do(req)
	if err != nil {
		return Response{Response: &http.Response{}}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return Response{resp, b}, err
}

// Response is a response with its whole body.
type Response struct {
	*http.Response
	Body []byte
}

// Field returns a field of the JSON body, nil if it is absent.
func (a Response) Field(t *testing.T, name string) any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(a.Body, &m); err != nil {
		t.Fatalf("%s %s: %d %q is not JSON: %v", a.Request.Method, a.Request.URL.Path, a.StatusCode, a.Body, err)
	}
	return m[name]
}

// Client returns a client that trusts the stack's CA and follows no redirects.
func Client() *http.Client {
	if Elsewhere != nil {
		return Elsewhere.Client()
	}
	st, err := shared()
	if err != nil {
		panic(err)
	}
	return st.Client()
}

// Try sends a request on a connection of its own, which it closes: the frontend evicts idle connections above two times
// MAX_UPLOADS. body may be nil.
func Try(ctx context.Context, method, url, contentType string, body io.Reader) (Response, error) {
	c := Client()
	defer c.CloseIdleConnections()
	return TryWith(ctx, c, method, url, contentType, body)
}

// TryWith is Try with another client.
func TryWith(ctx context.Context, c *http.Client, method, url, contentType string, body io.Reader) (Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return Response{}, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	return exchange(c, req)
}

// Do is Try, but an error fails the test.
func Do(t *testing.T, method, url, contentType string, body []byte) Response {
	t.Helper()
	a, err := Try(t.Context(), method, url, contentType, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// Want fails the test unless the response has this status.
func (a Response) Want(t *testing.T, status int) Response {
	t.Helper()
	if a.StatusCode != status {
		t.Fatalf("%s %s: %d %s; want %d", a.Request.Method, a.Request.URL.Path, a.StatusCode, a.Body, status)
	}
	return a
}

// Outcome fails the test unless the problem document has this outcome, "" for none.
func (a Response) Outcome(t *testing.T, want string) {
	t.Helper()
	got, has := a.Field(t, "outcome").(string)
	if got != want || has != (want != "") {
		t.Errorf("outcome %q; want %q: %s", got, want, a.Body)
	}
}

// Do sends the call. A failure to get a response fails the test, and the response is then empty.
func (k Call) Do(t *testing.T, sys *stack.System) Response {
	t.Helper()
	a, err := exchange(Client(), k.Request(t, sys))
	if err != nil {
		t.Error(err)
	}
	return a
}
