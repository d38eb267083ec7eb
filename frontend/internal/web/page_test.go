package web

import (
	"regexp"
	"strings"
	"testing"

	"cats.example/shared/apierror"
)

func TestThePageHasAPolicyOfItsOwn(t *testing.T) {
	const tail = "; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
	for name, c := range map[string]struct {
		settings []string
		down     bool
		want     string
	}{
		"of anybody": {nil, false, "img-src 'self' blob: https://acct.blob; connect-src 'self' https://acct.blob"},
		"with sign-in": {
			[]string{"OIDC_ISSUER=https://login.example:8443/tenant/v2.0", "OIDC_CLIENT_ID=page"},
			false,
			"img-src 'self' blob: https://acct.blob; connect-src 'self' https://acct.blob https://login.example:8443",
		},
		"with a configuration elsewhere": {
			[]string{"OIDC_ISSUER=https://TENANT.ciamlogin.example/TENANT/v2.0", "OIDC_DISCOVERY_URL=https://contoso.ciamlogin.example/v2.0?p=a", "OIDC_CLIENT_ID=page"},
			false,
			"img-src 'self' blob: https://acct.blob; connect-src 'self' https://acct.blob https://TENANT.ciamlogin.example https://contoso.ciamlogin.example",
		},
		"with a configuration at the same origin": {
			[]string{"OIDC_ISSUER=https://login.example/TENANT", "OIDC_DISCOVERY_URL=https://login.example/POLICY", "OIDC_CLIENT_ID=page"},
			false,
			"img-src 'self' blob: https://acct.blob; connect-src 'self' https://acct.blob https://login.example",
		},
		"without sign-in":  {[]string{"OIDC_ISSUER=https://login.example"}, false, "img-src 'self' blob: https://acct.blob; connect-src 'self' https://acct.blob"},
		"without a signer": {nil, true, "img-src 'self' blob:; connect-src 'self'"},
	} {
		h, m, _ := newWebWith(t, c.settings...)
		if c.down {
			m.fail = apierror.ErrSignerUnavailable
		}
		rec := send(t, h, "GET", "/", "", nil)
		if got, want := rec.Header().Get("Content-Security-Policy"), "default-src 'none'; script-src 'self'; style-src 'self'; "+c.want+tail; rec.Code != 200 || got != want {
			t.Errorf("%s: %d %s; want %s", name, rec.Code, got, want)
		}
		if rec.Header().Get("Referrer-Policy") != "no-referrer" || rec.Header().Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %v", name, rec.Header())
		}
		before := rec.Header().Get("ETag")
		m.fail = apierror.ErrSignerUnavailable
		rec = sendWith(t, h, "GET", "/", nil, "If-None-Match", before)
		if rec.Code != 304 {
			t.Errorf("%s, again: %d", name, rec.Code)
		}
		m.fail = nil
		if rec := sendWith(t, h, "GET", "/", nil, "If-None-Match", before); c.down != (rec.Code == 200) {
			t.Errorf("%s, and the signer is there: %d", name, rec.Code)
		}
	}
}

func TestThePagesFilesAreAskedForAgainAndSentOnce(t *testing.T) {
	h, m, _ := newWeb(t)
	m.fail = apierror.ErrSignerUnavailable // it is not needed
	for target, contentType := range map[string]string{
		"/": "text/html; charset=utf-8", "/page/app.js": "text/javascript; charset=utf-8", "/page/style.css": "text/css; charset=utf-8", "/page/icon.svg": "image/svg+xml",
	} {
		rec := send(t, h, "GET", target, "", nil)
		etag := rec.Header().Get("ETag")
		if rec.Code != 200 || rec.Header().Get("Content-Type") != contentType || rec.Header().Get("Cache-Control") != "no-cache" || etag == "" || rec.Body.Len() < 100 {
			t.Errorf("%s: %d %v", target, rec.Code, rec.Header())
		}
		if rec := sendWith(t, h, "GET", target, nil, "If-None-Match", etag); rec.Code != 304 || rec.Body.Len() > 0 || rec.Header().Get("ETag") != etag {
			t.Errorf("%s, again: %d %v", target, rec.Code, rec.Header())
		}
		if rec := send(t, h, "HEAD", target, "", nil); rec.Code != 200 || rec.Header().Get("Content-Length") == "" {
			t.Errorf("HEAD %s: %d %v", target, rec.Code, rec.Header())
		}
		if rec := send(t, h, "OPTIONS", target, "", nil); rec.Code != 204 || rec.Header().Get("Allow") != "GET, HEAD, OPTIONS" {
			t.Errorf("OPTIONS %s: %d %v", target, rec.Code, rec.Header())
		}
		wantProblem(t, send(t, h, "POST", target, "", nil), 405, "method_not_allowed")
	}
	if csp := send(t, h, "GET", "/page/app.js", "", nil).Header().Get("Content-Security-Policy"); csp != securityHeaders.Get("Content-Security-Policy") {
		t.Errorf("the policy of a file is %s", csp)
	}
}

// What the policy forbids would not work, and what it cannot see is not there either.
func TestThePageIsOfThisOriginAndMakesNoMarkup(t *testing.T) {
	document, script := string(must(pageFiles.ReadFile("page/index.html"))), string(must(pageFiles.ReadFile("page/app.js")))
	if found := regexp.MustCompile(`<script[^>]*>[^<]|<style|\son\w+=|\sstyle=|(src|href)="(?:https?:)?//|javascript:`).FindString(document); found != "" {
		t.Errorf("the document has %s", found)
	}
	for _, word := range []string{"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "localStorage", "document.cookie", "http://", "https://"} {
		if strings.Contains(script, word) {
			t.Errorf("the script has %s", word)
		}
	}
	for _, m := range regexp.MustCompile(`\$\('([\w-]+)'\)`).FindAllStringSubmatch(script, -1) {
		if strings.Count(document, `id="`+m[1]+`"`) != 1 {
			t.Errorf("the document has no element %s, or two", m[1])
		}
	}
}
