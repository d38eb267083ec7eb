package browser

import (
	"strings"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// signIn signs in as mia at the issuer's page.
func (b *tab) signIn() {
	b.t.Helper()
	b.do(chromedp.SendKeys(chromedp.CSS("[name=login]"), "mia"), chromedp.SendKeys(chromedp.CSS("[name=password]"), "mew"))
	b.click("[type=submit]")
	b.authorize()
}

func (b *tab) authorize() {
	b.t.Helper()
	b.sees("Authorize")
	b.click("[type=submit]")
	b.sees("Signed in as mia")
}

func TestSignIn(t *testing.T) {
	t.Parallel()
	p := harness.StartProvider(t, "0")
	withPage := func(more map[string]string) *stack.System {
		return harness.Start(t, harness.WithAuthentication(p.Issuer, harness.Merge(map[string]string{"OIDC_CLIENT_ID": "page"}, more)))
	}
	sys := withPage(nil)
	mia, tom := p.Token(t, "mia", harness.Audience), p.Token(t, "tom", harness.Audience)

	t.Run("page", func(t *testing.T) {
		t.Parallel()
		b := browse(t, sys.URL+"/?user=tom")
		b.sees("Sign in to see your picture")
		b.accessible("signed out")
		leave := func() {
			t.Helper()
			b.click("#sign-in")
			b.holds(`location.origin === "` + p.Issuer + `"`)
		}
		// The response must belong to a request of this page.
		b.do(chromedp.Navigate(sys.URL + "/?code=mew&state=mew"))
		b.sees("This sign-in was not started here")
		b.holds(`location.search === ""`)
		leave()
		b.do(chromedp.Navigate(sys.URL + "/?code=mew&state=another"))
		b.sees("This sign-in was not started here")
		b.holds(`sessionStorage.length === 0`)
		leave()
		b.click(`a[href$="/abort"]`)
		b.sees("You were not signed in")

		leave()
		b.signIn()
		b.sees("No picture yet")
		b.holds(`sessionStorage.length === 0 && localStorage.length === 0 && document.cookie === ""`)
		b.holds(`location.search === "?user=mia" && document.querySelector("#choose").hidden`)
		for _, entry := range cdpCall(b, cdppage.GetNavigationHistory, cdp.Empty{}).Entries {
			if strings.HasPrefix(entry.URL, sys.URL) && strings.Contains(entry.URL, "code=") && !strings.Contains(entry.URL, "code=mew") {
				t.Errorf("the history has a code: %s", entry.URL)
			}
		}
		b.upload(catFile(t))
		b.sees("Stored.")
		b.shown()
		b.accessible("signed in")
		harness.SendAs(t, mia, "GET", sys.URL+"/cat/mia", nil).Want(t, 200)

		// The token expires, and the page forgets it.
		eval[bool](b, `(Date.now = ((now) => () => now() + 3600_000)(Date.now), true)`)
		b.sees("Your sign-in has ended")
		b.focused("message-action")
		b.click("#message-action")
		b.authorize() // the issuer still has a session
		b.click("#sign-out")
		b.sees("Signed out of this page.", "Your session at "+strings.TrimPrefix(p.Issuer, "https://")+" may still be open")
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
		leave()
		b.holds(`document.querySelector("[name=login]") !== null`)
	})

	t.Run("anonymous reads", func(t *testing.T) {
		t.Parallel()
		sys := withPage(map[string]string{"READ_ACCESS": "anyone"})
		harness.SendAs(t, mia, "PUT", sys.URL+"/cat/mia", harness.Cat).Want(t, 200)
		b := browse(t, sys.URL+"/?user=mia")
		b.shown()
		b.holds(`document.querySelector("#delete").hidden && document.querySelector("#replace").hidden && !document.querySelector("#sign-in-top").hidden`)
		b.drop(catFile(t))
		b.sees("You are not signed in")
	})

	t.Run("browser cache", func(t *testing.T) {
		t.Parallel()
		harness.SendAs(t, tom, "PUT", sys.URL+"/cat/tom", harness.Cat).Want(t, 200)
		b := browse(t, sys.URL+"/")
		// A redirect that the script does not follow has the type opaqueredirect.
		fetched := func(header string) string {
			return eval[string](b, `fetch("/cat/tom/picture", {redirect: "manual", headers: {`+header+`}}).then((r) => r.type === "opaqueredirect" ? r.type : String(r.status))`)
		}
		for range 2 {
			for header, want := range map[string]string{`Authorization: "Bearer ` + tom + `"`: "opaqueredirect", `Authorization: "Bearer ` + mia + `"`: "403", "": "401"} {
				if got := fetched(header); got != want {
					t.Errorf("with the header {%.25s…}: %s; want %s", header, got, want)
				}
			}
		}
	})
}

// Azure AD B2C and Entra External ID serve nothing at the issuer's URL.
func TestIssuerAndDiscoveryMayDiffer(t *testing.T) {
	t.Parallel()
	const issuer, path = "https://tenant.ciam.example/TENANT/v2.0", "/contoso/POLICY/v2.0"
	p := harness.StartProvider(t, "0", "ISSUER="+issuer, "PATH_OF_CONFIGURATION="+path)
	sys := harness.Start(t, harness.WithAuthentication(issuer, map[string]string{"OIDC_CLIENT_ID": "page", "OIDC_DISCOVERY_URL": p.Issuer + path + "/.well-known/openid-configuration?p=policy"}))
	mia := p.Token(t, "mia", harness.Audience)
	harness.SendAs(t, mia, "PUT", sys.URL+"/cat/mia", harness.Cat).Want(t, 200)
	harness.SendAs(t, mia, "PUT", sys.URL+"/cat/tom", harness.Cat).WantProblem(t, 403, "forbidden")
	b := browse(t, sys.URL+"/")
	b.click("#sign-in")
	b.signIn()
	b.shown()
	harness.WantNoSecrets(t, sys)
}
