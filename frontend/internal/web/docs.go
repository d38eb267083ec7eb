package web

import (
	"embed"
	"net/http"

	"github.com/swaggest/swgui/v5/static"
)

// apiFiles has the description of the API and its page. The description is written by hand; tests compare it with the routes,
// the errors and the responses of a running system.
//
//go:embed openapi.json docs
var apiFiles embed.FS

// docsPolicy lets the documentation page load its own files and call the API. Swagger UI's stylesheet has data: images.
const docsPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

var (
	openAPI    = newAsset("application/json", apiFiles, "openapi.json")
	docsIndex  = newAsset("text/html; charset=utf-8", apiFiles, "docs/index.html")
	docsAssets = assets{
		"init.js":              newAsset("text/javascript; charset=utf-8", apiFiles, "docs/init.js"),
		"swagger-ui.css":       newAsset("text/css; charset=utf-8", static.FS, "swagger-ui.css.gz"),
		"swagger-ui-bundle.js": newAsset("text/javascript; charset=utf-8", static.FS, "swagger-ui-bundle.js.gz"),
		// The first line of the bundle refers to this file.
		"swagger-ui-bundle.js.LICENSE.txt": newAsset("text/plain; charset=utf-8", apiFiles, "docs/swagger-ui-bundle.js.LICENSE.txt"),
	}
)

func getDocs(w http.ResponseWriter, r *http.Request) error {
	return docsIndex.serve(w, r, docsPolicy)
}
