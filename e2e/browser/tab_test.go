// Package browser tests the pages in Chromium.
package browser

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/audits"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"cats.example/e2e/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m, func() error { stopBrowser(); return nil })) }

var (
	errNoBrowser = fmt.Errorf("needs one of these programs in PATH: %s (Debian: apt-get install chromium-headless-shell)", strings.Join(browsers, ", "))
	stopBrowser  = func() {}
)

// browsers are names of the browser; the first one in PATH is used. The headless shell is Chromium without its user interface,
// and takes half the time.
var browsers = []string{"chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"}

// startBrowser starts the browser of all tests.
var startBrowser = sync.OnceValues(func() (context.Context, error) {
	path := ""
	for _, name := range browsers {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		return nil, errNoBrowser
	}
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(path),
		chromedp.DisableGPU,
		chromedp.IgnoreCertErrors, // the OpenID provider has a certificate of the stack's CA
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1"), // no request leaves this machine
	)
	allocator, endAllocator := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, end := chromedp.NewContext(allocator)
	stopBrowser = func() { end(); endAllocator() }
	return ctx, chromedp.Do(ctx)
})

// tab is a browser tab with its own storage, cookies and cache. Its methods fail the test.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu     sync.Mutex
	errors []string // exceptions, console errors and policy violations
}

// browse opens url. The test fails if the page has violated its Content-Security-Policy or written an error to the console.
func browse(t *testing.T, url string) *tab {
	t.Helper()
	harness.NeedOwnSystem(t)
	shared, err := startBrowser()
	if errors.Is(err, errNoBrowser) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := chromedp.NewContext(shared, chromedp.WithNewBrowserContext())
	t.Cleanup(end)
	b := &tab{t: t}
	if err := chromedp.Listen(ctx, b.listen); err != nil {
		t.Fatal(err)
	}
	var cancel func()
	b.ctx, cancel = context.WithTimeout(ctx, 2*harness.Patience)
	t.Cleanup(func() {
		cancel()
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, err := range b.errors {
			t.Errorf("the browser reports: %s", err)
		}
	})
	cdpCall(b, audits.Enable, cdp.Empty{})
	cdpCall(b, emulation.SetFocusEmulationEnabled, emulation.SetFocusEmulationEnabledParams{Enabled: true})
	b.screen(1000, 900)
	b.do(chromedp.Navigate(url))
	return b
}

func (b *tab) listen(ev any) {
	var found any
	switch ev := ev.(type) {
	case *runtime.EventExceptionThrown:
		found = ev.ExceptionDetails
	case *runtime.EventConsoleAPICalled:
		if slices.Contains([]string{"error", "warning", "assert"}, string(ev.Type)) {
			found = ev
		}
	case *log.EventEntryAdded:
		// Every browser logs rejected requests.
		if ev.Entry.Source != log.EntrySourceNetwork && slices.Contains([]string{"error", "warning"}, string(ev.Entry.Level)) {
			found = ev.Entry
		}
	case *audits.EventIssueAdded:
		if policy := ev.Issue.Details.ContentSecurityPolicyIssueDetails; policy != nil {
			found = policy
		}
	}
	if found != nil {
		text, _ := json.Marshal(found)
		b.mu.Lock()
		defer b.mu.Unlock()
		b.errors = append(b.errors, fmt.Sprintf("%T %s", found, text))
	}
}

// do runs actions in the page.
func (b *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, steps...); err != nil {
		b.fail(err)
	}
}

// fail ends the test with the text of the page.
func (b *tab) fail(err error) {
	b.t.Helper()
	shared, _ := startBrowser() // the context of the tab may be done
	ctx, cancel := context.WithTimeout(shared, 5*time.Second)
	defer cancel()
	c := *chromedp.FromContext(b.ctx)
	text, _ := chromedp.Evaluate[string](`document.body.dataset.view + "\n" + document.body.innerText`)(ctx, c.Target)
	b.t.Fatalf("%v\nthe page:\n%s", err, text)
}

// cdpCall calls a method of the DevTools protocol.
func cdpCall[P, R any](b *tab, c cdp.Command[P, R], params P) R {
	b.t.Helper()
	got, err := chromedp.Run(b.ctx, func(ctx context.Context, t *chromedp.Target) (R, error) { return cdp.Call(ctx, t, c, params) })
	if err != nil {
		b.fail(err)
	}
	return got
}

// eval returns the value of a script. It awaits promises.
func eval[T any](b *tab, script string) T {
	b.t.Helper()
	got, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](script, chromedp.EvalAwaitPromise))
	if err != nil {
		b.fail(fmt.Errorf("%s: %w", script, err))
	}
	return got
}

// next returns the next event.
func next[E any](b *tab, events iter.Seq2[E, error]) (event E) {
	b.t.Helper()
	for ev, err := range events {
		if err != nil {
			b.fail(err)
		}
		return ev
	}
	return event
}

// holds waits until a script is true.
func (b *tab) holds(script string) {
	b.t.Helper()
	for {
		got, err := chromedp.Run(b.ctx, chromedp.Evaluate[bool]("Boolean("+script+")"))
		switch {
		case err == nil && got:
			return
		case b.ctx.Err() != nil:
			b.fail(fmt.Errorf("never true: %s: %w", script, b.ctx.Err()))
		}
		time.Sleep(50 * time.Millisecond) // a promise would end with its page
	}
}

// sees waits until the page shows all texts.
func (b *tab) sees(texts ...string) {
	b.t.Helper()
	for _, text := range texts {
		quoted, _ := json.Marshal(text)
		b.holds(`document.body?.innerText.includes(` + string(quoted) + `)`)
	}
}

// focused waits until the element with the ID has the focus.
func (b *tab) focused(id string) {
	b.t.Helper()
	b.holds(`document.activeElement?.id === "` + id + `"`)
}

// click clicks on elements, one after the other, when no image can move them any more.
func (b *tab) click(selectors ...string) {
	b.t.Helper()
	for _, selector := range selectors {
		b.holds(`[...document.images].every((image) => image.complete)`)
		b.do(chromedp.Click(chromedp.CSS(selector), chromedp.NodeVisible))
	}
}

// pick chooses a file in the file dialog.
func (b *tab) pick(path string) {
	b.t.Helper()
	b.holds(`document.querySelector("#file")`)
	b.do(chromedp.SetUploadFiles(chromedp.CSS("#file"), []string{path}, chromedp.NodeReady))
}

// upload picks a file and clicks on upload.
func (b *tab) upload(path string) {
	b.t.Helper()
	b.pick(path)
	b.focused("upload")
	b.sees(filepath.Base(path))
	b.click("#upload")
}

// shown waits until the page shows a stored picture, which moves the elements below it.
func (b *tab) shown() {
	b.t.Helper()
	b.sees("Expires in")
	b.holds(`document.querySelector("#image").naturalWidth > 0`)
}

func (b *tab) await(c <-chan struct{}) {
	b.t.Helper()
	select {
	case <-c:
	case <-b.ctx.Done():
		b.fail(b.ctx.Err())
	}
}

// screen sets the size of the screen.
func (b *tab) screen(width, height int64) {
	b.t.Helper()
	cdpCall(b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
		Width: width, Height: height, DeviceScaleFactor: 1, Mobile: width < 600,
	})
}

// network limits uploads to a number of bytes a second, -1 for no limit, and connects or disconnects the network.
func (b *tab) network(up float64, online bool) {
	b.t.Helper()
	cdpCall(b, network.EmulateNetworkConditionsByRule, network.EmulateNetworkConditionsByRuleParams{
		MatchedNetworkConditions: []*network.Conditions{{DownloadThroughput: -1, UploadThroughput: up, Offline: !online}},
	})
	cdpCall(b, network.OverrideNetworkState, network.OverrideNetworkStateParams{
		Offline: !online, DownloadThroughput: -1, UploadThroughput: -1,
	})
}

// shot writes a screenshot into the folder SCREENSHOTS, if that is set.
func (b *tab) shot(name string) {
	b.t.Helper()
	if dir := os.Getenv("SCREENSHOTS"); dir != "" {
		time.Sleep(300 * time.Millisecond) // for animations
		png, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
		if err := errors.Join(err, os.WriteFile(filepath.Join(dir, name+".png"), png, 0o600)); err != nil {
			b.fail(err)
		}
	}
}

// accessible checks the page with axe-core, and its contrast in the dark scheme.
func (b *tab) accessible(state string) {
	b.t.Helper()
	axe, err := os.ReadFile(harness.Root("local", "node_modules", "axe-core", "axe.min.js"))
	if err != nil {
		b.t.Fatal(err)
	}
	b.do(chromedp.Evaluate[chromedp.Void]("window.axe || (() => {" + string(axe) + "})(); 0"))
	for scheme, options := range map[string]string{"dark": `{ runOnly: ["color-contrast"] }`, "light": `{}`} {
		b.scheme(scheme)
		for _, v := range eval[[]string](b, `axe.run(`+options+`).then(({violations}) => violations.map((v) =>
			v.id + ": " + v.help + " " + v.nodes.map((n) => n.html + " " + n.failureSummary).join("; ")))`) {
			b.t.Errorf("%s, %s: %s", state, scheme, v)
		}
		b.shot(strings.ReplaceAll(state, " ", "-") + "-" + scheme)
	}
	b.scheme("light")
}

// scheme sets the preferred color scheme, light or dark, without transitions of colors.
func (b *tab) scheme(scheme string) {
	b.t.Helper()
	cdpCall(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
		{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"},
	}})
}

// onDisk writes a file and returns its path.
func onDisk(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
