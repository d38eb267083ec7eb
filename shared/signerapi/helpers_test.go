package signerapi

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"cats.example/shared/apierror"
)

// stub is a Signer of functions. It panics in a call whose function is not set.
type stub struct {
	put    func(context.Context, User, io.Reader, PutOptions) (Info, error)
	link   func(context.Context, User, LinkOptions) (Link, error)
	delete func(context.Context, User, Preconditions) error
	start  func(context.Context, User, int64) (UploadSession, error)
	commit func(context.Context, User, string, CommitOptions) (Info, error)
	about  About
}

func (s stub) Put(ctx context.Context, u User, r io.Reader, o PutOptions) (Info, error) {
	return s.put(ctx, u, r, o)
}

func (s stub) Link(ctx context.Context, u User, o LinkOptions) (Link, error) {
	return s.link(ctx, u, o)
}

func (s stub) Delete(ctx context.Context, u User, c Preconditions) error { return s.delete(ctx, u, c) }

func (s stub) StartUpload(ctx context.Context, u User, size int64) (UploadSession, error) {
	return s.start(ctx, u, size)
}

func (s stub) About(context.Context) (About, error) { return s.about, nil }

func (stub) Ready(context.Context) error { return nil }

func (s stub) CommitUpload(ctx context.Context, u User, id string, o CommitOptions) (Info, error) {
	return s.commit(ctx, u, id, o)
}

// storing returns a stub whose Put is put.
func storing(put func(body io.Reader) error) stub {
	return stub{put: func(_ context.Context, _ User, body io.Reader, _ PutOptions) (Info, error) { return Info{}, put(body) }}
}

// failing returns a stub whose Delete returns err.
func failing(err error) stub {
	return stub{delete: func(context.Context, User, Preconditions) error { return err }}
}

func newClient(t testing.TB, base string) *Client {
	t.Helper()
	c, err := NewClient(base, ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.transport.(*transport).kept.CloseIdleConnections)
	return c
}

// serve returns a client of s over HTTP, and the number of connections so far.
func serve(t *testing.T, s Signer) (c *Client, connections *atomic.Int64) {
	t.Helper()
	connections = new(atomic.Int64)
	srv := httptest.NewUnstartedServer(NewHandler(s, HandlerOptions{Authorize: permit}))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			connections.Add(1)
		}
	}
	srv.Start()
	t.Cleanup(srv.Close)
	return newClient(t, srv.URL), connections
}

// dialWith makes c open connections with dial.
func dialWith(c *Client, dial func(context.Context, string, string) (net.Conn, error)) {
	t := c.transport.(*transport)
	t.kept.DialContext, t.fresh.DialContext = dial, dial
}

// peer returns a client whose signer is play: it gets the signer's side of each connection, which is a pipe.
func peer(t *testing.T, play func(net.Conn, *bufio.Reader)) *Client {
	t.Helper()
	c := newClient(t, "http://signer.test:1")
	dialWith(c, dialer(func(context.Context, string, string) (net.Conn, error) {
		client, signer := net.Pipe()
		go func() {
			defer signer.Close()
			play(signer, bufio.NewReader(signer))
		}()
		return client, nil
	}).dial)
	return c
}

// readRequest reads a request and its whole body, which it requests with 100 Continue.
func readRequest(conn net.Conn, in *bufio.Reader) (*http.Request, error) {
	req, err := http.ReadRequest(in)
	if err == nil {
		err = readBody(conn, req)
	}
	return req, err
}

func readBody(conn net.Conn, req *http.Request) error {
	if req.Header.Get("Expect") != "" {
		_, _ = io.WriteString(conn, goOn)
	}
	_, err := io.Copy(io.Discard, req.Body)
	return err
}

const goOn = "HTTP/1.1 100 Continue\r\n\r\n"

// respond returns a signer that reads one request and writes response.
func respond(response string) func(net.Conn, *bufio.Reader) {
	return func(conn net.Conn, in *bufio.Reader) {
		if _, err := readRequest(conn, in); err == nil {
			_, _ = io.WriteString(conn, response)
		}
	}
}

func response(status int, body string) string {
	return fmt.Sprintf("HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s", status, len(body), body)
}

func mustUser(t testing.TB, name string) User {
	t.Helper()
	u, err := ParseUser(name)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// unknownSize are the options of an upload without a Content-Length.
var unknownSize = PutOptions{Size: -1}

type kind int

const (
	read  kind = iota // changes nothing
	put               // has a body
	fresh             // is never sent twice
)

// everyCall has the calls of the contract. size is the length of the body of a Put.
var everyCall = map[string]struct {
	kind   kind
	suffix string // of the detail if the outcome is unknown
	do     func(ctx context.Context, c *Client, u User, size int64) error
}{
	"Link": {read, "", func(ctx context.Context, c *Client, u User, _ int64) error {
		return second(c.Link(ctx, u, LinkOptions{}))
	}},
	"About":       {read, "", func(ctx context.Context, c *Client, _ User, _ int64) error { return second(c.About(ctx)) }},
	"Ready":       {read, "", func(ctx context.Context, c *Client, _ User, _ int64) error { return c.Ready(ctx) }},
	"StartUpload": {read, "", func(ctx context.Context, c *Client, u User, _ int64) error { return second(c.StartUpload(ctx, u, 7)) }},
	"Put": {put, apierror.MayBeStored, func(ctx context.Context, c *Client, u User, size int64) error {
		return second(c.Put(ctx, u, io.LimitReader(zeros{}, size), PutOptions{Size: size}))
	}},
	"Put of unknown size": {put, apierror.MayBeStored, func(ctx context.Context, c *Client, u User, size int64) error {
		return second(c.Put(ctx, u, io.LimitReader(zeros{}, size), unknownSize))
	}},
	"Delete": {fresh, apierror.MayBeDeleted, func(ctx context.Context, c *Client, u User, _ int64) error {
		return c.Delete(ctx, u, Preconditions{})
	}},
	"CommitUpload": {fresh, apierror.MayBeStored, func(ctx context.Context, c *Client, u User, _ int64) error {
		return second(c.CommitUpload(ctx, u, "1-1-A", CommitOptions{}))
	}},
}

func second[T any](_ T, err error) error { return err }

// zeros is an endless body.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// broken is a body that fails.
type broken struct{ err error }

func (b broken) Read([]byte) (int, error) { return 0, b.err }

// checkError compares the code and the outcome of err, and whether its detail ends with suffix.
func checkError(t *testing.T, err error, code string, outcome apierror.Outcome, suffix string) {
	t.Helper()
	e := apierror.AsError(err)
	if err == nil || e.Code != code || e.Outcome != outcome {
		t.Errorf("got %v with outcome %q; want %s with outcome %q", err, e.Outcome, code, outcome)
	}
	if has := strings.Contains(e.Detail, "may have been"); has != (outcome == apierror.OutcomeUnknown) || has && !strings.HasSuffix(e.Detail, suffix) {
		t.Errorf("outcome %q has the detail %q; want the suffix %q", outcome, e.Detail, suffix)
	}
}
