package browser

import (
	"bytes"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/dom"
	"github.com/chromedp/cdproto/input"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestPageStoresAndSharesAPicture(t *testing.T) {
	t.Parallel()
	scripts(t, harness.Shared(t))
}

// Without the page's knowledge, other clients change pictures and responses are lost.
func TestPageKnowsWhatIsStored(t *testing.T) {
	t.Parallel()
	scripts(t, harness.Shared(t))
}

// A confirmation is for the picture that the page showed, and a late response is for the user of its request.
func TestPageChangesOnlyTheDisplayedPicture(t *testing.T) {
	t.Parallel()
	scripts(t, harness.Shared(t))
}

func TestPageFitsAPhone(t *testing.T) {
	t.Parallel()
	scripts(t, harness.Shared(t))
}

// Proxies respond in place of the service, and the browser stores nothing.
func TestPageHandlesResponsesOfProxies(t *testing.T) {
	t.Parallel()
	scripts(t, harness.Shared(t))
}

func TestPageExplainsRejectedInput(t *testing.T) {
	t.Parallel()
	size := map[string]string{"MAX_PICTURE_SIZE": "1MiB"}
	scripts(t, harness.Start(t, stack.SystemOptions{FrontendEnv: size, SignerEnv: size}))
}

func TestPageRenewsAnExpiredURL(t *testing.T) {
	t.Parallel()
	scripts(t, harness.Start(t, stack.SystemOptions{SignerEnv: map[string]string{"LINK_TTL": "10s"}}))
}

// fits fails the test unless the page fits a screen of 320 pixels, and fingers fit the elements of the page.
func (s *session) fits(state string) {
	s.t.Helper()
	if width := eval[int](s.tab, `document.scrollingElement.scrollWidth`); width > 320 {
		s.t.Errorf("%s: %d pixels wide", state, width)
	}
	small := eval[[]string](s.tab, `[...document.querySelectorAll("button, input:not([type=file]), select, a, label.button")]
		.filter((el) => el.checkVisibility() && el.getBoundingClientRect().height < 44).map((el) => el.outerHTML)`)
	if len(small) > 0 {
		s.t.Errorf("%s: too small for fingers: %q", state, small)
	}
	s.shot("phone-" + state)
}

// allow grants the permissions for the clipboard.
func (s *session) allow() {
	s.t.Helper()
	c := chromedp.FromContext(s.ctx)
	for _, name := range []string{"clipboard-read", "clipboard-write"} {
		if _, err := cdp.Call(s.ctx, c.Browser, browser.SetPermission, browser.SetPermissionParams{
			Permission: &browser.PermissionDescriptor{Name: name}, Setting: browser.PermissionSettingGranted,
			Origin: s.gate.URL, BrowserContextID: c.BrowserContextID,
		}); err != nil {
			s.fail(err)
		}
	}
}

func (s *session) copied(want []byte) {
	s.t.Helper()
	s.allow()
	link := eval[string](s.tab, `navigator.clipboard.readText()`)
	if got := harness.Do(s.t, http.MethodGet, link, "", nil).Want(s.t, 200).Body; !bytes.Equal(got, want) {
		s.t.Error("the copied URL serves another picture")
	}
}

func (s *session) paste() {
	s.t.Helper()
	s.allow()
	eval[bool](s.tab, `new Promise((done) => Object.assign(document.createElement("canvas"), { width: 30, height: 20 }).toBlob(done))
		.then((png) => navigator.clipboard.write([new ClipboardItem({ "image/png": png })])).then(() => true)`)
	cdpCall(s.tab, input.DispatchKeyEvent, input.DispatchKeyEventParams{
		Type: "keyDown", Modifiers: 2, Key: "v", Code: "KeyV", WindowsVirtualKeyCode: 86, Commands: []string{"paste"},
	})
}

func (s *session) downloads(name string) {
	s.t.Helper()
	downloads := chromedp.Events(s.ctx, cdppage.FrameRequestedNavigation)
	s.click("#download")
	for ev, err := range downloads {
		if err != nil {
			s.fail(err)
		}
		if u, err := url.Parse(ev.URL); err != nil || u.Query().Get("rscd") != "attachment; filename="+name {
			s.t.Errorf("the download is %s, %v", ev.URL, err)
		}
		return
	}
}

// samples starts to sample the progress of an upload; sampled returns the samples.
func (s *session) samples() (sampled func() []float64) {
	s.t.Helper()
	eval[bool](s.tab, `(window.seen = [], setInterval(() => document.body.dataset.view === "uploading" &&
		seen.push(document.querySelector("#progress").value), 20), true)`)
	return func() []float64 { return eval[[]float64](s.tab, `seen`) }
}

func TestPageShowsTheProgress(t *testing.T) {
	t.Parallel()
	s := newSession(t, harness.Shared(t))
	s.run("empty")
	sampled := s.samples()
	s.network(float64(len(harness.Cat))/3, true)
	s.upload(catFile(t))
	s.focused("cancel")
	s.run("progress 20")
	s.sees(" of 235 KB")
	s.shot("uploading")
	s.focused("copy")
	values := sampled()
	if distinct := slices.Compact(slices.Clone(values)); !slices.IsSorted(values) || len(distinct) < 4 {
		t.Errorf("the progress was %v", distinct)
	}
}

func TestPageWorksByKeyboard(t *testing.T) {
	t.Parallel()
	s := newSession(t, harness.Shared(t))
	cdpCall(s.tab, cdppage.SetInterceptFileChooserDialog, cdppage.SetInterceptFileChooserDialogParams{Enabled: true})
	opened := chromedp.Events(s.ctx, cdppage.FileChooserOpened)
	for _, line := range []string{
		"visit /", "see Share a cat", "tab name", "type #name USER", "key Enter", "see No picture yet", "focused stage", "tab file",
	} {
		s.run(line)
	}
	if outline := eval[string](s.tab, `getComputedStyle(document.querySelector("#file + label")).outlineStyle`); outline != "solid" {
		t.Errorf("the outline of the focused element is %s", outline)
	}
	s.run("key Enter")
	for ev, err := range opened {
		if err != nil {
			s.fail(err)
		}
		cdpCall(s.tab, dom.SetFileInputFiles, dom.SetFileInputFilesParams{Files: []string{catFile(t)}, BackendNodeID: ev.BackendNodeID})
		break
	}
	for _, line := range []string{
		"focused upload", "key Enter", "focused copy", "see Stored.", "key Enter", "see Copied.",
		"tab delete", "key Space", "focused confirm-keep", "key Enter", "focused delete", "stored USER cat.png",
	} {
		s.run(line)
	}
}

// The page does not repeat blocks that storage has acknowledged.
func TestPageResumesLargeUploads(t *testing.T) {
	t.Parallel()
	const size, blocks = 66 << 20, 9
	storage := harness.NewGate(t, harness.Stack(t).FrontURL)
	settings := map[string]string{"MAX_DIRECT_UPLOAD_SIZE": "80MiB", "LINK_BASE_URL": storage.URL}
	sys := harness.StartDirect(t, stack.SystemOptions{FrontendEnv: small, SignerEnv: harness.Merge(small, settings)})
	b := browse(t, sys.URL+"/?user=Davyd")
	b.sees("up to 80 MB")
	b.pick(onDisk(t, "huge.png", harness.Large(80<<20+1)))
	b.sees("This picture is too large")
	b.upload(catFile(t)) // with one request
	b.sees("Stored.")
	b.shown()
	harness.WantPicture(t, sys, "Davyd", harness.Cat)

	var mu sync.Mutex
	admitted, stuck, limit := map[string]int{}, map[string]bool{}, 3 // block IDs, "" for the list of blocks
	allStuck, offline := make(chan struct{}), make(chan struct{})
	lose := sync.OnceFunc(func() { close(offline) })
	t.Cleanup(lose)
	storage.SetAll(func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		if query := r.URL.Query(); r.Method == http.MethodPut && query.Has("comp") {
			id := query.Get("blockid")
			mu.Lock()
			full := len(admitted) == limit
			if !full {
				admitted[id]++
			} else if !stuck[id] {
				stuck[id] = true
				if len(stuck) == 4 { // of those that the page sends in parallel, so all others are acknowledged
					close(allStuck)
				}
			}
			mu.Unlock()
			if full {
				_, _ = io.Copy(io.Discard, r.Body)
				<-offline
				panic(http.ErrAbortHandler)
			}
		}
		healthy.ServeHTTP(w, r)
	})
	admit := func(n int) {
		mu.Lock()
		defer mu.Unlock()
		limit = n
	}
	b.pick(onDisk(t, "large.png", harness.Large(size)))
	b.sees("Too large for a preview.")
	b.click("#upload")
	b.await(allStuck)
	b.shot("uploading-large")
	b.network(-1, false)
	lose()
	b.sees("You are offline")
	harness.WantPicture(t, sys, "Davyd", harness.Cat)
	admit(blocks)
	b.network(20<<20, true) // more would occupy the emulator for seconds
	b.click("#message-action")
	b.sees("The connection was lost") // all blocks are sent, but not committed
	admit(blocks + 1)
	b.click("#message-action")
	b.sees("Stored.", "66 MB", "not shown automatically")
	mu.Lock()
	defer mu.Unlock()
	for id, n := range admitted {
		if n != 1 || len(admitted) != blocks+1 {
			t.Errorf("block %q was stored %d times, with %d others", id, n, len(admitted)-1)
		}
	}
	link, _ := harness.Link(t, sys, "Davyd", "")
	if a := harness.Do(t, http.MethodHead, link, "", nil).Want(t, 200); a.ContentLength != size {
		t.Errorf("%d bytes are stored; want %d", a.ContentLength, size)
	}
}
