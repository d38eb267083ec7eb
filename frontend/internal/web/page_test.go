package web

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"cats.example/shared/apierror"
)

func TestAssetsAreCompressedAndRevalidated(t *testing.T) {
	a := newAPI(t)
	a.signer.err = apierror.ErrSignerUnavailable // not needed
	const html, script, style = "text/html; charset=utf-8", "text/javascript; charset=utf-8", "text/css; charset=utf-8"
	for path, contentType := range map[string]string{
		"/openapi.json": "application/json", "/docs": html, "/docs/init.js": script, "/docs/swagger-ui.css": style, "/docs/swagger-ui-bundle.js": script,
		"/": html, "/page/app.js": script, "/page/style.css": style, "/page/icon.svg": "image/svg+xml",
	} {
		plain, gzipped := a.send("GET", path, nil), a.send("GET", path, nil, "Accept-Encoding", "br, GZIP;q=0.5")
		unpacked, err := gzip.NewReader(gzipped.Body)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if got, err := io.ReadAll(unpacked); err != nil || !bytes.Equal(got, plain.Body.Bytes()) || len(got) < 100 {
			t.Errorf("%s: %d bytes, compressed from %d others: %v", path, plain.Body.Len(), len(got), err)
		}
		etags := [2]string{plain.Header().Get("ETag"), gzipped.Header().Get("ETag")}
		if etags[0] == etags[1] || etags[0] == "" || etags[1] == "" {
			t.Errorf("%s: the ETags are %q", path, etags)
		}
		for i, rec := range []*httptest.ResponseRecorder{plain, gzipped} {
			h := rec.Header()
			if rec.Code != 200 || h.Get("Content-Type") != contentType || h.Get("Cache-Control") != "no-cache" || h.Get("Vary") != "Accept-Encoding" || h.Get("Content-Encoding") != []string{"", "gzip"}[i] {
				t.Errorf("%s: %d %v", path, rec.Code, h)
			}
			if policy := h.Get("Content-Security-Policy"); strings.Contains(policy, "unsafe") || strings.Contains(policy, "script-src 'self'") != (contentType == html) {
				t.Errorf("%s: the policy is %q", path, policy)
			}
			accept := []string{"Accept-Encoding", []string{"gzip;q=0", "gzip"}[i]}
			if again := a.send("GET", path, nil, append(accept, "If-None-Match", etags[i])...); again.Code != 304 || again.Body.Len() != 0 || again.Header().Get("ETag") != etags[i] {
				t.Errorf("%s with its ETag: %d", path, again.Code)
			}
			if head := a.send("HEAD", path, nil, accept...); head.Code != 200 || head.Header().Get("Content-Length") != h.Get("Content-Length") {
				t.Errorf("HEAD %s: %d %v", path, head.Code, head.Header())
			}
		}
	}
	for _, name := range []string{"x", "index.html", "oauth2-redirect.html", "swagger-ui.css.gz", "..%2Fopenapi.json"} {
		wantProblem(t, a.send("GET", "/docs/"+name, nil), 404, "no_such_path")
	}
}

func TestPagePolicyAllowsStorageAndIssuer(t *testing.T) {
	const issuer, client, storage = "OIDC_ISSUER=https://login.example:8443/tenant/v2.0", "OIDC_CLIENT_ID=page", " https://acct.blob"
	for _, c := range []struct {
		settings []string
		storage  string // "" if the signer is not ready
		issuers  string
	}{
		{nil, storage, ""},
		{nil, "", ""},
		{[]string{issuer}, storage, ""},
		{[]string{issuer, client}, storage, " https://login.example:8443"},
		{[]string{issuer, client, "OIDC_DISCOVERY_URL=https://b2c.example/v2.0?p=a"}, storage, " https://login.example:8443 https://b2c.example"},
		{[]string{issuer, client, "OIDC_DISCOVERY_URL=https://login.example:8443/POLICY"}, storage, " https://login.example:8443"},
	} {
		a := newAPI(t, c.settings...)
		if c.storage == "" {
			a.signer.err = apierror.ErrSignerUnavailable
		}
		rec := a.send("GET", "/", nil)
		want := "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:" + c.storage + "; connect-src 'self'" + c.storage + c.issuers +
			"; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
		if got := rec.Header().Get("Content-Security-Policy"); rec.Code != 200 || got != want {
			t.Errorf("%q: %d %s; want %s", c.settings, rec.Code, got, want)
		}
		etag := rec.Header().Get("ETag")
		a.signer.err = apierror.ErrSignerUnavailable
		if rec = a.send("GET", "/", nil, "If-None-Match", etag); rec.Code != 304 {
			t.Errorf("%q, again: %d", c.settings, rec.Code)
		}
		a.signer.err = nil
		if rec := a.send("GET", "/", nil, "If-None-Match", etag); (c.storage == "") != (rec.Code == 200) {
			t.Errorf("%q, when the signer is ready: %d", c.settings, rec.Code)
		}
	}
}

// The policy blocks inline scripts and other origins, and cannot block the other patterns.
func TestPageHasNoInlineScriptsOrForeignOrigins(t *testing.T) {
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
			t.Errorf("the document has no element %s, or several", m[1])
		}
	}
}
