package signerapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net/http"
	"os"
	"strconv"

	"cats.example/shared/apierror"
)

// Rule says who may make a call if authentication is on.
type Rule int

const (
	// Owner permits a call to the user itself. It is the zero value: a call without another rule needs a token of its user.
	Owner Rule = iota
	// Readers permits a call as READ_ACCESS says.
	Readers
	// Everybody permits a call without a token. The call is not about a user and has no arguments.
	Everybody
)

// HandlerOptions are the options of [NewHandler]. The zero value is valid.
type HandlerOptions struct {
	// Authorize returns the context of a call about user if the caller of ctx may make it. See [TokenFrom]. Nil means that
	// authentication is off. Calls with a token are then ErrMisconfigured: the frontend sends tokens only if authentication is
	// on there.
	Authorize func(ctx context.Context, user User, rule Rule) (context.Context, error)
	// SharedSettings is returned in [About].
	SharedSettings map[string]string
	// LogError gets the error of each failed call, with the cause that does not cross the wire.
	LogError func(context.Context, error)
	// Wrap wraps the handler of each route. route is the path, or "other" for the handler of all other paths. probe is true for
	// routes that the frontend calls every few seconds, for which a log line is not useful.
	Wrap func(route string, probe bool, h http.Handler) http.Handler
}

// NewHandler returns a handler that serves the contract by calling s. It validates all arguments, although the frontend should
// have validated them.
//
// It matches paths byte by byte. An [http.ServeMux] would redirect paths such as //v1/link before Wrap sees the request.
func NewHandler(s Signer, options HandlerOptions) http.Handler {
	if options.LogError == nil {
		options.LogError = func(context.Context, error) {}
	}
	if options.Wrap == nil {
		options.Wrap = func(_ string, _ bool, h http.Handler) http.Handler { return h }
	}
	routes := map[string]http.Handler{}
	for path, calls := range callsOf(s, options.SharedSettings) {
		probe := path == aboutPath || path == readyPath
		routes[path] = options.Wrap(path, probe, route{calls, options})
	}
	other := options.Wrap("other", false, http.NotFoundHandler())
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h, ok := routes[r.URL.EscapedPath()]
		if !ok {
			h = other
		}
		h.ServeHTTP(w, r)
	})
}

// call is one call of the contract. do makes it; its result is the body of the response, or nil for a 204.
type call struct {
	rule Rule
	do   func(ctx context.Context, user User, args *arguments, body io.Reader) (any, error)
}

// callsOf returns the calls of the contract by path and method.
func callsOf(s Signer, sharedSettings map[string]string) map[string]map[string]call {
	return map[string]map[string]call{
		picturePath: {
			http.MethodPut: {Owner, func(ctx context.Context, user User, args *arguments, body io.Reader) (any, error) {
				return s.Put(ctx, user, body, args.PutOptions)
			}},
			http.MethodDelete: {Owner, func(ctx context.Context, user User, args *arguments, _ io.Reader) (any, error) {
				return nil, s.Delete(ctx, user, args.Preconditions)
			}},
		},
		linkPath: {http.MethodGet: {Readers, func(ctx context.Context, user User, args *arguments, _ io.Reader) (any, error) {
			return s.Link(ctx, user, args.LinkOptions)
		}}},
		uploadPath: {http.MethodPost: {Owner, func(ctx context.Context, user User, args *arguments, _ io.Reader) (any, error) {
			if args.Size < 0 {
				return nil, apierror.ErrInvalidArgument.WithDetail("size: want a number of bytes")
			}
			return s.StartUpload(ctx, user, args.Size)
		}}},
		commitPath: {http.MethodPost: {Owner, func(ctx context.Context, user User, args *arguments, _ io.Reader) (any, error) {
			if err := ValidateUploadID(args.uploadID); err != nil {
				return nil, err
			}
			return s.CommitUpload(ctx, user, args.uploadID, CommitOptions{args.Preconditions, args.MD5})
		}}},
		aboutPath: {http.MethodGet: {Everybody, func(ctx context.Context, _ User, _ *arguments, _ io.Reader) (any, error) {
			about, err := s.About(ctx)
			about.SharedSettings = sharedSettings
			return about, err
		}}},
		readyPath: {http.MethodGet: {Everybody, func(ctx context.Context, _ User, _ *arguments, _ io.Reader) (any, error) {
			return nil, s.Ready(ctx)
		}}},
	}
}

// route serves one path.
type route struct {
	calls   map[string]call // by method
	options HandlerOptions
}

// ServeHTTP implements [http.Handler].
func (h route) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get(contractHeader) != contractVersion {
		http.Error(w, "the request has no header Cats-Contract: "+contractVersion, http.StatusForbidden)
		return
	}
	c, ok := h.calls[r.Method]
	if !ok {
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	result, err := h.call(r, c)
	switch {
	case err != nil:
		h.options.LogError(r.Context(), err)
		WriteError(w, err)
	case result == nil:
		w.WriteHeader(http.StatusNoContent)
	default:
		WriteJSON(w, http.StatusOK, "application/json", result)
	}
}

// call makes the call c if its arguments are valid and its caller may make it.
func (h route) call(r *http.Request, c call) (any, error) {
	token, err := BearerToken(r.Header)
	if err != nil {
		return nil, err
	}
	if token != "" && h.options.Authorize == nil {
		return nil, apierror.ErrMisconfigured
	}
	ctx := WithToken(WithClient(r.Context(), r.Header.Get(clientHeader)), token)
	if c.rule == Everybody {
		return c.do(ctx, User{}, nil, nil)
	}
	user, args, err := parseArguments(r.URL.RawQuery)
	if err == nil && h.options.Authorize != nil {
		ctx, err = h.options.Authorize(ctx, user, c.rule)
	}
	if err != nil {
		return nil, err
	}
	return c.do(ctx, user, args, BodyReader{r.Body})
}

// WriteError writes a response with the status, code, detail, outcome and Retry-After of err. An error that is not an
// [apierror.Error] becomes ErrInternal.
func WriteError(w http.ResponseWriter, err error) {
	e := apierror.AsError(err)
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(e.RetryAfter.Seconds()))))
	}
	WriteJSON(w, e.Status, "application/json", e)
}

// WriteJSON writes a response with v as JSON, without a newline at its end. Caches must not store it. WriteJSON panics if v
// cannot be encoded.
func WriteJSON(w http.ResponseWriter, status int, contentType string, v any) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // signed URLs contain &
	if err := enc.Encode(v); err != nil {
		panic(err)
	}
	content := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Length", strconv.Itoa(len(content))) // without it, the response ends only after the request body has been read
	w.WriteHeader(status)
	_, _ = w.Write(content) // fails only if the connection is lost
}

// BodyReader reads the body of an HTTP request and translates its errors: an expired deadline is ErrStalled. Other errors, a
// wrapped io.EOF included, are ErrIncomplete, unless they are an [apierror.Error].
type BodyReader struct{ Body io.Reader }

// Read implements [io.Reader].
func (b BodyReader) Read(p []byte) (int, error) {
	n, err := b.Body.Read(p)
	_, translated := errors.AsType[*apierror.Error](err)
	switch {
	case err == nil, translated, err == io.EOF:
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = apierror.ErrStalled.Wrap(err)
	default:
		err = apierror.ErrIncomplete.Wrap(err)
	}
	return n, err
}
