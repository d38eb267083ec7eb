package browser

import (
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// Under a policy that allows nothing inline and no other origin.
func TestTheDocumentIsReadAndTriedInABrowser(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	harness.Put(t, sys, "Davyd", harness.Cat) // as the document's example of a name has it
	b := browse(t, sys.URL+"/docs")
	b.holds(`document.querySelectorAll(".opblock").length > 20`)
	const get = "#operations-Pictures-getCat "
	b.click(get + ".opblock-summary-control")
	b.click(get + ".try-out__btn")
	b.click(get + ".execute")
	b.sees(`"content_md5": "` + harness.MD5(harness.Cat) + `"`)
	b.shot("docs-tried")
}
