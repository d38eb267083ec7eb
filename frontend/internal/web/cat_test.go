package web

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cats.example/frontend/internal/form"
	"cats.example/shared/signerapi"
)

func TestPutGetDelete(t *testing.T) {
	a := newAPI(t)
	for path, name := range map[string]string{
		"/cat/Davyd": "Davyd", "/cat/a%20b": "a b", "/cat/a+b": "a+b", "/cat/%F0%9F%90%B1": "🐱", "/cat/Мурчик": "Мурчик", "/cat/picture": "picture", "/cat/%252F": "%2F",
	} {
		if p := wantProblem(t, a.send("GET", path, nil), 404, "not_found"); p.Detail != "Cat not found" {
			t.Errorf("the detail is %q, not that of the tutorial", p.Detail)
		}
		rec := a.send("PUT", path, strings.NewReader(png), "Content-Type", "text/plain")
		want := fmt.Sprintf(`{"owner":{"name":%q},"etag":"\"1\"","content_type":"image/png","size":%d}`, name, len(png))
		if rec.Code != 200 || rec.Body.String() != want || a.signer.pictures[name] != png {
			t.Errorf("PUT %s: %d %s; want %s", path, rec.Code, rec.Body, want)
		}
		rec = a.send("GET", path, nil)
		want = `{"owner":{"name":` + strconv.Quote(name) + `},"picture_url":"https://acct.blob/cats/x/cat?sig=a%2Fb&se=2","expires_at":"TIME","etag":"\"1\"","content_type":"image/png","size":9024}`
		if got := regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`).ReplaceAllString(rec.Body.String(), "TIME"); rec.Code != 200 || got != want {
			t.Errorf("GET %s: %d %s; want %s", path, rec.Code, got, want)
		}
		if rec := a.send("DELETE", path, nil); rec.Code != 204 || rec.Body.Len() != 0 {
			t.Errorf("DELETE %s: %d %s", path, rec.Code, rec.Body)
		}
		wantProblem(t, a.send("DELETE", path, nil), 404, "not_found")
	}
}

func TestInvalidUserNamesDoNotReachTheSigner(t *testing.T) {
	a := newAPI(t)
	a.signer.err = errCalled
	contentType, form := formOf(t, "file", png, "")
	for _, name := range []string{"..%2Fx", "a%2Fb", "a%5Cb", "%00", "a%0Ab", "%2e%2e", "%2E", "..", ".", "a.", "%ff", "%c3", strings.Repeat("x", 200)} {
		for _, method := range []string{"GET", "PUT", "DELETE", "HEAD"} {
			wantProblem(t, a.send(method, "/cat/"+name, strings.NewReader(png)), 422, "invalid_user")
		}
		wantProblem(t, a.send("GET", "/cat/"+name+"/picture", nil), 422, "invalid_user")
		wantProblem(t, a.send("POST", "/cat/"+name, strings.NewReader(form), "Content-Type", contentType), 422, "invalid_user")
	}
}

func TestPictureRedirectIsCacheable(t *testing.T) {
	a := newAPI(t)
	a.signer.pictures["x"] = png
	rec := a.send("GET", "/cat/x/picture", nil)
	var age int
	if _, err := fmt.Sscanf(rec.Header().Get("Cache-Control"), "private, max-age=%d", &age); err != nil || age < 1700 || age > 1800 {
		t.Errorf("Cache-Control %q", rec.Header().Get("Cache-Control"))
	}
	if rec.Code != 307 || rec.Header().Get("Location") != "https://acct.blob/cats/x/cat?sig=a%2Fb&se=2" {
		t.Errorf("%d %v", rec.Code, rec.Header())
	}
}

func TestLinkOptionsAreValidated(t *testing.T) {
	a := newAPI(t)
	a.signer.pictures["x"] = png
	for query, want := range map[string]*signerapi.LinkOptions{
		"":                           {},
		"ttl=10m":                    {TTL: 10 * time.Minute},
		"ttl=1h30m&download=cat.jpg": {TTL: 90 * time.Minute, Download: "cat.jpg"},
		"download=%E7%8C%AB.png":     {Download: "猫.png"},
		"other=1":                    {},
		"ttl=":                       nil, "ttl=10": nil, "ttl=-5m": nil, "ttl=0s": nil, "ttl=1500ms": nil, "ttl=1m&ttl=2m": nil, "ttl=99999999h": nil,
		"download=": nil, "download=a%2Fb": nil, "download=a%0d%0ab": nil, "download=a&download=b": nil, "download=%ff": nil,
		"ttl=5s;x=1": nil, "ttl=5s%": nil, "download=100%.png": nil, "download=a;b.png": nil, "%zz": nil, "a%2=b": nil, "download=%e": nil,
	} {
		for _, path := range []string{"/cat/x", "/cat/x/picture"} {
			rec := a.send("GET", path+"?"+query, nil)
			if want == nil {
				wantProblem(t, rec, 422, "invalid_argument")
			} else if diff := cmp.Diff(*want, a.signer.last.link); diff != "" || rec.Code >= 400 {
				t.Errorf("?%s: %d %s", query, rec.Code, diff)
			}
		}
	}
}

func TestInvalidUploadsChangeNothing(t *testing.T) {
	contentType, whole := formOf(t, "file", png, "after")
	formWith := func(file string) string { return strings.Replace(whole, png, file, 1) }
	withHeader := func(line string) string {
		return strings.Replace(whole, "\r\n\r\n"+png[:8], "\r\n"+line+"\r\n\r\n"+png[:8], 1)
	}
	huge := png + strings.Repeat("x", maxSize)
	for name, c := range map[string]struct {
		method, contentType, body string
		status                    int
		code, detail              string
	}{
		"no form":                    {"POST", "", "", 422, "missing_file", ""},
		"garbage":                    {"POST", contentType, "garbage", 400, "malformed_form", ""},
		"wrong field":                {"POST", contentType, strings.Replace(whole, `"file"`, `"cat"`, 1), 422, "missing_file", `["cat" "after"]`},
		"two files":                  {"POST", contentType, strings.Replace(whole, `"after"`, `"file"`, 1), 422, "two_files", ""},
		"cut":                        {"POST", contentType, whole[:len(whole)/2], 400, "malformed_form", ""},
		"empty file":                 {"POST", contentType, formWith(""), 422, "empty", ""},
		"large file":                 {"POST", contentType, formWith(huge), 413, "too_large", ""},
		"large field after the file": {"POST", contentType, strings.Replace(whole, "\r\nafter", "\r\n"+strings.Repeat("x", form.MaxAfter+1), 1), 422, "invalid_argument", "64 KiB"},
		"text in a form":             {"POST", contentType, formWith("hello"), 415, "unsupported_media_type", ""},
		"other field":                {"POST", contentType, strings.Replace(formWith(png), "\r\nafter", "\r\n2", 1), 200, "", ""},
		"chunk count in a form":      {"POST", contentType, strings.NewReplacer(`"after"`, `"dzTotalChunkCount"`, "\r\nafter", "\r\n2").Replace(whole), 400, "partial_upload", "dzTotalChunkCount"},
		"part of a file":             {"POST", contentType, withHeader("Content-Range: bytes 0-9/10"), 400, "partial_upload", "Content-Range is set"},
		"encoded file":               {"POST", contentType, withHeader("Content-Transfer-Encoding: base64"), 415, "unsupported_media_type", "base64"},
		"other digest of the file":   {"POST", contentType, withHeader("Content-MD5: !"), 422, "invalid_argument", "Content-MD5"},
		"SVG":                        {"PUT", "image/png", `<svg xmlns="http://www.w3.org/2000/svg"/>`, 415, "unsupported_media_type", ""},
		"nothing":                    {"PUT", "image/png", "", 422, "empty", ""},
		"large body":                 {"PUT", "image/png", huge, 413, "too_large", ""},
		"form":                       {"PUT", contentType, whole, 415, "unsupported_media_type", "send forms with POST"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t)
			for _, known := range []bool{true, false} {
				a.signer.pictures["x"] = "old"
				var body io.Reader = strings.NewReader(c.body)
				if !known {
					body = io.MultiReader(body) // hides the length
				}
				rec := a.send(c.method, "/cat/x", body, "Content-Type", c.contentType)
				if c.status == 200 {
					if rec.Code != 200 || a.signer.pictures["x"] != png {
						t.Errorf("%d %s", rec.Code, rec.Body)
					}
					continue
				}
				if p := wantProblem(t, rec, c.status, c.code); !strings.Contains(p.Detail, c.detail) || p.Outcome != "" || a.signer.pictures["x"] != "old" {
					t.Errorf("%q, outcome %q; stored %.20q", p.Detail, p.Outcome, a.signer.pictures["x"])
				}
			}
			if got := counters(t, a.registry, "uploads_rejected_total"); c.status != 200 && !cmp.Equal(got, map[string]string{`uploads_rejected_total{reason="` + c.code + `"}`: "2"}) {
				t.Errorf("rejections: %v", got)
			}
		})
	}
}

// failing is a body that fails with err. Like the body of net/http, it ends after that.
type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) {
	err := f.err
	f.err = io.EOF
	return 0, err
}

func TestIncompleteBodiesChangeNothing(t *testing.T) {
	a := newAPI(t)
	a.signer.pictures["x"] = "old"
	contentType, form := formOf(t, "file", png, "after")
	for _, broken := range []error{io.ErrUnexpectedEOF, fmt.Errorf("reading: %w", io.EOF), errors.New("reset by peer")} {
		for at := 0; at <= len(form); at += 317 {
			wantProblem(t, a.send("POST", "/cat/x", io.MultiReader(strings.NewReader(form[:at]), &failing{broken}), "Content-Type", contentType), 400, "incomplete")
			wantProblem(t, a.send("PUT", "/cat/x", io.MultiReader(strings.NewReader(png[:min(at, len(png))]), &failing{broken})), 400, "incomplete")
			if a.signer.pictures["x"] != "old" {
				t.Fatalf("cut at %d: %q is stored", at, a.signer.pictures["x"])
			}
		}
	}
}

func TestTooLargeFormsAreRejectedEarly(t *testing.T) {
	a := newAPI(t)
	for name, c := range map[string]struct {
		field       string
		file, after int // bytes
		status      int
		code        string
	}{
		"picture over the limit":     {"file", maxSize + form.MaxAfter + 20<<10, 0, 413, "too_large"},
		"picture far over the limit": {"file", 8 << 20, 0, 413, "too_large"},
		"wrong field":                {"cat", 8 << 20, 0, 422, "missing_file"},
		"large field after":          {"file", 5000, 8 << 20, 413, "too_large"},
	} {
		contentType, form := formOf(t, c.field, png[:40]+strings.Repeat("x", c.file), strings.Repeat("x", c.after))
		body := strings.NewReader(form)
		p := wantProblem(t, a.send("POST", "/cat/x", body, "Content-Type", contentType), c.status, c.code)
		read, limit := len(form)-body.Len(), 100<<10
		if c.status == 422 {
			limit += 1 << 20
		}
		if read > limit || c.status == 413 && !strings.Contains(p.Detail, "64 KiB") || len(a.signer.pictures) > 0 {
			t.Errorf("%s: %s, after %d bytes", name, p.Detail, read)
		}
	}
	contentType, form := formOf(t, "file", png, strings.Repeat("x", 2<<20))
	if rec := a.send("POST", "/cat/x", io.MultiReader(strings.NewReader(form)), "Content-Type", contentType); rec.Code != 422 {
		t.Errorf("a chunked form: %d %s", rec.Code, rec.Body)
	}
}
