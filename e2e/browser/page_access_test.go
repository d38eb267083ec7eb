package browser

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/dom"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"cats.example/e2e/harness"
)

func TestThePageIsUsedByKeyboardAlone(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	b := browse(t, sys.URL)
	b.sees("Share a cat")
	cdpCall(b, page.SetInterceptFileChooserDialog, page.SetInterceptFileChooserDialogParams{Enabled: true})
	opened := chromedp.Events(b.ctx, page.FileChooserOpened)
	until := func(id string) {
		t.Helper()
		for range 10 {
			b.key(kb.Tab)
			if eval[string](b, `document.activeElement?.id ?? ""`) == id {
				return
			}
		}
		b.fail(fmt.Errorf("Tab does not lead to %s", id))
	}
	until("name")
	b.key("Davyd", kb.Enter)
	b.sees("No picture yet")
	b.focused("stage")
	until("file")
	if outline := eval[string](b, `getComputedStyle(document.querySelector("#file + label")).outlineStyle`); outline != "solid" {
		t.Errorf("the outline of what has the focus is %s", outline)
	}
	b.key(kb.Enter)
	for ev, err := range opened {
		if err != nil {
			b.fail(err)
		}
		cdpCall(b, dom.SetFileInputFiles, dom.SetFileInputFilesParams{Files: []string{catFile(t)}, BackendNodeID: ev.BackendNodeID})
		break
	}
	b.focused("upload")
	b.key(kb.Enter)
	b.focused("copy")
	b.sees("Stored.")
	b.key(kb.Enter)
	b.sees("Copied.")
	until("delete")
	b.key(" ")
	b.focused("confirm-keep")
	b.key(kb.Enter)
	b.focused("delete")
	harness.WantPicture(t, sys, "Davyd", harness.Cat)
}

func TestThePageFitsAPhone(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	b := browse(t, sys.URL)
	b.screen(320, 640)
	fits := func(state string) {
		t.Helper()
		if width := eval[int](b, `document.scrollingElement.scrollWidth`); width > 320 {
			t.Errorf("%s: %d pixels wide", state, width)
		}
		small := eval[[]string](b, `[...document.querySelectorAll("button, input:not([type=file]), select, a, label.button")].filter((el) => el.checkVisibility())
			.filter((el) => el.getBoundingClientRect().height < 44).map((el) => el.outerHTML)`)
		if len(small) > 0 {
			t.Errorf("%s: too small for fingers: %q", state, small)
		}
		b.shot("phone-" + state)
	}
	b.sees("Share a cat")
	fits("start")
	name := strings.Repeat("Wolfeschlegelsteinhausen", 5)
	b.do(chromedp.SendKeys(chromedp.CSS("#name"), name+kb.Enter))
	b.sees("No picture yet")
	fits("long-name")
	b.do(chromedp.Navigate(sys.URL + "/?user=Davyd"))
	b.sees("No picture yet")
	fits("empty")
	b.pick(onDisk(t, strings.Repeat("cat", 40)+".png", bytes.NewReader(harness.Cat)))
	b.focused("upload")
	fits("preview")
	b.slow(100_000)
	b.click("#upload")
	b.holds(`document.querySelector("#progress").value > 30`)
	fits("uploading")
	b.slow(-1)
	b.sees("Stored.")
	fits("done")
	b.bright("dark")
	fits("done-dark")
	b.pick(onDisk(t, "cat.txt", strings.NewReader("mew")))
	b.sees("This type of file is not accepted")
	fits("refused")
	b.click("#message-close")
	b.click("#delete")
	fits("confirm")
	dark := eval[string](b, `getComputedStyle(document.body).backgroundColor`)
	b.bright("light")
	if light := eval[string](b, `getComputedStyle(document.body).backgroundColor`); light == dark {
		t.Errorf("dark is as bright as light: %s", dark)
	}
}
