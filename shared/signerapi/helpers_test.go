package signerapi

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"cats.example/shared/apierror"
)

var davyd, _ = ParseUser("Davyd")

func newClient(t testing.TB, base string) *Client {
	t.Helper()
	c, err := NewClient(base, ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.transport.(*transport).kept.CloseIdleConnections)
	return c
}

// dialWith returns a client that opens connections with dial.
func dialWith(t *testing.T, dial dialer) *Client {
	t.Helper()
	c := newClient(t, "http://signer.test:1")
	transport := c.transport.(*transport)
	transport.kept.DialContext, transport.fresh.DialContext = dial, dial
	return c
}

// player is the signer's side of a connection.
type player func(net.Conn, *bufio.Reader)

// peer returns a client whose connections are pipes to play.
func peer(t *testing.T, play player) *Client {
	t.Helper()
	return dialWith(t, dialer(func(context.Context, string, string) (net.Conn, error) {
		client, signer := net.Pipe()
		go func() {
			defer signer.Close()
			play(signer, bufio.NewReader(signer))
		}()
		return client, nil
	}).dial)
}

const goOn = "HTTP/1.1 100 Continue\r\n\r\n"

// receive reads a request with at most n bytes of its body, which it requests with 100 Continue.
func receive(conn net.Conn, in *bufio.Reader, n int64) (*http.Request, error) {
	req, err := http.ReadRequest(in)
	if err != nil {
		return nil, err
	}
	if req.Header.Get("Expect") != "" {
		_, _ = io.WriteString(conn, goOn)
	}
	_, err = io.Copy(io.Discard, io.LimitReader(req.Body, n))
	return req, err
}

// respond returns a signer that reads one request and writes response.
func respond(response string) player {
	return func(conn net.Conn, in *bufio.Reader) {
		if _, err := receive(conn, in, 1<<40); err == nil {
			_, _ = io.WriteString(conn, response)
		}
	}
}

// healthy is a signer that answers all requests with a success.
func healthy(conn net.Conn, in *bufio.Reader) {
	for answerOne(conn, in) == nil {
	}
}

func answerOne(conn net.Conn, in *bufio.Reader) error {
	req, err := receive(conn, in, 1<<40)
	if err != nil {
		return err
	}
	success := response(http.StatusOK, "{}")
	if req.Method == http.MethodDelete || req.URL.Path == readyPath {
		success = response(http.StatusNoContent, "")
	}
	_, err = io.WriteString(conn, success)
	return err
}

func response(status int, body string) string {
	return fmt.Sprintf("HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s", status, len(body), body)
}

type kind string

const (
	read  kind = "read"  // changes nothing
	put   kind = "put"   // has a body
	fresh kind = "fresh" // is never sent twice
)

// contractCall is a call of the contract.
type contractCall struct {
	kind   kind
	suffix string                                                 // of the detail if the outcome is unknown
	do     func(ctx context.Context, c *Client, size int64) error // size is the length of the body of a Put
}

var everyCall = map[string]contractCall{
	"Link": {read, "", func(ctx context.Context, c *Client, _ int64) error {
		return second(c.Link(ctx, davyd, LinkOptions{}))
	}},
	"About":       {read, "", func(ctx context.Context, c *Client, _ int64) error { return second(c.About(ctx)) }},
	"Ready":       {read, "", func(ctx context.Context, c *Client, _ int64) error { return c.Ready(ctx) }},
	"StartUpload": {read, "", func(ctx context.Context, c *Client, _ int64) error { return second(c.StartUpload(ctx, davyd, 7)) }},
	"Put": {put, apierror.MayBeStored, func(ctx context.Context, c *Client, size int64) error {
		return second(c.Put(ctx, davyd, io.LimitReader(zeros{}, size), PutOptions{Size: size}))
	}},
	"Put of unknown size": {put, apierror.MayBeStored, func(ctx context.Context, c *Client, size int64) error {
		return second(c.Put(ctx, davyd, io.LimitReader(zeros{}, size), PutOptions{Size: -1}))
	}},
	"Delete": {fresh, apierror.MayBeDeleted, func(ctx context.Context, c *Client, _ int64) error {
		return c.Delete(ctx, davyd, Preconditions{})
	}},
	"CommitUpload": {fresh, apierror.MayBeStored, func(ctx context.Context, c *Client, _ int64) error {
		return second(c.CommitUpload(ctx, davyd, "1-1-A", CommitOptions{}))
	}},
}

func second[T any](_ T, err error) error { return err }

// zeros is an endless body.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

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
