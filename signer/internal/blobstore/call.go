package blobstore

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/tracing"
	"github.com/minio/crc64nvme"
	"github.com/sony/gobreaker/v2"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
	"cats.example/shared/telemetry"
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
	stream  *stream        // the body of it if that is not in memory
	unclear int            // tries that storage may have carried out without our knowing
	answer  *http.Response // of the last try that had one
	code    string         // of the error in that answer, if any
	damaged bool           // storage received other bytes than were sent, by its CRC64

	connected atomic.Bool // the last try got a connection
}

type operationKey struct{}

// under returns a context whose requests are tries of op.
func (op *operation) under(ctx context.Context) context.Context {
	return context.WithValue(ctx, operationKey{}, op)
}

// call makes one call to storage, with f, and returns what its error means. It makes none while the circuit breaker is open.
//
// A call that sends a stream has no timeout and does not end with ctx, but with the stream. It ends as well when storage accepts
// no byte for [watchdog.Timeout], or does not answer within twice that. The transport's timeout for an answer is shorter, but
// begins only once the last byte is written.
func (s *Store) call(ctx context.Context, op *operation, doing string, f func(context.Context) error) error {
	ctx = op.under(ctx)
	limit, try := writeTimeout, writeTry
	if op.name == opHead || op.name == opContainer || op.name == opDelete {
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
		watch := watchdog.NewReader(op.stream, s.accept, 2*s.accept, cancel)
		defer watch.Stop()
		op.stream.source, ctx = watch, streaming
		options.TryTimeout = 0
		options.ShouldRetry = func(resp *http.Response, err error) bool {
			return !op.stream.begun && (err != nil || runtime.HasStatusCode(resp, retried...))
		}
	}
	done, err := s.circuit.Allow()
	if err != nil {
		return apierror.ErrStorageUnavailable.Wrap(errShed)
	}
	ctx, end := runtime.StartSpan(policy.WithRetryOptions(ctx, options), op.name, s.tracer, nil)
	var counted error // by the circuit breaker
	defer func() {
		done(counted)
		s.endSpan(ctx, op, end, counted)
	}()
	err = f(ctx)
	switch {
	case err == nil && op.stream != nil && !op.stream.whole:
		op.unclear++
		counted = apierror.ErrStorageUnavailable.Wrap(fmt.Errorf("%s: storage answered before it had received the body", doing))
	case err == nil:
	case op.stream != nil && op.stream.err != nil:
		counted = errBody
		return op.stream.err
	default:
		counted = s.storageError(ctx, doing, contributorRole, err)
	}
	return counted
}

// errBody stands for an error of the client's body, which the circuit breaker does not count.
var errBody = errors.New("the client's body failed")

var errShed = errors.New("storage did not answer of late, and is asked again in a few seconds")

// available returns an error while the circuit is open. Where storage has to show
// that it answers again, it is asked for the picture of user, which takes a moment:
// the blocks of one large upload would be all the probes, and keep everybody else
// out until they are stored.
func (s *Store) available(ctx context.Context, user signerapi.User) error {
	for range probes {
		switch s.circuit.State() {
		case gobreaker.StateOpen:
			return apierror.ErrStorageUnavailable.Wrap(errShed)
		case gobreaker.StateClosed:
			return nil
		}
		if _, err := s.look(ctx, user); errors.Is(err, apierror.ErrStorageUnavailable) {
			return err
		}
	}
	return nil
}

// newCircuit returns what keeps calls from storage while it answers none.
func (s *Store) newCircuit() *gobreaker.TwoStepCircuitBreaker[struct{}] {
	return gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Timeout:      openTime,
		MaxRequests:  probes,
		ReadyToTrip:  func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= tripAfter },
		IsSuccessful: func(err error) bool { return !errors.Is(err, apierror.ErrStorageUnavailable) },
		IsExcluded: func(err error) bool {
			// The client gave up, or its body failed; storage is there, and says itself when to come back.
			return errors.Is(err, errBody) || errors.Is(err, apierror.ErrIncomplete) || errors.Is(err, apierror.ErrThrottled)
		},
		OnStateChange: func(_ string, _, to gobreaker.State) {
			s.metrics.circuit.Set(0)
			if to == gobreaker.StateOpen {
				s.metrics.circuit.Set(1)
				s.log.Warn("storage does not answer: asking it nothing for a while", "for", openTime.String())
			}
		},
	})
}

// endSpan ends the span of op in ctx, which [runtime.StartSpan] has begun and named like op in the metrics. azblob starts none
// itself (1.8.3), and without one around them azcore makes none of the tries either.
func (s *Store) endSpan(ctx context.Context, op *operation, end func(error), err error) {
	if err != nil && op.code != "" {
		s.tracer.SpanFromContext(ctx).SetAttributes(tracing.Attribute{Key: "error.type", Value: op.code})
	}
	end(err)
}

// tries is a policy behind the retries. So it sees each try, which it counts and gives a body of its own.
type tries struct{ *Store }

// Do implements [policy.Policy].
func (s tries) Do(req *policy.Request) (*http.Response, error) {
	op := req.Raw().Context().Value(operationKey{}).(*operation) // every request is of one
	if op.stream != nil && op.stream.begun {                     // the SDK answers a challenge
		return op.answer, nil
	}
	var sends *view
	if body := req.Raw().Body; body != nil && body != http.NoBody {
		sends = &view{body: body, stream: op.stream, crc: crc64nvme.New()}
		req.Raw().Body, req.Raw().GetBody = sends, nil // it is repeated here, not by the transport
	}
	op.connected.Store(false)
	gotConn := func(httptrace.GotConnInfo) { op.connected.Store(true) }
	trace := httptrace.WithClientTrace(req.Raw().Context(), &httptrace.ClientTrace{GotConn: gotConn})
	start := time.Now()
	resp, err := req.WithContext(trace).Next()
	if sends != nil {
		sends.revoke() // before the look whether the body was sent: from here on no byte of it is handed out
		op.damaged = err == nil && sends.differs(resp.Header.Get("X-Ms-Content-Crc64"))
	}
	code := "error"
	if err == nil {
		code = strconv.Itoa(resp.StatusCode)
		op.answer = resp
		op.code = resp.Header.Get("X-Ms-Error-Code")
		if op.name == opKey || op.name == opTrial {
			s.compareClock(resp.Header.Get("Date"))
		}
	}
	sent := op.connected.Load() && (op.stream == nil || op.stream.whole)
	if sent && (err != nil || runtime.HasStatusCode(resp, uncertain...)) {
		op.unclear++
	}
	telemetry.Observe(req.Raw().Context(), s.metrics.duration.WithLabelValues(op.name), time.Since(start).Seconds())
	s.metrics.requests.WithLabelValues(op.name, code).Inc()
	return resp, err
}

var (
	// uncertain are the statuses with which storage may have carried out a request that it has received.
	uncertain = []int{http.StatusRequestTimeout, http.StatusInternalServerError, http.StatusBadGateway, http.StatusGatewayTimeout}
	// retried are those after which a request whose body was not read is sent again, as the SDK does.
	retried = append([]int{http.StatusTooManyRequests, http.StatusServiceUnavailable}, uncertain...)
)

func etag(e *azcore.ETag) string { return string(value(e)) }

func value[T any](p *T) T {
	if p == nil {
		return *new(T)
	}
	return *p
}
