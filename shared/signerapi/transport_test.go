package signerapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// linking is a signer that links everybody, over a server that counts connections.
func linking(t *testing.T) (c *Client, srv *httptest.Server, opened *atomic.Int64) {
	t.Helper()
	opened = new(atomic.Int64)
	srv = httptest.NewUnstartedServer(NewHandler(stub{link: func(u User, _ LinkOptions) (Link, error) {
		return Link{URL: SignedURL("https://a/" + u.String())}, nil
	}}, ignore))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			opened.Add(1)
		}
	}
	srv.Start()
	t.Cleanup(srv.Close)
	return clientOf(t, srv.URL), srv, opened
}

func mustLink(t *testing.T, c *Client, name string) {
	t.Helper()
	link, err := c.Link(t.Context(), user(t, name), LinkOptions{})
	if err != nil || string(link.URL) != "https://a/"+name {
		t.Fatalf("Link(%q) = %s, %v", name, string(link.URL), err)
	}
}

func TestGetsShareConnectionsAndNeverAnswers(t *testing.T) {
	c, _, opened := linking(t)
	const at, each = 16, 200
	var group sync.WaitGroup
	for i := range at {
		group.Go(func() {
			for k := range each {
				mustLink(t, c, fmt.Sprint("cat-", i, "-", k))
			}
		})
	}
	group.Wait()
	if n := opened.Load(); n > at {
		t.Errorf("%d connections for %d calls at once", n, at)
	}
}

func TestAConnectionThatTheSignerClosedFailsNoGet(t *testing.T) {
	c, srv, opened := linking(t)
	mustLink(t, c, "one")
	srv.CloseClientConnections()
	mustLink(t, c, "two")
	if n := opened.Load(); n != 2 {
		t.Errorf("%d connections; want 2", n)
	}
}

// raw answers the first request of each connection with the next of answers, waits
// for what else comes, and counts connections.
func raw(t *testing.T, answers ...string) (c *Client, opened *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // nothing to wait for
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	opened = new(atomic.Int64)
	go func() {
		for _, answer := range answers {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			opened.Add(1)
			go func() {
				defer conn.Close()
				if _, err := conn.Read(make([]byte, 4096)); err != nil {
					return
				}
				if _, err := io.WriteString(conn, answer); err != nil || strings.HasSuffix(answer, "…") {
					return
				}
				_, _ = io.Copy(io.Discard, conn)
			}()
		}
	}()
	return clientOf(t, "http://"+l.Addr().String()), opened
}

const (
	answerOne = "HTTP/1.1 200 OK\r\nContent-Length: 23\r\n\r\n" + `{"url":"https://a/one"}`
	answerTwo = "HTTP/1.1 200 OK\r\nContent-Length: 23\r\n\r\n" + `{"url":"https://a/two"}`
)

func TestAnswersOutsideTheContractAreNoLink(t *testing.T) {
	for name, answer := range map[string]string{
		"that break off":             "HTTP/1.1 200 OK\r\nContent-Length: 23\r\n\r\n{…",
		"that break off in a header": "HTTP/1.1 200 OK\r\nContent-…",
		"without a length":           "HTTP/1.1 200 OK\r\n\r\n" + `{"url":"https://a/one"}` + "…",
		"in chunks":                  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n17\r\n" + `{"url":"https://a/one"}` + "\r\n0\r\n\r\n",
		"that are too long":          "HTTP/1.1 200 OK\r\nContent-Length: 65537\r\n\r\n",
		"with an endless header":     "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20),
		"before the answer":          "HTTP/1.1 102 Processing\r\n\r\n" + answerOne,
		"with more behind":           answerOne + answerTwo,
		"that are no HTTP":           "hello\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c, opened := raw(t, answer, answerTwo)
			if link, err := c.Link(t.Context(), user(t, "one"), LinkOptions{}); !errors.Is(err, ErrSignerUnavailable) {
				t.Errorf("Link = %s, %v; want ErrSignerUnavailable", string(link.URL), err)
			}
			if n := opened.Load(); n != 1 {
				t.Errorf("it was asked %d times", n)
			}
			mustLink(t, c, "two") // over another connection
		})
	}
}

func TestAGetThatIsGivenUpEndsAtOnce(t *testing.T) {
	c, _ := raw(t, "", answerTwo)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	began := time.Now()
	if _, err := c.Link(ctx, user(t, "one"), LinkOptions{}); !errors.Is(err, ErrIncomplete) {
		t.Errorf("Link returned %v; want ErrIncomplete", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("that took %v", took)
	}
	mustLink(t, c, "two")
}

func TestAGetHasALimit(t *testing.T) {
	c, _ := raw(t, "")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Link(ctx, user(t, "one"), LinkOptions{}); !errors.Is(err, ErrSignerUnavailable) {
		t.Errorf("Link returned %v; want ErrSignerUnavailable", err)
	}
}

func TestIdleConnectionsAreFewAndNotOld(t *testing.T) {
	var pool transport
	closed := 0
	idle := func() *conn { return &conn{Conn: closing{closed: &closed}} }
	for range maxIdle + 3 {
		pool.keep(idle())
	}
	if len(pool.idle) != maxIdle || closed != 3 {
		t.Errorf("%d are kept and %d closed; want %d and 3", len(pool.idle), closed, maxIdle)
	}
	for _, c := range pool.idle {
		c.kept = c.kept.Add(-2 * idleTimeout)
	}
	pool.keep(idle())
	if len(pool.idle) != 1 || closed != 3+maxIdle {
		t.Errorf("%d are kept and %d closed; want 1 and all others", len(pool.idle), closed)
	}
}

type closing struct {
	net.Conn
	closed *int
}

func (c closing) Close() error { *c.closed++; return nil }
