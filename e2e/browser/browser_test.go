package browser

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/audits"
	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"cats.example/e2e/harness"
)

// chromium is the one browser of all tests, started by the first that needs it.
var chromium struct {
	sync.Mutex
	ctx  context.Context
	stop func()
}

// startBrowser returns the context of a browser in which no page is open.
func startBrowser(t *testing.T) context.Context {
	t.Helper()
	chromium.Lock()
	defer chromium.Unlock()
	if chromium.ctx != nil {
		return chromium.ctx
	}
	var path string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		if os.Getenv("CI") != "" {
			t.Fatal("chromium is missing: it is Debian's package of that name")
		}
		t.Skip("needs a browser: there is no chromium, chromium-browser or google-chrome in PATH")
	}
	allocator, endAllocator := chromedp.NewExecAllocator(context.Background(), append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(path),
		chromedp.DisableGPU,       // there is none
		chromedp.IgnoreCertErrors, // of the OpenID provider's
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1"), // nothing leaves this machine
	)...)
	ctx, end := chromedp.NewContext(allocator)
	chromium.stop = func() { end(); endAllocator() }
	if err := chromedp.Do(ctx); err != nil {
		chromium.stop()
		t.Fatalf("starting %s: %v", path, err)
	}
	chromium.ctx = ctx
	return ctx
}

// endBrowser is for when all tests have ended.
func endBrowser() error {
	if chromium.ctx != nil {
		chromium.stop()
	}
	return nil
}

// tab is a page in a browser, with storage, cookies and cache of its own, and whoever
// sits before it. Its methods fail the test.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu     sync.Mutex
	faults []string // what the browser has to complain about
}

// browse opens url. When the test ends, the page must have broken no rule of its own
// policy and have written no error to the console.
func browse(t *testing.T, url string) *tab {
	t.Helper()
	harness.NeedOwnSystem(t)
	ctx, end := chromedp.NewContext(startBrowser(t), chromedp.WithNewBrowserContext())
	t.Cleanup(end)
	b := &tab{t: t}
	b.ctx = ctx
	if err := chromedp.Listen(ctx, b.listen); err != nil {
		t.Fatal(err)
	}
	limited, cancel := context.WithTimeout(ctx, 90*time.Second)
	t.Cleanup(cancel)
	b.ctx = limited
	t.Cleanup(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, fault := range b.faults {
			t.Errorf("the browser says: %s", fault)
		}
	})
	cdpCall(b, audits.Enable, cdp.Empty{})
	cdpCall(b, emulation.SetFocusEmulationEnabled, emulation.SetFocusEmulationEnabledParams{Enabled: true}) // each tab is the one in front
	b.screen(1000, 900)
	b.do(chromedp.Navigate(url))
	return b
}

func (b *tab) listen(ev any) {
	var fault string
	switch ev := ev.(type) {
	case *runtime.EventExceptionThrown:
		fault = fmt.Sprintf("exception: %s %v", ev.ExceptionDetails.Text, ev.ExceptionDetails.Exception)
	case *runtime.EventConsoleAPICalled:
		if ev.Type == runtime.ConsoleAPICalledTypeError || ev.Type == runtime.ConsoleAPICalledTypeWarning || ev.Type == runtime.ConsoleAPICalledTypeAssert {
			args, _ := json.Marshal(ev.Args)
			fault = fmt.Sprintf("console.%s: %s", ev.Type, args)
		}
	case *log.EventEntryAdded:
		// A refusal of a request is in the log of any browser.
		if ev.Entry.Source != log.EntrySourceNetwork && (ev.Entry.Level == log.EntryLevelError || ev.Entry.Level == log.EntryLevelWarning) {
			fault = fmt.Sprintf("%s: %s %s", ev.Entry.Source, ev.Entry.Text, ev.Entry.URL)
		}
	case *audits.EventIssueAdded:
		if d := ev.Issue.Details; d.ContentSecurityPolicyIssueDetails != nil {
			details, _ := json.Marshal(d.ContentSecurityPolicyIssueDetails)
			fault = fmt.Sprintf("policy: %s", details)
		}
	}
	if fault != "" {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.faults = append(b.faults, fault)
	}
}

// do takes steps in the page.
func (b *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, steps...); err != nil {
		b.fail(err)
	}
}

// fail ends the test, with what was to be seen.
func (b *tab) fail(err error) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(chromium.ctx, 5*time.Second)
	defer cancel()
	c := *chromedp.FromContext(b.ctx)
	text, _ := chromedp.Evaluate[string](`document.body.dataset.view + "\n" + document.body.innerText`)(ctx, c.Target)
	b.t.Fatalf("%v\nthe page:\n%s", err, text)
}

// cdpCall calls the browser.
func cdpCall[P, R any](b *tab, c cdp.Command[P, R], params P) R {
	b.t.Helper()
	got, err := chromedp.Run(b.ctx, func(ctx context.Context, t *chromedp.Target) (R, error) { return cdp.Call(ctx, t, c, params) })
	if err != nil {
		b.fail(err)
	}
	return got
}

// eval returns what a script, perhaps in time, comes to.
func eval[T any](b *tab, script string) T {
	b.t.Helper()
	got, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](script, chromedp.EvalAwaitPromise))
	if err != nil {
		b.fail(fmt.Errorf("%s: %w", script, err))
	}
	return got
}

// holds waits until a script comes to true.
func (b *tab) holds(script string) {
	b.t.Helper()
	for {
		got, err := chromedp.Run(b.ctx, chromedp.Evaluate[bool]("Boolean("+script+")"))
		switch {
		case err == nil && got:
			return
		case b.ctx.Err() != nil:
			b.fail(fmt.Errorf("this never holds: %s: %w", script, b.ctx.Err()))
		}
		time.Sleep(50 * time.Millisecond) // not by a promise: pages go
	}
}

// sees waits until text is among what is to be seen.
func (b *tab) sees(text string) {
	b.t.Helper()
	quoted, _ := json.Marshal(text)
	b.holds(`document.body?.innerText.includes(` + string(quoted) + `)`)
}

// focused waits until the keyboard is at the element with an id.
func (b *tab) focused(id string) {
	b.t.Helper()
	b.holds(`document.activeElement?.id === "` + id + `"`)
}

// click clicks on what a selector finds, as a mouse does, once no picture that is still
// to come can move it away.
func (b *tab) click(selector string) {
	b.t.Helper()
	b.holds(`[...document.images].every((image) => image.complete)`)
	b.do(chromedp.Click(chromedp.CSS(selector), chromedp.NodeVisible))
}

// key presses one key after the other.
func (b *tab) key(keys ...string) {
	b.t.Helper()
	for _, k := range keys {
		b.do(chromedp.KeyEvent(k))
	}
}

// pick chooses a file, as the browser's dialog does.
func (b *tab) pick(path string) {
	b.t.Helper()
	b.holds(`document.querySelector("#file")`)
	b.do(chromedp.SetUploadFiles(chromedp.CSS("#file"), []string{path}, chromedp.NodeReady))
}

// screen is how wide and how high it is.
func (b *tab) screen(width, height int64) {
	b.t.Helper()
	cdpCall(b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: height, DeviceScaleFactor: 1, Mobile: width < 600})
}

// slow has the network carry so many bytes a second up, and -1 all that it can.
func (b *tab) slow(up float64) {
	b.t.Helper()
	cdpCall(b, network.EmulateNetworkConditionsByRule, network.EmulateNetworkConditionsByRuleParams{
		MatchedNetworkConditions: []*network.Conditions{{DownloadThroughput: -1, UploadThroughput: up}},
	})
}

// blocked keeps requests from being sent whose URL is like one of patterns.
func (b *tab) blocked(patterns ...string) {
	b.t.Helper()
	list := []*network.BlockPattern{}
	for _, p := range patterns {
		list = append(list, &network.BlockPattern{URLPattern: p, Block: true})
	}
	cdpCall(b, network.SetBlockedURLs, network.SetBlockedURLsParams{URLPatterns: list})
}

// online says whether there is a network at all.
func (b *tab) online(is bool) {
	b.t.Helper()
	cdpCall(b, network.EmulateNetworkConditionsByRule, network.EmulateNetworkConditionsByRuleParams{
		MatchedNetworkConditions: []*network.Conditions{{DownloadThroughput: -1, UploadThroughput: -1, Offline: !is}},
	})
	cdpCall(b, network.OverrideNetworkState, network.OverrideNetworkStateParams{Offline: !is, DownloadThroughput: -1, UploadThroughput: -1})
}

// allow lets the page at origin use what the browser would ask for.
func (b *tab) allow(origin string, names ...string) {
	b.t.Helper()
	c := chromedp.FromContext(b.ctx)
	for _, name := range names {
		_, err := cdp.Call(b.ctx, c.Browser, browser.SetPermission, browser.SetPermissionParams{
			Permission: &browser.PermissionDescriptor{Name: name}, Setting: browser.PermissionSettingGranted, Origin: origin, BrowserContextID: c.BrowserContextID,
		})
		if err != nil {
			b.fail(err)
		}
	}
}

// shot writes what is to be seen into the folder SCREENSHOTS.
func (b *tab) shot(name string) {
	b.t.Helper()
	dir := os.Getenv("SCREENSHOTS")
	if dir == "" {
		return
	}
	time.Sleep(300 * time.Millisecond) // for what moves
	png, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
	if err != nil {
		b.fail(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// accessible has axe-core look at the page, and at its colours in the dark as well.
func (b *tab) accessible(state string) {
	b.t.Helper()
	axe, err := os.ReadFile(harness.Root("local", "node_modules", "axe-core", "axe.min.js"))
	if err != nil {
		b.t.Fatal(err)
	}
	b.do(chromedp.Evaluate[chromedp.Void]("window.axe || (() => {" + string(axe) + "})(); 0"))
	for scheme, options := range map[string]string{"dark": `{ runOnly: ["color-contrast"] }`, "light": `{}`} {
		cdpCall(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
			{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}, // or colours are on their way
		}})
		found := eval[[]string](b, `axe.run(`+options+`).then(({violations}) => violations.map((v) => v.id + ": " + v.help + " " + v.nodes.map((n) => n.html + " " + n.failureSummary).join("; ")))`)
		for _, v := range found {
			b.t.Errorf("%s, %s: %s", state, scheme, v)
		}
		b.shot(strings.ReplaceAll(state, " ", "-") + "-" + scheme)
	}
	b.bright("light")
}

// bright says whether whoever looks wants it light or dark.
func (b *tab) bright(scheme string) {
	b.t.Helper()
	cdpCall(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
}
