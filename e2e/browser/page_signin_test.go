package browser

import (
	"strings"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// startWithSignIn starts a system with sign-in on the page.
func startWithSignIn(t *testing.T, issuer string, more map[string]string) *stack.System {
	t.Helper()
	return harness.Start(t, harness.WithAuthentication(issuer, harness.Merge(map[string]string{"OIDC_CLIENT_ID": "page"}, more)))
}

func TestSignIn(t *testing.T) {
	t.Parallel()
	p := harness.StartProvider(t, "0")
	sys := startWithSignIn(t, p.Issuer, nil)
	t.Cleanup(func() { harness.WantNoSecrets(t, sys) })
	scripts(t, sys, "ISSUER", p.Issuer, "HOST", strings.TrimPrefix(p.Issuer, "https://"))

	t.Run("browser cache", func(t *testing.T) {
		t.Parallel()
		mia, tom := p.Token(t, "mia", harness.Audience), p.Token(t, "tom", harness.Audience)
		harness.SendAs(t, tom, "PUT", sys.URL+"/cat/tom", harness.Cat).Want(t, 200)
		b := browse(t, sys.URL+"/")
		for range 2 {
			for header, want := range map[string]string{
				`Authorization: "Bearer ` + tom + `"`: "opaqueredirect", // which a script does not follow
				`Authorization: "Bearer ` + mia + `"`: "403", "": "401",
			} {
				got := eval[string](b, `fetch("/cat/tom/picture", {redirect: "manual", headers: {`+header+`}})
					.then((r) => r.type === "opaqueredirect" ? r.type : String(r.status))`)
				if got != want {
					t.Errorf("with the header {%.25s…}: %s; want %s", header, got, want)
				}
			}
		}
	})
}

func TestAnonymousReadersSeePictures(t *testing.T) {
	t.Parallel()
	p := harness.StartProvider(t, "0")
	sys := startWithSignIn(t, p.Issuer, map[string]string{"READ_ACCESS": "anyone"})
	harness.SendAs(t, p.Token(t, "mia", harness.Audience), "PUT", sys.URL+"/cat/mia", harness.Cat).Want(t, 200)
	scripts(t, sys)
}

// Azure AD B2C and Entra External ID serve nothing at the issuer's URL.
func TestIssuerAndDiscoveryMayDiffer(t *testing.T) {
	t.Parallel()
	const issuer, path = "https://tenant.ciam.example/TENANT/v2.0", "/contoso/POLICY/v2.0"
	p := harness.StartProvider(t, "0", "ISSUER="+issuer, "PATH_OF_CONFIGURATION="+path)
	sys := startWithSignIn(t, issuer, map[string]string{
		"OIDC_DISCOVERY_URL": p.Issuer + path + "/.well-known/openid-configuration?p=policy",
	})
	mia := p.Token(t, "mia", harness.Audience)
	harness.SendAs(t, mia, "PUT", sys.URL+"/cat/mia", harness.Cat).Want(t, 200)
	harness.SendAs(t, mia, "PUT", sys.URL+"/cat/tom", harness.Cat).WantProblem(t, 403, "forbidden")
	t.Cleanup(func() { harness.WantNoSecrets(t, sys) })
	scripts(t, sys)
}
