package browser

import (
	"strings"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// As at Azure AD B2C and Entra External ID, where nothing is at the issuer's own address.
func TestIssuerAndDiscoveryMayDiffer(t *testing.T) {
	t.Parallel()
	const issuer, path = "https://tenant.ciam.example/TENANT/v2.0", "/contoso/POLICY/v2.0"
	p := harness.StartProvider(t, "0", "ISSUER="+issuer, "PATH_OF_CONFIGURATION="+path)
	with := func(discovery string) stack.SystemOptions {
		return harness.WithAuthentication(issuer, map[string]string{"OIDC_CLIENT_ID": "page", "OIDC_DISCOVERY_URL": discovery})
	}
	sys := harness.Start(t, with(p.Issuer+path+"/.well-known/openid-configuration?p=policy"))
	mia := p.Token(t, "mia", harness.Audience)
	harness.SendAs(t, mia, "PUT", sys.URL+"/cat/mia", harness.Cat).Want(t, 200)
	harness.SendAs(t, mia, "PUT", sys.URL+"/cat/tom", harness.Cat).WantProblem(t, 403, "forbidden")
	other := harness.StartProvider(t, "0")
	harness.SendAs(t, other.Token(t, "mia", harness.Audience), "DELETE", sys.URL+"/cat/mia", nil).WantProblem(t, 401, "unauthenticated")

	wrong := with(p.Issuer)
	wrong.NotReady = true
	harness.WaitForLog(t, harness.Start(t, wrong).Signer.Log, 0, `"level":"ERROR"`, p.Issuer+"/.well-known/openid-configuration", "404")
	wrong = with(other.Issuer)
	wrong.NotReady = true
	harness.WaitForLog(t, harness.Start(t, wrong).Signer.Log, 0, `"level":"ERROR"`, "has the issuer", other.Issuer, issuer)

	sys = harness.Start(t, with(p.Issuer+path)) // the page must find it, too
	b := browse(t, sys.URL+"/")
	b.click("#sign-in")
	b.do(chromedp.SendKeys(chromedp.CSS("[name=login]"), "mia"), chromedp.SendKeys(chromedp.CSS("[name=password]"), "mew"))
	b.click("[type=submit]")
	b.sees("Authorize")
	b.click("[type=submit]")
	b.sees("Signed in as mia")
	b.pick(catFile(t))
	b.click("#upload")
	b.sees("Stored.")
	if policy := harness.Do(t, "GET", sys.URL+"/", "", nil).Header.Get("Content-Security-Policy"); !strings.Contains(policy, p.Issuer) || !strings.Contains(policy, "https://tenant.ciam.example") {
		t.Errorf("the policy is %s", policy)
	}
	harness.WantNoSecrets(t, sys)
}

func TestThePageHasPeopleSignIn(t *testing.T) {
	t.Parallel()
	p := harness.StartProvider(t, "0")
	sys := harness.Start(t, harness.WithAuthentication(p.Issuer, map[string]string{"OIDC_CLIENT_ID": "page"}))
	b := browse(t, sys.URL+"/?user=tom")
	b.sees("Sign in to see your picture")
	b.accessible("signed out")
	away := func() {
		b.t.Helper()
		b.click("#sign-in")
		b.holds(`location.origin === "` + p.Issuer + `"`)
	}

	// What comes back must be what was asked for.
	b.do(chromedp.Navigate(sys.URL + "/?code=mew&state=mew"))
	b.sees("This sign-in was not started here")
	b.holds(`location.search === ""`)
	away()
	b.do(chromedp.Navigate(sys.URL + "/?code=mew&state=another"))
	b.sees("This sign-in was not started here")
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
	harness.SendAs(t, p.Token(t, "mia", harness.Audience), "GET", sys.URL+"/cat/mia", nil).Want(t, 200)

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
	b.sees("Your session at " + strings.TrimPrefix(p.Issuer, "https://") + " may still be open")
	b.accessible("signed out by hand")
	b.sees("Sign in to see your picture")
	b.holds(`document.querySelector("#link").value === "" && !document.querySelector("#image").src`)
	harness.WantNoSecrets(t, sys)
	b.click("#end-session")
	b.holds(`location.origin === "` + p.Issuer + `" && new URLSearchParams(location.search).get("client_id") === "page"`)
	b.sees("Do you want to sign-out")
	b.click("[name=logout]")
	b.sees("Sign-out Success")
	b.do(chromedp.Navigate(sys.URL))
	away()
	b.holds(`document.querySelector("[name=login]") !== null`) // the issuer asks for the name again

	// Where anyone may look, there is nothing to change for who is nobody.
	sys = harness.Start(t, harness.WithAuthentication(p.Issuer, map[string]string{"OIDC_CLIENT_ID": "page", "READ_ACCESS": "anyone"}))
	harness.SendAs(t, p.Token(t, "mia", harness.Audience), "PUT", sys.URL+"/cat/mia", harness.Cat).Want(t, 200)
	b.do(chromedp.Navigate(sys.URL + "/?user=mia"))
	b.sees("Expires in")
	b.holds(`document.querySelector("#delete").hidden && document.querySelector("#replace").hidden && !document.querySelector("#sign-in-top").hidden`)
	b.drop(catFile(t))
	b.sees("You are not signed in")
}

func TestBrowserCacheKeepsNoPictureAfterSignOut(t *testing.T) {
	t.Parallel()
	p := harness.StartProvider(t, "0")
	sys := harness.Start(t, harness.WithAuthentication(p.Issuer, nil))
	mia := p.Token(t, "mia", harness.Audience)
	harness.SendAs(t, mia, "PUT", sys.URL+"/cat/mia", harness.Cat).Want(t, 200)
	b := browse(t, sys.URL+"/")
	// A redirect that the script does not follow has the type opaqueredirect.
	fetched := func(token string) string {
		return eval[string](b, `fetch("/cat/mia/picture", {redirect: "manual", headers: `+token+`}).then((r) => r.type === "opaqueredirect" ? r.type : String(r.status))`)
	}
	for range 2 {
		if got := fetched(`{Authorization: "Bearer ` + mia + `"}`); got != "opaqueredirect" {
			t.Errorf("with the token: %s", got)
		}
		for _, token := range []string{`{}`, `{Authorization: "Bearer ` + p.Token(t, "tom", harness.Audience) + `"}`} {
			if got := fetched(token); got != "401" && got != "403" {
				t.Errorf("after that, without it: %s", got)
			}
		}
	}
}
