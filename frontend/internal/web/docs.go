package web

import (
	"embed"
	"net/http"

	"github.com/swaggest/swgui/v5/static"
)

// The description of this API, kept by hand; tests compare it with the routes, the
// errors, and what a running system answers.
//
//go:embed openapi.json docs
var written embed.FS

// docsPolicy, in place of the guard's, lets the page of the documentation have what it
// is made of, and ask this API. Swagger UI's own style has its pictures in it.
const docsPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// docsIndex is a page that shows the description, and docsParts are the other files of the page.
var (
	docsIndex = newFile("text/html; charset=utf-8", written, "docs/index.html")
	docsParts = parts{
		"init.js":              newFile("text/javascript; charset=utf-8", written, "docs/init.js"),
		"swagger-ui.css":       newFile("text/css; charset=utf-8", static.FS, "swagger-ui.css.gz"),
		"swagger-ui-bundle.js": newFile("text/javascript; charset=utf-8", static.FS, "swagger-ui-bundle.js.gz"),
		// Its first line says that this is beside it.
		"swagger-ui-bundle.js.LICENSE.txt": newFile("text/plain; charset=utf-8", written, "docs/swagger-ui-bundle.js.LICENSE.txt"),
	}
)

func getDocs(w http.ResponseWriter, r *http.Request) error {
	return docsIndex.serve(w, r, docsPolicy)
}
