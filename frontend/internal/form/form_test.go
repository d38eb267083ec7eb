//go:debug multipartmaxheaders=64

package form

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"

	"cats.example/shared/apierror"
)

// part is a field of a form. A part with a file name is a file.
type part struct{ field, file, content string }

const boundary = "x"

func writeForm(t testing.TB, parts ...part) string {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	if err := w.SetBoundary(boundary); err != nil {
		t.Fatal(err)
	}
	for _, p := range parts {
		create := func() (io.Writer, error) { return w.CreateFormField(p.field) }
		if p.file != "" {
			create = func() (io.Writer, error) { return w.CreateFormFile(p.field, p.file) }
		}
		pw, err := create()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(pw, p.content)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// checkField rejects a field called chunks.
func checkField(name, value string) error {
	if name == "chunks" {
		return errors.New("chunks is " + value)
	}
	return nil
}

// read reads a form to its end. size is the announced length of body, -1 if unknown.
func read(contentType string, body io.Reader, size int) (file *File, content string, err error) {
	file, err = Open(http.Header{"Content-Type": {contentType}}, body, int64(size), checkField)
	if err != nil {
		return nil, "", err
	}
	b, err := io.ReadAll(file)
	if n := int64(len(b)); err == nil && size >= 0 && (n < file.MinSize || n > file.MaxSize || file.MaxSize-file.MinSize > 96<<10) {
		err = fmt.Errorf("a file of %d bytes has the bounds %d and %d", n, file.MinSize, file.MaxSize)
	}
	return file, string(b), err
}

const formType = "multipart/form-data; boundary=" + boundary

func TestReadReturnsTheFile(t *testing.T) {
	picture := strings.Repeat("\r\n--cat", 30_000)
	form := writeForm(t, part{"a", "", "1"}, part{"other", "x.bin", strings.Repeat("z", 100_000)}, part{"file", "cat.png", picture}, part{"z", "", "2"})
	for _, size := range []int{len(form), -1} {
		file, content, err := read(formType, strings.NewReader(form), size)
		if err != nil || content != picture || file.Header.Get("Content-Disposition") != `form-data; name="file"; filename="cat.png"` {
			t.Fatalf("%d bytes, header %v: %v", len(content), file.Header, err)
		}
		if known := size >= 0; known != (file.MaxSize > 0) || known != (file.MinSize > 0) {
			t.Errorf("the bounds are %d and %d", file.MinSize, file.MaxSize)
		}
	}
}

// headerLines returns n short lines of a part header.
func headerLines(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%x:\n", i)
	}
	return b.String()
}

func TestInvalidFormsAreRejected(t *testing.T) {
	whole := writeForm(t, part{"file", "cat.png", "picture"})
	unclosed := strings.TrimSuffix(whole, "--\r\n")
	for name, c := range map[string]struct {
		contentType, body string
		want              *apierror.Error
		detail            string
	}{
		"no Content-Type":          {"", "", ErrMissingFile, "PUT the picture"},
		"JSON":                     {"application/json", "{}", ErrMissingFile, ""},
		"URL-encoded form":         {"application/x-www-form-urlencoded", "file=x", ErrMissingFile, ""},
		"no boundary":              {"multipart/form-data", whole, ErrMalformed, "no parameter boundary"},
		"too long boundary":        {"multipart/form-data; boundary=" + strings.Repeat("x", 71), whole, ErrMalformed, "70 bytes"},
		"unclear Content-Type":     {formType + "; boundary=y", whole, ErrMalformed, "two different values"},
		"garbage":                  {formType, "garbage", ErrMalformed, "does not occur"},
		"empty body":               {formType, "", ErrMalformed, "does not occur"},
		"long preamble":            {formType, strings.Repeat("y\r\n", 50_000) + whole, ErrMalformed, "16 KiB"},
		"empty form":               {formType, "--x--\r\n", ErrMissingFile, ""},
		"no file":                  {formType, writeForm(t, part{"a", "", "1"}, part{"b", "", "2"}), ErrMissingFile, `["a" "b"]`},
		"large fields before":      {formType, writeForm(t, part{"a", "", strings.Repeat("x", MaxBefore+1)}, part{"file", "a", "x"}), ErrMissingFile, "first 1 MiB"},
		"file as text":             {formType, writeForm(t, part{"file", "", "x"}), ErrMissingFile, "is text"},
		"no file chosen":           {formType, strings.Replace(writeForm(t, part{"file", "a", ""}), `"a"`, `""`, 1), ErrMissingFile, "no file was chosen"},
		"two files":                {formType, writeForm(t, part{"file", "a", "x"}, part{"file", "b", "x"}), ErrTwoFiles, ""},
		"second file as text":      {formType, writeForm(t, part{"file", "a", "x"}, part{"file", "", "x"}), ErrTwoFiles, ""},
		"no last boundary":         {formType, strings.TrimSuffix(whole, "--x--\r\n"), ErrMalformed, "before its last boundary"},
		"half a last boundary":     {formType, unclosed, ErrMalformed, ""},
		"cut within the file":      {formType, whole[:len(whole)-12], ErrMalformed, ""},
		"cut after a boundary":     {formType, unclosed + "\r\n", ErrMalformed, ""},
		"cut within a later field": {formType, strings.TrimSuffix(writeForm(t, part{"file", "a", "x"}, part{"z", "", "long value"}), "ue\r\n--x--\r\n"), ErrMalformed, ""},
		"cut within a part header": {formType, unclosed + "\r\nContent-Disposition: form-data; na", ErrMalformed, ""},
		"invalid part header":      {formType, "--x\r\nno colon\r\n\r\n\r\n--x--\r\n", ErrMalformed, "the header of part 1"},
		"too many header lines":    {formType, "--x\r\n" + headerLines(100) + strings.TrimPrefix(whole, "--x\r\n"), ErrMalformed, "64 lines"},
		"101 parts":                {formType, writeForm(t, append(make([]part, 100), part{"file", "a", "x"})...), ErrMalformed, "100 parts"},
		"rejected field":           {formType, writeForm(t, part{"chunks", "", strings.Repeat("7", 30)}, part{"file", "a", "x"}), apierror.ErrInternal, "chunks is " + strings.Repeat("7", maxValue)},
		"rejected field after":     {formType, writeForm(t, part{"file", "a", "x"}, part{"chunks", "", "7"}), apierror.ErrInternal, "chunks is 7"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, size := range []int{len(c.body), -1} {
				_, _, err := read(c.contentType, strings.NewReader(c.body), size)
				if e := apierror.AsError(err); err == nil || !errors.Is(e, c.want) || !strings.Contains(e.Detail+err.Error(), c.detail) {
					t.Errorf("size %d: %s %q; want %s %q", size, e.Code, e.Detail, c.want.Code, c.detail)
				}
			}
		})
	}
	header := http.Header{"Content-Type": {formType, "text/plain"}}
	if _, err := Open(header, strings.NewReader(whole), -1, checkField); !errors.Is(err, ErrMalformed) {
		t.Errorf("two Content-Types: %v", err)
	}
}

func TestBytesAfterTheFileAreLimited(t *testing.T) {
	const last = "\r\n--x--"
	preamble := strings.Repeat("y", 15<<10) + "\r\n"
	field := func(n int, header string) string {
		return "\r\n--x\r\nContent-Disposition: form-data; name=a" + header + "\r\n\r\n" + strings.Repeat("y", n)
	}
	longHeader := field(0, "\r\nX: "+strings.Repeat("x", 8000))
	for name, c := range map[string]struct {
		after string
		want  *apierror.Error // nil if the form is accepted
	}{
		"nothing":                       {last, nil},
		"line end":                      {last + "\r\n", nil},
		"field of 64 KiB":               {field(64<<10, "") + last, nil},
		"field of 64 KiB and a byte":    {field(64<<10+1, "") + last, errAfterFile},
		"file of 64 KiB":                {field(64<<10, "; filename=b") + last + "\r\n", nil},
		"file of 3 MiB":                 {field(3<<20, "; filename=b") + last + "\r\n", errAfterFile},
		"8 fields of 8000 bytes":        {strings.Repeat(field(8000, ""), 8) + last, nil},
		"9 fields of 8000 bytes":        {strings.Repeat(field(8000, ""), 9) + last, errAfterFile},
		"8 headers of 8000 bytes":       {strings.Repeat(longHeader, 8) + last, nil},
		"12 headers of 8000 bytes":      {strings.Repeat(longHeader, 12) + last, errAfterFile},
		"epilogue of 64 KiB":            {last + "\r\n" + strings.Repeat("y", 64<<10), nil},
		"epilogue of 84 KiB":            {last + "\r\n" + strings.Repeat("y", 84<<10), errAfterFile},
		"epilogue of 3 MiB":             {last + strings.Repeat("\r\n", 3<<19), errAfterFile},
		"field and epilogue":            {field(60<<10, "") + last + "\r\n" + strings.Repeat("y", 24<<10), errAfterFile},
		"second file of 64 KiB":         {strings.Replace(field(64<<10, "; filename=b"), "=a", "=file", 1) + last, ErrTwoFiles},
		"second file of 3 MiB":          {strings.Replace(field(3<<20, "; filename=b"), "=a", "=file", 1) + last, ErrTwoFiles},
		"3 MiB without a last boundary": {field(3<<20, ""), errAfterFile},
		"no last boundary":              {"\r\n--x\r\n", ErrMalformed},
	} {
		for _, size := range []int{40, 64<<10 - 1, 300 << 10} {
			picture := strings.Repeat("z", size)
			form := preamble + "--x\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\n" + picture + c.after
			for _, announced := range []int{len(form), -1} {
				body := strings.NewReader(form)
				_, content, err := read(formType, body, announced)
				if c.want == nil && (err != nil || content != picture) || c.want != nil && !errors.Is(err, c.want) {
					t.Errorf("%s after %d bytes: %d bytes, %v; want %v", name, size, len(content), err, c.want)
				}
				if most := len(preamble) + size + MaxAfter + 3*readAhead + bufferSize; len(form)-body.Len() > most {
					t.Errorf("%s after %d bytes: %d bytes were read; want at most %d", name, size, len(form)-body.Len(), most)
				}
			}
		}
	}
}

func TestEndlessHeadersAreRejectedEarly(t *testing.T) {
	header := "--x\r\nContent-Disposition: form-data; name=a\r\n" + strings.Repeat("x:\r\n", 59) + "\r\n\r\n"
	for name, c := range map[string]struct{ before, repeated, detail string }{
		"many parts with many lines": {"", header, "100 parts"},
		"many parts":                 {"", "--x\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n", "100 parts"},
		"endless header":             {"--x\r\n", "x:\r\n", "64 lines"},
		"endless line":               {"--x\r\n", "x", "8192 bytes"},
		"endless folded line":        {"--x\r\nx: x\r\n", " x\r\n", "64 lines"},
		"no boundary":                {"", "x\r\n", "does not occur"},
		"endless later header":       {"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n--x\r\n", "x:\r\n", "64 lines"},
	} {
		body := strings.NewReader(c.before + strings.Repeat(c.repeated, MaxBefore/len(c.repeated)))
		_, _, err := read(formType, body, -1)
		if e := apierror.AsError(err); !errors.Is(err, ErrMalformed) || !strings.Contains(e.Detail, c.detail) || body.Size()-int64(body.Len()) > 3*bufferSize {
			t.Errorf("%s: %s, after %d bytes", name, e.Detail, body.Size()-int64(body.Len()))
		}
	}
}

func TestLoggedErrorsHaveNoBytesOfTheBody(t *testing.T) {
	for _, body := range []string{
		"--x\r\nsecret\r\n\r\n", "--x\r\n secret: secret\r\n\r\n", "--x\r\nContent-Disposition: form-data; name=file; filename=\"secret.png\r\n\r\n--x--\r\n",
		"--x\r\nContent-Disposition: form-data; name=secret\r\n\r\n\r\n--x--\r\n", "--x\r\nContent-Disposition: form-data; name=file; filename=secret\r\n\r\nsecret\r\n--x",
		"--x\r\nContent-Disposition: form-data; name=secret\r\n\r\n" + strings.Repeat("x", MaxBefore+1), "--secret\r\n", "--x\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n--x \tsecret\r\n",
	} {
		if _, _, err := read(formType, strings.NewReader(body), -1); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%.100q: %v", body, err)
		}
	}
}

// failing is a body that fails with err. Like the body of net/http, it ends after that.
type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) {
	err := f.err
	f.err = io.EOF
	return 0, err
}

func TestErrorsOfTheBodyAreReturned(t *testing.T) {
	form := writeForm(t, part{"a", "", "1"}, part{"file", "cat.png", strings.Repeat("picture", 40)}, part{"z", "", "2"})
	broken := apierror.ErrIncomplete.Wrap(io.ErrUnexpectedEOF)
	for at := range form {
		body := io.MultiReader(strings.NewReader(form[:at]), &failing{broken})
		//lint:ignore errorsis the error must be the same
		if _, _, err := read(formType, body, len(form)); err != error(broken) {
			t.Fatalf("cut at %d: %v", at, err)
		}
	}
}
