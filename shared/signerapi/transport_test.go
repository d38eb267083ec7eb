package signerapi

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cats.example/shared/apierror"
)

// counted is [across], over a server that counts connections.
func counted(t *testing.T, s Signer) (c *Client, srv *httptest.Server, opened *atomic.Int64) {
	t.Helper()
	opened = new(atomic.Int64)
	srv = httptest.NewUnstartedServer(served(s))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			opened.Add(1)
		}
	}
	srv.Start()
	t.Cleanup(srv.Close)
	return clientOf(t, srv.URL), srv, opened
}

// linking is a signer that links everybody.
func linking(t *testing.T) (c *Client, srv *httptest.Server, opened *atomic.Int64) {
	t.Helper()
	return counted(t, stub{link: func(u User, _ LinkOptions) (Link, error) {
		return Link{URL: SignedURL("https://a/" + u.String())}, nil
	}})
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
	// net/http dials for each call without an idle connection, even if the call then gets one that became idle.
	if n := opened.Load(); n > at*each/10 {
		t.Errorf("%d connections for %d calls", n, at*each)
	}
}

func TestOtherCallsPassLinksThatWait(t *testing.T) {
	var begun atomic.Int64
	answer := make(chan struct{})
	c := across(t, stub{link: func(User, LinkOptions) (Link, error) {
		begun.Add(1)
		<-answer
		return Link{URL: "https://a/tom"}, nil
	}})
	var links sync.WaitGroup
	for range maxTurns {
		links.Go(func() { mustLink(t, c, "tom") })
	}
	for begun.Load() < maxTurns {
		runtime.Gosched()
	}
	if _, err := c.Link(t.Context(), user(t, "tom"), LinkOptions{}); !errors.Is(err, apierror.ErrOverloaded) {
		t.Errorf("one more link: %v; want apierror.ErrOverloaded", err)
	}
	left, leave := context.WithCancel(t.Context())
	leave()
	if _, err := c.Link(left, user(t, "tom"), LinkOptions{}); !errors.Is(err, apierror.ErrIncomplete) {
		t.Errorf("a link for a client that has left: %v; want apierror.ErrIncomplete", err)
	}
	if err := c.Ready(t.Context()); err != nil {
		t.Errorf("Ready: %v", err)
	}
	if n := begun.Load(); n != maxTurns {
		t.Errorf("%d links at once; want %d", n, maxTurns)
	}
	links.Go(func() { mustLink(t, c, "tom") })
	close(answer)
	links.Wait()
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
	answerOne = "HTTP/1.1 200 OK\r\nContent-Length: 31\r\n\r\n" + `{"picture_url":"https://a/one"}`
	answerTwo = "HTTP/1.1 200 OK\r\nContent-Length: 31\r\n\r\n" + `{"picture_url":"https://a/two"}`
)

func TestAnswersOutsideTheContractAreNoLink(t *testing.T) {
	for name, answer := range map[string]string{
		"that break off":             "HTTP/1.1 200 OK\r\nContent-Length: 31\r\n\r\n{…",
		"that break off in a header": "HTTP/1.1 200 OK\r\nContent-…",
		"that break off in chunks":   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1f\r\n" + `{"picture_url":"https://a/one"}` + "\r\n…",
		"with an endless header":     "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20),
		"that are no HTTP":           "hello\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c, opened := raw(t, answer, answerTwo)
			if link, err := c.Link(t.Context(), user(t, "one"), LinkOptions{}); !errors.Is(err, apierror.ErrSignerUnavailable) {
				t.Errorf("Link = %s, %v; want apierror.ErrSignerUnavailable", string(link.URL), err)
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
	if _, err := c.Link(ctx, user(t, "one"), LinkOptions{}); !errors.Is(err, apierror.ErrIncomplete) {
		t.Errorf("Link returned %v; want apierror.ErrIncomplete", err)
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
	if _, err := c.Link(ctx, user(t, "one"), LinkOptions{}); !errors.Is(err, apierror.ErrSignerUnavailable) {
		t.Errorf("Link returned %v; want apierror.ErrSignerUnavailable", err)
	}
}

// storing is a signer that stores by put, and deletes.
func storing(t *testing.T, put func(User, io.Reader, PutOptions) (Info, error)) (c *Client, srv *httptest.Server, opened *atomic.Int64) {
	t.Helper()
	return counted(t, stub{put: put, delete: func(User, Preconditions) error { return nil }})
}

// sized gives at most so many bytes to each Read, as sizes says in turn, and io.EOF
// with the last of them where soon is set.
type sized struct {
	r     *bytes.Reader
	sizes []int
	soon  bool
}

func (s *sized) Read(p []byte) (int, error) {
	n := min(s.sizes[0], len(p))
	s.sizes = append(s.sizes[1:], s.sizes[0])
	n, err := s.r.Read(p[:n])
	if s.soon && s.r.Len() == 0 {
		err = io.EOF
	}
	return n, err
}

func TestPicturesArriveWholeHoweverTheyComeAndShareAConnection(t *testing.T) {
	var got []byte
	c, _, opened := storing(t, func(_ User, body io.Reader, _ PutOptions) (info Info, err error) {
		got, err = io.ReadAll(body)
		return Info{}, err
	})
	calls := 0
	for _, n := range []int{1, 32<<10 - 1, 32 << 10, 32<<10 + 1, 300_000} { // net/http copies 32 KiB at once
		for _, sizes := range [][]int{{1 << 20}, {1000}, {3000, 1, 0, 40_000}} {
			for _, soon := range []bool{false, true} {
				for _, size := range []int{-1, n} {
					content := bytes.Repeat([]byte("0123456789abcdefg"), n/17+1)[:n]
					body := &sized{bytes.NewReader(content), slices.Clone(sizes), soon}
					if _, err := c.Put(t.Context(), user(t, "x"), body, PutOptions{Size: int64(size)}); err != nil || !bytes.Equal(got, content) {
						t.Fatalf("%d bytes as %v, size %d: %d arrived, %v", n, sizes, size, len(got), err)
					}
					calls++
				}
			}
		}
	}
	if o := opened.Load(); o != 1 {
		t.Errorf("%d connections for %d calls after each other", o, calls)
	}
}

func TestAPictureOfAnotherSizeThanAnnouncedIsBroken(t *testing.T) {
	for _, size := range []int64{1, 99_999, 100_001} {
		c, _, _ := storing(t, func(_ User, body io.Reader, _ PutOptions) (Info, error) {
			if _, err := io.Copy(io.Discard, body); err != nil || size < 100_000 {
				return Info{}, apierror.ErrIncomplete // a longer body ends at its announced size; only the client notices
			}
			t.Errorf("100,000 bytes announced as %d: the signer took them for whole", size)
			return Info{}, nil
		})
		began := time.Now()
		if _, err := c.Put(t.Context(), user(t, "x"), bytes.NewReader(make([]byte, 100_000)), PutOptions{Size: size}); err == nil {
			t.Errorf("100,000 bytes as %d: stored", size)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("100,000 bytes as %d: that took %v", size, took)
		}
	}
}

// A signer that refuses and keeps the connection would take the rest of the picture
// for a call.
func TestAConnectionWhosePictureWasNotSentWholeIsNotUsedAgain(t *testing.T) {
	const refusal = `{"code":"overloaded","detail":"x"}`
	for name, asks := range map[string]string{"before the picture": "", "amid it": "HTTP/1.1 100 Continue\r\n\r\n"} {
		t.Run(name, func(t *testing.T) {
			c, opened := raw(t, asks+fmt.Sprintf("HTTP/1.1 503 Service Unavailable\r\nContent-Length: %d\r\n\r\n%s", len(refusal), refusal), answerTwo)
			stuck, feed := io.Pipe()
			defer func() { _ = feed.Close() }()
			if _, err := c.Put(t.Context(), user(t, "one"), stuck, PutOptions{Size: 100}); !errors.Is(err, apierror.ErrOverloaded) {
				t.Errorf("Put returned %v; want apierror.ErrOverloaded", err)
			}
			mustLink(t, c, "two")
			if n := opened.Load(); n != 2 {
				t.Errorf("%d connections; want 2", n)
			}
		})
	}
}

func TestARefusalAmidAPictureIsHeardWhileNothingComes(t *testing.T) {
	c, _, opened := storing(t, func(_ User, body io.Reader, _ PutOptions) (Info, error) {
		_, _ = io.CopyN(io.Discard, body, 1000)
		return Info{}, apierror.ErrOverloaded
	})
	for _, size := range []int64{-1, 1 << 20} {
		stuck, feed := io.Pipe()
		go func() { _, _ = feed.Write(make([]byte, 3000)) }()
		began := time.Now()
		if _, err := c.Put(t.Context(), user(t, "x"), stuck, PutOptions{Size: size}); !errors.Is(err, apierror.ErrOverloaded) {
			t.Errorf("Put returned %v; want apierror.ErrOverloaded", err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("that took %v", took)
		}
		_ = feed.Close()
	}
	if o := opened.Load(); o != 2 {
		t.Errorf("%d connections; want one for each, since what was left of the first's picture is no call", o)
	}
}

func TestASignerThatDoesNotAskIsSentThePictureAllTheSame(t *testing.T) {
	const answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if req, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
			if content, _ := io.ReadAll(req.Body); string(content) == "picture" {
				_, _ = io.WriteString(conn, answer)
			}
		}
	}()
	if _, err := clientOf(t, "http://"+l.Addr().String()).Put(t.Context(), user(t, "x"), strings.NewReader("picture"), PutOptions{Size: 7}); err != nil {
		t.Error(err)
	}
}

// net/http waits for the client's next byte before it reports the lost connection.
func TestSignersDeathEndsUploadOfSilentClient(t *testing.T) {
	c, srv, _ := storing(t, func(_ User, body io.Reader, _ PutOptions) (Info, error) {
		_, err := io.Copy(io.Discard, body)
		return Info{}, err
	})
	body, feed := io.Pipe()
	go func() {
		_, _ = feed.Write(make([]byte, 3000))
		srv.CloseClientConnections()
	}()
	if _, err := c.Put(t.Context(), user(t, "x"), body, unknown); !errors.Is(err, apierror.ErrSignerUnavailable) {
		t.Errorf("Put returned %v; want apierror.ErrSignerUnavailable", err)
	}
	_ = body.Close()
}

// A round trip may return while it still sends the body.
func TestPutReadsNothingAfterItsReturn(t *testing.T) {
	var late io.Reader
	c, err := NewClient("http://signer.test:1", ClientOptions{Transport: func(http.RoundTripper) http.RoundTripper {
		return roundTrip(func(r *http.Request) (*http.Response, error) {
			late = r.Body
			return &http.Response{StatusCode: http.StatusServiceUnavailable, Body: http.NoBody, Request: r}, nil
		})
	}})
	if err != nil {
		t.Fatal(err)
	}
	body := new(counting)
	if _, err := c.Put(t.Context(), user(t, "x"), body, unknown); err == nil {
		t.Error("Put succeeded")
	}
	if _, err := late.Read(make([]byte, 1)); err == nil || body.n > 0 {
		t.Errorf("%d bytes were read after Put had returned, %v", body.n, err)
	}
}
