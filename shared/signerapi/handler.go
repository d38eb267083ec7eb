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

// wireError is the body of every refusal.
type wireError struct {
	Code    string  `json:"code"`
	Detail  string  `json:"detail"`
	Outcome Outcome `json:"outcome,omitempty"`
}

// Route is one call of the contract: the handler and the path it stands at,
// which is also its label in metrics.
type Route struct {
	Path    string
	Handler http.Handler
	Probe   bool // asked every few seconds by nobody in particular: not worth a log line
}

// Routes returns the server's side of the contract over s. It checks again all
// that the frontend should have checked. note is told each error behind an
// answer, with the cause that does not cross the wire, for the request's log line.
func Routes(s Signer, note func(context.Context, error), settings Settings) []Route {
	h := handler{s, note, settings}
	return []Route{
		{Path: picturePath, Handler: h.by(map[string]call{http.MethodPut: h.put, http.MethodDelete: h.delete})},
		{Path: linkPath, Handler: h.by(map[string]call{http.MethodGet: h.link})},
		{Path: ticketPath, Handler: h.by(map[string]call{http.MethodPost: h.ticket})},
		{Path: commitPath, Handler: h.by(map[string]call{http.MethodPost: h.commit})},
		{Path: aboutPath, Handler: h.by(map[string]call{http.MethodGet: h.about}), Probe: true},
		{Path: readyPath, Handler: h.by(map[string]call{http.MethodGet: h.ready}), Probe: true},
	}
}

// Settings are the settings of the signer that its side of the contract depends on.
type Settings struct {
	// Anonymous says that authentication is off. A call with a token is then
	// ErrMisconfigured: the frontend sends tokens only where authentication is on.
	Anonymous bool
	// Shared is the field of About.
	Shared map[string]string
}

// NewHandler returns [Routes] with the zero Settings as one handler.
func NewHandler(s Signer, note func(context.Context, error)) http.Handler {
	mux := http.NewServeMux()
	for _, r := range Routes(s, note, Settings{}) {
		mux.Handle(r.Path, r.Handler)
	}
	return mux
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
			h.fail(w, r, err)
		case answer == nil:
			w.WriteHeader(http.StatusNoContent)
		default:
			writeJSON(w, http.StatusOK, answer)
		}
	})
}

func (h handler) put(r *http.Request) (any, error) {
	query, user, err := arguments(r)
	if err != nil {
		return nil, err
	}
	opts := PutOptions{Size: -1}
	for name, size := range map[string]*int64{"size": &opts.Size, "at_least": &opts.AtLeast, "at_most": &opts.AtMost} {
		if query.Get(name) != "" {
			if *size, err = sizeOf(query, name); err != nil {
				return nil, err
			}
		}
	}
	if opts.Conditions, err = conditionsOf(query); err != nil {
		return nil, err
	}
	if opts.Digests, err = digestsOf(query); err != nil {
		return nil, err
	}
	info, err := h.signer.Put(r.Context(), user, requestBody{r.Body}, opts)
	if err != nil {
		return nil, err
	}
	return info, nil
}

func sizeOf(query url.Values, name string) (int64, error) {
	size, err := strconv.ParseInt(query.Get(name), 10, 64)
	if err != nil || size < 0 {
		return 0, ErrInvalidArgument.With(name + ": not a number of bytes")
	}
	return size, nil
}

func conditionsOf(query url.Values) (Conditions, error) {
	c := Conditions{IfMatch: query.Get("if_match"), IfNoneMatch: query.Get("if_none_match")}
	return c, c.Check()
}

func (h handler) link(r *http.Request) (any, error) {
	query, user, err := arguments(r)
	if err != nil {
		return nil, err
	}
	var opts LinkOptions
	if s := query.Get("ttl_seconds"); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n <= 0 || n > math.MaxInt64/int64(time.Second) {
			return nil, ErrInvalidArgument.With("ttl: not a number of seconds above zero")
		}
		opts.TTL = time.Duration(n) * time.Second
	}
	opts.Download = query.Get("download")
	if err := CheckDownloadName(opts.Download); err != nil {
		return nil, err
	}
	link, err := h.signer.Link(r.Context(), user, opts)
	if err != nil {
		return nil, err
	}
	return link, nil
}

func (h handler) delete(r *http.Request) (any, error) {
	query, user, err := arguments(r)
	if err != nil {
		return nil, err
	}
	conditions, err := conditionsOf(query)
	if err != nil {
		return nil, err
	}
	return nil, h.signer.Delete(r.Context(), user, conditions)
}

func (h handler) ticket(r *http.Request) (any, error) {
	query, user, err := arguments(r)
	if err != nil {
		return nil, err
	}
	size, err := sizeOf(query, "size")
	if err != nil {
		return nil, err
	}
	ticket, err := h.signer.Ticket(r.Context(), user, size)
	if err != nil {
		return nil, err
	}
	return ticket, nil
}

func (h handler) commit(r *http.Request) (any, error) {
	query, user, err := arguments(r)
	if err != nil {
		return nil, err
	}
	id := query.Get("ticket")
	if err := CheckTicket(id); err != nil {
		return nil, err
	}
	var opts CommitOptions
	if opts.Conditions, err = conditionsOf(query); err != nil {
		return nil, err
	}
	digests, err := digestsOf(query)
	if err != nil {
		return nil, err
	}
	opts.MD5 = digests.MD5
	info, err := h.signer.Commit(r.Context(), user, id, opts)
	if err != nil {
		return nil, err
	}
	return info, nil
}

func (h handler) about(r *http.Request) (any, error) {
	about, err := h.signer.About(r.Context())
	if err != nil {
		return nil, err
	}
	about.Shared = h.settings.Shared
	return about, nil
}

func (h handler) ready(r *http.Request) (any, error) {
	return nil, h.signer.Ready(r.Context())
}

// arguments returns the query and the user in it. An argument given twice is
// refused: two readers might not pick the same one.
func arguments(r *http.Request) (url.Values, User, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, User{}, ErrInvalidArgument.With("the query cannot be read")
	}
	for _, values := range query {
		if len(values) > 1 {
			return nil, User{}, ErrInvalidArgument.With("an argument is given twice")
		}
	}
	user, err := ParseUser(query.Get("user"))
	return query, user, err
}

func (h handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	h.note(r.Context(), err)
	Fail(w, err)
}

// Fail answers with err as it crosses the wire: its code, detail and
// Retry-After, never its cause. An error that is no *Error is ErrInternal.
func Fail(w http.ResponseWriter, err error) {
	e := AsError(err)
	status, outcome := 0, e.Outcome
	for _, row := range wire {
		if row.err.Code == e.Code {
			status = row.status
		}
	}
	if status == 0 { // a code that never crosses the wire
		e, status = ErrInternal, http.StatusInternalServerError
	}
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(e.RetryAfter.Seconds()))))
	}
	writeJSON(w, status, wireError{e.Code, e.Detail, outcome})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	var content bytes.Buffer
	enc := json.NewEncoder(&content)
	enc.SetEscapeHTML(false) // links are full of ampersands
	if err := enc.Encode(v); err != nil {
		panic(err) // our own types
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(content.Len())) // whole before the request is
	w.WriteHeader(status)
	_, _ = w.Write(content.Bytes()) // the peer is gone, and so is anyone to tell
}

// requestBody says what an error of an HTTP request's body means.
type requestBody struct{ r io.Reader }

func (b requestBody) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	return n, BodyError(err)
}

// BodyError translates what reading the body of a request gave: io.EOF and nil
// as they are, a passed deadline to ErrStalled, an *Error as it is, and
// everything else, a wrapped io.EOF included, to ErrIncomplete.
func BodyError(err error) error {
	if err == nil || err == io.EOF { //nolint:errorlint // only a bare io.EOF is the end of a body
		return err
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ErrStalled.Wrap(err)
	}
	return ErrIncomplete.Wrap(err)
}
