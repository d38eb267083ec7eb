package browser

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// onDisk writes content under a name and returns its path.
func onDisk(t *testing.T, name string, content io.Reader) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, content); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// catFile is the path of a picture.
func catFile(t *testing.T) string {
	t.Helper()
	return onDisk(t, "cat.png", bytes.NewReader(harness.Cat))
}

// drop lets go of a file over the page.
func (b *tab) drop(path string) {
	b.t.Helper()
	for _, typ := range []input.DispatchDragEventType{"dragEnter", "dragOver", "drop"} {
		cdpCall(b, input.DispatchDragEvent, input.DispatchDragEventParams{
			Type: typ, X: 400, Y: 450, Data: &input.DragData{Items: []*input.DragDataItem{}, Files: []string{path}, DragOperationsMask: 1},
		})
	}
}

// watch keeps what the progress element has shown.
func (b *tab) watch() {
	b.t.Helper()
	eval[bool](b, `(window.seen = [], setInterval(() => document.body.dataset.view === "uploading" && seen.push(document.querySelector("#progress").value), 20), true)`)
}

func TestThePageStoresAPictureAndSharesIt(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	b := browse(t, sys.URL)
	b.allow(sys.URL, "clipboard-read", "clipboard-write")
	b.sees("Share a cat")
	b.accessible("start")
	b.do(chromedp.SendKeys(chromedp.CSS("#name"), "Davyd"+kb.Enter))
	b.sees("No picture yet")
	b.holds(`location.search === "?user=Davyd" && document.title === "Davyd · Cats"`)
	b.accessible("empty")

	b.pick(catFile(t))
	b.focused("upload")
	b.sees("cat.png")
	b.sees("235 KB")
	b.holds(`document.querySelector("#image").naturalWidth > 0`)
	b.accessible("preview")
	b.watch()
	b.slow(float64(len(harness.Cat)) / 4)
	b.click("#upload")
	b.focused("cancel")
	b.holds(`document.querySelector("#progress").value > 20`)
	b.sees(" of 235 KB")
	b.shot("uploading")
	b.slow(float64(len(harness.Cat)))
	b.focused("copy")
	var values []float64
	values = append(values, eval[[]float64](b, `seen`)...)
	if distinct := slices.Compact(slices.Clone(values)); !slices.IsSorted(values) || len(distinct) < 4 {
		t.Errorf("the progress was %v", distinct)
	}
	b.slow(-1)
	b.holds(`document.querySelector("#image").naturalWidth > 0 && document.querySelector("#image").src.startsWith("http")`)
	b.accessible("done")
	harness.WantPicture(t, sys, "Davyd", harness.Cat)

	b.click("#copy")
	b.sees("Copied.")
	link := eval[string](b, `navigator.clipboard.readText()`)
	if got := harness.Do(t, http.MethodGet, link, "", nil).Want(t, 200).Body; !bytes.Equal(got, harness.Cat) {
		t.Error("what was copied is no link to the picture")
	}
	b.do(chromedp.Focus(chromedp.CSS("#ttl")))
	b.key(kb.ArrowUp) // from an hour
	b.sees("Here is a new link.")
	b.holds(`/Expires in (9|10) min/.test(document.querySelector("#left").textContent)`)
	for _, entry := range cdpCall(b, page.GetNavigationHistory, cdp.Empty{}).Entries {
		if strings.Contains(entry.URL, "sig=") {
			t.Errorf("a link is in the history: %s", entry.URL)
		}
	}

	b.drop(onDisk(t, "second.png", bytes.NewReader(append(bytes.Clone(harness.Cat), "second"...))))
	b.sees("second.png")
	b.click("#upload")
	b.sees("Stored.")
	harness.WantPicture(t, sys, "Davyd", append(bytes.Clone(harness.Cat), "second"...))

	eval[bool](b, `new Promise((done) => Object.assign(document.createElement("canvas"), { width: 30, height: 20 }).toBlob(done))
		.then((png) => navigator.clipboard.write([new ClipboardItem({ "image/png": png })])).then(() => true)`)
	b.do(func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
		_, err := cdp.Call(ctx, target, input.DispatchKeyEvent, input.DispatchKeyEventParams{Type: "keyDown", Modifiers: 2, Key: "v", Code: "KeyV", WindowsVirtualKeyCode: 86, Commands: []string{"paste"}})
		return chromedp.Void{}, err
	})
	b.focused("upload")
	b.sees("image.png")
	b.click("#upload")
	b.sees("Stored.")
	b.holds(`document.querySelector("#image").naturalWidth === 30`)

	downloads := chromedp.Events(b.ctx, page.FrameRequestedNavigation)
	b.click("#download")
	for ev, err := range downloads {
		if err != nil {
			b.fail(err)
		}
		if u, err := url.Parse(ev.URL); err != nil || u.Query().Get("rscd") != "attachment; filename=Davyd.png" {
			t.Errorf("what is downloaded is %s, %v", ev.URL, err)
		}
		break
	}
	b.click("#delete")
	b.focused("confirm-keep")
	b.accessible("confirm")
	b.key(kb.Escape)
	b.focused("delete")
	b.click("#delete")
	b.click("#confirm-delete")
	b.sees("Deleted.")
	b.focused("file")
	harness.Do(t, http.MethodGet, sys.URL+"/cat/Davyd", "", nil).Want(t, 404)
	b.do(chromedp.NavigateBack())
	b.sees("Share a cat")
}

func TestCancellingAnUploadOnThePageLeavesTheOldPicture(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	harness.Put(t, sys, "Davyd", harness.Cat)
	b := browse(t, sys.URL+"/?user=Davyd")
	b.focused("")
	b.sees("Expires in")
	b.pick(onDisk(t, "new.png", harness.Large(1<<20)))
	b.slow(200_000)
	b.click("#upload")
	b.holds(`document.querySelector("#progress").value > 10`)
	b.click("#cancel")
	b.sees("Canceled.")
	b.focused("replace")
	b.sees("235 KB")
	harness.WantPicture(t, sys, "Davyd", harness.Cat)
}

// What a page says when it is told no, and that there is a way on from there.
func TestThePageSaysWhatWasRefusedAndWhatToDo(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{FrontendEnv: map[string]string{"MAX_PICTURE_SIZE": "1MiB"}, SignerEnv: map[string]string{"MAX_PICTURE_SIZE": "1MiB"}})
	b := browse(t, sys.URL+"/?user="+"%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E")
	b.sees("<img src=x onerror=alert(1)>’s cat") // as text
	b.sees("No picture yet")
	if n := eval[int](b, `document.querySelectorAll("h1 img").length`); n != 0 {
		t.Error("a name has become an element")
	}

	b.pick(onDisk(t, "<b>large<b>.png", harness.Large(1<<20+1)))
	b.sees("This picture is too large")
	b.sees("1 MB and 210 million pixels")
	b.focused("message-action")
	b.pick(onDisk(t, "cat.txt", strings.NewReader("mew")))
	b.sees("This type of file is not accepted")
	b.sees("cat.txt is text/plain.")
	b.pick(onDisk(t, "empty.png", strings.NewReader("")))
	b.sees("This file is empty")
	b.pick(onDisk(t, "no.png", strings.NewReader("mew"))) // which only the service finds out
	b.sees("This browser cannot preview this picture.")
	b.click("#upload")
	b.sees("This type of file is not accepted")
	b.sees("The service says: ")
	b.holds(`document.body.dataset.view === "empty"`)
	b.accessible("refused")

	b.do(chromedp.SetValue(chromedp.CSS("#name"), ".."), chromedp.Click(chromedp.CSS("#show")))
	b.sees("This name cannot be used")
	b.do(chromedp.SetValue(chromedp.CSS("#name"), "a/b"), chromedp.Click(chromedp.CSS("#show")))
	b.sees(`the user name must not contain "/" or "\"`)
	b.click("#message-action")
	b.focused("name")
	b.drop(catFile(t))
	b.sees("Whose cat is it?")

	// Somebody else is there, too.
	b.do(chromedp.SetValue(chromedp.CSS("#name"), "Davyd"), chromedp.Click(chromedp.CSS("#show")))
	b.sees("No picture yet")
	harness.Put(t, sys, "Davyd", harness.OtherPicture)
	b.pick(catFile(t))
	b.click("#upload")
	b.sees("The picture has changed")
	harness.WantPicture(t, sys, "Davyd", harness.OtherPicture)
	b.click("#message-action")
	b.sees("Stored.")
	harness.WantPicture(t, sys, "Davyd", harness.Cat)
	harness.Put(t, sys, "Davyd", harness.OtherPicture)
	b.click("#delete")
	b.click("#confirm-delete")
	b.sees("The picture has changed")
	harness.WantPicture(t, sys, "Davyd", harness.OtherPicture)

	b.pick(catFile(t))
	b.online(false)
	b.click("#upload")
	b.sees("You are offline")
	b.online(true)
	b.click("#message-action")
	b.sees("Stored.")
	harness.WantPicture(t, sys, "Davyd", harness.Cat)

	// A lease is no other client that was faster.
	if _, err := sys.Storage.Lease(t.Context(), sys.Container, "Davyd/cat"); err != nil {
		t.Fatal(err)
	}
	b.pick(catFile(t))
	b.click("#upload")
	b.sees("This picture is locked")
	b.sees("The service says: the stored picture is leased")
}

func TestThePageCountsDownWhenItHasAskedTooMuch(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{FrontendEnv: map[string]string{"RATE_LIMIT": "0.2", "RATE_BURST": "20"}})
	b := browse(t, sys.URL+"/?user=Davyd")
	b.sees("No picture yet")
	b.pick(catFile(t))
	b.focused("upload")
	for harness.Do(t, http.MethodGet, sys.URL+"/service", "", nil).StatusCode != 429 {
	}
	b.click("#upload")
	b.sees("Too many requests")
	b.sees("Try again in ")
	b.focused("message-action")
	b.shot("countdown")
	requests := `performance.getEntriesByType("resource").length`
	before := eval[int](b, requests)
	b.click("#message-action") // too early
	if n := eval[int](b, requests); n != before || !eval[bool](b, `document.querySelector("#message").checkVisibility()`) {
		t.Errorf("it was asked %d times before it was time", n-before)
	}
	for { // the link is a request of its own
		b.holds(`document.querySelector("#message-action").ariaDisabled !== "true"`)
		b.click("#message-action")
		b.holds(`document.body.dataset.view === "picture" || !document.querySelector("#message").hidden`)
		if eval[string](b, `document.body.dataset.view`) == "picture" {
			break
		}
	}
	b.sees("Expires in")
}

func TestThePageGoesOnWhenTheSignerIsBack(t *testing.T) {
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
	if err := sys.Signer.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := sys.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, on := range []*tab{b, late} {
		on.holds(`document.querySelector("#message-action").ariaDisabled !== "true"`)
		on.click("#message-action")
		on.sees("Expires in")
		on.holds(`document.querySelector("#image").naturalWidth > 0`)
	}
	harness.WantPicture(t, sys, "Davyd", harness.Cat)
}

func TestALinkOnThePageEndsAndIsRenewed(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{SignerEnv: map[string]string{"LINK_TTL": "10s"}})
	harness.Put(t, sys, "Davyd", harness.Cat)
	b := browse(t, sys.URL+"/?user=Davyd")
	b.sees("Expires in")
	first := eval[string](b, `document.querySelector("#link").value`)
	b.sees("Expired")
	harness.Do(t, http.MethodGet, first, "", nil).Want(t, 403)
	b.holds(`document.querySelector("#link").value === ""`)
	b.shot("ended")
	b.click("#renew")
	b.sees("Here is a new link.")
	b.focused("copy")
	harness.Do(t, http.MethodGet, eval[string](b, `document.querySelector("#link").value`), "", nil).Want(t, 200)
}

func TestThePageSendsLargePicturesStraightToStorage(t *testing.T) {
	t.Parallel()
	sys := harness.StartDirect(t, stack.SystemOptions{
		FrontendEnv: map[string]string{"MAX_PICTURE_SIZE": "100KiB"}, SignerEnv: map[string]string{"MAX_PICTURE_SIZE": "100KiB", "MAX_DIRECT_UPLOAD_SIZE": "80MiB"},
	})
	const size = 66 << 20 // in blocks
	b := browse(t, sys.URL+"/?user=Davyd")
	b.sees("up to 80 MB")

	// Too large for both ways; and in one piece.
	b.pick(onDisk(t, "huge.png", harness.Large(80<<20+1)))
	b.sees("This picture is too large")
	b.pick(catFile(t))
	b.click("#upload")
	b.sees("Stored.")
	b.holds(`document.querySelector("#image").naturalWidth > 0`)
	harness.WantPicture(t, sys, "Davyd", harness.Cat)

	// In blocks, of which one is lost, and then the network is.
	var mu sync.Mutex
	sent := map[string]int{}
	failed, stored := make(chan struct{}), make(chan struct{}) // one is, or the first
	var once, onceStored sync.Once
	block := regexp.MustCompile(`&comp=block&blockid=(.*)$`)
	under := map[network.RequestID]string{} // that storage has taken
	if err := chromedp.Listen(b.ctx, func(ev any) {
		switch ev := ev.(type) {
		case *network.EventResponseReceived:
			if m := block.FindStringSubmatch(ev.Response.URL); m != nil && ev.Response.Status == 201 && ev.Type == network.ResourceTypeXHR {
				mu.Lock()
				under[ev.RequestID] = m[1]
				mu.Unlock()
			}
		case *network.EventLoadingFinished:
			mu.Lock()
			if id, ok := under[ev.RequestID]; ok {
				sent[id]++
				onceStored.Do(func() { close(stored) })
			}
			mu.Unlock()
		case *network.EventLoadingFailed:
			if ev.Type == network.ResourceTypeXHR {
				once.Do(func() { close(failed) })
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	b.blocked(`*://*:*/*\?*blockid=MDAwMDAwMDI%3D`) // the third
	b.pick(onDisk(t, "large.png", harness.Large(size)))
	b.sees("Too large for a preview.")
	b.slow(10 << 20)
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
	b.blocked(`*://*:*/*\?*comp=blocklist*`) // when all is sent, but nothing stored yet
	b.online(true)
	b.click("#message-action")
	b.sees("The connection was lost")
	b.blocked()
	b.click("#message-action")
	b.sees("Stored.")
	b.sees("66 MB")
	b.sees("not shown automatically")
	mu.Lock()
	defer mu.Unlock()
	if before == 0 || len(sent) != 9 {
		t.Errorf("%d blocks were stored before the network was gone, and %d in all", before, len(sent))
	}
	for id, n := range sent {
		if n != 1 {
			t.Errorf("block %s was stored %d times", id, n)
		}
	}
	link, _ := harness.Do(t, http.MethodGet, sys.URL+"/cat/Davyd", "", nil).Want(t, 200).Field(t, "picture_url").(string)
	if a := harness.Do(t, http.MethodHead, link, "", nil).Want(t, 200); a.ContentLength != size {
		t.Errorf("%d bytes are stored; want %d", a.ContentLength, size)
	}
}
