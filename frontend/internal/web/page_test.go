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
	for path, contentType := range map[string]string{
		"/openapi.json": "application/json", "/docs": html, "/docs/init.js": script, "/docs/swagger-ui.css": style, "/docs/swagger-ui-bundle.js": script,
		"/": html, "/page/app.js": script, "/page/style.css": style, "/page/icon.svg": "image/svg+xml",
	} {
		plain, gzipped := a.send("GET", path, nil, "Accept-Encoding", "gzip;q=0"), a.send("GET", path, nil, "Accept-Encoding", "br, GZIP;q=0.5")
		unpacked, err := gzip.NewReader(gzipped.Body)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if got, err := io.ReadAll(unpacked); err != nil || !bytes.Equal(got, plain.Body.Bytes()) || len(got) < 100 {
			t.Errorf("%s: %d bytes, compressed from %d others: %v", path, plain.Body.Len(), len(got), err)
		}
		document := contentType == html // its policy must not come from a cache
		for i, rec := range []*httptest.ResponseRecorder{plain, gzipped} {
			encoding, etag := []string{"", "gzip"}[i], rec.Header().Get("ETag")
			want := map[string]string{"Content-Type": contentType, "Cache-Control": "no-cache", "Vary": "Accept-Encoding", "Content-Encoding": encoding}
			for name, value := range want {
				if got := rec.Header().Get(name); rec.Code != 200 || got != value {
					t.Errorf("%s: %d, %s is %q; want %q", path, rec.Code, name, got, value)
				}
			}
			policy := rec.Header().Get("Content-Security-Policy")
			if strings.Contains(policy, "unsafe") || strings.Contains(policy, "script-src 'self'") != document || document != (etag == "") {
				t.Errorf("%s: the policy is %q, the ETag %q", path, policy, etag)
			}
			again := a.send("GET", path, nil, "Accept-Encoding", encoding, "If-None-Match", etag)
			if (again.Code == 304) == document || again.Code == 304 && again.Body.Len() > 0 || again.Header().Get("Vary") != "Accept-Encoding" {
				t.Errorf("%s with its ETag: %d %v", path, again.Code, again.Header())
			}
			head := a.send("HEAD", path, nil, "Accept-Encoding", encoding)
			if head.Code != 200 || head.Header().Get("Content-Length") != rec.Header().Get("Content-Length") {
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
		issuers  string
	}{
		{nil, ""},
		{[]string{issuer}, ""},
		{[]string{issuer, client}, " https://login.example:8443"},
		{[]string{issuer, client, "OIDC_DISCOVERY_URL=https://b2c.example/v2.0?p=a"}, " https://login.example:8443 https://b2c.example"},
		{[]string{issuer, client, "OIDC_DISCOVERY_URL=https://login.example:8443/POLICY"}, " https://login.example:8443"},
	} {
		a := newAPI(t, c.settings...)
		wantPolicy := func(when, storage string) {
			t.Helper()
			rec := a.send("GET", "/", nil)
			want := "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:" + storage + "; connect-src 'self'" + storage + c.issuers +
				"; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
			if got := rec.Header().Get("Content-Security-Policy"); rec.Code != 200 || got != want {
				t.Errorf("%q, %s: %d %s; want %s", c.settings, when, rec.Code, got, want)
			}
		}
		a.signer.err = apierror.ErrSignerUnavailable
		wantPolicy("before the signer is ready", "")
		a.signer.err = nil
		wantPolicy("when the signer is ready", storage)
		a.signer.err = apierror.ErrSignerUnavailable
		wantPolicy("without the signer", storage)
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
}
