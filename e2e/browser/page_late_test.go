package browser

import (
	"bytes"
	"net/http"
	"testing"

	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

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

// settled waits until the page has done what the last answer has it do.
func (b *tab) settled() {
	b.t.Helper()
	eval[bool](b, `fetch("/service").then(() => new Promise((done) => setTimeout(done, 100, true)))`)
}

// What somebody confirms is about the picture that they have seen, and what is answered
// late is about the name that it was asked for.
func TestThePageChangesThePictureThatIsMeant(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	second := append(bytes.Clone(harness.Cat), "second"...)
	for _, user := range []string{"Davyd", "mia"} {
		harness.Put(t, sys, user, harness.Cat)
	}
	v := harness.NewGate(t, sys.URL)
	b := browse(t, v.URL+"/?user=mia")
	b.shown()
	b.name("Davyd")
	b.click("#delete")
	b.sees("Delete Davyd’s cat?")
	b.do(chromedp.NavigateBack())
	b.sees("mia’s cat")
	b.shown()
	b.holds(`!document.querySelector("#confirm").open`)

	b.name("Davyd")
	asked, goOn := v.Hold(t, http.MethodDelete)
	b.click("#delete")
	b.click("#confirm-delete")
	b.await(asked)
	b.drop(catFile(t)) // which waits, for Davyd alone
	b.name("mia")
	goOn()
	b.settled()
	b.holds(`document.body.dataset.view === "picture" && document.querySelector("#title").textContent === "mia’s cat"`)
	harness.Do(t, http.MethodGet, sys.URL+"/cat/Davyd", "", nil).Want(t, 404)
	harness.WantPicture(t, sys, "mia", harness.Cat)

	// A link that comes when a picture has been chosen.
	asked, goOn = v.Hold(t, http.MethodGet)
	b.do(chromedp.Focus(chromedp.CSS("#ttl")))
	b.key(kb.ArrowUp)
	b.await(asked)
	b.pick(catFile(t))
	b.focused("upload")
	goOn()
	b.settled()
	b.holds(`document.body.dataset.view === "preview"`)

	// A name is chosen while an upload is under way.
	b.pick(onDisk(t, "second.png", harness.Large(1<<20)))
	b.sees("second.png")
	b.slow(50_000)
	b.click("#upload")
	b.holds(`document.querySelector("#progress").value > 5`)
	b.do(chromedp.NavigateBack())
	b.sees("Davyd’s cat")
	b.sees("The upload was canceled.")
	harness.WantPicture(t, sys, "mia", harness.Cat)
	b.slow(-1)

	// What is confirmed is about what was seen, although another has come meanwhile.
	harness.Put(t, sys, "tom", harness.Cat)
	b.name("tom")
	harness.Put(t, sys, "tom", second)
	asked, goOn = v.Hold(t, http.MethodGet)
	b.do(chromedp.Focus(chromedp.CSS("#ttl")))
	b.key(kb.ArrowDown)
	b.await(asked)
	b.click("#delete")
	b.sees("Delete tom’s cat?")
	v.Set("", nil)
	goOn()
	b.sees("Here is a new link.")
	b.click("#confirm-delete")
	b.sees("The picture has changed")
	harness.WantPicture(t, sys, "tom", second)

	// A file that is dropped before it is known what is there is for that name alone.
	asked, goOn = v.Hold(t, http.MethodGet)
	b.do(chromedp.SetValue(chromedp.CSS("#name"), "mia"), chromedp.Click(chromedp.CSS("#show")))
	b.await(asked)
	b.drop(catFile(t))
	v.Set("", nil)
	b.name("tom")
	goOn()
	b.settled()
	b.holds(`document.body.dataset.view === "picture" && document.querySelector("#title").textContent === "tom’s cat"`)
	asked, goOn = v.Hold(t, http.MethodGet)
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
	sys := harness.Start(t, stack.SystemOptions{})
	v := harness.NewGate(t, sys.URL)
	b := browse(t, v.URL+"/?user=Davyd")
	b.sees("No picture yet")
	b.pick(catFile(t))
	v.Set(http.MethodPut, harness.Drop)
	b.click("#upload")
	b.sees("The response was lost, but this picture is stored now.")
	b.focused("copy")
	harness.WantPicture(t, sys, "Davyd", harness.Cat)

	// An answer that is lost, and no word of what is there either.
	of := func(name string) []byte { return append(bytes.Clone(harness.Cat), name...) }
	breaksOff := func(name string, f harness.Fault) {
		t.Helper()
		b.pick(onDisk(t, name, bytes.NewReader(of(name))))
		b.sees(name)
		v.Set(http.MethodPut, f)
		b.click("#upload")
		b.sees("The connection was lost")
		v.Set("", nil)
	}
	unanswered := func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		v.Set("", harness.Abort)
		harness.Drop(w, r, healthy)
	}
	breaksOff("second.png", unanswered)
	b.click("#message-action")
	b.sees("The response was lost, but this picture is stored now.")
	harness.WantPicture(t, sys, "Davyd", of("second.png"))

	// It may be stored, whatever becomes of the next try.
	breaksOff("third.png", unanswered)
	b.click("#discard")
	b.sees("The whole picture had been sent and may still be stored.")
	b.shown()
	harness.WantPicture(t, sys, "Davyd", of("third.png"))
	breaksOff("fourth.png", unanswered)
	b.slow(20_000)
	b.click("#message-action")
	b.holds(`document.querySelector("#progress").value > 2`)
	b.click("#cancel")
	b.sees("The whole picture had been sent and may still be stored.")
	b.slow(-1)
	harness.WantPicture(t, sys, "Davyd", of("fourth.png"))

	// What somebody else has stored meanwhile is not taken for one that broke off, and
	// is told of before it is replaced: by the same file, or by another.
	told := func(content []byte) {
		t.Helper()
		b.sees("The picture has changed")
		harness.WantPicture(t, sys, "Davyd", harness.OtherPicture)
		b.click("#message-action")
		b.sees("Stored.")
		harness.WantPicture(t, sys, "Davyd", content)
	}
	harness.Put(t, sys, "Davyd", harness.OtherPicture)
	breaksOff("fifth.png", harness.Abort)
	b.click("#message-action")
	told(of("fifth.png"))
	harness.Put(t, sys, "Davyd", harness.OtherPicture)
	breaksOff("sixth.png", harness.Abort)
	b.pick(onDisk(t, "seventh.png", bytes.NewReader(of("seventh.png"))))
	b.sees("seventh.png")
	b.click("#upload")
	told(of("seventh.png"))

	// When all is sent, cancelling promises nothing.
	b.pick(catFile(t))
	asked, goOn := v.Hold(t, http.MethodPut)
	b.click("#upload")
	b.await(asked)
	b.sees("Sent. Checking and storing…")
	b.click("#cancel")
	b.sees("The whole picture had been sent and may still be stored.")
	b.sees("Expires in")
	goOn()
	harness.WantPicture(t, sys, "Davyd", harness.Cat)

	// Somebody else has deleted it.
	harness.Do(t, http.MethodDelete, sys.URL+"/cat/Davyd", "", nil).Want(t, 204)
	b.click("#download")
	b.sees("No picture yet")
}

// What others on the way answer in place of the service, and a browser that keeps nothing.
func TestThePageWorksWhereTheWayToItDoesNot(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	v := harness.NewGate(t, sys.URL)
	b := browse(t, "about:blank")
	cdpCall(b, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{
		Source: `Object.defineProperty(window, "sessionStorage", { get() { throw new DOMException("no site data", "SecurityError") } })`,
	})
	b.do(chromedp.Navigate(v.URL))
	b.sees("Share a cat")
	b.do(chromedp.SendKeys(chromedp.CSS("#name"), "Davyd"+kb.Enter))
	b.sees("No picture yet")
	b.pick(catFile(t))
	b.focused("upload")
	gateway := func(status int, body string, header ...string) harness.Fault {
		return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		}
	}
	v.Set(http.MethodPut, gateway(429, `{"statusCode":429,"message":"slow down"}`, "Retry-After", "60"))
	b.click("#upload")
	b.sees("Too many requests")
	b.sees("Try again in ")
	b.sees("The response has HTTP status 429.")
	v.Set(http.MethodGet, gateway(200, "<h1>Sign in to this Wi-Fi</h1>"))
	b.do(chromedp.Navigate(v.URL + "/?user=Davyd"))
	b.sees("The response is not from this service")

	// What says how the service is set up, which a reload asks for again.
	v.SetAll(func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		if r.URL.Path == "/about" {
			gateway(503, "", "Retry-After", "60")(w, r, healthy)
			return
		}
		healthy.ServeHTTP(w, r)
	})
	b.do(chromedp.Navigate(v.URL))
	b.sees("Reload the page in ")
}
