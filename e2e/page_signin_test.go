package e2e

import (
	"strings"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
)

func TestThePageHasPeopleSignIn(t *testing.T) {
	t.Parallel()
	p := startProvider(t, "0")
	sys := start(t, withCallers(p.issuer, map[string]string{"OIDC_CLIENT_ID": "page"}))
	b := browse(t, sys.URL+"/?user=tom")
	b.sees("Sign in to see your picture")
	b.accessible("signed out")
	away := func() {
		b.t.Helper()
		b.click("#sign-in")
		b.holds(`location.origin === "` + p.issuer + `"`)
	}

	// What comes back must be what was asked for.
	b.do(chromedp.Navigate(sys.URL + "/?code=mew&state=mew"))
	b.sees("That sign-in was not begun here")
	b.holds(`location.search === ""`)
	away()
	b.do(chromedp.Navigate(sys.URL + "/?code=mew&state=another"))
	b.sees("That sign-in was not begun here")
	b.holds(`sessionStorage.length === 0`)
	away()
	b.click(`a[href$="/abort"]`)
	b.sees("You were not signed in")

	away()
	b.do(chromedp.SendKeys(chromedp.CSS("[name=login]"), "mia"), chromedp.SendKeys(chromedp.CSS("[name=password]"), "mew"))
	b.click("[type=submit]")
	b.sees("Authorize")
	b.click("[type=submit]")
	b.sees("Signed in as mia")
	b.sees("No picture yet")
	b.holds(`sessionStorage.length === 0 && localStorage.length === 0 && document.cookie === ""`)
	b.holds(`location.search === "?user=mia" && document.querySelector("#choose").hidden`)
	for _, entry := range cdpCall(b, page.GetNavigationHistory, cdp.Empty{}).Entries {
		if strings.HasPrefix(entry.URL, sys.URL) && strings.Contains(entry.URL, "code=") && !strings.Contains(entry.URL, "code=mew") {
			t.Errorf("a code is in the history: %s", entry.URL)
		}
	}
	b.pick(catFile(t))
	b.click("#upload")
	b.sees("Stored.")
	b.holds(`document.querySelector("#image").naturalWidth > 0`)
	b.accessible("signed in")
	as(t, p.token(t, "mia", catsAudience), "GET", sys.URL+"/cat/mia", nil).want(t, 200)

	// It ends, and is forgotten.
	eval[bool](b, `(Date.now = ((now) => () => now() + 3600_000)(Date.now), true)`)
	b.sees("Your sign-in has ended")
	b.focused("message-action")
	b.click("#message-action")
	b.sees("Authorize") // the issuer knows who it is
	b.click("[type=submit]")
	b.sees("Signed in as mia")
	b.click("#sign-out")
	b.sees("Signed out of this page.")
	b.sees("Your session at " + strings.TrimPrefix(p.issuer, "https://") + " may still be open")
	b.accessible("signed out by hand")
	b.sees("Sign in to see your picture")
	b.holds(`document.querySelector("#link").value === "" && !document.querySelector("#image").src`)
	keepsSecrets(t, sys)
	b.click("#end-session")
	b.holds(`location.origin === "` + p.issuer + `" && new URLSearchParams(location.search).get("client_id") === "page"`)
	b.sees("Do you want to sign-out")
	b.click("[name=logout]")
	b.sees("Sign-out Success")
	b.do(chromedp.Navigate(sys.URL))
	away()
	b.holds(`document.querySelector("[name=login]") !== null`) // the issuer asks for the name again

	// Where anyone may look, there is nothing to change for who is nobody.
	sys = start(t, withCallers(p.issuer, map[string]string{"OIDC_CLIENT_ID": "page", "READ_ACCESS": "anyone"}))
	as(t, p.token(t, "mia", catsAudience), "PUT", sys.URL+"/cat/mia", cat).want(t, 200)
	b.do(chromedp.Navigate(sys.URL + "/?user=mia"))
	b.sees("Ends in")
	b.holds(`document.querySelector("#delete").hidden && document.querySelector("#replace").hidden && !document.querySelector("#sign-in-top").hidden`)
	b.drop(catFile(t))
	b.sees("You are not signed in")
}

func TestBrowserCacheKeepsNoPictureAfterSignOut(t *testing.T) {
	t.Parallel()
	p := startProvider(t, "0")
	sys := start(t, withCallers(p.issuer, nil))
	mia := p.token(t, "mia", catsAudience)
	as(t, mia, "PUT", sys.URL+"/cat/mia", cat).want(t, 200)
	b := browse(t, sys.URL+"/")
	// A redirect that the script does not follow has the type opaqueredirect.
	fetched := func(token string) string {
		return eval[string](b, `fetch("/cat/mia/picture", {redirect: "manual", headers: `+token+`}).then((r) => r.type === "opaqueredirect" ? r.type : String(r.status))`)
	}
	for range 2 {
		if got := fetched(`{Authorization: "Bearer ` + mia + `"}`); got != "opaqueredirect" {
			t.Errorf("with the token: %s", got)
		}
		for _, token := range []string{`{}`, `{Authorization: "Bearer ` + p.token(t, "tom", catsAudience) + `"}`} {
			if got := fetched(token); got != "401" && got != "403" {
				t.Errorf("after that, without it: %s", got)
			}
		}
	}
}
