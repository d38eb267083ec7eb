package web

import (
	"embed"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"

	"cats.example/shared/signerapi"
)

//go:embed page
var pageFiles embed.FS

var (
	pageIndex  = newAsset("text/html; charset=utf-8", pageFiles, "page/index.html")
	pageAssets = assets{
		"app.js":    newAsset("text/javascript; charset=utf-8", pageFiles, "page/app.js"),
		"style.css": newAsset("text/css; charset=utf-8", pageFiles, "page/style.css"),
		"icon.svg":  newAsset("image/svg+xml", pageFiles, "page/icon.svg"),
	}
)

// page is the web page: one document whose script calls the API.
type page struct {
	signer  signerapi.Signer
	issuer  string                 // origins of the sign-in's issuer, each after a space
	storage atomic.Pointer[string] // origin of signed URLs after a space, once the signer has reported it
}

func newPage(signer signerapi.Signer, options Options) *page {
	p := &page{signer: signer}
	if options.signInEnabled() {
		// The token endpoint is at one of these origins.
		p.issuer = strings.Join(slices.Compact([]string{originOf(options.Issuer), originOf(options.ConfigurationURL())}), "")
	}
	return p
}

// originOf returns scheme, host and port of a URL that [access.Policy.Validate] has accepted, after a space.
func originOf(address string) string {
	u := must(url.Parse(address))
	return " " + u.Scheme + "://" + u.Host
}

// get writes the page with its Content-Security-Policy: the page may load its own files, send pictures to storage, show them, and
// call the issuer. Trusted Types keep text from becoming a script.
//
// If the signer does not report the storage origin, the policy does not have it. The page then asks the user to reload.
func (p *page) get(w http.ResponseWriter, r *http.Request) error {
	storage := p.storage.Load()
	if storage == nil {
		storage = new(string)
		if about, err := p.signer.About(r.Context()); err == nil {
			*storage = " " + about.LinkOrigin
			p.storage.Store(storage)
		}
	}
	return pageIndex.serve(w, r, "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:"+*storage+
		"; connect-src 'self'"+*storage+p.issuer+
		"; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'")
}
