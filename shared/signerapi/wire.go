package signerapi

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	_ "crypto/md5"
	_ "crypto/sha256"
	_ "crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"cats.example/shared/apierror"
)

// Paths of the calls.
const (
	picturePath = "/v1/picture"
	linkPath    = "/v1/link"
	uploadPath  = "/v1/uploads"
	commitPath  = "/v1/commit"
	aboutPath   = "/v1/about"
	readyPath   = "/v1/ready"
)

// Header fields of a request; see the package comment.
const (
	contractHeader  = "Cats-Contract"
	contractVersion = "1"
	clientHeader    = "Cats-Client"
)

// arguments are the arguments of all calls. They are the query of a request. Each call uses some of them.
type arguments struct {
	user, uploadID string
	PutOptions
	LinkOptions
}

// argumentsOf returns arguments that only have a user.
func argumentsOf(user User) *arguments {
	return &arguments{user: user.String(), PutOptions: PutOptions{Size: -1}}
}

// argument is one argument: its name in the query, and a pointer to its value.
type argument struct {
	name  string
	value any
}

// all returns all arguments. An array needs no allocation.
func (a *arguments) all() [12]argument {
	return [12]argument{
		{"user", &a.user},
		{"upload_id", &a.uploadID},
		{"size", &a.Size},
		{"min_size", &a.MinSize},
		{"max_size", &a.MaxSize},
		{"if_match", &a.IfMatch},
		{"if_none_match", &a.IfNoneMatch},
		{"md5", &a.MD5},
		{"sha256", &a.SHA256},
		{"sha512", &a.SHA512},
		{"ttl_seconds", &a.TTL},
		{"download", &a.Download},
	}
}

// query returns the arguments that are set as a query.
func (a *arguments) query() string {
	var query []string
	for _, arg := range a.all() {
		var value string
		switch v := arg.value.(type) {
		case *string:
			value = *v
		case *[]byte:
			value = hex.EncodeToString(*v)
		case *int64:
			if *v > 0 || *v == 0 && v == &a.Size { // a Size of 0 is a known size
				value = strconv.FormatInt(*v, 10)
			}
		case *time.Duration:
			if *v != 0 {
				value = strconv.FormatFloat(v.Seconds(), 'f', -1, 64) // the signer rejects fractions
			}
		}
		if value != "" {
			query = append(query, arg.name+"="+url.QueryEscape(value))
		}
	}
	return strings.Join(query, "&")
}

// parseArguments returns the user and the other arguments of a query after it has validated them. It rejects arguments that are
// given twice: another parser might use the other value.
func parseArguments(query string) (User, *arguments, error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return User{}, nil, apierror.ErrInvalidArgument.WithDetail("the query is not valid")
	}
	a := argumentsOf(User{})
	for _, arg := range a.all() {
		value, valid := values.Get(arg.name), len(values[arg.name]) <= 1
		if value == "" && valid {
			continue
		}
		switch v := arg.value.(type) {
		case *string:
			*v = value
		case *[]byte:
			*v, err = hex.DecodeString(value)
		case *int64:
			*v, err = strconv.ParseInt(value, 10, 64)
			valid = valid && *v >= 0
		case *time.Duration:
			var seconds int64
			seconds, err = strconv.ParseInt(value, 10, 64)
			valid = valid && 0 < seconds && seconds <= int64(math.MaxInt64/time.Second)
			*v = time.Duration(seconds) * time.Second
		}
		if err != nil || !valid {
			return User{}, nil, apierror.ErrInvalidArgument.WithDetail(arg.name + ": the value is not valid, or there is more than one")
		}
	}
	user, err := ParseUser(a.user)
	return user, a, cmp.Or(err, a.Preconditions.Validate(), a.Digests.Validate(), ValidateDownloadName(a.Download))
}

// Token is a bearer token as the client sent it. It is not verified.
type Token = Secret

// BearerToken returns the bearer token of a request (RFC 6750 section 2.1), or "" if there is no Authorization field. It returns
// ErrUnauthenticated if there is more than one field, or another scheme, or a token that is not a token68 (RFC 9110 section
// 11.2).
func BearerToken(h http.Header) (Token, error) {
	const token68 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/="
	fields := h["Authorization"]
	if len(fields) == 0 {
		return "", nil
	}
	scheme, token, _ := strings.Cut(fields[0], " ")
	token = strings.TrimLeft(token, " ")
	if len(fields) > 1 || !strings.EqualFold(scheme, "Bearer") || token == "" || strings.Trim(token, token68) != "" {
		return "", apierror.ErrUnauthenticated.WithDetail("Authorization: want one bearer token, as in Authorization: Bearer TOKEN")
	}
	return Token(token), nil
}

// contextKey is the key of a value in a context.
type contextKey string

const (
	tokenKey  contextKey = "token"
	clientKey contextKey = "client"
	callerKey contextKey = "caller"
)

func value[T ~string](ctx context.Context, key contextKey) T {
	v, _ := ctx.Value(key).(T)
	return v
}

// WithToken returns ctx with the bearer token of the caller, which [Client] sends to the signer.
func WithToken(ctx context.Context, t Token) context.Context {
	return context.WithValue(ctx, tokenKey, t)
}

// TokenFrom returns the bearer token of the caller, or "".
func TokenFrom(ctx context.Context) Token { return value[Token](ctx, tokenKey) }

// WithClient returns ctx with the key of the client, which [Client] sends to the signer. The signer limits how many slots of its
// pools one client takes. The key is not a proof of identity.
func WithClient(ctx context.Context, client string) context.Context {
	return context.WithValue(ctx, clientKey, client)
}

// ClientFrom returns the key of the client, or "".
func ClientFrom(ctx context.Context) string { return value[string](ctx, clientKey) }

// WithCaller returns ctx with the key of the authenticated caller. It does not leave the process.
func WithCaller(ctx context.Context, caller string) context.Context {
	return context.WithValue(ctx, callerKey, caller)
}

// CallerFrom returns the key of the authenticated caller, or "".
func CallerFrom(ctx context.Context) string { return value[string](ctx, callerKey) }

// Digests are digests of a picture that its sender knows. nil means unknown.
type Digests struct{ MD5, SHA256, SHA512 []byte }

// known returns the digests that are set.
func (d Digests) known() map[crypto.Hash][]byte {
	all := map[crypto.Hash][]byte{crypto.MD5: d.MD5, crypto.SHA256: d.SHA256, crypto.SHA512: d.SHA512}
	maps.DeleteFunc(all, func(_ crypto.Hash, sum []byte) bool { return sum == nil })
	return all
}

// Validate returns ErrInvalidArgument if a digest has the wrong length.
func (d Digests) Validate() error {
	for algorithm, sum := range d.known() {
		if size := algorithm.Size(); len(sum) != size {
			return apierror.ErrInvalidArgument.WithDetail(fmt.Sprintf("digest: a digest with %v has %d bytes", algorithm, size))
		}
	}
	return nil
}

// Reader returns a reader of body that verifies the digests: if one does not match, it returns ErrDigestMismatch instead of
// io.EOF.
func (d Digests) Reader(body io.Reader) io.Reader {
	for algorithm, sum := range d.known() {
		body = &digestReader{body, algorithm.New(), sum}
	}
	return body
}

type digestReader struct {
	r    io.Reader
	hash hash.Hash
	want []byte
}

func (r *digestReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.hash.Write(p[:n])
	if err == io.EOF && !bytes.Equal(r.hash.Sum(nil), r.want) {
		err = apierror.ErrDigestMismatch
	}
	return n, err
}

// trackedBody is the body of a Put. It records the error that ended the body, and whether all of it was read.
//
// A body of a known size is complete with its last byte: the signer may store it then. The transport may still read after
// RoundTrip has returned, hence the atomic fields.
type trackedBody struct {
	r        io.Reader
	left     int64       // bytes to the end; negative if the size is unknown
	begun    atomic.Bool // a Read has begun: the body cannot be sent again
	complete atomic.Bool
	ended    atomic.Bool // later Reads fail
	err      atomic.Pointer[error]
}

// Read implements [io.Reader].
func (b *trackedBody) Read(p []byte) (int, error) {
	b.begun.Store(true)
	if b.ended.Load() {
		return 0, errors.New("the upload has ended")
	}
	n, err := b.r.Read(p)
	b.left -= int64(n)
	if err != nil && err != io.EOF { // a wrapped io.EOF is not the end of the body
		b.err.Store(&err)
	}
	if b.left == 0 || b.left < 0 && err == io.EOF {
		b.complete.Store(true)
	}
	return n, err
}

// outcome returns the error of the Put, whose call returned err. An error of the body is the cause of any other error that has no
// Outcome. The signer can only have stored a complete body.
func (b *trackedBody) outcome(err error) error {
	lost := errors.Is(err, errLost)
	if cause := b.err.Load(); cause != nil && (err == nil || apierror.AsError(err).Outcome == "") {
		lost, err = lost || err == nil, *cause
	}
	if lost && b.complete.Load() {
		return apierror.AsError(err).WithUnknownOutcome(apierror.MayBeStored)
	}
	return err
}

// WatchdogTimeout is the longest time in which storage may accept no byte of a picture. The signer has twice as much, so that its
// error response arrives before the frontend ends the call.
const WatchdogTimeout = 30 * time.Second

// ErrWatchdogExpired is the cause with which an upload is canceled.
var ErrWatchdogExpired = errors.New("the receiver accepted no byte in time")

// Watchdog is the body of an upload whose receiver may stop reading. Both hops of an upload have one: from the frontend to the
// signer, and from the signer to storage.
type Watchdog struct {
	r            io.Reader
	next, answer time.Duration
	timer        *time.Timer
}

// NewWatchdog returns a Watchdog of r. It calls expire with ErrWatchdogExpired if the receiver stops reading: no Read begins
// within next after a Read has returned. It also calls expire if Stop is not called within answer after the end of r.
//
// The time of a Read of r does not count, nor does the time before the first Read, nor the time after an error of r.
func NewWatchdog(r io.Reader, next, answer time.Duration, expire func(error)) *Watchdog {
	timer := time.AfterFunc(answer, func() { expire(ErrWatchdogExpired) })
	timer.Stop()
	return &Watchdog{r, next, answer, timer}
}

// Read implements [io.Reader].
func (w *Watchdog) Read(p []byte) (int, error) {
	w.timer.Stop()
	n, err := w.r.Read(p)
	switch {
	case err == nil:
		w.timer.Reset(w.next)
	case err == io.EOF: // a wrapped io.EOF is not the end of the body
		w.timer.Reset(w.answer)
	}
	return n, err
}

// Stop ends the watch. A Read that returns later starts it again, so expire must have no effect then.
func (w *Watchdog) Stop() { w.timer.Stop() }
