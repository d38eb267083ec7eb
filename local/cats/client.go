package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	maxAnswer     = 1 << 20          // that is read of an answer, in bytes
	maxRetryAfter = 30 * time.Second // that is waited because an answer asks for it
	stallTimeout  = time.Minute      // without a byte of a body, a request is given up
)

// problem is an RFC 9457 problem document: the service's, or one of the same shape for
// what the command found out itself, without a status.
type problem struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status,omitempty"`
	Detail    string `json:"detail"`
	Code      string `json:"code"`
	RequestID string `json:"request_id,omitempty"`
}

// failure is an error of a command. It holds neither a token nor a signed URL.
type failure struct {
	problem
	sent json.RawMessage // the document as the service sent it, or nil
	exit int
	hint string // what to do

	again   bool          // another try can be worth it
	unclear bool          // what was asked for may have been done all the same
	after   time.Duration // how long the service asks to wait; 0 when it does not say
}

// Error is one line: what is wrong, what to do, and by what the operator finds it.
func (f *failure) Error() string {
	s := f.Detail
	if f.hint != "" {
		s += "; " + f.hint
	}
	if f.after > 0 {
		s += fmt.Sprintf("; it asks to wait %v", f.after)
	}
	if f.RequestID != "" {
		s += " (request " + f.RequestID + ")"
	}
	return escape(s)
}

func (f *failure) document() any {
	if f.sent != nil {
		return f.sent
	}
	f.Type = "about:blank"
	return f.problem
}

// found returns a failure that the command found out itself.
func found(exit int, code, title, detail string) *failure {
	return &failure{problem: problem{Title: title, Detail: detail, Code: code}, exit: exit}
}

func fileFailure(err error) *failure {
	return found(exitOther, "file", "File", err.Error())
}

var errStalled = errors.New("nothing has moved for a minute")

// client asks one service.
type client struct {
	*options
	base, token string
	http        *http.Client
}

func newClient(o *options, base, token string) *client {
	transport := http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // net/http's own
	transport.MaxIdleConnsPerHost = parallel
	transport.DisableCompression = true // pictures are as they are
	transport.ResponseHeaderTimeout = 5 * time.Minute
	transport.Proxy = proxyFor
	transport.DialContext = dial
	return &client{options: o, base: base, token: token, http: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// payload is the body of a request. The zero value is none.
type payload struct {
	r    io.Reader
	size int64 // -1 when it is not known
}

// request sends one request and returns the answer, whose body is open. The error is a
// failure.
func (c *client) request(ctx context.Context, method, target string, header http.Header, body payload) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, method, target, nil)
	if err != nil {
		cancel(nil)
		return nil, found(exitOther, "unexpected_answer", "Unexpected answer", "an address makes no sense")
	}
	if header != nil {
		req.Header = header
	}
	if body.r != nil && body.size != 0 {
		req.ContentLength = body.size
		req.Body = io.NopCloser(body.r)
		if body.size > 0 { // a pipe may be as slow as it likes
			req.Body = newWatch(req.Body, cancel, true)
		}
	}
	resp, err := c.http.Do(req)
	if err != nil {
		defer cancel(nil)
		return nil, broken(ctx, req.URL, err)
	}
	resp.Body = last{newWatch(resp.Body, cancel, false), cancel}
	return resp, nil
}

// watch is a body that ends its request when the network does not move it: one that is
// sent, between its reads, and one that comes, in them. For a file, or for whoever gets
// the picture, it waits as long as it takes.
type watch struct {
	io.ReadCloser
	timer   *time.Timer
	sent    bool
	stalled *atomic.Bool
}

func newWatch(body io.ReadCloser, cancel context.CancelCauseFunc, sent bool) watch {
	var stalled atomic.Bool
	w := watch{body, time.AfterFunc(stallTimeout, func() {
		stalled.Store(true)
		cancel(errStalled)
	}), sent, &stalled}
	if !sent {
		w.timer.Stop()
	}
	return w
}

func (w watch) Read(p []byte) (int, error) {
	if w.sent {
		w.timer.Stop()
	} else {
		w.timer.Reset(stallTimeout)
	}
	n, err := w.ReadCloser.Read(p)
	switch {
	case err == nil && w.sent:
		w.timer.Reset(stallTimeout)
	case err == nil:
		w.timer.Stop()
	case w.stalled.Load():
		err = errStalled
	default:
		w.timer.Stop()
	}
	return n, err
}

func (w watch) Close() error {
	w.timer.Stop()
	return w.ReadCloser.Close()
}

// last ends a request with the body of its answer.
type last struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
}

func (l last) Close() error {
	defer l.cancel(nil)
	return l.ReadCloser.Close()
}

// broken is the failure of a request that got no whole answer.
func broken(ctx context.Context, to *url.URL, err error) *failure {
	cause := context.Cause(ctx)
	if cause != nil && !errors.Is(cause, errStalled) {
		return found(exitOther, "interrupted", "Interrupted", "interrupted")
	}
	if outer, ok := errors.AsType[*url.Error](err); ok {
		err = outer.Err // without the URL, which may be a signed one
	}
	if cause != nil {
		err = cause
	}
	host := to.Scheme + "://" + to.Host
	f := found(exitLater, "unreachable", "Unreachable", fmt.Sprintf("%s does not answer: %v", host, err))
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		f.exit, f.Detail = exitOther, fmt.Sprintf("%s is not to be trusted: %v", host, err)
		return f
	}
	f.again, f.unclear = true, true
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		f.unclear = false
		f.Detail = fmt.Sprintf("%s cannot be reached: %v", host, op.Err)
		f.hint = "is it running? make run starts one here, --server or CATS_SERVER names another"
	}
	return f
}

// api asks the service, as whoever the token is, and returns the JSON that it answers.
func (c *client) api(ctx context.Context, method, path string, header http.Header, body payload) (json.RawMessage, error) {
	header = header.Clone()
	if header == nil {
		header = http.Header{}
	}
	if c.token != "" {
		header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.request(ctx, method, c.base+path, header, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	switch {
	case err != nil:
		return nil, broken(ctx, resp.Request.URL, err)
	case resp.StatusCode == http.StatusNoContent:
		return nil, nil
	case resp.StatusCode/100 == 2 && json.Valid(answer):
		return answer, nil
	case resp.StatusCode/100 == 2:
		return nil, c.stranger(resp)
	}
	return nil, c.refusal(resp, answer)
}

// read asks the service and decodes the answer into out.
func (c *client) read(ctx context.Context, method, path string, out any) (json.RawMessage, error) {
	answer, err := c.api(ctx, method, path, nil, payload{})
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return nil, found(exitOther, "unexpected_answer", "Unexpected answer", "the answer of "+c.base+" makes no sense: "+err.Error())
	}
	return answer, nil
}

// stranger is the failure of an answer that no cats-api gives.
func (c *client) stranger(resp *http.Response) *failure {
	f := found(exitOther, "unexpected_answer", "Unexpected answer", fmt.Sprintf("%s answers %s, and not as a cats-api does", c.base, resp.Status))
	f.hint = "is --server right?"
	f.Status = resp.StatusCode
	return f
}

// refusal is the failure of an answer that is no success.
func (c *client) refusal(resp *http.Response, answer []byte) *failure {
	var p problem
	if json.Unmarshal(answer, &p) != nil || p.Code == "" || p.Detail == "" {
		f := c.stranger(resp)
		if resp.StatusCode == http.StatusServiceUnavailable || resp.StatusCode == http.StatusBadGateway || resp.StatusCode == http.StatusGatewayTimeout { // of what is in between
			f.exit, f.again, f.unclear, f.hint = exitLater, true, true, ""
		}
		return f
	}
	f := &failure{problem: p, sent: answer, after: retryAfter(resp)}
	f.exit, f.again = kind(resp.StatusCode)
	switch p.Code {
	case "rate_limited", "overloaded", "issuer_unavailable": // before anything was done
	case "no_such_path":
		f.exit, f.hint = exitOther, "is --server right?"
	case "no_such_upload", "archived", "immutable", "leased", "rejected_by_storage": // no other client was faster
		f.exit = exitOther
	case "unauthenticated":
		f.hint = "set CATS_TOKEN, or --token-file"
		if c.token != "" {
			f.hint = "is the token still good, and for this service?"
		}
	default:
		f.unclear = f.again
	}
	return f
}

// kind returns the exit code that goes with a status, and whether to try again.
func kind(status int) (exit int, again bool) {
	switch status {
	case http.StatusNotFound:
		return exitNotFound, false
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusRequestURITooLong, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity:
		return exitRefused, false
	case http.StatusUnauthorized, http.StatusForbidden:
		return exitNotAllowed, false
	case http.StatusConflict, http.StatusPreconditionFailed:
		return exitCondition, false
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return exitLater, true
	}
	return exitOther, false
}

func retryAfter(resp *http.Response) time.Duration {
	seconds, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if err != nil || seconds < 0 {
		return 0
	}
	return time.Duration(seconds) * time.Second
}

// storage sends one request to storage, by a signed URL.
func (c *client) storage(ctx context.Context, method, target string, header http.Header, body payload) (*http.Response, error) {
	header.Set("x-ms-version", "2021-12-02")
	resp, err := c.request(ctx, method, target, header, body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	var said struct{ Code string }
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil || xml.NewDecoder(bytes.NewReader(answer)).Decode(&said) != nil || said.Code == "" {
		said.Code = "no reason given"
	}
	f := found(0, "storage", "Storage", fmt.Sprintf("storage answers %s, %s", resp.Status, said.Code)) // the rest may hold the URL
	f.Status, f.after = resp.StatusCode, retryAfter(resp)
	f.RequestID = resp.Header.Get("X-Ms-Request-Id")
	f.exit, f.again = kind(resp.StatusCode)
	if resp.StatusCode >= 500 || said.Code == "Md5Mismatch" { // a byte that was lost on the way
		f.exit, f.again = exitLater, true
	}
	f.unclear = f.again
	return nil, f
}

// retry calls try until it succeeds, fails for good, or has failed often enough. The
// service says how long to wait, or it is a little longer each time.
func (c *client) retry(ctx context.Context, bar *progress, try func() error) error {
	waits := backoff.NewExponentialBackOff()
	for n := 0; ; n++ {
		err := try()
		f, ok := errors.AsType[*failure](err)
		if err == nil || !ok || !f.again || n >= c.retries || f.after > maxRetryAfter {
			return err
		}
		wait := f.after
		if wait == 0 {
			wait = waits.NextBackOff()
		}
		bar.clear()
		c.notice("%s; again in %v", f.Detail, wait.Round(100*time.Millisecond))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return found(exitOther, "interrupted", "Interrupted", "interrupted while waiting: "+f.Detail)
		}
	}
}

// catPath is that of a user's picture.
func catPath(user string) string {
	segment := url.PathEscape(user)
	if segment == "." || segment == ".." {
		segment = strings.ReplaceAll(segment, ".", "%2E") // or somebody on the way takes it for another path
	}
	return "/cat/" + segment
}
