package browser

import (
	"bytes"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/chromedp"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// The page has a policy that allows no inline code and no other origin.
func TestDocsPageTriesCalls(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	harness.Put(t, sys, "Davyd", harness.Cat) // the name in the document's example
	b := browse(t, sys.URL+"/docs")
	b.holds(`document.querySelectorAll(".opblock").length > 20`)
	const get = "#operations-Pictures-getCat "
	b.click(get+".opblock-summary-control", get+".try-out__btn", get+".execute")
	b.sees(`"content_md5": "` + harness.MD5(harness.Cat) + `"`)
	b.shot("docs-tried")
}

func TestBrowserSavesUnderTheDownloadName(t *testing.T) {
	t.Parallel()
	sys, user := harness.Shared(t), harness.User(t)
	harness.Put(t, sys, user, harness.Cat)
	b := browse(t, sys.URL+"/docs")
	dir, c := t.TempDir(), chromedp.FromContext(b.ctx)
	if _, err := cdp.Call(b.ctx, c.Browser, browser.SetDownloadBehavior, browser.SetDownloadBehaviorParams{
		Behavior: browser.SetDownloadBehaviorBehaviorAllow, DownloadPath: dir, BrowserContextID: c.BrowserContextID,
	}); err != nil {
		b.fail(err)
	}
	for _, name := range []string{"a b.png", "a%20b.png", "100%25.png", "Мурчик 猫.png", "it's (1).png"} {
		eval[bool](b, `location.href = "/cat/`+user+`/picture?download=`+url.QueryEscape(name)+`", true`)
		harness.Eventually(t, func() error {
			saved, err := os.ReadFile(filepath.Join(dir, name))
			if err == nil && !bytes.Equal(saved, harness.Cat) {
				err = errors.New("the saved file is not the stored picture")
			}
			return err
		})
	}
}
