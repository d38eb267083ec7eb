package blobstore

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/sony/gobreaker/v2"

	"cats.example/shared/service"
	"cats.example/shared/signerapi"
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
	body    [][]byte // of which each try sends a body of its own; nil for the SDK's
	unclear int      // tries that storage may have carried out without our knowing
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

// call makes one call to storage, that f makes with the context it is given, and
// says what an error means. It makes none while the circuit is open.
func (s *Store) call(ctx context.Context, op *operation, doing string, f func(context.Context) error) error {
	limit, try := writeTimeout, writeTry
	if op.name == opHead || op.name == opDelete {
		limit, try = lookTimeout, lookTry
	}
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, operationKey{}, op), limit)
	defer cancel()
	ctx = policy.WithRetryOptions(ctx, retries(s.retries, try))
	_, err := s.circuit.Execute(func() (struct{}, error) {
		err := f(ctx)
		if err != nil {
			err = s.storageError(ctx, doing, err)
		}
		return struct{}{}, err
	})
	if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
		return signerapi.ErrStorageUnavailable.Wrap(errShed)
	}
	return err
}

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
			// The caller gave up; storage is there, and says itself when to come back.
			return errors.Is(err, signerapi.ErrIncomplete) || errors.Is(err, signerapi.ErrThrottled)
		},
		OnStateChange: func(_ string, _, to gobreaker.State) { changed(to == gobreaker.StateOpen) },
	})
}

// Do implements [policy.Policy]. It is behind the retries, so that it sees each
// try, which it counts and gives a body of its own.
func (m *metrics) Do(req *policy.Request) (*http.Response, error) {
	op := operationOf(req.Raw().Context())
	pages := op.body
	if pages == nil && req.Raw().Body != nil && req.Raw().Body != http.NoBody {
		// The SDK rewinds its body for the next try, while the transport may still read it for this one.
		content, err := io.ReadAll(req.Raw().Body)
		if err != nil {
			return nil, err
		}
		pages = [][]byte{content}
	}
	if pages != nil {
		body := lend(pages)
		defer body.takeBack()
		req.Raw().Body, req.Raw().GetBody = body, nil // it is repeated here, not by the transport
	}
	start := time.Now()
	resp, err := req.Next()
	code := "error"
	if err == nil {
		code = strconv.Itoa(resp.StatusCode)
	}
	if unclear(resp, err) {
		op.unclear++
	}
	service.Observe(req.Raw().Context(), m.duration.WithLabelValues(op.name), time.Since(start).Seconds())
	m.requests.WithLabelValues(op.name, code).Inc()
	return resp, err
}

// unclear reports whether storage may have done what it was asked although it did
// not say so.
func unclear(resp *http.Response, err error) bool {
	if err != nil {
		dial, ok := errors.AsType[*net.OpError](err)
		return !ok || dial.Op != "dial"
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
