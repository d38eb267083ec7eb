package web

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"cats.example/shared/apierror"
)

// responseHeaders are all headers that a response may have.
var responseHeaders = strings.Fields(`Accept-Encoding Access-Control-Allow-Headers Access-Control-Allow-Methods Access-Control-Allow-Origin
	Access-Control-Expose-Headers Access-Control-Max-Age Allow Cache-Control Connection Content-Encoding Content-Length Content-Security-Policy
	Content-Type Cross-Origin-Opener-Policy Etag Location Referrer-Policy Vary X-Content-Type-Options X-Request-Id`)

// ownPath matches the paths to which a response may redirect.
var ownPath = regexp.MustCompile(`^(/service|/about|/openapi\.json|/docs(/[^/?]*)?|/page/[^/?]*|/cat/[^/?]*(/picture|/upload(/[^/?]*/commit)?)?)(\?.*)?$`)

// userPath matches the paths with a user name.
var userPath = regexp.MustCompile(`^/cat/([^/]*)(/picture|/upload|/upload/[^/]*/commit)?$`)

// FuzzRequest sends arbitrary requests. The response must not be a 5xx, have no header of the client's choice, and redirect to no
// other host. Calls of the signer must keep to the contract, and be for the user whose name is the decoded path segment.
func FuzzRequest(f *testing.F) {
	for _, target := range []string{
		"/cat/Davyd", "/cat/%2e%2e", "/cat/a%2Fb/picture", "/service/", "//x", "/cat/%ff", "/cat/seen?ttl=1m&download=x", "/cat/;", "/cat/%2541",
		"/cat/a%0d%0aSet-Cookie:x/", "/cat/%F0%9F%90%B1/picture", "//elsewhere/..%2f/", "/cat/%2e%2e/picture/?ttl=1m;x", "*", "/openapi.json",
	} {
		for _, method := range []string{"GET", "PUT", "DELETE", "OPTIONS", "BREW"} {
			f.Add(method, target, "If-None-Match", `"1", *`, png[:40])
		}
	}
	f.Add("POST", "/cat/x", "Content-Type", formType, formOf("file", png[:40], ""))
	f.Add("POST", "/cat/x/upload/1-3-A/commit", "If-Match", `"1"`, "")
	f.Add("PUT", "/cat/x", "Content-Digest", "sha-256=:QQ==:", png[:40])
	f.Add("GET", "/cat/seen", "X-Request-Id", "a\r\nb", "")
	a := newAPI(f, "CORS_ORIGINS=https://cats.example.com")
	f.Fuzz(func(t *testing.T, method, target, name, value, body string) {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return
		}
		r := httptest.NewRequestWithContext(t.Context(), "POST", "/", strings.NewReader(body))
		r.Method, r.URL, r.RequestURI = method, u, target
		r.Header.Set(name, value)
		a.signer.pictures = map[string]string{"seen": png}
		a.signer.user, _ = url.PathUnescape(append(userPath.FindStringSubmatch(u.EscapedPath()), "", "no path")[1])
		rec := a.serve(r)
		header, failed := rec.Header(), rec.Code >= 400
		location, contentType := header.Get("Location"), header.Get("Content-Type")
		if a.signer.fault != nil || rec.Code >= 500 || header.Get("X-Request-Id") == "" ||
			location != "" && !ownPath.MatchString(location) && !strings.HasPrefix(location, "https://acct.blob/cats/") {
			t.Fatalf("the response to %s %q is %d %q %s; %v", method, target, rec.Code, header, rec.Body, a.signer.fault)
		}
		var doc map[string]any
		if failed != (contentType == "application/problem+json") || failed && (json.Unmarshal(rec.Body.Bytes(), &doc) != nil ||
			doc["detail"] == "" || doc["status"] != float64(rec.Code) || doc["request_id"] != header.Get("X-Request-Id")) {
			t.Fatalf("the response to %s %q is %d %q %s", method, target, rec.Code, header, rec.Body)
		}
		for name := range header {
			if !slices.Contains(responseHeaders, name) {
				t.Fatalf("the response to %s %q has the header %q", method, target, header)
			}
		}
	})
}

func TestDigestsAreParsed(t *testing.T) {
	const md5, other = "1B2M2Y8AsgTpgAmY7PhCfg==", "AAAAAAAAAAAAAAAAAAAAAA=="
	const sha256 = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"
	for _, c := range []struct {
		contentMD5, contentDigest string
		want                      []int // the lengths of MD5, SHA-256 and SHA-512; nil if the header is invalid
	}{
		{"", "", []int{0, 0, 0}},
		{md5, sha256, []int{16, 32, 0}},
		{md5, "md5=:" + md5 + ":, x=?1, crc=(1 2)", []int{16, 0, 0}},
		{"", "sha-512=:" + strings.Repeat("QUJD", 21) + "QQ==:;a=1", []int{0, 0, 64}},
		{md5, "md5=:" + other + ":", nil},
		{"x", "", nil},
		{"", "sha-256=:AAAA:", nil},
		{"", "sha-256=47DEQpj8HBSa", nil},
		{"", "=", nil},
	} {
		header := http.Header{"Content-Digest": {c.contentDigest}}
		if c.contentMD5 != "" {
			header.Set("Content-MD5", c.contentMD5)
		}
		d, err := parseDigests(header)
		got := []int{len(d.MD5), len(d.SHA256), len(d.SHA512)}
		if c.want == nil && !errors.Is(err, apierror.ErrInvalidArgument) || c.want != nil && (err != nil || !slices.Equal(got, c.want)) {
			t.Errorf("%q: %v, %v; want %v", header, got, err, c.want)
		}
	}
}

func TestMatchesETagComparesWeakly(t *testing.T) {
	const etag = `"1"`
	for field, want := range map[string]bool{
		`"1"`: true, `W/"1"`: true, "*": true, `"a", "1"`: true, ` , "1" ,`: true, "\"a\"\t,\tW/\"1\"": true, `W/"a", *`: true,
		"": false, `"2"`: false, `1`: false, `"1`: false, `w/"1"`: false, `""1""`: false, "W/": false, ",": false,
	} {
		if got := matchesETag(field, etag); got != want {
			t.Errorf("%q: %v", field, got)
		}
	}
}
