package web

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/gorilla/mux"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
)

// api has the handlers of the API.
type api struct {
	signer  signerapi.Signer
	options Options
	metrics *metrics
}

// handler handles a request. If it returns an error, it has written nothing, and ServeHTTP writes the error.
type handler func(http.ResponseWriter, *http.Request) error

// ServeHTTP implements [http.Handler].
func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := h(w, r); err != nil {
		WriteError(w, r, err)
	}
}

// forUser returns a handler that calls h with the user name in the path.
func forUser(h func(http.ResponseWriter, *http.Request, signerapi.User) error) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		name, err := url.PathUnescape(mux.Vars(r)["user"])
		if err != nil {
			return apierror.ErrInvalidUser.WithDetail("the percent-encoding of the user name is invalid")
		}
		user, err := signerapi.ParseUser(name)
		if err != nil {
			return err
		}
		return h(w, r, user)
	}
}

// resource has the handlers of a path, by method. The handler of GET also handles HEAD.
type resource map[string]handler

// serve calls the handler of the request's method. It answers OPTIONS itself.
func (res resource) serve(w http.ResponseWriter, r *http.Request) error {
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet // net/http omits the body
	}
	if h, ok := res[method]; ok {
		return h(w, r)
	}
	methods := append(slices.Collect(maps.Keys(res)), http.MethodOptions)
	if res[http.MethodGet] != nil {
		methods = append(methods, http.MethodHead)
	}
	slices.Sort(methods)
	allow := strings.Join(methods, ", ")
	w.Header().Set("Allow", allow)
	if method != http.MethodOptions {
		return errMethodNotAllowed.WithDetail(fmt.Sprintf("this resource supports only %s", allow))
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// redirectWithoutSlash redirects "/service/" to "/service". The path begins with a route, so it cannot lead to another host.
func redirectWithoutSlash(w http.ResponseWriter, r *http.Request) error {
	u := url.URL{Path: strings.TrimSuffix(r.URL.Path, "/"), RawPath: strings.TrimSuffix(r.URL.RawPath, "/"), RawQuery: r.URL.RawQuery}
	w.Header().Set("Location", u.String())
	w.WriteHeader(http.StatusTemporaryRedirect)
	return nil
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	signerapi.WriteJSON(w, status, "application/json", v)
}
