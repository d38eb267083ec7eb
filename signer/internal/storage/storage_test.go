package storage_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/google/go-cmp/cmp"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
	"cats.example/signer/internal/storage"
	"cats.example/signer/internal/storagetest"
)

func remove(t *testing.T, c *storage.Client, name string, p signerapi.Preconditions) error {
	t.Helper()
	return c.Delete(t.Context(), &storage.Operation{Name: storage.OpDelete}, name, p)
}

func TestErrorResponsesMapToAPIErrors(t *testing.T) {
	for _, row := range storagetest.Rows(t, "error-responses.txt") {
		synctest.Test(t, func(t *testing.T) {
			server := storagetest.New(t)
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
				err := remove(t, server.Client, "mia/cat", p)
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
			if renewed := server.Credential.Renewed.Load(); renewed != (status == "401") {
				t.Errorf("%q: the token was renewed: %t", row, renewed)
			}
			// A client does not choose the names of other blobs.
			if err := remove(t, server.Client, "cats-api/upload/1", signerapi.Preconditions{}); errors.Is(err, apierror.ErrInvalidUser) {
				t.Errorf("%q, a staged blob: %v", row, err)
			}
		})
	}
}

// callAll makes one call of each kind, with the name Davyd in the URL, and returns the errors.
func callAll(t *testing.T, client *storage.Client) map[string]error {
	ctx := t.Context()
	const name, content = "Davyd/cat", "cat"
	stream := storage.NewStream(strings.NewReader(content), 3)
	upload := func(op *storage.Operation, body io.ReadSeekCloser) error {
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
		"put": upload(&storage.Operation{Name: storage.OpPut}, streaming.NopCloser(strings.NewReader(content))), "put stream": upload(&storage.Operation{Name: storage.OpPut, Body: stream}, stream),
		"list": client.Call(ctx, &storage.Operation{Name: storage.OpList}, func(ctx context.Context) error {
			_, err := client.ContainerClient().NewListBlobsFlatPager(nil).NextPage(ctx)
			return err
		}),
	}
}

// transporter answers requests in place of a network.
type transporter func(*http.Request) (*http.Response, error)

func (f transporter) Do(r *http.Request) (*http.Response, error) { return f(r) }

func TestNetworkErrorsHoldNoURL(t *testing.T) {
	const path, at = "/cats/Davyd/cat?sig=c2VjcmV0", storagetest.AccountURL + "/cats/Davyd/cat?sig=c2VjcmV0"
	failing := func(fail func(url.Error) error) func(*storage.Options) { // no response
		return func(o *storage.Options) {
			o.Transport = transporter(func(r *http.Request) (*http.Response, error) {
				return nil, fail(url.Error{Op: "Put", URL: r.URL.String(), Err: context.DeadlineExceeded})
			})
		}
	}
	for what, c := range map[string]struct {
		answer string // of storage, which then closes the connection
		change func(*storage.Options)
	}{
		"cut connection":           {},
		"broken answer":            {answer: "no HTTP, but " + at + "\r\n\r\n"},
		"broken redirect":          {answer: "HTTP/1.1 307 Elsewhere\r\nLocation: " + path + "%zz\r\n\r\n"},
		"broken absolute redirect": {answer: "HTTP/1.1 302 Elsewhere\r\nLocation: " + at + "%zz\r\n\r\n"},
		"redirect":                 {answer: "HTTP/1.1 301 Elsewhere\r\nLocation: " + at + "\r\nContent-Length: 0\r\n\r\n"},
		"cut body":                 {answer: "HTTP/1.1 400 Bad Request\r\nContent-Length: 1000\r\n\r\n" + at},
		"unparsable header":        {answer: "HTTP/1.1 200 OK\r\n" + path + " " + at + "\r\n\r\n"},
		"timeout": {change: failing(func(e url.Error) error {
			return &url.Error{Op: "Get", URL: e.URL, Err: fmt.Errorf("in between: %w", &e)}
		})},
		"URL only in the text": {change: failing(func(e url.Error) error { return fmt.Errorf("proxy %q of %v", path, &e) })},
	} {
		server := storagetest.New(t)
		if c.change != nil {
			server = storagetest.New(t, c.change)
		}
		server.SetEarly(func(w http.ResponseWriter, _ *http.Request) bool {
			conn := storagetest.Hijack(t, w)
			_, _ = io.WriteString(conn, c.answer)
			_ = conn.Close()
			return true
		})
		errs := callAll(t, server.Client)
		for call, err := range errs {
			if err == nil {
				t.Errorf("%s, %s: no error", what, call)
				continue
			}
			for _, part := range []string{"Davyd", "/cats", "://", "sig=", "\n"} {
				if strings.Contains(err.Error(), part) {
					t.Errorf("%s, %s has %q in its error: %v", what, call, part, err)
				}
			}
			if _, ok := errors.AsType[*url.Error](err); ok {
				t.Errorf("%s, %s wraps a URL: %v", what, call, err)
			}
		}
		if what == "timeout" && !errors.Is(errs["put"], context.DeadlineExceeded) {
			t.Errorf("the cause is lost: %v", errs["put"])
		}
	}
}

func TestCircuitBreakerOpensAndCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := storagetest.New(t)
		server.Put("x/cat", "cat", "image/png")
		available := func() error { return server.Client.Available(t.Context(), "x/cat") }
		fail := func(n, status int, code string, want error) {
			t.Helper()
			server.SetFault(storagetest.Rejecting(status, code, nil))
			for range n {
				_, _, err := server.Client.Head(t.Context(), "x/cat")
				if !errors.Is(err, want) || apierror.AsError(err).RetryAfter == 0 {
					t.Fatal(err)
				}
			}
			server.SetFault(nil)
		}
		fail(20, 503, "ServerBusy", apierror.ErrThrottled) // does not open it
		server.Calls()
		fail(30, 500, "InternalError", apierror.ErrStorageUnavailable)
		if n := len(server.Calls()); n != 10 {
			t.Errorf("%d calls; want 10", n)
		}
		if err := available(); !errors.Is(err, storage.ErrBreakerOpen) {
			t.Errorf("while the breaker is open: %v", err)
		}
		time.Sleep(6 * time.Second)
		err := available()
		if diff := cmp.Diff([]string{"HEAD"}, server.Calls()); err != nil || diff != "" {
			t.Errorf("half open: %v, %s", err, diff)
		}
		if err := available(); err != nil || len(server.Calls()) > 0 {
			t.Errorf("after it closed: %v", err)
		}
	})
}

// While its body is read, a request is answered, and the transport goes on reading, as [http.Transport] can.
func TestRevokedBodyIsNotRead(t *testing.T) {
	for name, memory := range map[string]bool{"memory": true, "stream": false} {
		synctest.Test(t, func(t *testing.T) {
			rest := make(chan []byte, 1)
			client := storagetest.New(t, func(o *storage.Options) {
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
			}).Client
			body := io.ReadSeekCloser(streaming.NopCloser(strings.NewReader("cat and secret")))
			fromClient, toSigner := io.Pipe()
			if !memory {
				body = storage.NewStream(io.MultiReader(strings.NewReader("cat"), fromClient), 14)
			}
			err := client.Call(t.Context(), storage.NewOperation(storage.OpPut, body), func(ctx context.Context) error {
				_, err := client.BlobClient("x/cat").Upload(ctx, body, nil)
				return err
			})
			go func() {
				_, _ = io.WriteString(toSigner, " and secret")
				_ = toSigner.Close()
			}()
			got := <-rest
			if !errors.Is(err, apierror.ErrThrottled) || len(got) > 0 {
				t.Errorf("%s: %v; after that, %q was read", name, err, got)
			}
			_ = fromClient.Close()
		})
	}
}
