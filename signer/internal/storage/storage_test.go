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

// errorResponses are storage's error responses, as "STATUS CODE", by the error of the API for a request without a precondition.
// Those with a ! are ErrPreconditionFailed for a request with one.
var errorResponses = map[*apierror.Error]string{
	apierror.ErrNotFound:            "404 BlobNotFound",
	apierror.ErrDigestMismatch:      "400 Md5Mismatch",
	apierror.ErrInvalidUser:         "400, 400 InvalidUri, 400 InvalidResourceName, 400 OutOfRangeInput, 400 RequestUrlFailedToParse",
	apierror.ErrThrottled:           "503 ServerBusy, 429",
	apierror.ErrStorageUnavailable:  "500 InternalError, 504",
	apierror.ErrIdentityUnavailable: "403 AuthorizationPermissionMismatch, 403 AuthorizationFailure, 403 AccountIsDisabled, 401 InvalidAuthenticationInfo",
	apierror.ErrArchived:            "409 BlobArchived, 409 BlobBeingRehydrated, 409 BlobRehydrationInProgress",
	apierror.ErrImmutable: "409 BlobImmutableDueToPolicy, 409 BlobImmutableDueToLegalHold, 409 ContainerHasLegalHold, 409 ContainerImmutabilityPolicyLocked, " +
		"409 ImmutabilityPolicyDeleteOnLockedPolicy",
	apierror.ErrLeased: "412 LeaseIdMissing, 412 LeaseLost, 412 LeaseIdMismatchWithBlobOperation, 412 LeaseNotPresentWithBlobOperation, 409 LeaseAlreadyPresent, 409 LeaseIdMissing",
	apierror.ErrRejectedByStorage: "409 InvalidBlobType, 409 BlobUsesCustomerSpecifiedEncryption, 409 SnapshotsPresent, 409 BlobNotArchived, 409 PendingCopyOperation, " +
		"409 BlockCountExceedsLimit, 409 BlobOperationNotSupported, 409 MadeUp, 409, 412!, 412 MadeUp!",
	apierror.ErrConflict:           "400 InvalidBlockList, 400 InvalidBlobOrBlock, 409 BlobAlreadyExists!",
	apierror.ErrPreconditionFailed: "412 ConditionNotMet, 412 TargetConditionNotMet",
	// A 404 without a code is not from storage, and does not mean that there is no picture.
	apierror.ErrInternal: "404, 404 ContainerNotFound, 400 InvalidHeaderValue, 400 InvalidMd5, 302",
}

func TestErrorResponsesMapToAPIErrors(t *testing.T) {
	for want, responses := range errorResponses {
		for response := range strings.SplitSeq(responses, ", ") {
			synctest.Test(t, func(t *testing.T) {
				client, server, credential := newClient(t, withoutRetries)
				response, changes := strings.CutSuffix(response, "!")
				number, code, _ := strings.Cut(response, " ")
				status, _ := strconv.Atoi(number)
				server.SetFault(func(w http.ResponseWriter, _ *http.Request) bool {
					w.Header().Set("Retry-After", "17")
					w.Header().Set("Location", "https://elsewhere.example/")
					storagetest.Reject(w, status, code)
					return true
				})
				for _, p := range []signerapi.Preconditions{{}, {IfMatch: `"0x1"`}, {IfNoneMatch: "*"}} {
					want := want
					if p != (signerapi.Preconditions{}) && changes {
						want = apierror.ErrPreconditionFailed
					}
					err := remove(t, client, "mia/cat", p)
					e := apierror.AsError(err)
					if !errors.Is(err, want) || e.Detail != want.Detail && want != apierror.ErrInvalidUser || want == apierror.ErrThrottled && e.RetryAfter != 17*time.Second {
						t.Errorf("%s with %+v: got %v, %q, Retry-After %v; want %v", response, p, err, e.Detail, e.RetryAfter, want)
					}
					if strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "example") || strings.Contains(err.Error(), "mia") {
						t.Errorf("%s: the log would show %q", response, err)
					}
					if log := fmt.Sprint(e.Unwrap()); !strings.Contains(log, code) && want != apierror.ErrNotFound && want != apierror.ErrPreconditionFailed {
						t.Errorf("%s: the log would show only %s", response, log)
					}
				}
				if renewed := credential.Renewed() > 0; renewed != (status == 401) {
					t.Errorf("%s: the token was renewed: %t", response, renewed)
				}
				if counted := testutil.ToFloat64(client.metrics.conflicts) > 0; counted != (want == apierror.ErrConflict) {
					t.Errorf("%s: a conflict was counted: %t", response, counted)
				}
				// A client does not choose the names of other blobs.
				if err := remove(t, client, "cats-api/upload/1", signerapi.Preconditions{}); errors.Is(err, apierror.ErrInvalidUser) {
					t.Errorf("%s, a staged blob: %v", response, err)
				}
			})
		}
	}
}

func TestErrorResponsesHaveAFix(t *testing.T) {
	for response, want := range map[string]string{
		"404 ContainerNotFound":               "create the container (az storage container create --auth-mode login --account-name acct --name cats) or set STORAGE_CONTAINER",
		"403 AuthorizationPermissionMismatch": "give the identity the role Storage Blob Data Contributor on the container",
		"403 AuthorizationFailure":            "the account's network rules reject this client", // and not a role
		"403 CannotVerifyCopySource":          "the account's network rules must let storage read the source",
		"403 AccountIsDisabled":               "the storage account is disabled",
		"401 InvalidAuthenticationInfo":       "AZURE_TENANT_ID must be the tenant",
		"500 InternalError":                   "",
	} {
		synctest.Test(t, func(t *testing.T) {
			client, server, _ := newClient(t, withoutRetries)
			status, _ := strconv.Atoi(response[:3])
			server.SetFault(storagetest.Rejecting(status, response[4:], nil))
			err := remove(t, client, "mia/cat", signerapi.Preconditions{})
			_, fix, _ := strings.Cut(err.Error(), "; fix: ")
			if !strings.Contains(fix, want) || (fix == "") != (want == "") {
				t.Errorf("%s: %v; want the fix %q", response, err, want)
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
		if _, _, err := client.Head(t.Context(), "x/cat"); err != nil || attempts != 3 {
			t.Errorf("%v after %d attempts", err, attempts)
		}
		if got := testutil.ToFloat64(client.metrics.requests.WithLabelValues(OpHead, "503")); got != 2 {
			t.Errorf("%v rejected requests are counted", got)
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
		"head": head, "delete": remove(t, client, name, signerapi.Preconditions{}), "container": client.CheckContainer(ctx), "probe": probe,
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
			transport.Transport.(*http.Transport).TLSClientConfig.InsecureSkipVerify = true
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
		if err := client.Available(t.Context(), head); !errors.Is(err, ErrBreakerOpen) || testutil.ToFloat64(client.metrics.breakerOpen) != 1 {
			t.Errorf("while the breaker is open: %v", err)
		}
		server.SetFault(nil)
		time.Sleep(openTime + time.Second)
		if err := client.Available(t.Context(), head); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff([]string{"HEAD", "HEAD", "HEAD", "HEAD"}, server.Calls()); diff != "" {
			t.Errorf("half open: %s", diff)
		}
		if err := client.Available(t.Context(), head); err != nil || len(server.Calls()) > 0 || testutil.ToFloat64(client.metrics.breakerOpen) != 0 {
			t.Errorf("after it closed: %v", err)
		}
	})
}

func TestRevokedBodyIsNotRead(t *testing.T) {
	streamOf := func(r io.Reader, n int64) *Stream {
		s := NewStream(r, n)
		s.source = s
		return s
	}
	for name, b := range map[string]*attemptBody{
		"memory": newAttemptBody(strings.NewReader("secret"), nil), "stream": newAttemptBody(nil, streamOf(strings.NewReader("secret"), 6)),
	} {
		if n, err := b.Read(make([]byte, 3)); n != 3 || err != nil {
			t.Errorf("%s: %d, %v", name, n, err)
		}
		b.revoke()
		if n, err := b.Read(make([]byte, 3)); n != 0 || !errors.Is(err, errRevoked) {
			t.Errorf("%s: read %d, %v after revoke", name, n, err)
		}
	}
	// A Read that waits for the client when the attempt ends returns nothing.
	synctest.Test(t, func(t *testing.T) {
		blocked, unblock := io.Pipe()
		stream := streamOf(blocked, 100)
		b := newAttemptBody(nil, stream)
		read := make(chan error)
		go func() {
			_, err := b.Read(make([]byte, 3))
			read <- err
		}()
		synctest.Wait()
		b.revoke()
		_, _ = unblock.Write([]byte("cat"))
		if err := <-read; !errors.Is(err, errRevoked) || stream.err != nil {
			t.Errorf("read %v, noted %v", err, stream.err)
		}
	})
}
