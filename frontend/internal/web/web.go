// Package web is the public HTTP API and the web page. It checks requests, calls the signer, and writes errors as problem
// documents.
//
// Each resource has a file: cat.go, upload.go, about.go, page.go, docs.go. The files depend on each other in one direction:
// web.go and middleware.go are at the top, then the resources, then what they share, then errors.go.
package web

import (
	"net/http"

	"github.com/gorilla/mux"
)

// New returns the handler of the public API. The options must be valid.
func New(options Options, deps Dependencies) http.Handler {
	metrics := newMetrics(deps.Registry)
	m := newMiddleware(options, deps, metrics)
	return m.securityHeaders(newRouter(api{deps.Signer, options, metrics}, m))
}

// newRouter returns the routes, which openapi.json describes. A request passes these middlewares, outermost first:
//
//   - securityHeaders (added by New): security and CORS headers
//   - requests.Route (package httpserver): request ID, log line, metrics, deadlines
//   - handler.ServeHTTP: errors become problem documents
//   - enforceLimits: rate, requests in flight, host, target, cross-origin rules
//   - resource.serve: method
//   - countRejections: metrics of uploads
//   - requireToken or requireReader: bearer token
//   - limitInFlight: uploads or commits in flight
//   - requireWhole: header of an upload
//   - forUser: user name
func newRouter(a api, m *middleware) *mux.Router {
	// The router matches paths as sent, without cleaning them: in "/cat/a%2Fb" the user name is one segment and invalid, and
	// "/cat/../x" matches no route.
	r := mux.NewRouter().UseEncodedPath().SkipClean(true)
	uploads, commits := m.Slots.Uploads, m.Slots.Commits
	for _, route := range []struct {
		path string
		resource
	}{
		{"/service", resource{http.MethodGet: a.getService}},
		{"/about", resource{http.MethodGet: a.getAbout}},
		{"/cat/{user}", resource{
			http.MethodGet:    m.requireReader(forUser(a.getCat)),
			http.MethodPost:   m.countRejections(m.requireToken(m.limitInFlight(uploads, requireWhole(forUser(a.postCat))))),
			http.MethodPut:    m.countRejections(m.requireToken(m.limitInFlight(uploads, requireWhole(forUser(a.putCat))))),
			http.MethodDelete: m.requireToken(forUser(a.deleteCat)),
		}},
		{"/cat/{user}/picture", resource{http.MethodGet: m.requireReader(forUser(a.getPicture))}},
		{"/cat/{user}/upload", resource{http.MethodPost: m.countRejections(m.requireToken(forUser(a.postUpload)))}},
		{"/cat/{user}/upload/{id}/commit", resource{http.MethodPost: m.countRejections(m.requireToken(m.limitInFlight(commits, forUser(a.postCommit))))}},
		{"/page/{file}", resource{http.MethodGet: pageAssets.get}},
		{"/openapi.json", resource{http.MethodGet: openAPI.get}},
		{"/docs", resource{http.MethodGet: getDocs}},
		{"/docs/{file}", resource{http.MethodGet: docsAssets.get}},
	} {
		r.Handle(route.path, m.Requests.Route(route.path, m.enforceLimits(route.serve)))
		r.Handle(route.path+"/", m.Requests.Route(route.path, m.enforceLimits(redirectWithoutSlash)))
	}
	r.Handle("/", m.Requests.Route("/", m.enforceLimits(resource{http.MethodGet: newPage(a.signer, a.options).get}.serve)))
	r.NotFoundHandler = m.Requests.Route("other", m.enforceLimits(func(http.ResponseWriter, *http.Request) error { return errNoRoute }))
	return r
}
