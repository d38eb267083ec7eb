// Package web is the public HTTP API and the web page. It checks requests, calls the signer, and writes errors as problem
// documents.
//
// Each resource has a file: cat.go, upload.go, about.go, page.go, docs.go. The files depend on each other in one direction:
// web.go and middleware.go are at the top, then the resources, then what they share, then errors.go.
package web

import (
	"maps"
	"net/http"
	"slices"

	"github.com/gorilla/mux"
)

// New returns the handler of the public API. The options must be valid.
func New(options Options, deps Dependencies) http.Handler {
	metrics := newMetrics(deps.Registry)
	m := newMiddleware(options, deps, metrics)
	// The router matches paths as sent, without cleaning them: in "/cat/a%2Fb" the user name is one segment and invalid, and
	// "/cat/../x" matches no route.
	r := mux.NewRouter().UseEncodedPath().SkipClean(true)
	routes := routes(api{deps.Signer, options, metrics}, m)
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
		"/":                              {http.MethodGet: newPage(a.signer, a.options).get},
		"/page/{file}":                   {http.MethodGet: pageAssets.get},
		"/openapi.json":                  {http.MethodGet: openAPI.get},
		"/docs":                          {http.MethodGet: getDocs},
		"/docs/{file}":                   {http.MethodGet: docsAssets.get},
	}
}
