package web

import (
	"errors"
	"maps"
	"mime"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"cats.example/shared/apierror"
)

func TestFieldOfReadsClearDispositions(t *testing.T) {
	for disposition, want := range map[string]field{
		`form-data; name="file"; filename="cat.png"`:                             {"file", true, true},
		`form-data; name="title"`:                                                {"title", false, false},
		`form-data; name=file; filename=my cat.png`:                              {"file", true, true},
		`form-data; name=file; filename=cat(1).png`:                              {"file", true, true},
		`form-data; name="file"; filename=a,b [2] @home?.png`:                    {"file", true, true},
		`form-data; name="file"; filename=猫.png`:                                 {"file", true, true},
		`form-data;; name="file"; ;filename="cat.png";;`:                         {"file", true, true},
		`form-data; name="file"; filename="my "cat".png"`:                        {"file", true, true},
		`form-data; name="file"; filename="a;b" c.png"; x=y`:                     {"file", true, true},
		`form-data; name="file"; filename="C:\my cats\cat.png"`:                  {"file", true, true},
		`form-data; name="file"; filename="cat\"`:                                {"file", true, true},
		`form-data; filename="\"; name=\"other.png"; name="file"`:                {"file", true, true},
		`form-data; name="file"; filename=cat.png; filename*=UTF-8''%E7%8C%AB`:   {"file", true, true},
		`form-data; name="file"; filename*=UTF-8''%E7%8C%AB.png`:                 {"file", true, true},
		`form-data; name="file"; filename*=GB2312'zh'%C3%A8.png`:                 {"file", true, false},
		`form-data; name="file"; filename*=%%%`:                                  {"file", true, false},
		`form-data; name="file"; filename*0="my "; filename*1="cat.png"`:         {"file", true, true},
		`form-data; name="file"; filename*=UTF-8''`:                              {"file", true, false},
		`form-data; name="file"; filename=""`:                                    {"file", true, false},
		`form-data; name="file"; filename=`:                                      {"file", true, false},
		`FORM-DATA; Name="file"; FileName="cat.png"`:                             {"file", true, true},
		`form-data ; name = "file" ; filename = "cat.png"`:                       {"file", true, true},
		`attachment; name="file"; filename="cat.png"`:                            {"file", true, true},
		`file; name="file"; filename="cat.png"`:                                  {"file", true, true},
		`name="file"; filename="cat.png"`:                                        {"file", true, true},
		`form-data; name="file"; name="file"`:                                    {"file", false, false},
		`form-data; name="a" b"`:                                                 {`a" b`, false, false},
		`form-data; name="filename"`:                                             {"filename", false, false},
		`form-data; name="file; filename=x"`:                                     {"file; filename=x", false, false},
		`form-data; name*=utf-8''%D0%BA%D0%BE%D1%82`:                             {"кот", false, false},
		`form-data; name="a"; name*=UTF-8''file`:                                 {"file", false, false},
		`form-data; name=""`:                                                     {"", false, false},
		`form-data; name="a"; filename="x"; junk`:                                {"a", true, true},
		"form-data; name=\"file\"; filename=\"" + strings.Repeat("é", 999) + `"`: {"file", true, true},
	} {
		got, err := fieldOf(http.Header{"Content-Disposition": {disposition}})
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", disposition, got, err, want)
		}
	}
}

func TestFieldOfRejectsUnclearDispositions(t *testing.T) {
	for reason, lines := range map[string][]string{
		"no Content-Disposition": {},
		"more than one":          {`form-data; name="file"`, `form-data; name="file"`},
		"no end":                 {`form-data; name="file"; filename="secret.png`},
		"two different values":   {`form-data; name="file"; filename="secret.png"; name="other"`},
		"has no name":            {`form-data; filename="secret.png"`},
	} {
		_, err := fieldOf(http.Header{"Content-Disposition": lines})
		e := apierror.AsError(err)
		if !errors.Is(err, errMalformedForm) || !strings.Contains(e.Detail, reason) || len(lines) > 0 && !strings.Contains(e.Detail, `"form-data; `) {
			t.Errorf("%q: %s", lines, e.Detail)
		}
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the log has %s", lines, err)
		}
	}
	for _, line := range []string{"", ";", "form-data", "form-data; ", `form-data; "file"`, `="file"`, `form-data; ="file"`, `form-data; name`, `form-data; name="file`, `form-data; name="file" x`, `form-data; name="file"; filename="a"b`, `form-data; name*=UTF-8''%zz`, `form-data; name="` + strings.Repeat("\xff", 8000)} {
		_, err := fieldOf(http.Header{"Content-Disposition": {line}})
		if e := apierror.AsError(err); !errors.Is(err, errMalformedForm) || len(e.Detail) > 1000 {
			t.Errorf("%.80q: %d bytes, %.200s", line, len(e.Detail), e.Detail)
		}
	}
}

func TestContentTypeTellsFilesFromText(t *testing.T) {
	for contentType, file := range map[string]bool{
		"": false, "text/plain": false, "Text/Plain; charset=utf-8": false, "text/html": false,
		"image/png": true, "IMAGE/HEIC": true, "application/octet-stream": true, "binary": true,
	} {
		got, err := fieldOf(http.Header{"Content-Disposition": {`form-data; name="file"`}, "Content-Type": {contentType}})
		if want := (field{"file", file, false}); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", contentType, got, err, want)
		}
	}
}

var spaced = regexp.MustCompile(`"\s+;`) // takes the end of a quoted value from parseParams

// FuzzParseParams compares what parseParams makes of an empty parameter, which the standard library rejects, with what the
// standard library makes of the field without it.
func FuzzParseParams(f *testing.F) {
	for _, s := range []string{
		`multipart/form-data; boundary=a=b`, `multipart/form-data; boundary="a b"; charset`, `form-data; name="a\"b\\c"; filename="C:\x\y.png"`, `form-data; name="my "cat".png";;`,
		`form-data; name=a; name=b`, `a; b*=utf-8''%20; c*0=x; c*1*=%20`, "form-data;name=\"\xff\";\u00a0x=y", `a/b; c="d`, `a; b="\`, ` A ; B = c ; `, `="`, `a; =b`, `a;b="";c="d;e"`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, v string) {
		want, wantParams, err := mime.ParseMediaType(v)
		word, params, simpleErr := parseParams(v + ";;")
		if err != nil || strings.ContainsAny(v, `\*`) || spaced.MatchString(v) { // the standard library decodes these
			return
		}
		if simpleErr != nil || word != want || !maps.Equal(params, wantParams) {
			t.Fatalf("%q: %q %q, %v; want %q %q", v, word, params, simpleErr, want, wantParams)
		}
	})
}
