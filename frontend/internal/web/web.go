// Package web is the public HTTP API and the web page. It checks requests, calls the signer, and writes errors as problem
// documents.
//
// Each resource has a file: cat.go, upload.go, about.go, page.go with the documentation. The files depend on each other in one
// direction: web.go and middleware.go are at the top, then the resources, then what they share, then errors.go.
package web

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
	"cats.example/shared/telemetry"
)

// New returns the handler of the public API. The options must be valid.
func New(options Options, deps Dependencies) http.Handler {
	m := newMiddleware(options, deps)
	// The router matches paths as sent, without cleaning them: in "/cat/a%2Fb" the user name is one segment and invalid, and
	// "/cat/../x" matches no route.
	r := mux.NewRouter().UseEncodedPath().SkipClean(true)
	routes := routes(newHandlers(options, deps), m)
	for _, path := range slices.Sorted(maps.Keys(routes)) {
		r.Handle(path, deps.Requests.Route(path, m.enforceLimits(routes[path].serve)))
		if path != "/" {
			r.Handle(path+"/", deps.Requests.Route(path, m.enforceLimits(redirectWithoutSlash)))
		}
	}
	r.NotFoundHandler = deps.Requests.Route("other", m.enforceLimits(func(http.ResponseWriter, *http.Request) error { return errNoRoute }))
	return m.securityHeaders(r)
}

// routes returns the resources of the API by path; openapi.json describes them. A request passes these middlewares, outermost
// first:
//
//   - securityHeaders: security and CORS headers
//   - Requests.Route (package httpserver): request ID, log line, metrics, deadlines
//   - handler.ServeHTTP: errors become problem documents
//   - enforceLimits: rate, requests in flight, host, target, cross-origin rules
//   - resource.serve: method
//   - countRejections: metrics of uploads
//   - requireToken or requireReader: bearer token
//   - limitInFlight: uploads or commits in flight
//   - requireWhole: header of an upload
//   - forUser: user name
func routes(a api, m *middleware) map[string]resource {
	uploads, commits := m.Slots.Uploads, m.Slots.Commits
	return map[string]resource{
		"/service": {http.MethodGet: a.getService},
		"/about":   {http.MethodGet: a.getAbout},
		"/cat/{user}": {
			http.MethodGet:    m.requireReader(forUser(a.getCat)),
			http.MethodPost:   m.countRejections(m.requireToken(m.limitInFlight(uploads, requireWhole(forUser(a.postCat))))),
			http.MethodPut:    m.countRejections(m.requireToken(m.limitInFlight(uploads, requireWhole(forUser(a.putCat))))),
			http.MethodDelete: m.requireToken(forUser(a.deleteCat)),
		},
		"/cat/{user}/picture":            {http.MethodGet: m.requireReader(forUser(a.getPicture))},
		"/cat/{user}/upload":             {http.MethodPost: m.countRejections(m.requireToken(forUser(a.postUpload)))},
		"/cat/{user}/upload/{id}/commit": {http.MethodPost: m.countRejections(m.requireToken(m.limitInFlight(commits, forUser(a.postCommit))))},
		"/":                              {http.MethodGet: a.page()},
		"/page/{file}":                   {http.MethodGet: pageAssets.get},
		"/openapi.json":                  {http.MethodGet: openAPI.get},
		"/docs":                          {http.MethodGet: getDocs},
		"/docs/{file}":                   {http.MethodGet: docsAssets.get},
	}
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

func writeJSON(w http.ResponseWriter, status int, v any) error {
	signerapi.WriteJSON(w, status, "application/json", v)
	return nil
}

// api has the handlers of the API.
type api struct {
	signer         signerapi.Signer
	options        Options
	signerRequests *prometheus.CounterVec
	uploadBytes    prometheus.Counter
}

// newHandlers returns the handlers and registers their metrics.
func newHandlers(options Options, deps Dependencies) api {
	return api{
		signer: deps.Signer, options: options,
		signerRequests: promauto.With(deps.Registry).NewCounterVec(prometheus.CounterOpts{
			Name: "cats_frontend_signer_requests_total", Help: "Requests to the signer by operation and outcome: ok, or the error code.",
		}, []string{"operation", "outcome"}),
		uploadBytes: telemetry.NewCounter(deps.Registry, "cats_frontend_upload_bytes_total", "Bytes of pictures stored, including direct uploads."),
	}
}

// counted counts a request to the signer that returned err, and returns err.
func (a api) counted(operation string, err error) error {
	outcome := "ok"
	if err != nil {
		outcome = apierror.AsError(err).Code
	}
	a.signerRequests.WithLabelValues(operation, outcome).Inc()
	return err
}
