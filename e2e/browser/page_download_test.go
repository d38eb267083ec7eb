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
)

func TestBrowserSavesUnderTheDownloadName(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	harness.Put(t, sys, "x", harness.Cat)
	b := browse(t, sys.URL+"/docs")
	dir, c := t.TempDir(), chromedp.FromContext(b.ctx)
	if _, err := cdp.Call(b.ctx, c.Browser, browser.SetDownloadBehavior, browser.SetDownloadBehaviorParams{
		Behavior: browser.SetDownloadBehaviorBehaviorAllow, DownloadPath: dir, BrowserContextID: c.BrowserContextID,
	}); err != nil {
		b.fail(err)
	}
	for _, name := range []string{"a b.png", "a%20b.png", "100%25.png", "Мурчик 猫.png", "it's (1).png"} {
		eval[bool](b, `location.href = "/cat/x/picture?download=`+url.QueryEscape(name)+`", true`)
		harness.Eventually(t, func() error {
			saved, err := os.ReadFile(filepath.Join(dir, name))
			if err == nil && !bytes.Equal(saved, harness.Cat) {
				err = errors.New("another picture was saved")
			}
			return err
		})
	}
}
