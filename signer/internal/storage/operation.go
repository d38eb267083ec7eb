package storage

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash"
	"io"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/minio/crc64nvme"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
	"cats.example/shared/telemetry"
)

// Names of operations. They label metrics and name spans.
const (
	OpHead      = "head_blob"
	OpGet       = "get_blob"
	OpPut       = "put_blob"
	OpBlock     = "put_block"
	OpCopy      = "put_block_from_url"
	OpCommit    = "put_block_list"
	OpDelete    = "delete_blob"
	OpList      = "list_blobs"
	OpContainer = "head_container"
	OpKey       = "user_delegation_key"
	OpProbe     = "probe_signed_url" // without a token
)

// Limits of a call without a stream.
const (
	shortTimeout = 10 * time.Second // of a call that moves little data: the attempts and the waits between them
	shortTry     = 4 * time.Second  // of each attempt
	longTimeout  = 40 * time.Second // of other calls
	longTry      = 20 * time.Second
	maxRetries   = 3 // after the first attempt
)

// Operation describes one call to storage, and records what became of it. It must not be used for a second call.
type Operation struct {
	Name string  // one of the Op constants
	Body *Stream // the request body, unless it is in memory

	// Damaged is set if storage received other bytes than were sent, by its CRC64.
	Damaged bool
	// Uncertain is set if storage may have carried out an attempt that failed: the outcome is unknown.
	Uncertain bool

	response  *http.Response // of the last attempt that had one
	connected atomic.Bool    // the last attempt got a connection
}

// NewOperation returns the operation name, whose request has a body.
func NewOperation(name string, body io.ReadSeekCloser) *Operation {
	stream, _ := body.(*Stream)
	return &Operation{Name: name, Body: stream}
}

// operationKey is the key of the Operation in the context of its requests.
type operationKey struct{}

// limits returns the timeout of op and its retries. The retries have the SDK's jitter. The SDK waits as long as Retry-After says;
// if that is longer than MaxRetryDelay, the response goes to the client.
func (op *Operation) limits() (timeout time.Duration, retry policy.RetryOptions) {
	timeout, retry = longTimeout, policy.RetryOptions{
		MaxRetries: maxRetries, TryTimeout: longTry, RetryDelay: 200 * time.Millisecond, MaxRetryDelay: 2 * time.Second,
	}
	switch op.Name {
	case OpHead, OpContainer, OpDelete, OpKey:
		timeout, retry.TryTimeout = shortTimeout, shortTry
	case OpProbe:
		timeout, retry.TryTimeout, retry.MaxRetries = shortTimeout, shortTimeout, -1 // none
	}
	return timeout, retry
}

// Header returns a header field of the last response, "" if there is none.
func (op *Operation) Header(name string) string {
	if op.response == nil {
		return ""
	}
	return op.response.Header.Get(name)
}

// uncertain are the statuses with which storage may have carried out a request that it has received.
var uncertain = []int{http.StatusRequestTimeout, http.StatusInternalServerError, http.StatusBadGateway, http.StatusGatewayTimeout}

// attempts is a policy behind the SDK's retries, so it sees each attempt. It records the attempt in the [Operation] and in the
// metrics, and gives the attempt a body of its own.
type attempts struct{ *metrics }

// Do implements [policy.Policy].
func (a attempts) Do(req *policy.Request) (*http.Response, error) {
	op := req.Raw().Context().Value(operationKey{}).(*Operation) // every request is part of a Call
	if op.Body != nil && op.Body.begun {                         // the SDK answers a challenge
		return op.response, nil
	}
	var body *attemptBody
	if whole := req.Raw().Body; whole != nil && whole != http.NoBody {
		body = &attemptBody{body: whole, stream: op.Body, crc: crc64nvme.New()}
		req.Raw().Body, req.Raw().GetBody = body, nil // the SDK repeats requests, not the transport
	}
	op.connected.Store(false)
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { op.connected.Store(true) }}
	start := time.Now()
	resp, err := req.WithContext(httptrace.WithClientTrace(req.Raw().Context(), trace)).Next()
	if body != nil {
		body.revoke() // before op.Body.whole is read: from here on the transport gets no byte of the body
		op.Damaged = err == nil && body.differs(resp.Header.Get("X-Ms-Content-Crc64"))
	}
	code := "error"
	if err == nil {
		code, op.response = strconv.Itoa(resp.StatusCode), resp
	}
	sent := op.connected.Load() && (op.Body == nil || op.Body.whole)
	op.Uncertain = op.Uncertain || sent && (err != nil || runtime.HasStatusCode(resp, uncertain...))
	telemetry.Observe(req.Raw().Context(), a.duration.WithLabelValues(op.Name), time.Since(start).Seconds())
	a.requests.WithLabelValues(op.Name, code).Inc()
	return resp, err
}

// Stream is a request body that is read from the client while it is sent. At most one attempt reads it.
type Stream struct {
	r      io.Reader
	size   int64
	n      int64     // bytes that Read has returned
	source io.Reader // the stream under a watchdog

	// The attempt writes these until its body is revoked.
	begun bool  // an attempt has begun to read, so no other may
	whole bool  // the transport got all bytes, so storage may have received them
	err   error // of r, which ended the stream
}

// NewStream returns a body of the first size bytes of r.
func NewStream(r io.Reader, size int64) *Stream { return &Stream{r: r, size: size} }

// Read implements [io.Reader]. It returns io.EOF with the last byte, and ErrIncomplete if r ends before that.
func (s *Stream) Read(p []byte) (int, error) {
	if s.n == s.size { // net/http reads once more
		return 0, io.EOF
	}
	n, err := s.r.Read(p[:min(int64(len(p)), s.size-s.n)])
	s.n += int64(n)
	switch {
	case s.n == s.size && (err == nil || err == io.EOF): // not errors.Is: a wrapped io.EOF is a broken body, not its end
		return n, io.EOF
	case err == io.EOF:
		return n, apierror.ErrIncomplete
	}
	return n, err
}

// Seek implements [io.Seeker] as far as the SDK needs it: the SDK asks for the length, and rewinds the body before each attempt.
// Nothing reads the stream after it was rewound: see [attempts.Do].
func (s *Stream) Seek(_ int64, whence int) (int64, error) {
	if whence == io.SeekEnd {
		return s.size, nil
	}
	return 0, nil
}

// Close implements [io.Closer].
func (s *Stream) Close() error { return nil }

// watch returns the context of a call that sends s. It has no timeout and does not end with ctx, but with the stream. It is also
// canceled if storage accepts no byte for [signerapi.WatchdogTimeout], or does not answer within twice that. The transport's timeout for a
// response is shorter, but begins only after the last byte is written.
func (s *Stream) watch(ctx context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	watch := signerapi.NewWatchdog(s, signerapi.WatchdogTimeout, 2*signerapi.WatchdogTimeout, cancel)
	s.source = watch
	return ctx, func() {
		watch.Stop()
		cancel(nil)
	}
}

// retry reports whether a call that sends s is retried after resp or err: a stream can be sent again only if no attempt has read it.
func (s *Stream) retry(resp *http.Response, err error) bool {
	retried := append([]int{http.StatusTooManyRequests, http.StatusServiceUnavailable}, uncertain...) // as the SDK does
	return !s.begun && (err != nil || runtime.HasStatusCode(resp, retried...))
}

var errRevoked = errors.New("this attempt has ended")

// attemptBody is the body of one attempt. [http.Transport.RoundTrip] can return while its write loop still reads the body. After
// revoke has returned, an attemptBody reads nothing more of a body in memory and returns nothing more of a stream.
type attemptBody struct {
	body   io.Reader // in memory
	stream *Stream   // in its place, or nil

	mu      sync.Mutex // never held while the stream is read
	revoked bool
	crc     hash.Hash64 // of the bytes that were read, as in x-ms-content-crc64
}

// Read implements [io.Reader].
func (b *attemptBody) Read(p []byte) (n int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.revoked {
		return 0, errRevoked
	}
	if b.stream == nil {
		n, err = b.body.Read(p)
		_, _ = b.crc.Write(p[:n])
		return n, err
	}
	b.stream.begun = true
	b.mu.Unlock()
	n, err = b.stream.source.Read(p)
	b.mu.Lock()
	if b.revoked {
		return 0, errRevoked
	}
	_, _ = b.crc.Write(p[:n])
	switch err { // a wrapped io.EOF is a broken body, not its end
	case nil:
	case io.EOF:
		b.stream.whole = true
	default:
		b.stream.err = err
	}
	return n, err
}

// Close implements [io.Closer].
func (b *attemptBody) Close() error {
	b.revoke()
	return nil
}

// revoke ends the use of the body by this attempt.
func (b *attemptBody) revoke() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.revoked = true
}

// differs reports whether crc, in Base64, differs from the CRC64 of the bytes that were read. Storage may return none.
func (b *attemptBody) differs(crc string) bool {
	return crc != "" && crc != base64.StdEncoding.EncodeToString(binary.LittleEndian.AppendUint64(nil, b.crc.Sum64()))
}

type metrics struct {
	requests    *prometheus.CounterVec
	duration    *prometheus.HistogramVec
	conflicts   prometheus.Counter
	breakerOpen prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	auto := promauto.With(reg)
	return &metrics{
		requests: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "cats_signer_storage_requests_total", Help: "Requests to storage by operation and HTTP status; error means no response.",
		}, []string{"operation", "code"}),
		duration: auto.NewHistogramVec(prometheus.HistogramOpts{
			Name: "cats_signer_storage_request_duration_seconds", Help: "Duration of requests to storage, up to the header of the response.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"operation"}),
		conflicts:   telemetry.NewCounter(reg, "cats_signer_uploads_conflicted_total", "Uploads that failed because of a concurrent upload to the same name."),
		breakerOpen: telemetry.NewGauge(reg, "cats_signer_storage_circuit_open", "1 while the storage circuit breaker is open, 0 otherwise."),
	}
}
