package e2e

import (
	"bytes"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"cats.example/local/stand"
)

// gate is a way to a system, on which faults can be set.
type gate struct {
	url string

	mu    sync.Mutex
	fault func(w http.ResponseWriter, r *http.Request, healthy http.Handler)
}

func newGate(t *testing.T, to string) *gate {
	t.Helper()
	v := &gate{}
	v.url = faulty(t, to, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		v.mu.Lock()
		f := v.fault
		v.mu.Unlock()
		if f == nil {
			healthy.ServeHTTP(w, r)
			return
		}
		f(w, r, healthy)
	})
	return v
}

// set has f answer the requests for pictures with a method, "" for all; nil lets them
// all go on.
func (v *gate) set(method string, f fault) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.fault = nil
	if f != nil {
		v.fault = func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
			if (method == "" || r.Method == method) && strings.HasPrefix(r.URL.Path, "/cat/") {
				f(w, r, healthy)
				return
			}
			healthy.ServeHTTP(w, r)
		}
	}
}

// hold keeps the answers to requests with a method until goOn is called. asked is
// closed when the first is there, which has been done by then.
func (v *gate) hold(t *testing.T, method string) (asked <-chan struct{}, goOn func()) {
	t.Helper()
	first, opened := make(chan struct{}), make(chan struct{})
	var once sync.Once
	goOn = sync.OnceFunc(func() { close(opened) })
	t.Cleanup(goOn)
	v.set(method, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		healthy.ServeHTTP(&pendingAnswer{ResponseWriter: w, hold: func() { once.Do(func() { close(first) }); <-opened }}, r)
	})
	return first, goOn
}

// pendingAnswer holds an answer before it is given.
type pendingAnswer struct {
	http.ResponseWriter
	hold func()
}

func (l *pendingAnswer) WriteHeader(status int) { l.hold(); l.ResponseWriter.WriteHeader(status) }

func (l *pendingAnswer) Unwrap() http.ResponseWriter { return l.ResponseWriter }

// name goes to another name.
func (b *tab) name(user string) {
	b.t.Helper()
	b.do(chromedp.SetValue(chromedp.CSS("#name"), user), chromedp.Click(chromedp.CSS("#show")))
	b.sees(user + "’s cat")
	b.shown()
}

// shown waits for a picture that is stored, which moves what is below it.
func (b *tab) shown() {
	b.t.Helper()
	b.sees("Ends in")
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

// settled waits until the page has done what the last answer has it do.
func (b *tab) settled() {
	b.t.Helper()
	eval[bool](b, `fetch("/service").then(() => new Promise((done) => setTimeout(done, 100, true)))`)
}

// What somebody confirms is about the picture that they have seen, and what is answered
// late is about the name that it was asked for.
func TestThePageChangesThePictureThatIsMeant(t *testing.T) {
	t.Parallel()
	sys := start(t, stand.SystemOptions{})
	second := append(bytes.Clone(cat), "second"...)
	for _, user := range []string{"Davyd", "mia"} {
		put(t, sys, user, cat)
	}
	v := newGate(t, sys.URL)
	b := browse(t, v.url+"/?user=mia")
	b.shown()
	b.name("Davyd")
	b.click("#delete")
	b.sees("Delete Davyd’s cat?")
	b.do(chromedp.NavigateBack())
	b.sees("mia’s cat")
	b.shown()
	b.holds(`!document.querySelector("#confirm").open`)

	b.name("Davyd")
	asked, goOn := v.hold(t, http.MethodDelete)
	b.click("#delete")
	b.click("#confirm-delete")
	b.await(asked)
	b.drop(catFile(t)) // which waits, for Davyd alone
	b.name("mia")
	goOn()
	b.settled()
	b.holds(`document.body.dataset.view === "picture" && document.querySelector("#title").textContent === "mia’s cat"`)
	do(t, http.MethodGet, sys.URL+"/cat/Davyd", "", nil).want(t, 404)
	hasPicture(t, sys, "mia", cat)

	// A link that comes when a picture has been chosen.
	asked, goOn = v.hold(t, http.MethodGet)
	b.do(chromedp.Focus(chromedp.CSS("#ttl")))
	b.key(kb.ArrowUp)
	b.await(asked)
	b.pick(catFile(t))
	b.focused("upload")
	goOn()
	b.settled()
	b.holds(`document.body.dataset.view === "preview"`)

	// A name is chosen while an upload is under way.
	b.pick(onDisk(t, "second.png", large(1<<20)))
	b.sees("second.png")
	b.slow(50_000)
	b.click("#upload")
	b.holds(`document.querySelector("#progress").value > 5`)
	b.do(chromedp.NavigateBack())
	b.sees("Davyd’s cat")
	b.sees("The upload was cancelled.")
	hasPicture(t, sys, "mia", cat)
	b.slow(-1)

	// What is confirmed is about what was seen, although another has come meanwhile.
	put(t, sys, "tom", cat)
	b.name("tom")
	put(t, sys, "tom", second)
	asked, goOn = v.hold(t, http.MethodGet)
	b.do(chromedp.Focus(chromedp.CSS("#ttl")))
	b.key(kb.ArrowDown)
	b.await(asked)
	b.click("#delete")
	b.sees("Delete tom’s cat?")
	v.set("", nil)
	goOn()
	b.sees("Here is a new link.")
	b.click("#confirm-delete")
	b.sees("The picture has changed meanwhile")
	hasPicture(t, sys, "tom", second)

	// A file that is dropped before it is known what is there is for that name alone.
	asked, goOn = v.hold(t, http.MethodGet)
	b.do(chromedp.SetValue(chromedp.CSS("#name"), "mia"), chromedp.Click(chromedp.CSS("#show")))
	b.await(asked)
	b.drop(catFile(t))
	v.set("", nil)
	b.name("tom")
	goOn()
	b.settled()
	b.holds(`document.body.dataset.view === "picture" && document.querySelector("#title").textContent === "tom’s cat"`)
	asked, goOn = v.hold(t, http.MethodGet)
	b.do(chromedp.SetValue(chromedp.CSS("#name"), "mia"), chromedp.Click(chromedp.CSS("#show")))
	b.await(asked)
	b.drop(catFile(t))
	goOn()
	b.focused("upload")
	b.sees("cat.png")
}

// What the page says is stored is, and what is stored it does not deny.
func TestThePageKnowsWhatIsStored(t *testing.T) {
	t.Parallel()
	sys := start(t, stand.SystemOptions{})
	v := newGate(t, sys.URL)
	b := browse(t, v.url+"/?user=Davyd")
	b.sees("No picture yet")
	b.pick(catFile(t))
	v.set(http.MethodPut, lost)
	b.click("#upload")
	b.sees("The answer was lost, but this is there now.")
	b.focused("copy")
	hasPicture(t, sys, "Davyd", cat)

	// An answer that is lost, and no word of what is there either.
	second := append(bytes.Clone(cat), "second"...)
	b.pick(onDisk(t, "second.png", bytes.NewReader(second)))
	b.focused("upload")
	v.set(http.MethodPut, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		v.set("", abort)
		lost(w, r, healthy)
	})
	b.click("#upload")
	b.sees("The connection broke off")
	v.set("", nil)
	b.click("#message-action")
	b.sees("The answer was lost, but this is there now.")
	hasPicture(t, sys, "Davyd", second)

	// It may be stored, whatever becomes of the next try.
	unanswered := func(name string) {
		t.Helper()
		b.pick(onDisk(t, name, bytes.NewReader(append(bytes.Clone(cat), name...))))
		b.sees(name)
		v.set(http.MethodPut, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
			v.set("", abort)
			lost(w, r, healthy)
		})
		b.click("#upload")
		b.sees("The connection broke off")
		v.set("", nil)
	}
	unanswered("third.png")
	b.click("#discard")
	b.sees("All had been sent, and may be stored yet.")
	b.shown()
	hasPicture(t, sys, "Davyd", append(bytes.Clone(cat), "third.png"...))
	unanswered("fourth.png")
	b.slow(20_000)
	b.click("#message-action")
	b.holds(`document.querySelector("#progress").value > 2`)
	b.click("#cancel")
	b.sees("All had been sent, and may be stored yet.")
	b.slow(-1)
	hasPicture(t, sys, "Davyd", append(bytes.Clone(cat), "fourth.png"...))

	// One that broke off is not taken for what somebody else has stored meanwhile, and
	// that is not replaced before it is told of.
	b.pick(catFile(t))
	b.focused("upload")
	put(t, sys, "Davyd", picture2)
	v.set(http.MethodPut, abort)
	b.click("#upload")
	b.sees("The connection broke off")
	v.set("", nil)
	b.click("#message-action")
	b.sees("The picture has changed meanwhile")
	hasPicture(t, sys, "Davyd", picture2)
	b.click("#message-action")
	b.sees("Stored.")
	hasPicture(t, sys, "Davyd", cat)

	// What somebody else has stored meanwhile is told of before it is replaced, by
	// another file, too.
	b.pick(catFile(t))
	b.focused("upload")
	put(t, sys, "Davyd", picture2)
	v.set(http.MethodPut, abort)
	b.click("#upload")
	b.sees("The connection broke off")
	v.set("", nil)
	b.pick(onDisk(t, "second.png", bytes.NewReader(second)))
	b.click("#upload")
	b.sees("The picture has changed meanwhile")
	hasPicture(t, sys, "Davyd", picture2)

	// When all is sent, cancelling promises nothing.
	asked, goOn := v.hold(t, http.MethodPut)
	b.click("#message-action")
	b.await(asked)
	b.sees("All sent. It is being checked and stored…")
	b.click("#cancel")
	b.sees("All had been sent, and may be stored yet.")
	b.sees("Ends in")
	goOn()
	hasPicture(t, sys, "Davyd", second)

	// Somebody else has deleted it.
	do(t, http.MethodDelete, sys.URL+"/cat/Davyd", "", nil).want(t, 204)
	b.click("#download")
	b.sees("No picture yet")
}

// What others on the way answer in place of the service, and a browser that keeps nothing.
func TestThePageWorksWhereTheWayToItDoesNot(t *testing.T) {
	t.Parallel()
	sys := public(t)
	v := newGate(t, sys.URL)
	b := browse(t, "about:blank")
	cdpCall(b, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{
		Source: `Object.defineProperty(window, "sessionStorage", { get() { throw new DOMException("no site data", "SecurityError") } })`,
	})
	b.do(chromedp.Navigate(v.url))
	b.sees("Share a cat")
	b.do(chromedp.SendKeys(chromedp.CSS("#name"), "Davyd"+kb.Enter))
	b.sees("No picture yet")
	b.pick(catFile(t))
	b.focused("upload")
	gateway := func(status int, body string, header ...string) fault {
		return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		}
	}
	v.set(http.MethodPut, gateway(429, `{"statusCode":429,"message":"slow down"}`, "Retry-After", "60"))
	b.click("#upload")
	b.sees("That was a lot at once")
	b.sees("Try again in ")
	b.sees("The answer has the HTTP status 429.")
	v.set(http.MethodGet, gateway(200, "<h1>Sign in to this Wi-Fi</h1>"))
	b.do(chromedp.Navigate(v.url + "/?user=Davyd"))
	b.sees("Something answered that is not this service")

	// What says how the service is set up, which a reload asks for again.
	v.mu.Lock()
	v.fault = func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		if r.URL.Path == "/about" {
			gateway(503, "", "Retry-After", "60")(w, r, healthy)
			return
		}
		healthy.ServeHTTP(w, r)
	}
	v.mu.Unlock()
	b.do(chromedp.Navigate(v.url))
	b.sees("Load the page again in ")
}
