package storage

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
	"cats.example/signer/internal/storagetest"
)

var noRetries = &policy.RetryOptions{MaxRetries: -1}

func newClient(t *testing.T, change func(*Options)) (*Client, *storagetest.Server, *storagetest.Credential) {
	t.Helper()
	transport, credential := NewTransport(), &storagetest.Credential{}
	server := storagetest.New(t, transport)
	opts := Options{
		Settings:   Settings{AccountURL: storagetest.AccountURL, Container: "cats", BlobName: "cat"},
		Credential: credential, Transport: transport,
	}
	if change != nil {
		change(&opts)
	}
	c, err := New(opts, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return c, server, credential
}

func withoutRetries(o *Options) { o.Retry = noRetries }

func remove(t *testing.T, c *Client, name string, p signerapi.Preconditions) error {
	t.Helper()
	return c.Delete(t.Context(), &Operation{Name: OpDelete}, name, p)
}

func TestErrorResponsesMapToAPIErrors(t *testing.T) {
	for _, row := range storagetest.Rows(t, "error-responses.txt") {
		synctest.Test(t, func(t *testing.T) {
			client, server, credential := newClient(t, withoutRetries)
			status, code, _ := strings.Cut(row[0], " ")
			server.SetFault(func(w http.ResponseWriter, _ *http.Request) bool {
				w.Header().Set("Retry-After", "17")
				w.Header().Set("Location", "https://elsewhere.example/")
				storagetest.Reject(w, int(storagetest.Number(t, status)), code)
				return true
			})
			for _, p := range []signerapi.Preconditions{{}, {IfMatch: `"0x1"`}, {IfNoneMatch: "*"}} {
				want := apierror.ByCode(row[1])
				if p != (signerapi.Preconditions{}) {
					want = apierror.ByCode(row[2])
				}
				err := remove(t, client, "mia/cat", p)
				e, quiet := apierror.AsError(err), want == apierror.ErrNotFound || want == apierror.ErrPreconditionFailed
				if !errors.Is(err, want) || e.Detail != want.Detail && want != apierror.ErrInvalidUser || want == apierror.ErrThrottled && e.RetryAfter != 17*time.Second {
					t.Errorf("%q with %+v: got %v, %q, Retry-After %v; want %v", row, p, err, e.Detail, e.RetryAfter, want)
				}
				if strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "example") || strings.Contains(err.Error(), "mia") {
					t.Errorf("%q: the log would show %q", row, err)
				}
				if log := fmt.Sprint(e.Unwrap()); !quiet && !strings.Contains(log, code) || row[3] != "" && !strings.Contains(log, "; fix: "+row[3]) {
					t.Errorf("%q: the log would show only %s", row, log)
				}
			}
			if renewed := credential.Renewed() > 0; renewed != (status == "401") {
				t.Errorf("%q: the token was renewed: %t", row, renewed)
			}
			if counted := testutil.ToFloat64(client.metrics.conflicts) > 0; counted != (row[1] == "conflict") {
				t.Errorf("%q: a conflict was counted: %t", row, counted)
			}
			// A client does not choose the names of other blobs.
			if err := remove(t, client, "cats-api/upload/1", signerapi.Preconditions{}); errors.Is(err, apierror.ErrInvalidUser) {
				t.Errorf("%q, a staged blob: %v", row, err)
			}
		})
	}
}

func TestCredentialErrorReachesClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, credential := newClient(t, nil)
		credential.Err = apierror.ErrIdentityUnavailable.Wrap(errors.New("AADSTS1"))
		if err := remove(t, client, "x/cat", signerapi.Preconditions{}); !errors.Is(err, apierror.ErrIdentityUnavailable) || len(server.Calls()) > 0 {
			t.Errorf("got %v", err)
		}
	})
}

func TestThrottledCallIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, _ := newClient(t, nil)
		server.Put("x/cat", "cat", "image/png")
		attempts := 0
		server.SetFault(func(w http.ResponseWriter, _ *http.Request) bool {
			if attempts++; attempts > 2 {
				return false
			}
			storagetest.Reject(w, 503, "ServerBusy")
			return true
		})
		_, _, err := client.Head(t.Context(), "x/cat")
		if counted := testutil.ToFloat64(client.metrics.requests.WithLabelValues(OpHead, "503")); err != nil || attempts != 3 || counted != 2 {
			t.Errorf("%v after %d attempts, of which %v are counted as rejected", err, attempts, counted)
		}
	})
}

// callAll makes one call of each kind, with the name Davyd in the URL, and returns the errors.
func callAll(t *testing.T, client *Client) map[string]error {
	ctx := t.Context()
	const name, content = "Davyd/cat", "cat"
	stream := NewStream(strings.NewReader(content), 3)
	upload := func(op *Operation, body io.ReadSeekCloser) error {
		return client.Call(ctx, op, func(ctx context.Context) error {
			_, err := client.BlobClient(name).Upload(ctx, body, nil)
			return err
		})
	}
	_, _, head := client.Head(ctx, name)
	_, probe := client.Probe(ctx, signerapi.SignedURL(client.AccountURL+"/cats/"+name+"?sig=c2VjcmV0"), func(ctx context.Context, c *blob.Client) error {
		_, err := c.GetProperties(ctx, nil)
		return err
	})
	return map[string]error{
		"head": head, "delete": remove(t, client, name, signerapi.Preconditions{}), "probe": probe,
		"put": upload(&Operation{Name: OpPut}, streaming.NopCloser(strings.NewReader(content))), "put stream": upload(&Operation{Name: OpPut, Body: stream}, stream),
		"list": client.Call(ctx, &Operation{Name: OpList}, func(ctx context.Context) error {
			_, err := client.ContainerClient().NewListBlobsFlatPager(nil).NextPage(ctx)
			return err
		}),
	}
}

// transporter answers requests in place of a network.
type transporter func(*http.Request) (*http.Response, error)

func (f transporter) Do(r *http.Request) (*http.Response, error) { return f(r) }

func TestNetworkErrorsHoldNoURL(t *testing.T) {
	port := func(l net.Listener) string { return strconv.Itoa(l.Addr().(*net.TCPAddr).Port) }
	raw := func(answer string) func(*Options) { // a server that writes answer on each connection and closes it
		return func(o *Options) {
			srv := httptest.NewTLSServer(http.NotFoundHandler())
			t.Cleanup(srv.Close)
			l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: srv.TLS.Certificates})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					_, _ = conn.Read(make([]byte, 16<<10))
					_, _ = io.WriteString(conn, answer)
					_ = conn.Close()
				}
			}()
			transport := NewTransport()
			transport.Transport.(*http.Transport).TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
			o.AccountURL, o.Transport = "https://acct.blob.localhost:"+port(l), transport
		}
	}
	const path = "/cats/Davyd/cat?sig=c2VjcmV0"
	for what, change := range map[string]func(*Options){
		"down":         func(o *Options) { o.AccountURL, o.Transport = "https://acct.blob.localhost:1", NewTransport() },
		"unknown name": func(o *Options) { o.AccountURL, o.Transport = "https://acct.blob.invalid", NewTransport() },
		"untrusted certificate": func(o *Options) {
			raw("")(o)
			o.Transport = NewTransport()
		},
		"cut connection":           raw(""),
		"broken answer":            raw("no HTTP, but https://acct.blob.localhost" + path + "\r\n\r\n"),
		"broken redirect":          raw("HTTP/1.1 307 Elsewhere\r\nLocation: " + path + "%zz\r\n\r\n"),
		"broken absolute redirect": raw("HTTP/1.1 302 Elsewhere\r\nLocation: https://acct.blob.localhost" + path + "%zz\r\n\r\n"),
		"redirect":                 raw("HTTP/1.1 301 Elsewhere\r\nLocation: https://acct.blob.localhost" + path + "\r\nContent-Length: 0\r\n\r\n"),
		"cut body":                 raw("HTTP/1.1 400 Bad Request\r\nContent-Length: 1000\r\n\r\nhttps://acct.blob.localhost" + path),
		"unparsable header":        raw("HTTP/1.1 200 OK\r\n" + path + " https://acct.blob.localhost" + path + "\r\n\r\n"),
		"timeout": func(o *Options) {
			o.Transport = transporter(func(r *http.Request) (*http.Response, error) {
				return nil, &url.Error{Op: "Put", URL: r.URL.String(), Err: fmt.Errorf("in between: %w", &url.Error{Op: "Get", URL: r.URL.String(), Err: context.DeadlineExceeded})}
			})
		},
		"URL only in the text": func(o *Options) {
			o.Transport = transporter(func(r *http.Request) (*http.Response, error) {
				return nil, fmt.Errorf("proxy %q of %v", r.URL.Path, &url.Error{Op: "Get", URL: r.URL.String(), Err: io.EOF})
			})
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			client, _, _ := newClient(t, func(o *Options) { change(o); o.Retry = noRetries })
			errs := callAll(t, client)
			for call, err := range errs {
				if err == nil {
					t.Errorf("%s: no error", call)
					continue
				}
				for _, part := range []string{"Davyd", "/cats", "://", "sig=", "\n"} {
					if strings.Contains(err.Error(), part) {
						t.Errorf("%s has %q in its error: %v", call, part, err)
					}
				}
				if _, ok := errors.AsType[*url.Error](err); ok {
					t.Errorf("%s wraps a URL: %v", call, err)
				}
			}
			if what == "timeout" && !errors.Is(errs["put"], context.DeadlineExceeded) {
				t.Errorf("the cause is lost: %v", errs["put"])
			}
		})
	}
}

func TestCircuitBreakerOpensAndCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, _ := newClient(t, withoutRetries)
		server.Put("x/cat", "cat", "image/png")
		head := func(ctx context.Context) error { _, _, err := client.Head(ctx, "x/cat"); return err }
		server.SetFault(storagetest.Rejecting(503, "ServerBusy", nil))
		for range 2 * failuresToOpen { // throttling does not open it
			if err := head(t.Context()); !errors.Is(err, apierror.ErrThrottled) {
				t.Fatal(err)
			}
		}
		server.Calls()
		server.SetFault(storagetest.Rejecting(500, "InternalError", nil))
		for range failuresToOpen + 20 {
			if err := head(t.Context()); !errors.Is(err, apierror.ErrStorageUnavailable) || apierror.AsError(err).RetryAfter == 0 {
				t.Fatal(err)
			}
		}
		if n := len(server.Calls()); n != failuresToOpen {
			t.Errorf("%d calls; want %d", n, failuresToOpen)
		}
		if err := client.Available(t.Context(), "x/cat"); !errors.Is(err, ErrBreakerOpen) || testutil.ToFloat64(client.metrics.breakerOpen) != 1 {
			t.Errorf("while the breaker is open: %v", err)
		}
		server.SetFault(nil)
		time.Sleep(openTime + time.Second)
		if err := client.Available(t.Context(), "x/cat"); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff([]string{"HEAD"}, server.Calls()); diff != "" {
			t.Errorf("half open: %s", diff)
		}
		if err := client.Available(t.Context(), "x/cat"); err != nil || len(server.Calls()) > 0 || testutil.ToFloat64(client.metrics.breakerOpen) != 0 {
			t.Errorf("after it closed: %v", err)
		}
	})
}

// While its body is read, a request is answered, and the transport goes on reading, as [http.Transport] can.
func TestRevokedBodyIsNotRead(t *testing.T) {
	for name, memory := range map[string]bool{"memory": true, "stream": false} {
		synctest.Test(t, func(t *testing.T) {
			rest := make(chan []byte, 1)
			client, _, _ := newClient(t, func(o *Options) {
				o.Retry = noRetries
				o.Transport = transporter(func(r *http.Request) (*http.Response, error) {
					_, _ = io.CopyN(io.Discard, r.Body, 3)
					go func() {
						if memory {
							time.Sleep(time.Second)
						}
						b, _ := io.ReadAll(r.Body) // of a stream, it waits for the client
						rest <- b
					}()
					time.Sleep(time.Millisecond)
					return &http.Response{StatusCode: 503, Header: http.Header{"X-Ms-Error-Code": {"ServerBusy"}}, Body: http.NoBody, Request: r}, nil
				})
			})
			body := io.ReadSeekCloser(streaming.NopCloser(strings.NewReader("cat and secret")))
			fromClient, toSigner := io.Pipe()
			if !memory {
				body = NewStream(io.MultiReader(strings.NewReader("cat"), fromClient), 14)
			}
			err := client.Call(t.Context(), NewOperation(OpPut, body), func(ctx context.Context) error {
				_, err := client.BlobClient("x/cat").Upload(ctx, body, nil)
				return err
			})
			go func() {
				_, _ = io.WriteString(toSigner, " and secret")
				_ = toSigner.Close()
			}()
			got := <-rest
			if stream, ok := body.(*Stream); !errors.Is(err, apierror.ErrThrottled) || len(got) > 0 || ok && stream.err != nil {
				t.Errorf("%s: %v; after that, %q was read", name, err, got)
			}
			_ = fromClient.Close()
		})
	}
}
