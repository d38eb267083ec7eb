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

	"cats.example/shared/watchdog"
)

// Paths of the contract, relative to the signer's base URL.
const (
	picturePath = "/v1/picture"
	linkPath    = "/v1/link"
	ticketPath  = "/v1/ticket"
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
	clientHeader    = "Cats-Client" // the key of ClientOf
)

// How long a call may take. putTimeout begins at the end of the request body, which the watchdog bounds.
const (
	putTimeout    = 4 * time.Minute // above the signer's own limits for what it still has to store
	commitTimeout = 4 * time.Minute // like putTimeout
	getTimeout    = 15 * time.Second
	deleteTimeout = 15 * time.Second
	readyTimeout  = 2 * time.Second

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
	about     func(context.Context, http.Header)
}

var _ Signer = (*Client)(nil)

// NewClient returns a client of the signer at base, such as
// "http://127.0.0.1:8081". about adds to the header of each call what is to be known
// of it on the other side.
func NewClient(base string, about func(context.Context, http.Header)) (*Client, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" || u.Hostname() == "" || u.Port() == "" || (u.Path != "" && u.Path != "/") || u.RawQuery != "" {
		return nil, fmt.Errorf("signer URL %q: want http://HOST:PORT", base)
	}
	return &Client{u.Host, newTransport(), about}, nil
}

// Wrap has all calls go through what wrap makes of the client's transport. It must be
// called before the first of them. The paths of calls are the contract's, with nothing
// in them that a user can choose; the query has that.
func (c *Client) Wrap(wrap func(http.RoundTripper) http.RoundTripper) {
	c.transport = wrap(c.transport)
}

// Put implements [Signer]. A body that ends in anything but io.EOF reaches the
// signer as a broken request, never as a short one.
func (c *Client) Put(ctx context.Context, user User, body io.Reader, opts PutOptions) (Info, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	tracked := &trackedBody{r: body, left: opts.Size}
	defer tracked.end()
	watch := watchdog.New(tracked, acceptTimeout, putTimeout, cancel)
	defer watch.Stop()
	query := url.Values{}
	if opts.Size >= 0 {
		query.Set("size", strconv.FormatInt(opts.Size, 10))
	}
	if opts.AtMost > 0 {
		query.Set("at_least", strconv.FormatInt(opts.AtLeast, 10))
		query.Set("at_most", strconv.FormatInt(opts.AtMost, 10))
	}
	opts.Conditions.addTo(query)
	opts.Digests.addTo(query)
	req, err := c.request(ctx, http.MethodPut, picturePath, user, query, watch)
	if err != nil {
		return Info{}, err
	}
	req.ContentLength = opts.Size // chunked where it is not known
	req.Header.Set("Expect", "100-continue")
	req.GetBody = func() (io.ReadCloser, error) { return req.Body, tracked.unread() }
	repeatable(req)
	var info Info
	if err := c.write(req, tracked, &info, MayBeStored); err != nil {
		return Info{}, err // not info, which the transport can still change
	}
	return info, nil
}

// Link implements [Signer].
func (c *Client) Link(ctx context.Context, user User, opts LinkOptions) (Link, error) {
	ctx, cancel := context.WithTimeout(ctx, getTimeout)
	defer cancel()
	query := url.Values{}
	if opts.TTL != 0 {
		if opts.TTL%time.Second != 0 {
			return Link{}, ErrInvalidArgument.With("ttl: only whole seconds are possible")
		}
		query.Set("ttl_seconds", strconv.FormatInt(int64(opts.TTL/time.Second), 10))
	}
	if opts.Download != "" {
		query.Set("download", opts.Download)
	}
	req, err := c.request(ctx, http.MethodGet, linkPath, user, query, nil)
	if err != nil {
		return Link{}, err
	}
	var link Link
	return link, c.do(req, &link)
}

// Delete implements [Signer].
func (c *Client) Delete(ctx context.Context, user User, conditions Conditions) error {
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	query := url.Values{}
	conditions.addTo(query)
	req, err := c.request(ctx, http.MethodDelete, picturePath, user, query, nil)
	if err != nil {
		return err
	}
	return c.write(req, nil, nil, MayBeDeleted)
}

// Ticket implements [Signer].
func (c *Client) Ticket(ctx context.Context, user User, size int64) (Ticket, error) {
	ctx, cancel := context.WithTimeout(ctx, getTimeout)
	defer cancel()
	query := url.Values{"size": {strconv.FormatInt(size, 10)}}
	req, err := c.request(ctx, http.MethodPost, ticketPath, user, query, nil)
	if err != nil {
		return Ticket{}, err
	}
	repeatable(req)
	var ticket Ticket
	return ticket, c.do(req, &ticket)
}

// Commit implements [Signer].
func (c *Client) Commit(ctx context.Context, user User, ticket string, opts CommitOptions) (Info, error) {
	if err := CheckTicket(ticket); err != nil {
		return Info{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	query := url.Values{"ticket": {ticket}}
	opts.addTo(query)
	Digests{MD5: opts.MD5}.addTo(query)
	req, err := c.request(ctx, http.MethodPost, commitPath, user, query, nil)
	if err != nil {
		return Info{}, err
	}
	var info Info
	return info, c.write(req, nil, &info, MayBeStored)
}

// About implements [Signer].
func (c *Client) About(ctx context.Context) (About, error) {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	var about About
	return about, c.do(c.newRequest(ctx, http.MethodGet, aboutPath, nil, nil), &about)
}

// Ready implements [Signer].
func (c *Client) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	return c.do(c.newRequest(ctx, http.MethodGet, readyPath, nil, nil), nil)
}

// addTo adds the conditions to the arguments of a call.
func (c Conditions) addTo(query url.Values) {
	if c.IfMatch != "" {
		query.Set("if_match", c.IfMatch)
	}
	if c.IfNoneMatch != "" {
		query.Set("if_none_match", c.IfNoneMatch)
	}
}

func (c *Client) request(ctx context.Context, method, path string, user User, query url.Values, body io.Reader) (*http.Request, error) {
	if user == (User{}) {
		return nil, ErrInvalidUser
	}
	query.Set("user", user.String())
	return c.newRequest(ctx, method, path, query, body), nil
}

func (c *Client) newRequest(ctx context.Context, method, path string, query url.Values, body io.Reader) *http.Request {
	req := &http.Request{
		ProtoMajor: 1, ProtoMinor: 1, // net/http waits for 100 Continue only then
		Method: method, URL: &url.URL{Scheme: "http", Host: c.host, Path: path, RawQuery: query.Encode()},
		Header: http.Header{contractHeader: {contractVersion}},
	}
	if token := TokenOf(ctx); token != "" {
		req.Header.Set("Authorization", "Bearer "+string(token))
	}
	if client := ClientOf(ctx); client != "" {
		req.Header.Set(clientHeader, client)
	}
	if body != nil {
		req.Body = io.NopCloser(body)
	}
	c.about(ctx, req.Header)
	return req.WithContext(ctx)
}

// repeatable lets net/http repeat a PUT or POST that the signer has not carried out, as it does with a GET. A header field
// without a value is not sent.
func repeatable(req *http.Request) { req.Header["Idempotency-Key"] = nil }

// write sends req, which changes the stored picture, like do. It alone decides whether the outcome of a failed write is
// unknown: the signer may have received the whole request, and its answer is lost. The Detail of the error then ends with may.
// body is the body of req, or nil.
func (c *Client) write(req *http.Request, body *trackedBody, out any, may string) error {
	err := untilLost(req, body, func(req *http.Request) error { return c.do(req, out) })
	_, lost := errors.AsType[lostError](err)
	broken, whole := body.state()
	if broken != nil && (err == nil || AsError(err).Outcome == "") { // the cause of any other error
		lost, err = lost || err == nil, broken
	}
	if lost && whole {
		return AsError(err).Unknown(may)
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
		return ErrInternal.Wrap(lostError{fmt.Errorf("reading the signer's answer: %w", err)})
	}
	return nil
}

// lostError is the reason why a request has no answer of the contract, although the signer may have received it.
type lostError struct{ error }

// Unwrap returns the reason.
func (e lostError) Unwrap() error { return e.error }

// unreachable is ErrSignerUnavailable, unless it was the caller who gave up.
func unreachable(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) && !errors.Is(context.Cause(ctx), watchdog.ErrExpired) {
		return ErrIncomplete.Wrap(context.Cause(ctx))
	}
	if op, ok := errors.AsType[*net.OpError](err); !ok || op.Op != "dial" { // without a connection nothing was sent
		err = lostError{err}
	}
	return ErrSignerUnavailable.Wrap(err)
}

// decodeError goes by the code in the answer. An answer that is not of the
// contract comes from something that is not the signer.
func decodeError(resp *http.Response, answer []byte) error {
	var got Error
	if json.Unmarshal(answer, &got) == nil && wire[got.Code] != nil {
		e := wire[got.Code].With(got.Detail)
		if got.Outcome == OutcomeUnknown || got.Outcome == OutcomeStored {
			e.Outcome = got.Outcome
		}
		if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s >= 0 {
			e.RetryAfter = time.Duration(s) * time.Second
		}
		return e
	}
	return ErrInternal.Wrap(lostError{fmt.Errorf("the signer answered %s, outside the contract", resp.Status)})
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

var (
	errLost       = errors.New("the connection was closed while the picture was sent")
	errSentInPart = errors.New("the signer closed the connection while it received the picture")
	errEnded      = errors.New("the upload has ended")
)

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
		return errSentInPart
	}
	return nil
}

// end makes later Reads fail. A Read that has begun may still be under way.
func (b *trackedBody) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.e = errEnded
}

// state returns the error that ended the body, and whether all of it was read. A nil body is whole.
func (b *trackedBody) state() (broken error, whole bool) {
	if b == nil {
		return nil, true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.e, b.whole
}
