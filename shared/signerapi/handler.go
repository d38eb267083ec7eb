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

// HandlerOptions are options of [NewHandler].
type HandlerOptions struct {
	// AuthenticationOff says that the signer accepts calls without a token. A call with a token is then ErrMisconfigured: the
	// frontend sends tokens only if authentication is on.
	AuthenticationOff bool
	// SharedSettings is returned in [About].
	SharedSettings map[string]string
	// LogError gets the error behind each error response, with the cause that does not cross the wire; nil for none.
	LogError func(context.Context, error)
	// Wrap wraps the handler of each route. route is its path, for metrics, and "other" for the handler of all other paths. probe
	// is true for routes that monitoring calls every few seconds: they need no log line. nil wraps none.
	Wrap func(route string, probe bool, h http.Handler) http.Handler
}

// NewHandler returns the server's side of the contract over s. It checks all arguments again that the frontend should have
// checked.
//
// A path is matched byte by byte. An [http.ServeMux] would redirect paths such as //v1/link before Wrap sees the request.
func NewHandler(s Signer, options HandlerOptions) http.Handler {
	h, wrap := handler{s, options}, options.Wrap
	if wrap == nil {
		wrap = func(_ string, _ bool, h http.Handler) http.Handler { return h }
	}
	routes := map[string]http.Handler{
		picturePath: wrap(picturePath, false, h.by(map[string]call{http.MethodPut: forUser(h.put), http.MethodDelete: forUser(h.delete)})),
		linkPath:    wrap(linkPath, false, h.by(map[string]call{http.MethodGet: forUser(h.link)})),
		uploadPath:  wrap(uploadPath, false, h.by(map[string]call{http.MethodPost: forUser(h.ticket)})),
		commitPath:  wrap(commitPath, false, h.by(map[string]call{http.MethodPost: forUser(h.commit)})),
		aboutPath:   wrap(aboutPath, true, h.by(map[string]call{http.MethodGet: h.about})),
		readyPath:   wrap(readyPath, true, h.by(map[string]call{http.MethodGet: h.ready})),
	}
	other := wrap("other", false, http.NotFoundHandler())
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		route, ok := routes[r.URL.EscapedPath()]
		if !ok {
			route = other
		}
		route.ServeHTTP(w, r)
	})
}

type handler struct {
	signer  Signer
	options HandlerOptions
}

// call answers one request: a value to send as JSON, nil for 204, or an error.
type call func(*http.Request) (any, error)

func (h handler) by(calls map[string]call) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(contractHeader) != contractVersion {
			http.Error(w, "this is not a call of the contract", http.StatusForbidden)
			return
		}
		c, ok := calls[r.Method]
		if !ok {
			http.Error(w, "no such call", http.StatusMethodNotAllowed)
			return
		}
		ctx := WithClient(r.Context(), r.Header.Get(clientHeader))
		token, err := BearerToken(r.Header)
		if token != "" {
			ctx = WithToken(ctx, token)
			if h.options.AuthenticationOff {
				err = apierror.ErrMisconfigured
			}
		}
		r = r.WithContext(ctx)
		var answer any
		if err == nil {
			answer, err = c(r)
		}
		switch {
		case err != nil:
			if h.options.LogError != nil {
				h.options.LogError(r.Context(), err)
			}
			WriteError(w, err)
		case answer == nil:
			w.WriteHeader(http.StatusNoContent)
		default:
			WriteJSON(w, http.StatusOK, "application/json", answer)
		}
	})
}

// forUser returns a call that parses the arguments of a request for c.
func forUser(c func(*http.Request, User, *arguments) (any, error)) call {
	return func(r *http.Request) (any, error) {
		user, args, err := parseArguments(r.URL.RawQuery)
		if err != nil {
			return nil, err
		}
		return c(r, user, args)
	}
}

func (h handler) put(r *http.Request, user User, args *arguments) (any, error) {
	return h.signer.Put(r.Context(), user, BodyReader{r.Body}, args.PutOptions)
}

func (h handler) link(r *http.Request, user User, args *arguments) (any, error) {
	return h.signer.Link(r.Context(), user, args.LinkOptions)
}

func (h handler) delete(r *http.Request, user User, args *arguments) (any, error) {
	return nil, h.signer.Delete(r.Context(), user, args.Preconditions)
}

func (h handler) ticket(r *http.Request, user User, args *arguments) (any, error) {
	if args.Size < 0 {
		return nil, apierror.ErrInvalidArgument.WithDetail("size: want a number of bytes")
	}
	return h.signer.StartUpload(r.Context(), user, args.Size)
}

func (h handler) commit(r *http.Request, user User, args *arguments) (any, error) {
	if err := ValidateUploadID(args.uploadID); err != nil {
		return nil, err
	}
	return h.signer.CommitUpload(r.Context(), user, args.uploadID, CommitOptions{args.Preconditions, args.MD5})
}

func (h handler) about(r *http.Request) (any, error) {
	about, err := h.signer.About(r.Context())
	about.SharedSettings = h.options.SharedSettings
	return about, err
}

func (h handler) ready(r *http.Request) (any, error) {
	return nil, h.signer.Ready(r.Context())
}

// Fail answers with err as it crosses the wire: its code, detail, outcome and
// Retry-After, never its cause. An error without a status is apierror.ErrInternal.
func WriteError(w http.ResponseWriter, err error) {
	e := apierror.AsError(err)
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(e.RetryAfter.Seconds()))))
	}
	WriteJSON(w, e.Status, "application/json", e)
}

// WriteJSON answers with v, without a line end after it. No cache stores the answer.
func WriteJSON(w http.ResponseWriter, status int, contentType string, v any) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // signed URLs have many ampersands
	if err := enc.Encode(v); err != nil {
		panic(err) // v is of one of our own types
	}
	content := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Length", strconv.Itoa(len(content))) // or the response would end only after the rest of the request body is read
	w.WriteHeader(status)
	_, _ = w.Write(content) // the connection is lost if this fails
}

// BodyReader reads the body of an HTTP request. It returns a passed deadline as apierror.ErrStalled, and any other error that is no
// *apierror.Error, a wrapped io.EOF included, as apierror.ErrIncomplete.
type BodyReader struct{ Body io.Reader }

// Read implements [io.Reader].
func (b BodyReader) Read(p []byte) (int, error) {
	n, err := b.Body.Read(p)
	_, known := errors.AsType[*apierror.Error](err)
	switch {
	case err == nil, known, err == io.EOF: //nolint:errorlint // only a bare io.EOF is the end of a body
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = apierror.ErrStalled.Wrap(err)
	default:
		err = apierror.ErrIncomplete.Wrap(err)
	}
	return n, err
}
