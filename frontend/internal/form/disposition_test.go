package form

import (
	"errors"
	"maps"
	"mime"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"cats.example/shared/apierror"
)

func TestParseFieldAcceptsClearDispositions(t *testing.T) {
	text, err := os.ReadFile("testdata/dispositions.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text) + "file\tfile\tnamed\tform-data; name=file; filename=\"" + strings.Repeat("é", 999) + "\"\n") {
		columns := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if strings.HasPrefix(line, "#") {
			continue
		}
		want := field{columns[0], columns[1] == "file", columns[2] == "named"}
		if got, err := parseField(http.Header{"Content-Disposition": {columns[3]}}); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", columns[3], got, err, want)
		}
	}
}

func TestParseFieldRejectsUnclearDispositions(t *testing.T) {
	for reason, lines := range map[string][]string{
		"no Content-Disposition": {},
		"more than one":          {`form-data; name="file"`, `form-data; name="file"`},
		"no end":                 {`form-data; name="file"; filename="secret.png`},
		"two different values":   {`form-data; name="file"; filename="secret.png"; name="other"`},
		"has no name":            {`form-data; filename="secret.png"`},
	} {
		_, err := parseField(http.Header{"Content-Disposition": lines})
		e := apierror.AsError(err)
		if !errors.Is(err, ErrMalformed) || !strings.Contains(e.Detail, reason) || len(lines) > 0 && !strings.Contains(e.Detail, `"form-data; `) {
			t.Errorf("%q: %s", lines, e.Detail)
		}
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the log has %s", lines, err)
		}
	}
	for _, line := range []string{
		"", ";", "form-data", "form-data; ", `form-data; "file"`, `="file"`, `form-data; ="file"`, `form-data; name`, `form-data; name="file`, `form-data; name="file" x`,
		`form-data; name="file"; filename="a"b`, `form-data; name*=UTF-8''%zz`, `form-data; name="` + strings.Repeat("\xff", 8000),
	} {
		_, err := parseField(http.Header{"Content-Disposition": {line}})
		if e := apierror.AsError(err); !errors.Is(err, ErrMalformed) || len(e.Detail) > 1000 {
			t.Errorf("%.80q: %d bytes, %.200s", line, len(e.Detail), e.Detail)
		}
	}
}

func TestParseFieldTellsFilesFromText(t *testing.T) {
	for contentType, file := range map[string]bool{
		"": false, "text/plain": false, "Text/Plain; charset=utf-8": false, "text/html": false,
		"image/png": true, "IMAGE/HEIC": true, "application/octet-stream": true, "binary": true,
	} {
		got, err := parseField(http.Header{"Content-Disposition": {`form-data; name="file"`}, "Content-Type": {contentType}})
		if want := (field{"file", file, false}); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", contentType, got, err, want)
		}
	}
}

var spaceAfterQuote = regexp.MustCompile(`"\s+;`) // parseParams does not take this for the end of a quoted value

// FuzzParseParams compares parseParams of a field with an empty parameter, which the standard library rejects, with the standard
// library's result for the field without it.
func FuzzParseParams(f *testing.F) {
	for _, s := range []string{
		`multipart/form-data; boundary=a=b`, `multipart/form-data; boundary="a b"; charset`, `form-data; name="a\"b\\c"; filename="C:\x\y.png"`, `form-data; name="my "cat".png";;`,
		`form-data; name=a; name=b`, `a; b*=utf-8''%20; c*0=x; c*1*=%20`, "form-data;name=\"\xff\";\u00a0x=y", `a/b; c="d`, `a; b="\`, ` A ; B = c ; `, `="`, `a; =b`, `a;b="";c="d;e"`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, v string) {
		want, wantParams, err := mime.ParseMediaType(v)
		word, params, gotErr := parseParams(v + ";;")
		if err != nil || strings.ContainsAny(v, `\*`) || spaceAfterQuote.MatchString(v+";") { // the standard library decodes these
			return
		}
		if gotErr != nil || word != want || !maps.Equal(params, wantParams) {
			t.Fatalf("%q: %q %q, %v; want %q %q", v, word, params, gotErr, want, wantParams)
		}
	})
}
