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
	"net/http/httptrace"
	"net/url"
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

// sent reports whether all of the body may be with the service.
func (p payload) sent() bool {
	body, ok := p.r.(*counted)
	return !ok || body.ended.Load() || p.size >= 0 && body.took.Load() >= p.size
}

// request sends one request and returns the answer, whose body is open. The error is a
// failure.
func (c *client) request(ctx context.Context, method, target string, header http.Header, body payload) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var connected atomic.Bool // before that nothing is sent
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
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
		f := broken(ctx, req.URL, err)
		f.lost = connected.Load()
		return nil, f
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
		f := found(exitOther, "interrupted", "Interrupted", "interrupted")
		f.lost = true
		return f
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
	f.again, f.lost = true, true
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
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
	case resp.StatusCode == http.StatusNoContent && method == http.MethodDelete:
		return nil, nil
	case resp.StatusCode/100 == 2 && method != http.MethodDelete && json.Valid(answer):
		return answer, nil
	case resp.StatusCode/100 == 2:
		return nil, c.stranger(resp)
	}
	return nil, c.refusal(resp, answer)
}

// change is api for a request that changes the stored picture. If there is no answer of the service, the outcome is unknown.
func (c *client) change(ctx context.Context, method, path string, header http.Header, body payload) (json.RawMessage, error) {
	answer, err := c.api(ctx, method, path, header, body)
	if f, ok := errors.AsType[*failure](err); ok {
		f.may = "stored"
		if method == http.MethodDelete {
			f.may = "deleted"
		}
		if f.lost && body.sent() {
			f.unknown(f.may)
		}
	}
	return answer, err
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
	return nil, f
}

// retry calls try until it succeeds, fails for good, or has failed often enough. The
// service says how long to wait, or it is a little longer each time. The failure has an unknown outcome if one of the tries has.
func (c *client) retry(ctx context.Context, bar *progress, try func() error) error {
	waits := backoff.NewExponentialBackOff()
	may := "" // what an earlier try may have done
	for n := 0; ; n++ {
		err := try()
		f, ok := errors.AsType[*failure](err)
		switch {
		case ok && f.Outcome == outcomeUnknown:
			may = f.may
		case ok && f.Outcome == "" && may != "":
			f.unknown(may)
		}
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
			interrupted := found(exitOther, "interrupted", "Interrupted", "interrupted while waiting: "+f.Detail)
			if may != "" {
				interrupted.unknown(may)
			}
			return interrupted
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
