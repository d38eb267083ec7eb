package form

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"mime"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strconv"
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
	whole := writeForm(f, part{"a", "", "1"}, part{"file", "cat.png", "picture"}, part{"z", "", "2"})
	f.Add(formType, []byte(whole+"epilogue"))
	f.Add(formType, []byte(writeForm(f, part{"file", "a", "picture"}, part{"file", "b", "picture"})))
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

// FuzzWrittenForm reads forms as clients write them, with any fields and in any shape. A form with up to 64 KiB after the file
// must be accepted, and its picture read unchanged; a form with much more must be rejected.
func FuzzWrittenForm(f *testing.F) {
	f.Add("a", "1", "cat.png", []byte("picture"), "z", "2", uint64(0))
	f.Add("file2", "--\r\n--", "a\"b\\c\r\n.png", []byte("\r\n--\r\n\r\n--x--\r\n"), "", "\r\n", uint64(0))
	for shape := range uint64(100) {
		f.Add("a", "1", "cat.png", []byte("\r\n--picture"), "z", "2", shape)
	}
	f.Fuzz(func(t *testing.T, before, value, name string, content []byte, after, last string, shape uint64) {
		isControl := func(r rune) bool { return r != '\r' && r != '\n' && (r < ' ' || r == 0x7f) } // invalid in a header; the writer escapes line ends
		if before == "file" || before == "chunks" || after == "file" || after == "chunks" || name == "" || strings.ContainsFunc(before+name+after, isControl) ||
			len(before)+len(name)+len(after) > 4<<10 || len(content) > 20_000 {
			return
		}
		contentType, form, want, rest := shapedForm(t, shape, before, value, name, string(content), after, last)
		for _, size := range []int{len(form), -1} {
			file, got, err := read(contentType, &pieces{form, []int{100, 1000, 4 << 10, 5000, 1 << 20}[shape%5]}, size)
			switch {
			case err == nil && rest <= MaxAfter+3*readAhead && got == want && (file.MaxSize > 0) == (size >= 0):
			case errors.Is(err, errAfterFile) && rest > MaxAfter:
			default:
				t.Fatalf("a form of %d of %d bytes with %d after the file: %v; read %d bytes; want %d", size, len(form), rest, err, len(got), len(want))
			}
		}
	})
}

// shapedForm returns a form with a field before and a field after the file. shape decides on the size of the parts, the
// boundary, the preamble, the epilogue and the header of the file. rest is the number of bytes after the file, without the
// closing boundary.
func shapedForm(t *testing.T, shape uint64, before, value, name, content, after, last string) (contentType string, body []byte, file string, rest int) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(shape, 0))
	long := func(sizes ...int) string { // random bytes, of about one of the sizes
		b := make([]byte, max(0, sizes[rnd.IntN(len(sizes))]+rnd.IntN(5)-2))
		_, _ = rand.NewChaCha8([32]byte{byte(shape)}).Read(b)
		return string(b)
	}
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	if err := w.SetBoundary(strings.Repeat("-", rnd.IntN(36)) + strings.Repeat("b", 1+rnd.IntN(35))); err != nil {
		t.Fatal(err)
	}
	if rnd.IntN(3) == 0 {
		form.WriteString(strings.Repeat("y", rnd.IntN(3000)) + "\r\n")
	}
	write := func(part io.Writer, err error, content string) {
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(part, content)
	}
	if rnd.IntN(3) > 0 {
		part, err := w.CreateFormField(before)
		write(part, err, value+long(0, 100, 3000, 4096, 8192, 100_000))
	}
	file = content + long(0, 0, 3000, 4096, 60_000, 64<<10, 72<<10, 128<<10, 300<<10)
	header := textproto.MIMEHeader{"Content-Disposition": {multipart.FileContentDisposition("file", name)}}
	for _, line := range [][2]string{{"Content-Type", "image/png"}, {"Content-Length", strconv.Itoa(len(file))}, {"X-Long", strings.Repeat("x", 3000)}} {
		if rnd.IntN(2) == 0 {
			header.Set(line[0], line[1])
		}
	}
	part, err := w.CreatePart(header)
	write(part, err, file)
	end := form.Len()
	if rnd.IntN(3) > 0 {
		part, err := w.CreateFormField(after)
		write(part, err, last+long(0, 0, 100, 4096, 60_000, 64<<10, 100_000))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	switch rnd.IntN(3) {
	case 0:
		form.Truncate(form.Len() - len("\r\n"))
	case 1:
		form.WriteString(long(0, 4096, 60_000, 64<<10, 75_000, 100_000))
	}
	return w.FormDataContentType(), form.Bytes(), file, form.Len() - end - len("\r\n--"+w.Boundary()+"--")
}

// pieces is a body of which a Read returns up to most bytes.
type pieces struct {
	left []byte
	most int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.left) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.most)], p.left)
	p.left = p.left[n:]
	return n, nil
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
