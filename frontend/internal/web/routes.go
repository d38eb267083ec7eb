// Package web is the public API: it checks what strangers send, asks the signer,
// and says what came of it.
package web

import (
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"

	"cats.example/shared/access"
	"cats.example/shared/apierror"
	"cats.example/shared/httpserver"
	"cats.example/shared/signerapi"
)

type web struct {
	signer  signerapi.Signer
	options Options
	metrics *metrics
}

// New returns the public API over signer, with its metrics in reg. Each request
// passes through requests.
func New(signer signerapi.Signer, options Options, requests *httpserver.Middleware, slots Slots, log *slog.Logger, reg prometheus.Registerer) http.Handler {
	g := newGuard(options, slots, log, reg)
	return g.outermost(newRouter(signer, options, requests, g, newMetrics(reg)))
}

// newRouter returns the routes. All of them are in openapi.json.
func newRouter(signer signerapi.Signer, options Options, requests *httpserver.Middleware, g *guard, m *metrics) *mux.Router {
	s := web{signer, options, m}
	// The path is matched as it was sent and not cleaned: "a%2Fb" is one segment,
	// to be refused as a name, and "/cat/../x" is no path at all.
	r := mux.NewRouter().UseEncodedPath().SkipClean(true)
	for _, route := range []struct {
		path string
		resource
	}{
		{"/service", resource{http.MethodGet: s.getService}},
		{"/about", resource{http.MethodGet: s.getAbout}},
		{"/cat/{user}", resource{
			http.MethodGet:    s.reader(forUser(s.getCat)),
			http.MethodPost:   m.upload(s.owner(g.slot(g.slots.Uploads, whole(forUser(s.postCat))))),
			http.MethodPut:    m.upload(s.owner(g.slot(g.slots.Uploads, whole(forUser(s.putCat))))),
			http.MethodDelete: s.owner(forUser(s.deleteCat)),
		}},
		{"/cat/{user}/picture", resource{http.MethodGet: s.reader(forUser(s.getPicture))}},
		{"/cat/{user}/upload", resource{http.MethodPost: m.upload(s.owner(forUser(s.postUpload)))}},
		{"/cat/{user}/upload/{id}/commit", resource{http.MethodPost: m.upload(s.owner(g.slot(g.slots.Commits, forUser(s.postCommit))))}},
		{"/page/{file}", resource{http.MethodGet: pageParts.get}},
		{"/openapi.json", resource{http.MethodGet: newFile("application/json", written, "openapi.json").get}},
		{"/docs", resource{http.MethodGet: getDocs}},
		{"/docs/{file}", resource{http.MethodGet: docsParts.get}},
	} {
		r.Handle(route.path, requests.Route(route.path, g.inner(route.serve)))
		r.Handle(route.path+"/", requests.Route(route.path, g.inner(withoutSlash)))
	}
	r.Handle("/", requests.Route("/", g.inner(resource{http.MethodGet: newPage(signer, options).get}.serve)))
	r.NotFoundHandler = requests.Route("other", g.inner(func(http.ResponseWriter, *http.Request) error { return errNoRoute }))
	return r
}

type handler func(http.ResponseWriter, *http.Request) error

// ServeHTTP implements [http.Handler]. It answers with the error of h if there is one.
func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := h(w, r); err != nil {
		Refuse(w, r, err)
	}
}

// owner returns h for who may change a picture, and reader for who may look at one:
// with the caller's token, which the signer verifies, for whatever h asks of it. Who
// brings none is turned away here, before anything of a body is read.
func (s web) owner(h handler) handler  { return s.caller(h, true) }
func (s web) reader(h handler) handler { return s.caller(h, s.options.ReadAccess != access.Anyone) }

func (s web) caller(h handler, needed bool) handler {
	if !s.options.AuthenticationOn() || !needed {
		return h
	}
	return func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Add("Vary", "Authorization") // a cache must not give the response to another caller, or after sign-out
		token, err := signerapi.BearerToken(r.Header)
		if err != nil {
			return err
		}
		if token == "" {
			return apierror.ErrUnauthenticated
		}
		return h(w, r.WithContext(signerapi.WithToken(r.Context(), token)))
	}
}

// resource is what one path can do, by method. HEAD is wherever GET is.
type resource map[string]handler

func (res resource) serve(w http.ResponseWriter, r *http.Request) error {
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet // net/http leaves the body out
	}
	h, ok := res[method]
	if ok {
		err := h(w, r)
		callerRefused(w, err)
		return err
	}
	methods := append(slices.Collect(maps.Keys(res)), http.MethodOptions)
	if res[http.MethodGet] != nil {
		methods = append(methods, http.MethodHead)
	}
	slices.Sort(methods)
	allow := strings.Join(methods, ", ")
	w.Header().Set("Allow", allow)
	if method != http.MethodOptions {
		return errMethod.WithDetail(fmt.Sprintf("this method is not possible here; %s are", allow))
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// withoutSlash sends "/service/" to "/service". The path begins with one of our
// own routes, so it cannot lead to another host.
func withoutSlash(w http.ResponseWriter, r *http.Request) error {
	u := url.URL{Path: strings.TrimSuffix(r.URL.Path, "/"), RawPath: strings.TrimSuffix(r.URL.RawPath, "/"), RawQuery: r.URL.RawQuery}
	w.Header().Set("Location", u.String())
	w.WriteHeader(http.StatusTemporaryRedirect)
	return nil
}

// forUser returns a handler that calls h with the user name in the path.
func forUser(h func(http.ResponseWriter, *http.Request, signerapi.User) error) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		name, err := url.PathUnescape(mux.Vars(r)["user"])
		if err != nil {
			return apierror.ErrInvalidUser.WithDetail("the user name is not well percent-encoded")
		}
		user, err := signerapi.ParseUser(name)
		if err != nil {
			return err
		}
		return h(w, r, user)
	}
}
