package blobstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/sony/gobreaker/v2"

	"cats.example/shared/service"
	"cats.example/shared/signerapi"
	"cats.example/shared/watchdog"
)

// How long storage may take for one call that somebody waits for: in all, and
// each try.
const (
	lookTimeout  = 10 * time.Second // a HEAD or a DELETE
	lookTry      = 4 * time.Second
	writeTimeout = 40 * time.Second // a Put Blob, a block or a commit
	writeTry     = 20 * time.Second
)

const maxRetries = 3 // after the first try of a call

const (
	tripAfter = 10              // calls that failed one after the other open the circuit
	openTime  = 5 * time.Second // and then none is made for so long
	probes    = 4               // calls that then must succeed, and are made at once at most
)

// retries of a call: short, with the SDK's jitter. A Retry-After is honoured; one
// that is longer than the longest delay goes to the caller.
func retries(most int32, try time.Duration) policy.RetryOptions {
	return policy.RetryOptions{
		MaxRetries:    most,
		TryTimeout:    try, // the SDK sets none of its own
		RetryDelay:    200 * time.Millisecond,
		MaxRetryDelay: 2 * time.Second,
	}
}

// operation is one call, its tries included, as the policies see it.
type operation struct {
	name    string
	body    []byte         // the body of each try if it is in memory; nil for the SDK's
	stream  *stream        // the body otherwise
	unclear int            // tries that storage may have carried out without our knowing
	refusal *http.Response // the last answer that was an error
}

type operationKey struct{}

// withOp names the operation that the calls under ctx are part of.
func withOp(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, operationKey{}, &operation{name: name})
}

func operationOf(ctx context.Context) *operation {
	if op, ok := ctx.Value(operationKey{}).(*operation); ok {
		return op
	}
	return &operation{}
}

// call makes one call to storage, with f, and returns what its error means. It makes none while the circuit breaker is open.
//
// A call that sends a stream has no timeout and does not end with ctx, but with the stream. It ends as well when storage accepts
// no byte for [watchdog.Timeout], or does not answer within twice that. The transport's timeout for an answer is shorter, but
// begins only once the last byte is written.
func (s *Store) call(ctx context.Context, op *operation, doing string, f func(context.Context) error) error {
	ctx = context.WithValue(ctx, operationKey{}, op)
	limit, try := writeTimeout, writeTry
	if op.name == opHead || op.name == opDelete {
		limit, try = lookTimeout, lookTry
	}
	options := retries(s.retries, try)
	if op.stream == nil {
		limited, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		ctx = limited
	} else {
		streaming, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
		defer cancel(nil)
		watch := watchdog.New(op.stream, s.accept, 2*s.accept, cancel)
		defer watch.Stop()
		op.stream.source, ctx = watch, streaming
		options.TryTimeout = 0
		options.ShouldRetry = func(resp *http.Response, err error) bool {
			return op.stream.repeatable() && (err != nil || slices.Contains(retried, resp.StatusCode))
		}
	}
	ctx = policy.WithRetryOptions(ctx, options)
	_, err := s.circuit.Execute(func() (struct{}, error) {
		err := f(ctx)
		if errors.Is(err, errBegun) && op.refusal != nil { // the SDK wanted to answer a challenge
			err = runtime.NewResponseError(op.refusal)
		}
		switch {
		case err == nil && op.stream != nil && !op.stream.sent():
			op.unclear++
			err = signerapi.ErrStorageUnavailable.Wrap(fmt.Errorf("%s: storage answered before it had received the body", doing))
		case err == nil:
		case op.stream != nil && op.stream.failed() != nil:
			err = bodyError{op.stream.failed()}
		default:
			err = s.storageError(ctx, doing, err)
		}
		return struct{}{}, err
	})
	if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
		return signerapi.ErrStorageUnavailable.Wrap(errShed)
	}
	if body, ok := errors.AsType[bodyError](err); ok {
		return body.error
	}
	return err
}

// retried are the statuses after which a request whose body was not read is sent again, as the SDK does.
var retried = []int{
	http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
	http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout,
}

// bodyError is an error of the client's body. The circuit breaker does not count it.
type bodyError struct{ error }

var errShed = errors.New("storage did not answer of late, and is asked again in a few seconds")

// available returns an error while the circuit is open. Where storage has to show
// that it answers again, it is asked for the picture of user, which takes a moment:
// the blocks of one large upload would be all the probes, and keep everybody else
// out until they are stored.
func (s *Store) available(ctx context.Context, user signerapi.User) error {
	for range probes {
		switch s.circuit.State() {
		case gobreaker.StateOpen:
			return signerapi.ErrStorageUnavailable.Wrap(errShed)
		case gobreaker.StateClosed:
			return nil
		}
		if _, err := s.look(ctx, user); errors.Is(err, signerapi.ErrStorageUnavailable) {
			return err
		}
	}
	return nil
}

// newCircuit returns what keeps calls from storage while it answers none.
func newCircuit(changed func(open bool)) *gobreaker.CircuitBreaker[struct{}] {
	return gobreaker.NewCircuitBreaker[struct{}](gobreaker.Settings{
		Timeout:     openTime,
		MaxRequests: probes,
		ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= tripAfter },
		IsSuccessful: func(err error) bool {
			return !errors.Is(err, signerapi.ErrStorageUnavailable)
		},
		IsExcluded: func(err error) bool {
			// The client gave up, or its body failed; storage is there, and says itself when to come back.
			if _, ok := errors.AsType[bodyError](err); ok {
				return true
			}
			return errors.Is(err, signerapi.ErrIncomplete) || errors.Is(err, signerapi.ErrThrottled)
		},
		OnStateChange: func(_ string, _, to gobreaker.State) { changed(to == gobreaker.StateOpen) },
	})
}

// Do implements [policy.Policy]. It is behind the retries, so that it sees each
// try, which it counts and gives a body of its own.
func (m *metrics) Do(req *policy.Request) (*http.Response, error) {
	op := operationOf(req.Raw().Context())
	end := func() {}
	if body := req.Raw().Body; body != nil && body != http.NoBody {
		v := &view{stream: op.stream}
		if op.stream == nil {
			content := op.body
			if content == nil {
				// The SDK rewinds its body for the next try, while the transport may still read it for this one.
				var err error
				if content, err = io.ReadAll(body); err != nil {
					return nil, err
				}
			}
			v.buffer = bytes.NewReader(content)
		}
		end = v.revoke
		req.Raw().Body, req.Raw().GetBody = v, nil // it is repeated here, not by the transport
	}
	var connected atomic.Bool
	trace := httptrace.WithClientTrace(req.Raw().Context(), &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	start := time.Now()
	resp, err := req.WithContext(trace).Next()
	end() // before the look whether the body was sent: from here on no byte of it is handed out
	code := "error"
	if err == nil {
		code = strconv.Itoa(resp.StatusCode)
	}
	if err == nil && resp.StatusCode >= http.StatusBadRequest {
		op.refusal = resp
	}
	if unclear(resp, err) && connected.Load() && (op.stream == nil || op.stream.sent()) {
		op.unclear++
	}
	service.Observe(req.Raw().Context(), m.duration.WithLabelValues(op.name), time.Since(start).Seconds())
	m.requests.WithLabelValues(op.name, code).Inc()
	return resp, err
}

// unclear reports whether storage may have carried out a request that it has received, although its answer does not say so.
func unclear(resp *http.Response, err error) bool {
	if err != nil {
		return true
	}
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusInternalServerError, http.StatusBadGateway, http.StatusGatewayTimeout:
		return true
	}
	return false
}

func etag(e *azcore.ETag) string { return string(value(e)) }

func value[T any](p *T) T {
	if p == nil {
		return *new(T)
	}
	return *p
}
