package signerapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"
)

// Settings are the settings of the signer that its side of the contract depends on.
type Settings struct {
	// Anonymous says that authentication is off. A call with a token is then
	// ErrMisconfigured: the frontend sends tokens only where authentication is on.
	Anonymous bool
	// Shared is the field of About.
	Shared map[string]string
}

// NewHandler returns the server's side of the contract over s. It checks all arguments again that the frontend should have
// checked. note gets the error behind each response, with the cause that does not cross the wire.
//
// wrap wraps the handler of each route. route is its path, for metrics, and "other" for the handler of all other paths. probe
// says that monitoring calls the route every few seconds, so that its requests are not worth a log line.
//
// A path is matched byte by byte. An [http.ServeMux] would redirect paths such as //v1/link before wrap sees the request.
func NewHandler(s Signer, note func(context.Context, error), settings Settings, wrap func(route string, probe bool, h http.Handler) http.Handler) http.Handler {
	h := handler{s, note, settings}
	routes := map[string]http.Handler{
		picturePath: wrap(picturePath, false, h.by(map[string]call{http.MethodPut: h.put, http.MethodDelete: h.delete})),
		linkPath:    wrap(linkPath, false, h.by(map[string]call{http.MethodGet: h.link})),
		ticketPath:  wrap(ticketPath, false, h.by(map[string]call{http.MethodPost: h.ticket})),
		commitPath:  wrap(commitPath, false, h.by(map[string]call{http.MethodPost: h.commit})),
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
	signer   Signer
	note     func(context.Context, error)
	settings Settings
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
		r = r.WithContext(WithClient(r.Context(), r.Header.Get(clientHeader)))
		token, err := TokenIn(r.Header)
		if token != "" {
			r = r.WithContext(WithToken(r.Context(), token))
			if h.settings.Anonymous {
				err = ErrMisconfigured
			}
		}
		var answer any
		if err == nil {
			answer, err = c(r)
		}
		switch {
		case err != nil:
			h.note(r.Context(), err)
			Fail(w, err)
		case answer == nil:
			w.WriteHeader(http.StatusNoContent)
		default:
			WriteJSON(w, http.StatusOK, "application/json", answer)
		}
	})
}

func (h handler) put(r *http.Request) (any, error) {
	a := argumentsOf(r)
	opts := PutOptions{Size: -1, Conditions: a.conditions(), Digests: a.digests()}
	for name, size := range map[string]*int64{"size": &opts.Size, "at_least": &opts.AtLeast, "at_most": &opts.AtMost} {
		if a.Get(name) != "" {
			*size = a.size(name)
		}
	}
	if a.err != nil {
		return nil, a.err
	}
	return h.signer.Put(r.Context(), a.user, BodyReader{r.Body}, opts)
}

func (h handler) link(r *http.Request) (any, error) {
	a := argumentsOf(r)
	opts := LinkOptions{Download: a.Get("download")}
	if s := a.Get("ttl_seconds"); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n <= 0 || n > math.MaxInt64/int64(time.Second) {
			a.fail(ErrInvalidArgument.With("ttl: not a number of seconds above zero"))
		}
		opts.TTL = time.Duration(n) * time.Second
	}
	a.fail(CheckDownloadName(opts.Download))
	if a.err != nil {
		return nil, a.err
	}
	return h.signer.Link(r.Context(), a.user, opts)
}

func (h handler) delete(r *http.Request) (any, error) {
	a := argumentsOf(r)
	conditions := a.conditions()
	if a.err != nil {
		return nil, a.err
	}
	return nil, h.signer.Delete(r.Context(), a.user, conditions)
}

func (h handler) ticket(r *http.Request) (any, error) {
	a := argumentsOf(r)
	size := a.size("size")
	if a.err != nil {
		return nil, a.err
	}
	return h.signer.Ticket(r.Context(), a.user, size)
}

func (h handler) commit(r *http.Request) (any, error) {
	a := argumentsOf(r)
	id := a.Get("ticket")
	a.fail(CheckTicket(id))
	opts := CommitOptions{Conditions: a.conditions(), MD5: a.digests().MD5}
	if a.err != nil {
		return nil, a.err
	}
	return h.signer.Commit(r.Context(), a.user, id, opts)
}

func (h handler) about(r *http.Request) (any, error) {
	about, err := h.signer.About(r.Context())
	about.Shared = h.settings.Shared
	return about, err
}

func (h handler) ready(r *http.Request) (any, error) {
	return nil, h.signer.Ready(r.Context())
}

// arguments are those of a call. Like a [bufio.Scanner], they keep the first error, which the caller checks at the end.
type arguments struct {
	url.Values
	user User
	err  error
}

// argumentsOf parses the query of r. An argument given twice is an error: two readers might not pick the same one.
func argumentsOf(r *http.Request) *arguments {
	query, err := url.ParseQuery(r.URL.RawQuery)
	a := &arguments{Values: query}
	if err != nil {
		a.fail(ErrInvalidArgument.With("the query cannot be read"))
	}
	for _, values := range query {
		if len(values) > 1 {
			a.fail(ErrInvalidArgument.With("an argument is given twice"))
		}
	}
	a.user, err = ParseUser(query.Get("user"))
	a.fail(err)
	return a
}

// fail keeps err unless there is an error already.
func (a *arguments) fail(err error) {
	if a.err == nil {
		a.err = err
	}
}

func (a *arguments) size(name string) int64 {
	size, err := strconv.ParseInt(a.Get(name), 10, 64)
	if err != nil || size < 0 {
		a.fail(ErrInvalidArgument.With(name + ": not a number of bytes"))
	}
	return size
}

func (a *arguments) conditions() Conditions {
	c := Conditions{IfMatch: a.Get("if_match"), IfNoneMatch: a.Get("if_none_match")}
	a.fail(c.Check())
	return c
}

func (a *arguments) digests() Digests {
	d, err := digestsOf(a.Values)
	a.fail(err)
	return d
}

// Fail answers with err as it crosses the wire: its code, detail, outcome and
// Retry-After, never its cause. An error without a status is ErrInternal.
func Fail(w http.ResponseWriter, err error) {
	e := AsError(err)
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

// BodyReader reads the body of an HTTP request. It returns a passed deadline as ErrStalled, and any other error that is no
// *Error, a wrapped io.EOF included, as ErrIncomplete.
type BodyReader struct{ Body io.Reader }

// Read implements [io.Reader].
func (b BodyReader) Read(p []byte) (int, error) {
	n, err := b.Body.Read(p)
	_, known := errors.AsType[*Error](err)
	switch {
	case err == nil, known, err == io.EOF: //nolint:errorlint // only a bare io.EOF is the end of a body
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = ErrStalled.Wrap(err)
	default:
		err = ErrIncomplete.Wrap(err)
	}
	return n, err
}
