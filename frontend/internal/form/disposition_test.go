package form

import (
	"errors"
	"maps"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"cats.example/shared/apierror"
)

// rows returns the lines of a file in testdata, split at tabs, without comments.
func rows(t *testing.T, name string) (rows [][]string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "#") {
			rows = append(rows, strings.Split(strings.TrimSuffix(line, "\n"), "\t"))
		}
	}
	return rows
}

func TestParseFieldAcceptsClearDispositions(t *testing.T) {
	for _, row := range append(rows(t, "dispositions.txt"), []string{"file", "file", "named", `form-data; name=file; filename="` + strings.Repeat("é", 999) + `"`}) {
		want := field{row[0], row[1] == "file", row[2] == "named"}
		if got, err := parseField(http.Header{"Content-Disposition": {row[3]}}); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", row[3], got, err, want)
		}
	}
}

func TestParseFieldRejectsUnclearDispositions(t *testing.T) {
	for _, row := range append(rows(t, "dispositions-unclear.txt"), []string{"no end", `form-data; name="` + strings.Repeat("\xff", 8000)}) {
		_, err := parseField(http.Header{"Content-Disposition": row[1:]})
		e := apierror.AsError(err)
		if !errors.Is(err, ErrMalformed) || !strings.Contains(e.Detail, row[0]) || len(row) > 1 && !strings.Contains(e.Detail, `Content-Disposition "`) || len(e.Detail) > 1000 {
			t.Errorf("%.80q: %d bytes, %.200s", row, len(e.Detail), e.Detail)
		}
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the log has %s", row, err)
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
