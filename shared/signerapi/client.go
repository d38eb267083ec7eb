package signerapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"cats.example/shared/apierror"
)

const (
	// writeTimeout is the timeout of a commit, and of an upload from the end of its body on. It is longer than the signer needs
	// for the part of a picture that it has not stored yet.
	writeTimeout = 4 * time.Minute
	shortTimeout = 15 * time.Second // of the other calls
	readyTimeout = 2 * time.Second  // of About and Ready

	// maxURLCalls is the maximum number of calls for signed URLs in progress. Each takes about 40 KiB in both containers, and the
	// signer looks up as many pictures at once. More calls wait for slotTimeout.
	maxURLCalls = 128
	slotTimeout = 2 * time.Second

	// acceptTimeout is the longest time in which the signer may accept no byte of a picture. The signer has half of it for
	// storage, so its error response arrives before this timeout.
	acceptTimeout = 2 * WatchdogTimeout

	maxResponse = 64 << 10 // largest response that the client reads, in bytes
)

// Client is the [Signer] of the frontend: it calls the signer over the loopback interface. It is safe for concurrent use.
//
// Client never repeats a Delete, a CommitUpload, or a Put after the first Read of its body. If the signer may have received a
// write and its response is lost, the error has the Outcome unknown.
type Client struct {
	host      string
	transport http.RoundTripper
	slots     chan struct{} // one for each call for a signed URL
	header    func(context.Context, http.Header)
}

var _ Signer = (*Client)(nil)

// ClientOptions are the options of a [Client]. The zero value is valid.
type ClientOptions struct {
	// Header adds fields to the header of each call.
	Header func(context.Context, http.Header)
	// Transport wraps the transport of all calls. Users cannot influence the path of a call, only its query.
	Transport func(http.RoundTripper) http.RoundTripper
}

// NewClient returns a client of the signer at base, which has the form http://HOST:PORT.
func NewClient(base string, options ClientOptions) (*Client, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" || u.Hostname() == "" || u.Port() == "" || (u.Path != "" && u.Path != "/") || u.RawQuery != "" {
		return nil, fmt.Errorf("signer URL %q: want http://HOST:PORT", base)
	}
	c := &Client{u.Host, newTransport(), make(chan struct{}, maxURLCalls), options.Header}
	if options.Transport != nil {
		c.transport = options.Transport(c.transport)
	}
	return c, nil
}

// Put implements [Signer]. If body fails, the signer receives a broken request, never a short picture.
func (c *Client) Put(ctx context.Context, user User, body io.Reader, opts PutOptions) (Info, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	tracked := &trackedBody{r: body, left: opts.Size}
	defer tracked.ended.Store(true)
	watch := NewWatchdog(tracked, acceptTimeout, writeTimeout, cancel)
	defer watch.Stop()
	args := argumentsOf(user)
	args.PutOptions = opts
	req := c.request(ctx, http.MethodPut, picturePath, args)
	req.Body = io.NopCloser(watch)
	req.ContentLength = opts.Size // chunked if it is -1
	req.Header.Set("Expect", "100-continue")
	req.GetBody = func() (io.ReadCloser, error) { // for a call that net/http repeats
		if tracked.begun.Load() {
			return nil, errConnectionClosed
		}
		return req.Body, nil
	}
	var info Info
	if err := tracked.outcome(untilLost(req, tracked, func(req *http.Request) error { return c.do(req, &info) })); err != nil {
		return Info{}, err // not info: the transport may still change it
	}
	return info, nil
}

// Link implements [Signer].
func (c *Client) Link(ctx context.Context, user User, opts LinkOptions) (link Link, err error) {
	args := argumentsOf(user)
	args.LinkOptions = opts
	err = c.call(ctx, shortTimeout, http.MethodGet, linkPath, args, &link)
	return link, err
}

// Delete implements [Signer].
func (c *Client) Delete(ctx context.Context, user User, conditions Preconditions) error {
	args := argumentsOf(user)
	args.Preconditions = conditions
	return unknownIfLost(c.call(ctx, shortTimeout, http.MethodDelete, picturePath, args, nil), apierror.MayBeDeleted)
}

// StartUpload implements [Signer].
func (c *Client) StartUpload(ctx context.Context, user User, size int64) (session UploadSession, err error) {
	args := argumentsOf(user)
	args.Size = size
	err = c.call(ctx, shortTimeout, http.MethodPost, uploadPath, args, &session)
	return session, err
}

// CommitUpload implements [Signer].
func (c *Client) CommitUpload(ctx context.Context, user User, uploadID string, opts CommitOptions) (info Info, err error) {
	args := argumentsOf(user)
	args.uploadID, args.Preconditions, args.MD5 = uploadID, opts.Preconditions, opts.MD5
	err = c.call(ctx, writeTimeout, http.MethodPost, commitPath, args, &info)
	return info, unknownIfLost(err, apierror.MayBeStored)
}

// About implements [Signer].
func (c *Client) About(ctx context.Context) (about About, err error) {
	err = c.call(ctx, readyTimeout, http.MethodGet, aboutPath, argumentsOf(User{}), &about)
	return about, err
}

// Ready implements [Signer].
func (c *Client) Ready(ctx context.Context) error {
	return c.call(ctx, readyTimeout, http.MethodGet, readyPath, argumentsOf(User{}), nil)
}

// call makes a call without a body; see do.
func (c *Client) call(ctx context.Context, timeout time.Duration, method, path string, args *arguments, out any) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if path == linkPath || path == uploadPath {
		select {
		case c.slots <- struct{}{}:
			defer func() { <-c.slots }()
		case <-time.After(slotTimeout):
			return apierror.ErrOverloaded.Wrap(fmt.Errorf("%d calls for signed URLs are in progress", maxURLCalls))
		case <-ctx.Done():
			return transportError(ctx, ctx.Err())
		}
	}
	return c.do(c.request(ctx, method, path, args), out)
}

func (c *Client) request(ctx context.Context, method, path string, args *arguments) *http.Request {
	req := &http.Request{
		ProtoMajor: 1, ProtoMinor: 1, // without the version, net/http does not wait for 100 Continue
		Method: method, URL: &url.URL{Scheme: "http", Host: c.host, Path: path, RawQuery: args.query()},
		Header: http.Header{contractHeader: {contractVersion}},
	}
	if token := TokenFrom(ctx); token != "" {
		req.Header.Set("Authorization", "Bearer "+string(token))
	}
	req.Header.Set(clientHeader, ClientFrom(ctx))
	if c.header != nil {
		c.header(ctx, req.Header)
	}
	return req.WithContext(ctx)
}

// do sends req and decodes a 2xx response into out. If out is nil, only a 204 is a success. do follows no redirect. The error
// wraps errLost if the signer may have received req.
func (c *Client) do(req *http.Request, out any) error {
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return transportError(req.Context(), err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxResponse))
	if err != nil {
		return transportError(req.Context(), err)
	}
	switch {
	case resp.StatusCode/100 != 2:
		return decodeError(resp, body)
	case out != nil:
		err = json.Unmarshal(body, out)
	case resp.StatusCode != http.StatusNoContent:
		err = fmt.Errorf("status %s instead of 204", resp.Status)
	}
	if err != nil {
		return apierror.ErrInternal.Wrap(lost(err))
	}
	return nil
}

// errLost is a cause of an error if the signer may have received a request whose response did not arrive, or is not a response of
// the contract.
var errLost = errors.New("the signer's response is lost")

func lost(err error) error { return fmt.Errorf("%w: %w", errLost, err) }

// unknownIfLost returns err, the result of a write. If err wraps errLost, the Outcome is unknown and suffix is appended to the
// Detail.
func unknownIfLost(err error, suffix string) error {
	if errors.Is(err, errLost) {
		return apierror.AsError(err).WithUnknownOutcome(suffix)
	}
	return err
}

// transportError returns ErrIncomplete if the caller canceled ctx, and ErrSignerUnavailable otherwise.
func transportError(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) && !errors.Is(context.Cause(ctx), ErrWatchdogExpired) {
		return apierror.ErrIncomplete.Wrap(context.Cause(ctx))
	}
	if op, ok := errors.AsType[*net.OpError](err); !ok || op.Op != "dial" { // without a connection nothing was sent
		err = lost(err)
	}
	return apierror.ErrSignerUnavailable.Wrap(err)
}

// decodeError returns the error in a response. It uses the code and ignores the status. A response without a code of the contract
// comes from another program, or from a proxy.
func decodeError(resp *http.Response, body []byte) error {
	var got apierror.Error
	if json.Unmarshal(body, &got) != nil || apierror.ByCode(got.Code) == nil {
		return apierror.ErrInternal.Wrap(lost(fmt.Errorf("status %s is not of the contract", resp.Status)))
	}
	e := apierror.ByCode(got.Code).WithDetail(got.Detail)
	if got.Outcome == apierror.OutcomeUnknown || got.Outcome == apierror.OutcomeStored {
		e.Outcome = got.Outcome
	}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s >= 0 {
		e.RetryAfter = time.Duration(s) * time.Second
	}
	return e
}

const (
	// restartTimeout is how long calls wait for a signer that refuses connections. A container restarts in one or two seconds.
	restartTimeout = 5 * time.Second

	// lostTimeout is the longest time between the end of a connection and the end of the call on it.
	lostTimeout = time.Second

	// sendBuffer is the size of the kernel's send buffer of a connection, in bytes. Without it, the buffer grows to megabytes.
	sendBuffer = 64 << 10
)

// dialer opens connections to the signer. While the signer restarts, the kernel refuses connections. Nothing was sent then, so
// the dialer can wait and retry.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// dial opens a connection. It retries refused connections for restartTimeout.
func (connect dialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	limit, cancel := context.WithTimeout(ctx, restartTimeout)
	defer cancel()
	conn, err := connect(ctx, network, address)
	for wait := 10 * time.Millisecond; errors.Is(err, syscall.ECONNREFUSED); wait = min(2*wait, 200*time.Millisecond) {
		select {
		case <-time.After(wait):
			conn, err = connect(ctx, network, address)
		case <-limit.Done():
			return nil, err
		}
	}
	if err != nil {
		return nil, err
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetWriteBuffer(sendBuffer) // fails only on a broken connection, which the first write reports
	}
	return &watchedConn{Conn: conn}, nil
}

// watchedConn reports that it was closed. [http.Transport] closes it when the signer has closed its side.
type watchedConn struct {
	net.Conn
	onClose atomic.Pointer[func()] // of the Put that is using the connection
}

// Close implements [net.Conn].
func (c *watchedConn) Close() error {
	if f := c.onClose.Swap(nil); f != nil {
		(*f)()
	}
	return c.Conn.Close()
}

var errConnectionClosed = errors.New("the signer closed the connection while it received the picture")

// untilLost calls send, which sends req with body, and returns its error. If the connection is closed while body is being read,
// it returns after lostTimeout: [http.Transport] would wait for a Read of the body, and so for a client that may send nothing.
// The caller must cancel the context of req afterwards.
func untilLost(req *http.Request, body *trackedBody, send func(*http.Request) error) error {
	done := make(chan error, 2)
	onClose := func() {
		if body.begun.Load() { // otherwise net/http repeats the call
			time.AfterFunc(lostTimeout, func() { done <- apierror.ErrSignerUnavailable.Wrap(lost(errConnectionClosed)) })
		}
	}
	trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		if conn, ok := info.Conn.(*watchedConn); ok {
			conn.onClose.Store(&onClose)
		}
	}}
	go func() { done <- send(req.WithContext(httptrace.WithClientTrace(req.Context(), trace))) }()
	return <-done
}

// transport sends calls over HTTP/1.1.
//
// net/http repeats a call if an idle connection turns out to be closed, a PUT or POST only if it has an Idempotency-Key. It does
// so only if no byte of the body was read and no byte of a response has arrived. DELETE and commit must not be sent twice: the
// second response would hide that the first call was carried out. Each of them gets a connection of its own, on which net/http
// repeats nothing.
type transport struct{ kept, fresh *http.Transport }

func newTransport() *transport {
	kept := &http.Transport{
		DialContext:            dialer((&net.Dialer{Timeout: 2 * time.Second}).DialContext).dial,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    128,
		IdleConnTimeout:        20 * time.Second, // shorter than the signer's, which might close a connection at the start of a call
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxResponse,
		ReadBufferSize:         2 << 10,
		WriteBufferSize:        8 << 10, // for a header with a long token: net/http does not repeat a call after a part of its header was sent
	}
	fresh := kept.Clone()
	fresh.DisableKeepAlives = true
	return &transport{kept, fresh}
}

// RoundTrip implements [http.RoundTripper].
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method == http.MethodDelete || req.URL.Path == commitPath {
		return t.fresh.RoundTrip(req)
	}
	req.Header["Idempotency-Key"] = nil // a field without a value is not sent
	return t.kept.RoundTrip(req)
}
