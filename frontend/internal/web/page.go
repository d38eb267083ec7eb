package web

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/gorilla/mux"
	"github.com/swaggest/swgui/v5/static"
)

// apiFiles has the description of the API and its page. The description is written by hand; tests compare it with the routes,
// the errors and the responses of a running system.
var (
	//go:embed openapi.json docs
	apiFiles embed.FS
	//go:embed page
	pageFiles embed.FS
)

const (
	html, script, style = "text/html; charset=utf-8", "text/javascript; charset=utf-8", "text/css; charset=utf-8"

	// docsPolicy lets the documentation page load its own files and call the API. Swagger UI's stylesheet has data: images.
	docsPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

var (
	openAPI    = newFile("application/json", apiFiles, "openapi.json")
	docsIndex  = newFile(html, apiFiles, "docs/index.html")
	docsAssets = assets{
		"init.js":              newFile(script, apiFiles, "docs/init.js"),
		"swagger-ui.css":       newFile(style, static.FS, "swagger-ui.css.gz"),
		"swagger-ui-bundle.js": newFile(script, static.FS, "swagger-ui-bundle.js.gz"),
		// The first line of the bundle refers to this file.
		"swagger-ui-bundle.js.LICENSE.txt": newFile("text/plain; charset=utf-8", apiFiles, "docs/swagger-ui-bundle.js.LICENSE.txt"),
	}
	pageIndex  = newFile(html, pageFiles, "page/index.html")
	pageAssets = assets{
		"app.js":    newFile(script, pageFiles, "page/app.js"),
		"style.css": newFile(style, pageFiles, "page/style.css"),
		"icon.svg":  newFile("image/svg+xml", pageFiles, "page/icon.svg"),
	}
)

// file returns a file that is embedded in the binary. Its content uses memory from the first call on.
type file func() content

type content struct {
	contentType, etag string
	plain, gzipped    []byte
}

// newFile returns the file called name. Its name ends in .gz if it is already compressed.
func newFile(contentType string, from fs.FS, name string) file {
	return sync.OnceValue(func() content {
		b := must(fs.ReadFile(from, name))
		c := content{contentType: contentType, etag: fmt.Sprintf(`"%x"`, sha256.Sum256(b)), plain: b, gzipped: b}
		if strings.HasSuffix(name, ".gz") {
			c.plain = must(io.ReadAll(must(gzip.NewReader(bytes.NewReader(b)))))
			return c
		}
		var gzipped bytes.Buffer
		w := gzip.NewWriter(&gzipped)
		must(w.Write(b))
		_ = w.Close() // writes to memory
		c.gzipped = gzipped.Bytes()
		return c
	})
}

// must returns v and panics on an error: of an embedded file, or of a validated setting.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// acceptsGzip matches an Accept-Encoding that has gzip with a weight above 0 (RFC 9110 section 12.5.3).
var acceptsGzip = regexp.MustCompile(`(?i)(^|,)\s*gzip\s*(;\s*q\s*=\s*(1|0?\.0*[1-9]).*)?(,|$)`)

// get writes the file.
func (f file) get(w http.ResponseWriter, r *http.Request) error { return f.serve(w, r, "") }

// serve writes the file. Browsers must revalidate it, because its URL has no version. A document has a policy, which replaces the
// Content-Security-Policy of securityHeaders, and no ETag: browsers keep the policy of a document that they revalidate.
func (f file) serve(w http.ResponseWriter, r *http.Request, policy string) error {
	c, h := f(), w.Header()
	h.Set("Cache-Control", "no-cache")
	h.Add("Vary", "Accept-Encoding")
	if policy != "" {
		h.Set("Content-Security-Policy", policy)
	} else {
		h.Set("ETag", "W/"+c.etag) // weak: both encodings have the same
		if matchesETag(headerList(r.Header, "If-None-Match"), c.etag) {
			w.WriteHeader(http.StatusNotModified)
			return nil
		}
	}
	body := c.plain
	if acceptsGzip.MatchString(headerList(r.Header, "Accept-Encoding")) {
		body = c.gzipped
		h.Set("Content-Encoding", "gzip")
	}
	h.Set("Content-Type", c.contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body) // fails only if the client is gone
	return nil
}

// assets are files by the last segment of their path.
type assets map[string]file

func (a assets) get(w http.ResponseWriter, r *http.Request) error {
	f, ok := a[mux.Vars(r)["file"]]
	if !ok {
		return errNoRoute
	}
	return f.get(w, r)
}

func getDocs(w http.ResponseWriter, r *http.Request) error { return docsIndex.serve(w, r, docsPolicy) }

// page returns the handler of the web page: one document whose script calls the API. Its Content-Security-Policy lets the page
// load its own files, send pictures to storage, show them, and call the issuer. Trusted Types keep text from becoming a script.
//
// Until the signer has reported the storage origin, the policy does not have it. The page then asks the user to reload.
func (a api) page() handler {
	var issuer string // origins of the sign-in's issuer, each after a space
	if a.options.signInEnabled() {
		// The token endpoint is at one of these origins.
		issuer = strings.Join(slices.Compact([]string{originOf(a.options.Issuer), originOf(a.options.ConfigurationURL())}), "")
	}
	var origin atomic.Value // the storage origin after a space
	return func(w http.ResponseWriter, r *http.Request) error {
		storage, known := origin.Load().(string)
		if !known {
			if about, err := a.signer.About(r.Context()); err == nil {
				storage = " " + about.LinkOrigin
				origin.Store(storage)
			}
		}
		return pageIndex.serve(w, r, "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:"+storage+
			"; connect-src 'self'"+storage+issuer+
			"; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'")
	}
}

// originOf returns scheme, host and port of a URL that [access.Policy.Validate] has accepted, after a space.
func originOf(address string) string {
	u := must(url.Parse(address))
	return " " + u.Scheme + "://" + u.Host
}
