// Package client calls the public API of cats-api: it stores, links, downloads and deletes the pictures of users.
//
// The service itself sends no picture. It returns signed URLs at Azure Blob Storage, from which [Client.Download] reads.
// [Client.Put] sends a picture through the service, or directly to storage if the service does not accept its size.
//
// Every failed request returns an [*Error], which says whether the stored picture may have changed. A request fails if the
// network does not move its body for a minute, or if there is no response 5 minutes after the body. [Options] has the retries.
//
// The service and storage are not trusted. The client sends the token to the service only and follows no redirects. It accepts
// signed URLs only with the scheme http or https and without credentials. It uploads only to the storage origin that the service
// names. It does not escape control characters in the text of an [Error] or a [Picture]: escape them before you print to a
// terminal.
package client

import (
	"cmp"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

const (
	maxResponse   = 1 << 20          // bytes read of a response, except of a picture
	maxRetryAfter = 30 * time.Second // a longer Retry-After ends the retries
	stallTimeout  = time.Minute      // without progress of a body on the network
)

// ErrPlainHTTP is returned by [New] if the token would be sent unencrypted to another machine.
var ErrPlainHTTP = errors.New("the token would be sent unencrypted")

// Options are the settings of a [Client]. The zero value makes anonymous requests and no retries.
type Options struct {
	// Token is a bearer token (RFC 6750) without the word Bearer. If it is empty, requests are anonymous.
	Token string

	// AllowPlainHTTP lets the client send Token over plain HTTP to another machine. It may always send it to loopback addresses,
	// localhost and names below .localhost.
	AllowPlainHTTP bool

	// MaxRetries is the number of times that a failed request is repeated. Only temporary errors are retried, and only where a
	// second request is safe. The client waits as long as Retry-After says, but gives up if that is more than 30 s. Without
	// Retry-After it waits 0.5 s before the first retry and twice as long before each further one, plus or minus half.
	MaxRetries int

	// OnRetry is called before each wait, possibly by several goroutines at once. Put also calls it, with a wait of 0, when it
	// starts a direct upload again because the previous one has expired.
	OnRetry func(err *Error, wait time.Duration)

	// Transport sends the requests. The default uses the proxy of the environment, except for this machine.
	Transport http.RoundTripper
}

// Client calls one service. Its methods may be called by several goroutines at once.
type Client struct {
	base string
	opts Options
	http *http.Client
}

// New returns a client of the service at baseURL, such as https://cats.example.com. It sends nothing.
//
// It returns [ErrPlainHTTP], or an error that names the invalid base URL or token.
func New(baseURL string, opts Options) (*Client, error) {
	u, err := url.Parse(baseURL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery+u.Fragment != "" {
		return nil, errors.New("the base URL must be such as http://localhost:8080: http or https, without user, query and fragment")
	}
	if strings.ContainsFunc(opts.Token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, errors.New("the token contains a space, a control character or a character outside ASCII")
	}
	if opts.Token != "" && u.Scheme == "http" && !opts.AllowPlainHTTP && !isLoopback(u.Hostname()) {
		return nil, fmt.Errorf("%w to %s", ErrPlainHTTP, u.Host)
	}
	if opts.OnRetry == nil {
		opts.OnRetry = func(*Error, time.Duration) {}
	}
	if opts.Transport == nil {
		opts.Transport = defaultTransport()
	}
	return &Client{base: strings.TrimSuffix(u.String(), "/"), opts: opts, http: &http.Client{
		Transport:     opts.Transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

func defaultTransport() *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone() // as net/http documents
	t.MaxIdleConnsPerHost = parallelBlocks
	t.DisableCompression = true
	t.ResponseHeaderTimeout = 5 * time.Minute
	t.Proxy = proxyFor
	t.DialContext = dial
	return t
}

// send sends one request and returns the response, whose body the caller closes. b is nil if the request has no body.
func (c *Client) send(ctx context.Context, method, target string, header http.Header, b *body) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var connected atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	req, err := http.NewRequestWithContext(ctx, method, target, nil)
	if err != nil {
		cancel(nil)
		return nil, newError(CodeUnexpectedResponse, "the service sent a URL that is invalid")
	}
	req.Header = header
	if b != nil && b.size != 0 {
		req.ContentLength = b.size
		req.Body = newStallReader(io.NopCloser(b), cancel, nil)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		defer cancel(nil)
		e := requestError(req, err)
		e.noResponse = connected.Load() // otherwise nothing was sent
		return nil, e
	}
	resp.Body = newStallReader(resp.Body, cancel, req)
	return resp, nil
}

// call sends one request to the service and returns the body of a successful response, which is JSON. The response to a
// successful DELETE has no body.
func (c *Client) call(ctx context.Context, method, path string, header http.Header, b *body) ([]byte, error) {
	if header == nil {
		header = http.Header{}
	}
	if c.opts.Token != "" {
		header.Set("Authorization", "Bearer "+c.opts.Token)
	}
	resp, err := c.send(ctx, method, c.base+path, header, b)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxResponse))
	switch {
	case err != nil:
		return nil, err
	case resp.StatusCode == http.StatusNoContent && method == http.MethodDelete:
		return nil, nil
	case resp.StatusCode/100 == 2 && method != http.MethodDelete && json.Valid(text):
		return text, nil
	}
	return nil, c.problem(resp, text)
}

// change is call for a request that changes the stored picture. If the service may have received the whole request and has not
// answered, the error's outcome is unknown.
func (c *Client) change(ctx context.Context, method, path string, header http.Header, b *body) ([]byte, error) {
	text, err := c.call(ctx, method, path, header, b)
	if e, ok := errors.AsType[*Error](err); ok && e.noResponse && b.complete() {
		e.Outcome = OutcomeUnknown
	}
	return text, err
}

// read is readOnce with retries.
func (c *Client) read(ctx context.Context, method, path string, out any) error {
	return c.retry(ctx, func() (bool, error) { return true, c.readOnce(ctx, method, path, out) })
}

// readOnce is call for a request that changes no picture. It decodes the response into out.
func (c *Client) readOnce(ctx context.Context, method, path string, out any) error {
	text, err := c.call(ctx, method, path, nil, nil)
	if err != nil {
		return err
	}
	if err = json.Unmarshal(text, out); err != nil {
		err = newError(CodeUnexpectedResponse, "the response of %s is not as documented: %v", c.base, err)
	}
	return err
}

// storage sends one request to a signed URL, without the token. The caller closes the body of the successful response.
func (c *Client) storage(ctx context.Context, method, target string, header http.Header, b *body) (*http.Response, error) {
	header.Set("x-ms-version", "2021-12-02")
	resp, err := c.send(ctx, method, target, header, b)
	if err != nil || resp.StatusCode/100 == 2 {
		return resp, err
	}
	defer resp.Body.Close()
	var document struct{ Code string }
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxResponse))
	if err != nil || xml.Unmarshal(text, &document) != nil || document.Code == "" {
		document.Code = "no error code"
	}
	e := newError(CodeStorage, "storage answered %s, %s", resp.Status, document.Code) // the rest may contain the URL
	e.Status, e.RequestID, e.RetryAfter = resp.StatusCode, resp.Header.Get("X-Ms-Request-Id"), retryAfter(resp)
	e.temporary = slices.Contains(temporary, e.Status) || e.Status >= 500 || document.Code == "Md5Mismatch" // damaged on the way
	return nil, e
}

// retry calls try until it succeeds, returns a permanent error, or has been repeated MaxRetries times. try also returns whether
// it may be called again. The outcome of the returned error is unknown if that of an earlier one is.
func (c *Client) retry(ctx context.Context, try func() (again bool, err error)) error {
	unknown := false
	for n := 0; ; n++ {
		again, err := try()
		e, ok := errors.AsType[*Error](err)
		if !ok {
			return err
		}
		unknown = unknown || e.Outcome == OutcomeUnknown
		if unknown && e.Outcome == "" {
			e.Outcome = OutcomeUnknown
		}
		if !again || !e.Temporary() || n >= c.opts.MaxRetries || e.RetryAfter > maxRetryAfter {
			return e
		}
		wait := cmp.Or(e.RetryAfter, (250*time.Millisecond+rand.N(500*time.Millisecond))<<min(n, 6))
		c.opts.OnRetry(e, wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			interrupted := interruption(ctx, " while waiting to try again after: "+e.Detail)
			interrupted.Outcome = e.Outcome
			return interrupted
		}
	}
}
