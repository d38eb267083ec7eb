package signerapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"cats.example/shared/apierror"
	"cats.example/shared/watchdog"
)

// Paths of the contract, relative to the signer's base URL.
const (
	picturePath = "/v1/picture"
	linkPath    = "/v1/link"
	uploadPath  = "/v1/uploads"
	commitPath  = "/v1/commit"
	aboutPath   = "/v1/about"
	readyPath   = "/v1/ready"
)

// What each call says in its header. A request that does not is refused: it may be
// one that somebody else in the pod, or a page in a browser, was talked into, and
// those who choose an address seldom choose a header as well.
const (
	contractHeader  = "Cats-Contract"
	contractVersion = "1"
	clientHeader    = "Cats-Client" // the key of ClientFrom
)

// How long a call may take. writeTimeout is that of Commit, and of Put from the end of the
// request body on, which the watchdog bounds.
const (
	writeTimeout = 4 * time.Minute // above the signer's own limits for what it still has to store
	shortTimeout = 15 * time.Second
	readyTimeout = 2 * time.Second

	// maxTurns is the largest number of calls for URLs in progress: each costs about 40 KiB in both containers, and the signer
	// looks up as many pictures at once. Others wait for turnTimeout.
	maxTurns    = 128
	turnTimeout = 2 * time.Second

	// acceptTimeout is the longest time in which the signer may accept no byte of a picture. It is longer than the signer's own
	// for storage, so that the signer's answer arrives first.
	acceptTimeout = 2 * watchdog.Timeout
)

// maxAnswer bounds what the client reads of an answer, in bytes.
const maxAnswer = 64 << 10

// Client is the Signer on the other side of the loopback interface. It never
// repeats a Delete, a Commit, or a Put whose body was asked for: a body cannot be replayed, and
// the signer retries storage.
type Client struct {
	host      string
	transport http.RoundTripper
	turns     chan struct{}                      // one for each call for a URL
	header    func(context.Context, http.Header) // nil for none
}

var _ Signer = (*Client)(nil)

// ClientOptions are options of a [Client]. The zero value has none.
type ClientOptions struct {
	// Header adds fields to the header of each call.
	Header func(context.Context, http.Header)
	// Transport wraps the transport of all calls, for traces. The path of a call contains nothing that a user can choose; the
	// query does.
	Transport func(http.RoundTripper) http.RoundTripper
}

// NewClient returns a client of the signer at base, such as "http://127.0.0.1:8081".
func NewClient(base string, options ClientOptions) (*Client, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" || u.Hostname() == "" || u.Port() == "" || (u.Path != "" && u.Path != "/") || u.RawQuery != "" {
		return nil, fmt.Errorf("signer URL %q: want http://HOST:PORT", base)
	}
	c := &Client{host: u.Host, transport: newTransport(), turns: make(chan struct{}, maxTurns), header: options.Header}
	if options.Transport != nil {
		c.transport = options.Transport(c.transport)
	}
	return c, nil
}

// Put implements [Signer]. A body that ends in anything but io.EOF reaches the
// signer as a broken request, never as a short one.
func (c *Client) Put(ctx context.Context, user User, body io.Reader, opts PutOptions) (Info, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	tracked := &trackedBody{r: body, left: opts.Size}
	defer tracked.end()
	watch := watchdog.NewReader(tracked, acceptTimeout, writeTimeout, cancel)
	defer watch.Stop()
	args := argumentsFor(user)
	args.PutOptions = opts
	req := c.request(ctx, http.MethodPut, picturePath, args)
	req.Body = io.NopCloser(watch)
	req.ContentLength = opts.Size // chunked where it is not known
	req.Header.Set("Expect", "100-continue")
	req.GetBody = func() (io.ReadCloser, error) { return req.Body, tracked.unread() }
	var info Info
	if err := tracked.outcome(untilLost(req, tracked, func(req *http.Request) error { return c.do(req, &info) })); err != nil {
		return Info{}, err // not info, which the transport can still change
	}
	return info, nil
}

// Link implements [Signer].
func (c *Client) Link(ctx context.Context, user User, opts LinkOptions) (link Link, err error) {
	args := argumentsFor(user)
	args.LinkOptions = opts
	err = c.call(ctx, shortTimeout, http.MethodGet, linkPath, args, &link)
	return link, err
}

// Delete implements [Signer].
func (c *Client) Delete(ctx context.Context, user User, conditions Preconditions) error {
	args := argumentsFor(user)
	args.Preconditions = conditions
	return unknownIfLost(c.call(ctx, shortTimeout, http.MethodDelete, picturePath, args, nil), apierror.MayBeDeleted)
}

// UploadSession implements [Signer].
func (c *Client) StartUpload(ctx context.Context, user User, size int64) (ticket UploadSession, err error) {
	args := argumentsFor(user)
	args.Size = size
	err = c.call(ctx, shortTimeout, http.MethodPost, uploadPath, args, &ticket)
	return ticket, err
}

// Commit implements [Signer].
func (c *Client) CommitUpload(ctx context.Context, user User, ticket string, opts CommitOptions) (info Info, err error) {
	args := argumentsFor(user)
	args.uploadID, args.Preconditions, args.MD5 = ticket, opts.Preconditions, opts.MD5
	err = c.call(ctx, writeTimeout, http.MethodPost, commitPath, args, &info)
	return info, unknownIfLost(err, apierror.MayBeStored)
}

// About implements [Signer].
func (c *Client) About(ctx context.Context) (about About, err error) {
	err = c.call(ctx, readyTimeout, http.MethodGet, aboutPath, argumentsFor(User{}), &about)
	return about, err
}

// Ready implements [Signer].
func (c *Client) Ready(ctx context.Context) error {
	return c.call(ctx, readyTimeout, http.MethodGet, readyPath, argumentsFor(User{}), nil)
}

// turn waits until fewer than maxTurns calls for URLs are in progress, and takes one of their places.
func (c *Client) turn(ctx context.Context) error {
	select {
	case c.turns <- struct{}{}: // without a timer, which costs an allocation
		return nil
	default:
	}
	select {
	case c.turns <- struct{}{}:
		return nil
	case <-time.After(turnTimeout):
		return apierror.ErrOverloaded.Wrap(fmt.Errorf("%d calls for URLs are in progress", maxTurns))
	case <-ctx.Done():
		return unreachable(ctx, ctx.Err())
	}
}

// call sends a call without a body, like do.
func (c *Client) call(ctx context.Context, timeout time.Duration, method, path string, args *arguments, out any) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if path == linkPath || path == uploadPath {
		if err := c.turn(ctx); err != nil {
			return err
		}
		defer func() { <-c.turns }()
	}
	return c.do(c.request(ctx, method, path, args), out)
}

func (c *Client) request(ctx context.Context, method, path string, args *arguments) *http.Request {
	req := &http.Request{
		ProtoMajor: 1, ProtoMinor: 1, // net/http waits for 100 Continue only then
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

// unknownIfLost returns err, the result of a write. If the signer may have received the write and its answer is lost, the
// Outcome is unknown, and the Detail ends with may.
func unknownIfLost(err error, may string) error {
	if _, lost := errors.AsType[lostError](err); lost {
		return apierror.AsError(err).WithUnknownOutcome(may)
	}
	return err
}

// do sends req, follows no redirect, and decodes a 2xx answer into out. A nil out means that the answer is a 204. The error
// wraps a lostError if the signer may have received req.
func (c *Client) do(req *http.Request, out any) error {
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return unreachable(req.Context(), err)
	}
	defer resp.Body.Close()
	var answer bytes.Buffer
	answer.Grow(int(min(max(resp.ContentLength, 0), maxAnswer)) + bytes.MinRead)
	if _, err := answer.ReadFrom(io.LimitReader(resp.Body, maxAnswer)); err != nil {
		return unreachable(req.Context(), err)
	}
	switch {
	case resp.StatusCode/100 != 2:
		return decodeError(resp, answer.Bytes())
	case out != nil:
		err = json.Unmarshal(answer.Bytes(), out)
	case resp.StatusCode != http.StatusNoContent:
		err = fmt.Errorf("%s in place of a 204", resp.Status)
	}
	if err != nil {
		return apierror.ErrInternal.Wrap(lostError{fmt.Errorf("reading the signer's answer: %w", err)})
	}
	return nil
}

// lostError is the reason why a request has no answer of the contract, although the signer may have received it.
type lostError struct{ error }

// Unwrap returns the reason.
func (e lostError) Unwrap() error { return e.error }

// unreachable is apierror.ErrSignerUnavailable, unless it was the caller who gave up.
func unreachable(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) && !errors.Is(context.Cause(ctx), watchdog.ErrExpired) {
		return apierror.ErrIncomplete.Wrap(context.Cause(ctx))
	}
	if op, ok := errors.AsType[*net.OpError](err); !ok || op.Op != "dial" { // without a connection nothing was sent
		err = lostError{err}
	}
	return apierror.ErrSignerUnavailable.Wrap(err)
}

// decodeError goes by the code in the answer. An answer that is not of the
// contract comes from something that is not the signer.
func decodeError(resp *http.Response, answer []byte) error {
	var got apierror.Error
	if json.Unmarshal(answer, &got) == nil && apierror.ByCode(got.Code) != nil {
		e := apierror.ByCode(got.Code).WithDetail(got.Detail)
		if got.Outcome == apierror.OutcomeUnknown || got.Outcome == apierror.OutcomeStored {
			e.Outcome = got.Outcome
		}
		if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s >= 0 {
			e.RetryAfter = time.Duration(s) * time.Second
		}
		return e
	}
	return apierror.ErrInternal.Wrap(lostError{fmt.Errorf("the signer answered %s, outside the contract", resp.Status)})
}

// trackedBody remembers the error that ended a body, and whether all of it was read: a body of a known size is whole with its
// last byte, since the signer may store it then.
// The transport may still be reading when RoundTrip has returned, hence the lock.
type trackedBody struct {
	r     io.Reader
	mu    sync.Mutex
	begun bool  // a Read has begun
	left  int64 // to its end; below zero if its size is unknown
	whole bool
	e     error
}

func (b *trackedBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	b.begun = true
	err := b.e
	b.mu.Unlock()
	if err != nil {
		return 0, err
	}
	n, err := b.r.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left -= int64(n)
	if err != nil && err != io.EOF { // a wrapped io.EOF is a broken body, not its end
		b.e = err
	}
	b.whole = b.whole || b.left == 0 || b.left < 0 && err == io.EOF
	return n, err
}

// unread returns an error once a Read has begun: the body cannot be sent again.
func (b *trackedBody) unread() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.begun {
		return errors.New("the signer closed the connection while it received the picture")
	}
	return nil
}

// end makes later Reads fail. A Read that has begun may still be under way.
func (b *trackedBody) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.e = errors.New("the upload has ended")
}

// outcome returns the error of a Put with the body, of which err is the result. The error that ended the body is the cause of
// any other error without an Outcome. Only a body that was read whole can be stored.
func (b *trackedBody) outcome(err error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, lost := errors.AsType[lostError](err)
	if b.e != nil && (err == nil || apierror.AsError(err).Outcome == "") {
		lost, err = lost || err == nil, b.e
	}
	if lost && b.whole {
		return apierror.AsError(err).WithUnknownOutcome(apierror.MayBeStored)
	}
	return err
}
