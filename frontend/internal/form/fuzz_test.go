package form

import (
	"bytes"
	"io"
	"maps"
	"mime"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"

	"cats.example/shared/apierror"
)

// FuzzForm reads arbitrary forms. If a form is accepted, a reader of the whole form must find the same content in it, in the only
// field "file". If it is rejected, the error must not be a 500.
func FuzzForm(f *testing.F) {
	for _, row := range rows(f, "invalid.txt") {
		f.Add(row[1], []byte(escaped.Replace(row[2])))
	}
	whole := writeForm(part{"a", "", "1"}, part{"file", "cat.png", "picture"}, part{"z", "", "2"})
	f.Add(formType, []byte(whole+"epilogue"))
	f.Add(formType, []byte(writeForm(part{"file", "a", "picture"}, part{"file", "b", "picture"})))
	const file = "Content-Disposition: form-data;; name=file; filename=my cat.png\r\n\r\npicture\r\n"
	f.Add("multipart/form-data; boundary=a=b; x", []byte("--a=b\r\n"+file+"--a=b--"))
	f.Add(formType, []byte("--x\r\nContent-Transfer-Encoding: quoted-printable\r\n"+file+"--x--\r\n"))
	f.Add(formType, []byte("p\n--x \nContent-Disposition: name=\"a\nContent-Type: image/png\n\n\n--x--"))
	f.Fuzz(func(t *testing.T, contentType string, body []byte) {
		_, content, err := read(contentType, bytes.NewReader(body), len(body))
		if err != nil {
			if apierror.AsError(err).Status >= 500 && !strings.HasPrefix(err.Error(), "chunks") {
				t.Fatal(err)
			}
			return
		}
		_, params, err := parseParams(contentType)
		if err != nil {
			t.Fatal(err)
		}
		var files []string
		for parts := multipart.NewReader(bytes.NewReader(body), params["boundary"]); ; {
			p, err := parts.NextRawPart()
			if isEnd(err) {
				break
			}
			if err != nil {
				t.Fatalf("accepted %q in a malformed form: %v", content, err)
			}
			b, err := io.ReadAll(p)
			if err != nil {
				t.Fatalf("accepted %q in a malformed form: %v", content, err)
			}
			field, err := parseField(http.Header(p.Header))
			if err != nil {
				t.Fatalf("accepted %q in a form with an unclear part: %v", content, err)
			}
			if field.name == "file" {
				files = append(files, string(b))
			}
		}
		if len(files) != 1 || files[0] != content {
			t.Fatalf("accepted %q; the form has %q", content, files)
		}
	})
}

// FuzzParseParams compares parseParams of a field with an empty parameter, which the standard library rejects, with the standard
// library's result for the field without it.
func FuzzParseParams(f *testing.F) {
	for _, row := range rows(f, "dispositions.txt") {
		f.Add(row[3])
	}
	for _, s := range []string{
		`multipart/form-data; boundary=a=b`, `form-data; name=a; name=b`, `a/b; c="d`, `a; b="\`, ` A ; B = c ; `, `="`, `a; =b`,
		"form-data;name=\"\xff\";\u00a0x=y", `a;b="";c="d;e"`, `a;b="c" ;d=e`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, v string) {
		want, wantParams, err := mime.ParseMediaType(v)
		word, params, gotErr := parseParams(v + ";;")
		if err != nil || strings.ContainsAny(v, `\*`) { // the standard library decodes these
			return
		}
		if gotErr != nil || word != want || !maps.Equal(params, wantParams) {
			t.Fatalf("%q: %q %q, %v; want %q %q", v, word, params, gotErr, want, wantParams)
		}
	})
}
