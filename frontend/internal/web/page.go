package web

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gorilla/mux"

	"cats.example/shared/signerapi"
)

//go:embed page
var pageFiles embed.FS

// pageTypes are the files of the page besides the page itself.
var pageTypes = map[string]string{
	"app.js":    "text/javascript; charset=utf-8",
	"style.css": "text/css; charset=utf-8",
	"icon.svg":  "image/svg+xml",
}

// originWait is for how long the page waits to be told where links lead.
const originWait = time.Second

// page is what people use of the API: one document, which asks the API by script.
type page struct {
	signer  signerapi.Signer
	issuer  string                 // origin of the issuer that has people sign in; "" for none
	storage atomic.Pointer[string] // origin of links, once it is known: it stays the same for as long as a signer runs
	content []byte
}

func newPage(signer signerapi.Signer, options Options) *page {
	p := &page{signer: signer, content: pageFile("page/index.html")}
	if u, err := url.Parse(options.Issuer); err == nil && options.On() && options.ClientID != "" {
		p.issuer = u.Scheme + "://" + u.Host
	}
	return p
}

// get answers with the page. Where the signer does not answer, the policy leaves storage
// out, and the page asks to be loaded again.
func (p *page) get(w http.ResponseWriter, r *http.Request) error {
	policy := p.policy(r.Context())
	w.Header()["Content-Security-Policy"] = []string{policy}
	// A browser that keeps the document keeps the policy with it.
	serveFile(w, r, "text/html; charset=utf-8", p.content, policy)
	return nil
}

// policy lets the page load what is its own, send and show pictures at storage, and ask
// the issuer. Nothing that is text can become a script, by Trusted Types.
func (p *page) policy(ctx context.Context) string {
	storage := p.storage.Load()
	if storage == nil {
		ctx, cancel := context.WithTimeout(ctx, originWait)
		defer cancel()
		if about, err := p.signer.About(ctx); err == nil {
			storage = &about.LinkOrigin
			p.storage.Store(storage)
		} else {
			storage = new(string)
		}
	}
	return "default-src 'none'; script-src 'self'; style-src 'self'; img-src " + sources("'self' blob:", *storage) +
		"; connect-src " + sources("'self'", *storage, p.issuer) +
		"; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
}

// sources joins those that are there.
func sources(list ...string) string {
	var b strings.Builder
	for _, s := range list {
		if s != "" {
			b.WriteString(" " + s)
		}
	}
	return strings.TrimPrefix(b.String(), " ")
}

// pageParts are the files of the page besides the page itself, by their names.
type pageParts map[string][]byte

func newPageParts() pageParts {
	parts := pageParts{}
	for name := range pageTypes {
		parts[name] = pageFile("page/" + name)
	}
	return parts
}

func (p pageParts) get(w http.ResponseWriter, r *http.Request) error {
	name := mux.Vars(r)["file"]
	content, ok := p[name]
	if !ok {
		return errNoRoute
	}
	serveFile(w, r, pageTypes[name], content, "")
	return nil
}

func pageFile(name string) []byte {
	content, err := pageFiles.ReadFile(path.Clean(name))
	if err != nil {
		panic(err) // it is part of the program
	}
	return content
}

// serveFile answers with content, to be asked for again each time, and sent only when
// it, or what else it goes with, has changed.
func serveFile(w http.ResponseWriter, r *http.Request, contentType string, content []byte, with string) {
	sum := sha256.New()
	sum.Write(content)
	sum.Write([]byte(with))
	etag := `"` + base64.RawURLEncoding.EncodeToString(sum.Sum(nil)[:12]) + `"`
	h := w.Header()
	h.Set("ETag", etag)
	h.Set("Cache-Control", "no-cache")
	if matches(r.Header.Values("If-None-Match"), etag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(content)))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(content) // the client is gone, and so is anyone to tell
}
