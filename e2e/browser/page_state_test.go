package browser

import (
	"net/http"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// page is a page with a picture of a user behind a gate.
type page struct {
	*tab
	sys  *stack.System
	gate *harness.Gate
	user string
}

// openPages runs tests in parallel, each with its own tab and user. The user has the picture harness.Cat.
func openPages(t *testing.T, tests map[string]func(page)) {
	t.Helper()
	sys := harness.Shared(t)
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := page{sys: sys, gate: harness.NewGate(t, sys.URL), user: harness.User(t)}
			harness.Put(t, sys, p.user, harness.Cat)
			p.tab = browse(t, p.gate.URL+"/?user="+p.user)
			p.shown()
			test(p)
		})
	}
}

// wants fails the test unless content is stored.
func (p page) wants(content []byte) {
	p.t.Helper()
	harness.WantPicture(p.t, p.sys, p.user, content)
}

// put stores content without the page.
func (p page) put(content []byte) {
	p.t.Helper()
	harness.Put(p.t, p.sys, p.user, content)
}

// loseUpload uploads a picture with a fault, and then the page gets no response to GET either.
func (p page) loseUpload(name string, fault harness.Fault) (content []byte) {
	p.t.Helper()
	content, path := another(p.t, name)
	p.gate.Set(http.MethodPut, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		p.gate.Set("", harness.Abort)
		fault(w, r, healthy)
	})
	p.upload(path)
	p.sees("The connection was lost")
	p.gate.Set("", nil)
	return content
}

// replaces expects the warning about a changed picture, and replaces that picture.
func (p page) replaces(content []byte) {
	p.t.Helper()
	p.sees("The picture has changed")
	p.wants(harness.OtherPicture)
	p.click("#message-action")
	p.sees("Stored.")
	p.wants(content)
}

func TestPageKnowsWhatIsStored(t *testing.T) {
	t.Parallel()
	openPages(t, map[string]func(page){
		"the retry finds the picture": func(p page) {
			content := p.loseUpload("a", harness.Drop)
			p.click("#message-action")
			p.sees(storedAnyway)
			p.focused("copy")
			p.wants(content)
		},
		"discarded": func(p page) {
			content := p.loseUpload("a", harness.Drop)
			p.click("#discard")
			p.sees(mayBeStored)
			p.shown()
			p.wants(content)
		},
		"the retry is rejected, then discarded": func(p page) {
			p.gate.Set(http.MethodPut, harness.Problem(503, "throttled", unknown))
			content, path := another(p.t, "a")
			p.upload(path)
			p.sees(uploadUnknown)
			p.gate.Set(http.MethodPut, harness.Problem(409, "leased", ""))
			p.click("#message-action")
			p.sees("This picture is locked")
			p.gate.Set("", nil)
			p.put(content) // as if the first try were carried out late
			p.click("#discard")
			p.sees(mayBeStored)
			p.shown()
		},
		"the retry is canceled": func(p page) {
			content := p.loseUpload("a", harness.Drop)
			p.slow(20_000)
			p.click("#message-action")
			p.holds(`document.querySelector("#progress").value > 2`)
			p.click("#cancel")
			p.sees(mayBeStored)
			p.wants(content)
		},
		"canceled after the last byte": func(p page) {
			content, path := another(p.t, "a")
			asked, proceed := p.gate.Hold(p.t, http.MethodPut)
			p.upload(path)
			p.await(asked)
			p.sees("Sent. Checking and storing…")
			p.click("#cancel")
			p.sees(mayBeStored, "Expires in")
			proceed()
			p.wants(content)
		},
		"another client stores a picture before the retry": func(p page) {
			content := p.loseUpload("a", harness.Abort)
			p.put(harness.OtherPicture)
			p.click("#message-action")
			p.replaces(content)
		},
		"another client stores a picture before another upload": func(p page) {
			p.loseUpload("a", harness.Abort)
			p.put(harness.OtherPicture)
			content, path := another(p.t, "b")
			p.upload(path)
			p.replaces(content)
		},
		"another client stores a picture before the upload": func(p page) {
			p.put(harness.OtherPicture)
			content, path := another(p.t, "a")
			p.upload(path)
			p.replaces(content)
		},
		"another client stores a picture before the deletion": func(p page) {
			p.put(harness.OtherPicture)
			p.click("#delete", "#confirm-delete")
			p.sees("The picture has changed")
			p.wants(harness.OtherPicture)
		},
		"another client deletes the picture and stores one": func(p page) {
			harness.Do(p.t, http.MethodDelete, p.sys.URL+"/cat/"+p.user, "", nil).Want(p.t, 204)
			p.click("#download")
			p.sees("No picture yet")
			p.put(harness.OtherPicture)
			content, path := another(p.t, "a")
			p.upload(path)
			p.replaces(content)
		},
		"canceled": func(p page) {
			p.pick(onDisk(p.t, "new.png", harness.Large(1<<20)))
			p.sees("Upload and replace")
			p.slow(200_000)
			p.click("#upload")
			p.holds(`document.querySelector("#progress").value > 10`)
			p.click("#cancel")
			p.sees("Canceled.")
			p.focused("replace")
			p.sees("235 KB")
			p.wants(harness.Cat)
		},
		"offline": func(p page) {
			content, path := another(p.t, "a")
			p.online(false)
			p.upload(path)
			p.sees("You are offline")
			p.online(true)
			p.click("#message-action")
			p.sees("Stored.")
			p.wants(content)
		},
		"storage damages the picture": func(p page) {
			content, path := another(p.t, "a")
			p.gate.Set(http.MethodPut, done(harness.Problem(502, "damaged", `,"outcome":"stored"`)))
			p.upload(path)
			p.sees("The stored picture is damaged")
			p.lacks(notKnown)
			p.gate.Set("", nil)
			p.click("#message-action")
			p.sees("Stored.")
			p.wants(content)
		},
	})
}

// openOther opens the page of another user with the picture harness.Cat, and returns the name.
func (p page) openOther() string {
	p.t.Helper()
	other := harness.User(p.t)
	harness.Put(p.t, p.sys, other, harness.Cat)
	p.open(other)
	return other
}

// renew requests a new signed URL.
func (p page) renew() {
	p.t.Helper()
	p.do(chromedp.Focus(chromedp.CSS("#ttl")))
	p.key(kb.ArrowUp)
}

// displays waits until the page shows a view of user, and has handled the last response.
func (p page) displays(view, user string) {
	p.t.Helper()
	eval[bool](p.tab, `fetch("/service").then(() => new Promise((done) => setTimeout(done, 100, true)))`)
	p.holds(`document.body.dataset.view === "` + view + `" && document.querySelector("#title").textContent === "` + user + `’s cat"`)
}

// A confirmation is for the picture that the page showed, and a late response is for the user of its request.
func TestPageChangesOnlyTheDisplayedPicture(t *testing.T) {
	t.Parallel()
	openPages(t, map[string]func(page){
		"going back closes the confirmation": func(p page) {
			other := p.openOther()
			p.sees(other + "’s cat")
			p.shown()
			p.click("#delete")
			p.sees("Delete " + other + "’s cat?")
			p.do(chromedp.NavigateBack())
			p.sees(p.user + "’s cat")
			p.shown()
			p.holds(`!document.querySelector("#confirm").open`)
		},
		"going back cancels the upload": func(p page) {
			other := p.openOther()
			p.sees(other + "’s cat")
			p.shown()
			p.slow(50_000)
			p.upload(onDisk(p.t, "second.png", harness.Large(1<<20)))
			p.holds(`document.querySelector("#progress").value > 5`)
			p.do(chromedp.NavigateBack())
			p.sees(p.user+"’s cat", "The upload was canceled.")
			harness.WantPicture(p.t, p.sys, other, harness.Cat)
		},
		"a late deletion": func(p page) {
			asked, proceed := p.gate.Hold(p.t, http.MethodDelete)
			p.click("#delete", "#confirm-delete")
			p.await(asked)
			p.drop(catFile(p.t)) // waits, for this user only
			other := p.openOther()
			p.shown()
			proceed()
			p.displays("picture", other)
			harness.Do(p.t, http.MethodGet, p.sys.URL+"/cat/"+p.user, "", nil).Want(p.t, 404)
			harness.WantPicture(p.t, p.sys, other, harness.Cat)
		},
		"a late signed URL": func(p page) {
			asked, proceed := p.gate.Hold(p.t, http.MethodGet)
			p.renew()
			p.await(asked)
			p.pick(catFile(p.t))
			p.focused("upload")
			proceed()
			p.displays("preview", p.user)
		},
		"a confirmation before a late signed URL": func(p page) {
			p.put(harness.OtherPicture)
			asked, proceed := p.gate.Hold(p.t, http.MethodGet)
			p.renew()
			p.await(asked)
			p.click("#delete")
			p.sees("Delete " + p.user + "’s cat?")
			p.gate.Set("", nil)
			proceed()
			p.sees("Here is a new link.")
			p.click("#confirm-delete")
			p.sees("The picture has changed")
			p.wants(harness.OtherPicture)
		},
		"a file dropped while another user is loading": func(p page) {
			asked, proceed := p.gate.Hold(p.t, http.MethodGet)
			p.openOther()
			p.await(asked)
			p.drop(catFile(p.t))
			p.gate.Set("", nil)
			p.open(p.user)
			p.shown()
			proceed()
			p.displays("picture", p.user)
		},
		"a file dropped while loading": func(p page) {
			asked, proceed := p.gate.Hold(p.t, http.MethodGet)
			p.openOther()
			p.await(asked)
			p.drop(catFile(p.t))
			proceed()
			p.focused("upload")
			p.sees("cat.png")
		},
	})
}
