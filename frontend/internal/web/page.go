package web

import (
	"context"
	"embed"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/gorilla/mux"

	"cats.example/shared/signerapi"
)

//go:embed page
var pageFiles embed.FS

// page is what people use of the API: one document, which asks the API by script.
type page struct {
	signer  signerapi.Signer
	issuer  string                 // origins of the issuer that has people sign in; "" for none
	storage atomic.Pointer[string] // origin of links, once it is known: it stays the same for as long as a signer runs
	index   file
}

func newPage(signer signerapi.Signer, options Options) *page {
	p := &page{signer: signer, index: newFile("text/html; charset=utf-8", pageFiles, "page/index.html")}
	if options.AuthenticationOn() && options.ClientID != "" {
		// The token endpoint is at one of the two.
		p.issuer = sources(slices.Compact([]string{originOf(options.Issuer), originOf(options.ConfigurationURL())})...)
	}
	return p
}

// originOf returns scheme, host and port of address, which is a URL by [access.Policy.Validate].
func originOf(address string) string {
	u := must(url.Parse(address))
	return u.Scheme + "://" + u.Host
}

// get answers with the page. Where the signer does not answer, the policy leaves storage
// out, and the page asks to be loaded again.
func (p *page) get(w http.ResponseWriter, r *http.Request) error {
	return p.index.serve(w, r, p.policy(r.Context()))
}

// policy lets the page load what is its own, send and show pictures at storage, and ask
// the issuer. Nothing that is text can become a script, by Trusted Types.
func (p *page) policy(ctx context.Context) string {
	storage := p.storage.Load()
	if storage == nil {
		storage = new(string)
		if about, err := p.signer.About(ctx); err == nil {
			storage = &about.LinkOrigin
			p.storage.Store(storage)
		}
	}
	return "default-src 'none'; script-src 'self'; style-src 'self'; img-src " + sources("'self' blob:", *storage) +
		"; connect-src " + sources("'self'", *storage, p.issuer) +
		"; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
}

// sources joins the sources of a policy with single spaces.
func sources(list ...string) string {
	return strings.Join(strings.Fields(strings.Join(list, " ")), " ")
}

// parts are files by their names.
type parts map[string]file

// pageParts are the files of the page besides the page itself.
var pageParts = parts{
	"app.js":    newFile("text/javascript; charset=utf-8", pageFiles, "page/app.js"),
	"style.css": newFile("text/css; charset=utf-8", pageFiles, "page/style.css"),
	"icon.svg":  newFile("image/svg+xml", pageFiles, "page/icon.svg"),
}

func (p parts) get(w http.ResponseWriter, r *http.Request) error {
	f, ok := p[mux.Vars(r)["file"]]
	if !ok {
		return errNoRoute
	}
	return f.get(w, r)
}
