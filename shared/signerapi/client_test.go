package signerapi

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cats.example/shared/apierror"
)

func TestLinksWithoutASlotAreOverloaded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var connections atomic.Int64
		finish := make(chan struct{})
		c := peer(t, func(conn net.Conn, in *bufio.Reader) {
			if connections.Add(1) <= maxURLCalls {
				_, _ = in.Peek(1)
				<-finish
			}
			healthy(conn, in)
		})
		var links sync.WaitGroup
		link := func() {
			if _, err := c.Link(t.Context(), davyd, LinkOptions{}); err != nil {
				t.Error(err)
			}
		}
		for range maxURLCalls {
			links.Go(link)
		}
		synctest.Wait()
		began := time.Now()
		_, err := c.Link(t.Context(), davyd, LinkOptions{})
		if took := time.Since(began); !errors.Is(err, apierror.ErrOverloaded) || took != slotTimeout {
			t.Errorf("one more link: %v after %v; want ErrOverloaded after %v", err, took, slotTimeout)
		}
		if err := c.Ready(t.Context()); err != nil {
			t.Errorf("Ready: %v", err)
		}
		links.Go(link)
		close(finish)
		links.Wait()
		synctest.Wait()
		opened := connections.Load()
		for range maxURLCalls {
			links.Go(link)
		}
		links.Wait()
		if opened != maxURLCalls+1 || connections.Load() != opened {
			t.Errorf("%d connections, and then %d; want %d for links, one for Ready, and no more", opened, connections.Load(), maxURLCalls)
		}
	})
}

// net/http waits for the client's next byte before it reports the end of a call. A connection with the rest of a picture must not
// be used for the next call.
func TestSilentUploadsEndWithTheirConnection(t *testing.T) {
	rejection := response(503, `{"code":"overloaded","detail":"x"}`)
	for name, c := range map[string]struct {
		answer string
		want   error
		within time.Duration
	}{
		"rejected before the body":    {rejection, apierror.ErrOverloaded, 100 * time.Millisecond},
		"rejected within the body":    {goOn + rejection, apierror.ErrOverloaded, 100 * time.Millisecond},
		"connection lost in the body": {goOn, apierror.ErrSignerUnavailable, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				connections := 0
				client := peer(t, func(conn net.Conn, in *bufio.Reader) {
					if connections++; connections > 1 {
						healthy(conn, in)
						return
					}
					req, _ := http.ReadRequest(in)
					_, _ = io.WriteString(conn, c.answer)
					if c.answer == goOn {
						_, _ = io.CopyN(io.Discard, req.Body, 3000)
						return
					}
					_, _ = io.Copy(io.Discard, conn)
				})
				body, feed := io.Pipe()
				go func() { _, _ = feed.Write(make([]byte, 3000)) }()
				began := time.Now()
				_, err := client.Put(t.Context(), davyd, body, PutOptions{Size: 1 << 30})
				if took := time.Since(began); !errors.Is(err, c.want) || took > c.within {
					t.Errorf("Put returned %v after %v; want %v within %v", err, took, c.want, c.within)
				}
				if _, err := client.Link(t.Context(), davyd, LinkOptions{}); err != nil || connections != 2 {
					t.Errorf("the next call: %v, on connection %d; want 2", err, connections)
				}
				_ = body.Close()
			})
		})
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// RoundTrip may return while it still sends the body.
func TestPutReadsNothingAfterItReturns(t *testing.T) {
	var late io.Reader
	c := newClient(t, "http://signer.test:1")
	c.transport = roundTrip(func(r *http.Request) (*http.Response, error) {
		late = r.Body
		return &http.Response{StatusCode: http.StatusServiceUnavailable, Body: http.NoBody, Request: r}, nil
	})
	body := strings.NewReader("picture")
	if _, err := c.Put(t.Context(), davyd, body, PutOptions{Size: -1}); err == nil {
		t.Error("Put returned no error")
	}
	if _, err := late.Read(make([]byte, 1)); err == nil || body.Len() < 7 {
		t.Errorf("%d bytes were read after Put had returned, %v", 7-body.Len(), err)
	}
}

// net/http does not repeat a call if the connection breaks between two writes of its header.
func TestHeadersWithLongTokensAreOneWrite(t *testing.T) {
	c := peer(t, func(conn net.Conn, _ *bufio.Reader) {
		header := make([]byte, 64<<10)
		n, _ := conn.Read(header) // one write, since the connection is a pipe
		if !bytes.HasSuffix(header[:n], []byte("\r\n\r\n")) {
			t.Errorf("the first write has %d bytes of the header", n)
		}
		_, _ = io.WriteString(conn, response(200, "{}"))
	})
	ctx := WithToken(t.Context(), Token(strings.Repeat("x", 7<<10)))
	if _, err := c.Link(ctx, davyd, LinkOptions{}); err != nil {
		t.Error(err)
	}
}

func TestDialRetriesRefusedConnections(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	timeout := &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}
	for _, c := range []struct {
		results     []error // the last one repeats
		limit, took time.Duration
	}{
		{[]error{timeout}, time.Hour, 0},
		{[]error{refused, refused, nil}, time.Hour, 30 * time.Millisecond},
		{[]error{refused}, time.Hour, restartTimeout},
		{[]error{refused}, time.Second, time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), c.limit)
			defer cancel()
			began, want, left := time.Now(), c.results[len(c.results)-1], c.results
			_, err := dialer(func(context.Context, string, string) (net.Conn, error) {
				result := left[0]
				left = left[min(1, len(left)-1):]
				return nil, result
			}).dial(ctx, "tcp", "")
			if took := time.Since(began); !errors.Is(err, want) || took < c.took || took > c.took+200*time.Millisecond {
				t.Errorf("dial returned %v after %v; want %v after %v", err, took, want, c.took)
			}
		})
	}
}

func TestNewClientRejectsInvalidURLs(t *testing.T) {
	for _, base := range []string{"", "a:8081", "http://a", "https://a:1", "http://a:1/x", "http://a:1?b", ":"} {
		if _, err := NewClient(base, ClientOptions{}); err == nil {
			t.Errorf("NewClient(%q) returned no error", base)
		}
	}
}
