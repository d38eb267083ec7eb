package browser

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/dom"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/network"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestPageStoresAndSharesAPicture(t *testing.T) {
	t.Parallel()
	sys, user := harness.Shared(t), harness.User(t)
	b := browse(t, sys.URL)
	b.allow(sys.URL, "clipboard-read", "clipboard-write")
	b.sees("Share a cat")
	b.accessible("start")
	b.do(chromedp.SendKeys(chromedp.CSS("#name"), user+kb.Enter))
	b.sees("No picture yet")
	b.holds(`location.search === "?user=` + user + `" && document.title === "` + user + ` · Cats"`)
	b.accessible("empty")

	b.pick(catFile(t))
	b.focused("upload")
	b.sees("cat.png", "235 KB")
	b.holds(`document.querySelector("#image").naturalWidth > 0`)
	b.accessible("preview")
	eval[bool](b, `(window.seen = [], setInterval(() => document.body.dataset.view === "uploading" && seen.push(document.querySelector("#progress").value), 20), true)`)
	b.slow(float64(len(harness.Cat)) / 4)
	b.click("#upload")
	b.focused("cancel")
	b.holds(`document.querySelector("#progress").value > 20`)
	b.sees(" of 235 KB")
	b.shot("uploading")
	b.slow(float64(len(harness.Cat)))
	b.focused("copy")
	values := eval[[]float64](b, `seen`)
	if distinct := slices.Compact(slices.Clone(values)); !slices.IsSorted(values) || len(distinct) < 4 {
		t.Errorf("the progress was %v", distinct)
	}
	b.slow(-1)
	b.holds(`document.querySelector("#image").naturalWidth > 0 && document.querySelector("#image").src.startsWith("http")`)
	b.accessible("done")
	harness.WantPicture(t, sys, user, harness.Cat)

	b.click("#copy")
	b.sees("Copied.")
	link := eval[string](b, `navigator.clipboard.readText()`)
	if got := harness.Do(t, http.MethodGet, link, "", nil).Want(t, 200).Body; !bytes.Equal(got, harness.Cat) {
		t.Error("the copied URL does not serve the picture")
	}
	b.do(chromedp.Focus(chromedp.CSS("#ttl")))
	b.key(kb.ArrowUp) // from an hour
	b.sees("Here is a new link.")
	b.holds(`/Expires in (9|10) min/.test(document.querySelector("#left").textContent)`)
	for _, entry := range cdpCall(b, cdppage.GetNavigationHistory, cdp.Empty{}).Entries {
		if strings.Contains(entry.URL, "sig=") {
			t.Errorf("the history has a signed URL: %s", entry.URL)
		}
	}

	second, path := another(t, "second")
	b.drop(path)
	b.sees("second.png")
	b.click("#upload")
	b.sees("Stored.")
	harness.WantPicture(t, sys, user, second)

	eval[bool](b, `new Promise((done) => Object.assign(document.createElement("canvas"), { width: 30, height: 20 }).toBlob(done))
		.then((png) => navigator.clipboard.write([new ClipboardItem({ "image/png": png })])).then(() => true)`)
	cdpCall(b, input.DispatchKeyEvent, input.DispatchKeyEventParams{Type: "keyDown", Modifiers: 2, Key: "v", Code: "KeyV", WindowsVirtualKeyCode: 86, Commands: []string{"paste"}})
	b.focused("upload")
	b.sees("image.png")
	b.click("#upload")
	b.sees("Stored.")
	b.holds(`document.querySelector("#image").naturalWidth === 30`)

	downloads := chromedp.Events(b.ctx, cdppage.FrameRequestedNavigation)
	b.click("#download")
	for ev, err := range downloads {
		if err != nil {
			b.fail(err)
		}
		if u, err := url.Parse(ev.URL); err != nil || u.Query().Get("rscd") != "attachment; filename="+user+".png" {
			t.Errorf("the download is %s, %v", ev.URL, err)
		}
		break
	}
	b.click("#delete")
	b.focused("confirm-keep")
	b.accessible("confirm")
	b.key(kb.Escape)
	b.focused("delete")
	b.click("#delete", "#confirm-delete")
	b.sees("Deleted.")
	b.focused("file")
	harness.Do(t, http.MethodGet, sys.URL+"/cat/"+user, "", nil).Want(t, 404)
	b.do(chromedp.NavigateBack())
	b.sees("Share a cat")
}

func TestPageWorksByKeyboard(t *testing.T) {
	t.Parallel()
	sys, user := harness.Shared(t), harness.User(t)
	b := browse(t, sys.URL)
	b.sees("Share a cat")
	cdpCall(b, cdppage.SetInterceptFileChooserDialog, cdppage.SetInterceptFileChooserDialogParams{Enabled: true})
	opened := chromedp.Events(b.ctx, cdppage.FileChooserOpened)
	tabTo := func(id string) {
		t.Helper()
		for range 10 {
			b.key(kb.Tab)
			if eval[string](b, `document.activeElement?.id ?? ""`) == id {
				return
			}
		}
		b.fail(fmt.Errorf("Tab does not lead to %s", id))
	}
	tabTo("name")
	b.key(user, kb.Enter)
	b.sees("No picture yet")
	b.focused("stage")
	tabTo("file")
	if outline := eval[string](b, `getComputedStyle(document.querySelector("#file + label")).outlineStyle`); outline != "solid" {
		t.Errorf("the outline of the focused element is %s", outline)
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
	tabTo("delete")
	b.key(" ")
	b.focused("confirm-keep")
	b.key(kb.Enter)
	b.focused("delete")
	harness.WantPicture(t, sys, user, harness.Cat)
}

func TestPageFitsAPhone(t *testing.T) {
	t.Parallel()
	sys, user := harness.Shared(t), harness.User(t)
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
	b.do(chromedp.SendKeys(chromedp.CSS("#name"), strings.Repeat("Wolfeschlegelsteinhausen", 5)+kb.Enter))
	b.sees("No picture yet")
	fits("long-name")
	b.do(chromedp.Navigate(sys.URL + "/?user=" + user))
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
	light := eval[string](b, `getComputedStyle(document.body).backgroundColor`)
	b.scheme("dark")
	fits("done-dark")
	if dark := eval[string](b, `getComputedStyle(document.body).backgroundColor`); light == dark {
		t.Errorf("the dark background is %s, like the light one", dark)
	}
	b.pick(onDisk(t, "cat.txt", strings.NewReader("mew")))
	b.sees("This type of file is not accepted")
	fits("rejected")
	b.click("#message-close", "#delete")
	fits("confirm")
}

func TestPageExplainsRejectedInput(t *testing.T) {
	t.Parallel()
	size := map[string]string{"MAX_PICTURE_SIZE": "1MiB"}
	sys := harness.Start(t, stack.SystemOptions{FrontendEnv: size, SignerEnv: size})
	b := browse(t, sys.URL+"/?user="+"%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E")
	b.sees("<img src=x onerror=alert(1)>’s cat", "No picture yet")
	if n := eval[int](b, `document.querySelectorAll("h1 img").length`); n != 0 {
		t.Error("the user name became an element")
	}
	for _, c := range []struct {
		name string
		file io.Reader
		sees []string
	}{
		{"<b>large<b>.png", harness.Large(1<<20 + 1), []string{"This picture is too large", "1 MB and 210 million pixels"}},
		{"cat.txt", strings.NewReader("mew"), []string{"This type of file is not accepted", "cat.txt is text/plain."}},
		{"empty.png", strings.NewReader(""), []string{"This file is empty"}},
		{"no.png", strings.NewReader("mew"), []string{"This browser cannot preview this picture."}}, // only the service checks the content
	} {
		b.pick(onDisk(t, c.name, c.file))
		b.sees(c.sees...)
		if c.name != "no.png" {
			b.focused("message-action")
		}
	}
	b.click("#upload")
	b.sees("This type of file is not accepted", "The service says: ")
	b.holds(`document.body.dataset.view === "empty"`)
	b.accessible("rejected")

	b.open("..")
	b.sees("This name cannot be used")
	b.open("a/b")
	b.sees(`the user name must not contain "/" or "\"`)
	b.click("#message-action")
	b.focused("name")
	b.drop(catFile(t))
	b.sees("Whose cat is it?")
}

// Proxies respond in place of the service, and the browser stores nothing.
func TestPageHandlesResponsesOfProxies(t *testing.T) {
	t.Parallel()
	gate, user := harness.NewGate(t, harness.Shared(t).URL), harness.User(t)
	b := browse(t, "about:blank")
	cdpCall(b, cdppage.AddScriptToEvaluateOnNewDocument, cdppage.AddScriptToEvaluateOnNewDocumentParams{
		Source: `Object.defineProperty(window, "sessionStorage", { get() { throw new DOMException("no site data", "SecurityError") } })`,
	})
	b.do(chromedp.Navigate(gate.URL))
	b.sees("Share a cat")
	b.open(user)
	b.sees("No picture yet")
	retryLater := func(status int) harness.Fault {
		return func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
			w.Header().Set("Retry-After", "60")
			harness.Respond(status, `{"message":"slow down"}`)(w, r, healthy)
		}
	}
	gate.Set(http.MethodPut, retryLater(429))
	b.upload(catFile(t))
	b.sees("Too many requests", "Try again in ", "The response has HTTP status 429.")
	gate.Set(http.MethodGet, harness.Respond(200, "<h1>Sign in to this Wi-Fi</h1>"))
	b.do(chromedp.Navigate(gate.URL + "/?user=" + user))
	b.sees("The response is not from this service")
	gate.SetAll(func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		if r.URL.Path == "/about" {
			retryLater(503)(w, r, healthy)
		} else {
			healthy.ServeHTTP(w, r)
		}
	})
	b.do(chromedp.Navigate(gate.URL))
	b.sees("Reload the page in ")
}

func TestPageCountsDownAfterRateLimit(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{FrontendEnv: map[string]string{"RATE_LIMIT": "0.2", "RATE_BURST": "20"}})
	b := browse(t, sys.URL+"/?user=Davyd")
	b.sees("No picture yet")
	b.pick(catFile(t))
	b.focused("upload")
	for harness.Do(t, http.MethodGet, sys.URL+"/service", "", nil).StatusCode != 429 {
	}
	b.click("#upload")
	b.sees("Too many requests", "Try again in ")
	b.focused("message-action")
	b.shot("countdown")
	requests := `performance.getEntriesByType("resource").length`
	before := eval[int](b, requests)
	b.click("#message-action") // too early
	if n := eval[int](b, requests); n != before || !eval[bool](b, `document.querySelector("#message").checkVisibility()`) {
		t.Errorf("%d requests before the end of the count-down", n-before)
	}
	for stored := false; !stored; { // the upload and its signed URL are separate requests
		b.holds(`document.querySelector("#message-action").ariaDisabled !== "true"`)
		b.click("#message-action")
		b.holds(`document.body.dataset.view === "picture" || !document.querySelector("#message").hidden`)
		stored = eval[bool](b, `document.body.dataset.view === "picture"`)
	}
	b.sees("Expires in")
}

func TestPageRecoversWithTheSigner(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	b, late := browse(t, sys.URL+"/?user=Davyd"), browse(t, "about:blank")
	b.sees("No picture yet")
	b.pick(catFile(t))
	b.focused("upload")
	if err := sys.Signer.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.click("#upload")
	late.do(chromedp.Navigate(sys.URL + "/?user=Davyd"))
	b.sees("The service is not ready")
	late.sees("The service is not ready")
	harness.Restart(t, sys.Signer)
	if err := sys.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, each := range []*tab{b, late} {
		each.holds(`document.querySelector("#message-action").ariaDisabled !== "true"`)
		each.click("#message-action")
		each.shown()
	}
	harness.WantPicture(t, sys, "Davyd", harness.Cat)
}

func TestPageRenewsAnExpiredURL(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{SignerEnv: map[string]string{"LINK_TTL": "10s"}})
	harness.Put(t, sys, "Davyd", harness.Cat)
	b := browse(t, sys.URL+"/?user=Davyd")
	b.sees("Expires in")
	first := eval[string](b, `document.querySelector("#link").value`)
	b.sees("Expired")
	harness.Do(t, http.MethodGet, first, "", nil).Want(t, 403)
	b.holds(`document.querySelector("#link").value === ""`)
	b.shot("expired")
	b.click("#renew")
	b.sees("Here is a new link.")
	b.focused("copy")
	harness.Do(t, http.MethodGet, eval[string](b, `document.querySelector("#link").value`), "", nil).Want(t, 200)
}

// The page does not repeat blocks that storage has acknowledged.
func TestPageResumesLargeUploads(t *testing.T) {
	t.Parallel()
	sys := harness.StartDirect(t, stack.SystemOptions{FrontendEnv: small, SignerEnv: harness.Merge(small, map[string]string{"MAX_DIRECT_UPLOAD_SIZE": "80MiB"})})
	const size, blocks = 66 << 20, 9
	b := browse(t, sys.URL+"/?user=Davyd")
	b.sees("up to 80 MB")
	b.pick(onDisk(t, "huge.png", harness.Large(80<<20+1)))
	b.sees("This picture is too large")
	b.upload(catFile(t)) // with one request
	b.sees("Stored.")
	b.shown()
	harness.WantPicture(t, sys, "Davyd", harness.Cat)

	var mu sync.Mutex
	sent, acknowledged := map[string]int{}, map[network.RequestID]string{} // by block ID; block IDs
	failed, stored := make(chan struct{}), make(chan struct{})             // closed after the first block
	closeFailed, closeStored := sync.OnceFunc(func() { close(failed) }), sync.OnceFunc(func() { close(stored) })
	block := regexp.MustCompile(`&comp=block&blockid=(.*)$`)
	if err := chromedp.Listen(b.ctx, func(ev any) {
		mu.Lock()
		defer mu.Unlock()
		switch ev := ev.(type) {
		case *network.EventResponseReceived:
			if m := block.FindStringSubmatch(ev.Response.URL); m != nil && ev.Response.Status == 201 && ev.Type == network.ResourceTypeXHR {
				acknowledged[ev.RequestID] = m[1]
			}
		case *network.EventLoadingFinished:
			if id, ok := acknowledged[ev.RequestID]; ok {
				sent[id]++
				closeStored()
			}
		case *network.EventLoadingFailed:
			if ev.Type == network.ResourceTypeXHR {
				closeFailed()
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	b.blocked(`*://*:*/*\?*blockid=MDAwMDAwMDI%3D`) // the third
	b.pick(onDisk(t, "large.png", harness.Large(size)))
	b.sees("Too large for a preview.")
	b.slow(20 << 20)
	b.click("#upload")
	b.await(failed)
	b.blocked()
	b.await(stored)
	b.shot("uploading-large")
	b.online(false)
	b.sees("You are offline")
	harness.WantPicture(t, sys, "Davyd", harness.Cat)
	mu.Lock()
	before := len(sent)
	mu.Unlock()
	b.blocked(`*://*:*/*\?*comp=blocklist*`) // all blocks are sent, but not committed
	b.online(true)
	b.click("#message-action")
	b.sees("The connection was lost")
	b.blocked()
	b.click("#message-action")
	b.sees("Stored.", "66 MB", "not shown automatically")
	mu.Lock()
	defer mu.Unlock()
	if before == 0 || len(sent) != blocks {
		t.Errorf("%d blocks were stored before the network was lost, and %d in all", before, len(sent))
	}
	for id, n := range sent {
		if n != 1 {
			t.Errorf("block %s was stored %d times", id, n)
		}
	}
	link, _ := harness.Link(t, sys, "Davyd", "")
	if a := harness.Do(t, http.MethodHead, link, "", nil).Want(t, 200); a.ContentLength != size {
		t.Errorf("%d bytes are stored; want %d", a.ContentLength, size)
	}
}
