package browser

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/dom"
	"github.com/chromedp/cdproto/input"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// session runs a script: a tab with the page of USER behind a gate. The log of a failed test ends with the line that failed.
type session struct {
	*tab
	sys  *stack.System
	gate *harness.Gate
	user string

	vars     *strings.Replacer // USER, OTHER and more
	injected atomic.Int64      // faults since the last was set
	held     <-chan struct{}
	release  func()
	link     string // last displayed
}

// scripts runs the scripts in testdata/TESTNAME.txt in parallel on sys. Each begins with "== NAME". See [session.run] for the
// commands. vars are names and values that the scripts use besides USER and OTHER, two user names of their own.
func scripts(t *testing.T, sys *stack.System, vars ...string) {
	t.Helper()
	text, err := os.ReadFile("testdata/" + t.Name() + ".txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, script := range strings.Split("\n"+string(text), "\n== ")[1:] {
		name, lines, _ := strings.Cut(script, "\n")
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSession(t, sys, vars...)
			for line := range strings.Lines(lines) {
				if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
					t.Log(line)
					s.run(line)
				}
			}
		})
	}
}

func newSession(t *testing.T, sys *stack.System, vars ...string) *session {
	t.Helper()
	gate, user := harness.NewGate(t, sys.URL), harness.User(t)
	b := browse(t, "about:blank")
	return &session{
		tab: b, sys: sys, gate: gate, user: user,
		vars: strings.NewReplacer(append(vars, "USER", user, "OTHER", harness.User(t))...),
	}
}

// content returns the content of a file: the photograph, a picture of more than 1 MiB, text, nothing, or a picture with the
// name in it.
func content(name string) []byte {
	switch {
	case name == "cat.png" || strings.HasPrefix(name, "catcat"):
		return harness.Cat
	case name == "other.png":
		return harness.OtherPicture
	case strings.Contains(name, "large"):
		return harness.Picture(1<<20+1, 0)
	case name == "cat.txt" || name == "text.png":
		return []byte("mew")
	case name == "empty.png":
		return nil
	}
	return append(bytes.Clone(harness.Cat), name...)
}

func file(t *testing.T, name string) string {
	t.Helper()
	return onDisk(t, name, content(name))
}

// run runs a line of a script: a command and its arguments, in which texts and scripts may have spaces.
func (s *session) run(line string) {
	s.t.Helper()
	command, rest, _ := strings.Cut(s.vars.Replace(line), " ")
	first, more, _ := strings.Cut(rest, " ")
	number, _ := strconv.Atoi(first)
	switch command {
	// Pages
	case "visit": // PATH
		s.do(chromedp.Navigate(s.gate.URL + first))
	case "empty": // opens the page of a user without a picture
		s.do(chromedp.Navigate(s.gate.URL + "/?user=" + s.user))
		s.sees("No picture yet")
	case "picture": // opens the page of a user with the picture cat.png
		harness.Put(s.t, s.sys, s.user, harness.Cat)
		s.do(chromedp.Navigate(s.gate.URL + "/?user=" + s.user))
		s.shown()
	case "no-site-data": // of pages that are opened later
		cdpCall(s.tab, cdppage.AddScriptToEvaluateOnNewDocument, cdppage.AddScriptToEvaluateOnNewDocumentParams{
			Source: `Object.defineProperty(window, "sessionStorage", { get() { throw new DOMException("blocked", "SecurityError") } })`,
		})
	case "open": // NAME, of a user
		s.holds(`!!document.body.dataset.view`) // the script has started; it sets the name
		s.do(chromedp.SetValue(chromedp.CSS("#name"), rest), chromedp.Click(chromedp.CSS("#show")))
	case "back":
		s.do(chromedp.NavigateBack())
	// What the page shows
	case "see": // TEXT
		s.sees(rest)
	case "lack": // TEXT
		s.holds(fmt.Sprintf(`!document.body.innerText.includes(%q)`, rest))
	case "shown": // a stored picture
		s.shown()
	case "focused": // ID
		s.focused(first)
	case "true": // SCRIPT
		s.holds(rest)
	case "progress": // PERCENT, at least
		s.holds(`document.querySelector("#progress").value >= ` + first)
	case "settled": // VIEW, after the page has handled the last response
		eval[bool](s.tab, `fetch("/service").then(() => new Promise((done) => setTimeout(done, 100, true)))`)
		s.holds(`document.body.dataset.view === "` + first + `"`)
	case "accessible": // STATE
		s.accessible(rest)
	case "shot": // NAME
		s.shot(first)
	case "fits": // STATE, of a page on a screen of 320 pixels, whose elements fingers fit
		s.holds(`document.scrollingElement.scrollWidth <= 320`)
		if small := eval[[]string](s.tab, `[...document.querySelectorAll("button, input:not([type=file]), select, a, label.button")]
			.filter((el) => el.checkVisibility() && el.getBoundingClientRect().height < 44).map((el) => el.outerHTML)`); len(small) > 0 {
			s.t.Errorf("%s: too small for fingers: %q", first, small)
		}
		s.shot("phone-" + first)
	// Input
	case "click": // SELECTORS
		s.click(strings.Fields(rest)...)
	case "focus": // SELECTOR
		s.do(chromedp.Focus(chromedp.CSS(first)))
	case "type": // SELECTOR TEXT
		s.do(chromedp.SendKeys(chromedp.CSS(first), more))
	case "key": // KEY
		keys := map[string]string{"Enter": kb.Enter, "Escape": kb.Escape, "Up": kb.ArrowUp, "Space": " "}
		s.do(chromedp.KeyEvent(keys[first]))
	case "tab": // ID, to which Tab leads
		for n := 0; eval[string](s.tab, `document.activeElement?.id ?? ""`) != first; n++ {
			if n == 10 {
				s.t.Fatalf("Tab does not lead to %s", first)
			}
			s.do(chromedp.KeyEvent(kb.Tab))
		}
	case "pick": // FILE
		s.pick(file(s.t, first))
	case "upload": // FILE
		s.upload(file(s.t, first))
	case "choose": // FILE in the dialog that Enter opens
		cdpCall(s.tab, cdppage.SetInterceptFileChooserDialog, cdppage.SetInterceptFileChooserDialogParams{Enabled: true})
		opened := chromedp.Events(s.ctx, cdppage.FileChooserOpened)
		s.run("key Enter")
		node := next(s.tab, opened).BackendNodeID
		cdpCall(s.tab, dom.SetFileInputFiles, dom.SetFileInputFilesParams{Files: []string{file(s.t, first)}, BackendNodeID: node})
	case "drop": // FILE
		path := file(s.t, first)
		for _, typ := range []input.DispatchDragEventType{"dragEnter", "dragOver", "drop"} {
			cdpCall(s.tab, input.DispatchDragEvent, input.DispatchDragEventParams{
				Type: typ, X: 400, Y: 450,
				Data: &input.DragData{Items: []*input.DragDataItem{}, Files: []string{path}, DragOperationsMask: 1},
			})
		}
	// Surroundings
	case "screen": // WIDTH
		s.screen(int64(number), 640)
	case "scheme": // light or dark
		s.scheme(first)
	case "later": // SECONDS
		eval[bool](s.tab, fmt.Sprintf(`(Date.now = ((now) => () => now() + %d)(Date.now), true)`, number*1000))
	case "network": // offline, or BYTES of uploads a second, -1 for no limit
		s.network(float64(number), first != "offline")
	case "fault": // METHOD FAULT, of requests for pictures, or "about" FAULT
		parsed := harness.ParseFault(s.t, more)
		s.injected.Store(0)
		f := func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
			s.injected.Add(1)
			parsed(w, r, healthy)
		}
		if s.gate.Set(first, f); first == "about" {
			s.gate.SetAll(func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
				if r.URL.Path == "/about" {
					f(w, r, healthy)
					return
				}
				healthy.ServeHTTP(w, r)
			})
		}
	case "injected": // NUMBER of requests since the fault was set
		if n := s.injected.Load(); n != int64(number) {
			s.t.Errorf("the page has sent %d requests", n)
		}
	case "lose": // METHOD FAULT, after which the page gets no response to GET either
		f := harness.ParseFault(s.t, more)
		s.gate.Set(first, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
			s.gate.Set("", harness.Abort)
			f(w, r, healthy)
		})
	case "healthy":
		s.gate.SetAll(nil)
	case "hold": // METHOD: responses wait for release
		s.held, s.release = s.gate.Hold(s.t, first)
	case "held": // a response
		s.await(s.held)
	case "release":
		s.release()
	// Other clients
	case "put": // NAME FILE
		harness.Put(s.t, s.sys, first, content(more))
	case "delete": // NAME
		harness.Do(s.t, http.MethodDelete, s.sys.URL+"/cat/"+first, "", nil).Want(s.t, 204)
	case "stored": // NAME FILE
		harness.WantPicture(s.t, s.sys, first, content(more))
	case "missing": // NAME
		harness.Do(s.t, http.MethodGet, s.sys.URL+"/cat/"+first, "", nil).Want(s.t, 404)
	case "link": // STATUS, that storage returns for the displayed link, at last
		if link := eval[string](s.tab, `document.querySelector("#link").value`); link != "" {
			s.link = link
		}
		harness.Eventually(s.t, func() error {
			if a := harness.Do(s.t, http.MethodGet, s.link, "", nil); a.StatusCode != number {
				return fmt.Errorf("the link returns %d", a.StatusCode)
			}
			return nil
		})
	// The clipboard, downloads and the history
	case "copied": // FILE, which the URL in the clipboard serves
		s.allowClipboard()
		link := eval[string](s.tab, `navigator.clipboard.readText()`)
		if got := harness.Do(s.t, http.MethodGet, link, "", nil).Want(s.t, 200).Body; !bytes.Equal(got, content(first)) {
			s.t.Error("the copied URL serves another picture")
		}
	case "paste": // a picture of 30 by 20 pixels
		s.allowClipboard()
		eval[bool](s.tab, `new Promise((done) => Object.assign(document.createElement("canvas"), { width: 30, height: 20 }).toBlob(done))
			.then((png) => navigator.clipboard.write([new ClipboardItem({ "image/png": png })])).then(() => true)`)
		eval[bool](s.tab, `window.pasted = new Promise((done) => addEventListener("paste", (event) => event.clipboardData.files.length && done(true))), true`)
		for got := false; !got; got = eval[bool](s.tab, `Promise.race([pasted, new Promise((done) => setTimeout(done, 3000, false))])`) {
			cdpCall(s.tab, input.DispatchKeyEvent, input.DispatchKeyEventParams{ // on a busy machine, the event does not always come
				Type: "keyDown", Modifiers: 2, Key: "v", Code: "KeyV", WindowsVirtualKeyCode: 86, Commands: []string{"paste"},
			})
		}
	case "downloads": // FILE, by a click on download
		downloads := chromedp.Events(s.ctx, cdppage.FrameRequestedNavigation)
		s.click("#download")
		u, err := url.Parse(next(s.tab, downloads).URL)
		if err != nil || u.Query().Get("rscd") != "attachment; filename="+first {
			s.t.Errorf("the download is %s, %v", u, err)
		}
	case "forgotten": // REGEXP, which no URL of the page in the history matches
		for _, entry := range cdpCall(s.tab, cdppage.GetNavigationHistory, cdp.Empty{}).Entries {
			if strings.HasPrefix(entry.URL, s.gate.URL) && regexp.MustCompile(first).MatchString(entry.URL) {
				s.t.Errorf("the history has %s", entry.URL)
			}
		}
	default:
		s.t.Fatalf("unknown command %s", command)
	}
}

// allowClipboard grants the permissions for the clipboard.
func (s *session) allowClipboard() {
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
