//go:debug multipartmaxheaders=64

package form

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cats.example/shared/apierror"
)

// part is a field of a form. A part with a file name is a file.
type part struct{ field, file, content string }

const formType = "multipart/form-data; boundary=x"

func writeForm(parts ...part) string {
	var b strings.Builder
	for _, p := range parts {
		fmt.Fprintf(&b, "--x\r\nContent-Disposition: form-data; name=%q", p.field)
		if p.file != "" {
			fmt.Fprintf(&b, "; filename=%q\r\nContent-Type: application/octet-stream", p.file)
		}
		b.WriteString("\r\n\r\n" + p.content + "\r\n")
	}
	return b.String() + "--x--\r\n"
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

// rows returns the lines of a file in testdata, split at tabs, without comments.
func rows(t testing.TB, name string) (rows [][]string) {
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

// Sizes around those of the buffers, bodies that arrive in pieces, and line ends and boundaries within the file.
func TestReadReturnsTheFile(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	size := func(sizes ...int) int { return max(0, sizes[rnd.IntN(len(sizes))]+rnd.IntN(5)-2) }
	for range 60 {
		picture := strings.Repeat("\r\n--cat", 60_000)[:size(40, 3000, 4096, 32<<10, 64<<10, 72<<10, 128<<10, 300<<10)]
		form := writeForm(part{"a", "", strings.Repeat("1", size(0, 4096, 8192, 100_000))}, part{"other", "x.bin", "\r\n--"},
			part{"file", "cat.png", picture}, part{"z", "", strings.Repeat("2", size(0, 4096, 60_000, 64<<10-2))})
		form = strings.TrimSuffix(form, "\r\n"[:2*rnd.IntN(2)])
		for _, announced := range []int{len(form), -1} {
			file, content, err := read(formType, &pieces{[]byte(form), size(100, 1000, 4096, 1<<20)}, announced)
			if err != nil || content != picture || file.Header.Get("Content-Disposition") != `form-data; name="file"; filename="cat.png"` {
				t.Fatalf("%d of %d bytes, announced %d: %v", len(content), len(picture), announced, err)
			}
			if known := announced >= 0; known != (file.MaxSize > 0) || !known && file.MinSize > 0 {
				t.Errorf("the bounds are %d and %d", file.MinSize, file.MaxSize)
			}
		}
	}
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

var escaped = strings.NewReplacer(`\r`, "\r", `\n`, "\n", `\t`, "\t")

func TestInvalidFormsAreRejected(t *testing.T) {
	whole := writeForm(part{"file", "cat.png", "picture"})
	large := writeForm(part{"secret", "", strings.Repeat("x", MaxBefore+1)}, part{"file", "a", "x"})
	for _, row := range append(rows(t, "invalid.txt"),
		[]string{"long preamble", formType, strings.Repeat(`y\r\n`, 50_000) + whole, "malformed_form", "does not occur"},
		[]string{"large fields before", formType, large, "missing_file", "first 1 MiB"},
	) {
		body := escaped.Replace(row[2])
		for _, size := range []int{len(body), -1} {
			_, _, err := read(row[1], strings.NewReader(body), size)
			e := apierror.AsError(err)
			if err == nil || e.Code != row[3] || !strings.Contains(e.Detail+err.Error(), row[4]) || strings.Contains(err.Error(), "secret") {
				t.Errorf("%s, size %d: %q, logged %q", row[0], size, e.Detail, err)
			}
		}
	}
	header := http.Header{"Content-Type": {formType, "text/plain"}}
	if _, err := Open(header, strings.NewReader(whole), -1, checkField); !errors.Is(err, ErrMalformed) {
		t.Errorf("two Content-Types: %v", err)
	}
}

func TestBytesAfterTheFileAreLimited(t *testing.T) {
	const last = "\r\n--x--"
	field := func(n int, header string) string {
		return "\r\n--x\r\nContent-Disposition: form-data; name=a" + header + "\r\n\r\n" + strings.Repeat("y", n)
	}
	longHeader := field(0, "\r\nX: "+strings.Repeat("x", 8000))
	for name, c := range map[string]struct {
		after string
		want  *apierror.Error // nil if the form is accepted
	}{
		"line end":                      {last + "\r\n", nil},
		"field of 64 KiB":               {field(64<<10, "") + last, nil},
		"field of 64 KiB and a byte":    {field(64<<10+1, "") + last, errAfterFile},
		"file of 3 MiB":                 {field(3<<20, "; filename=b") + last, errAfterFile},
		"8 fields of 8000 bytes":        {strings.Repeat(field(8000, ""), 8) + last, nil},
		"9 fields of 8000 bytes":        {strings.Repeat(field(8000, ""), 9) + last, errAfterFile},
		"8 headers of 8000 bytes":       {strings.Repeat(longHeader, 8) + last, nil},
		"epilogue of 64 KiB":            {last + "\r\n" + strings.Repeat("y", 64<<10), nil},
		"epilogue of 3 MiB":             {last + strings.Repeat("\r\n", 3<<19), errAfterFile},
		"field and epilogue":            {field(60<<10, "") + last + "\r\n" + strings.Repeat("y", 24<<10), errAfterFile},
		"second file of 3 MiB":          {strings.Replace(field(3<<20, "; filename=b"), "=a", "=file", 1) + last, ErrTwoFiles},
		"3 MiB without a last boundary": {field(3<<20, ""), errAfterFile},
	} {
		for _, size := range []int{40, 64<<10 - 1, 300 << 10} {
			picture := strings.Repeat("z", size)
			form := "preamble\r\n--x\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\n" + picture + c.after
			for _, announced := range []int{len(form), -1} {
				body := strings.NewReader(form)
				_, content, err := read(formType, body, announced)
				if c.want == nil && (err != nil || content != picture) || c.want != nil && !errors.Is(err, c.want) {
					t.Errorf("%s after %d bytes: %d bytes, %v; want %v", name, size, len(content), err, c.want)
				}
				if most := size + MaxAfter + 3*readAhead + bufferSize; len(form)-body.Len() > most {
					t.Errorf("%s after %d bytes: %d bytes were read; want at most %d", name, size, len(form)-body.Len(), most)
				}
			}
		}
	}
	// If the size is known, headers count, too: the file must not be smaller than MinSize.
	form := writeForm(part{"file", "a", "x"})
	form = strings.TrimSuffix(form, last+"\r\n") + strings.Repeat(longHeader, 14) + last
	if _, _, err := read(formType, strings.NewReader(form), len(form)); !errors.Is(err, errAfterFile) {
		t.Errorf("14 headers of 8000 bytes: %v", err)
	}
}

func TestEndlessHeadersAreRejectedEarly(t *testing.T) {
	header := "--x\r\nContent-Disposition: form-data; name=a\r\n" + strings.Repeat("x:\r\n", 59) + "\r\n\r\n"
	for name, c := range map[string]struct{ before, repeated, detail string }{
		"many parts with many lines": {"", header, "100 parts"},
		"endless header":             {"--x\r\n", "x:\r\n", "64 lines"},
		"endless line":               {"--x\r\n", "x", "8192 bytes"},
		"endless folded line":        {"--x\r\nx: x\r\n", " x\r\n", "64 lines"},
		"no boundary":                {"", "x\r\n", "does not occur"},
		"endless later line":         {"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n--x\r\n", "x", "8192 bytes"},
	} {
		body := strings.NewReader(c.before + strings.Repeat(c.repeated, MaxBefore/len(c.repeated)))
		_, _, err := read(formType, body, -1)
		used := body.Size() - int64(body.Len())
		if e := apierror.AsError(err); !errors.Is(err, ErrMalformed) || !strings.Contains(e.Detail, c.detail) || used > 3*bufferSize {
			t.Errorf("%s: %s, after %d bytes", name, e.Detail, used)
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
	form := writeForm(part{"a", "", "1"}, part{"file", "cat.png", strings.Repeat("picture", 40)}, part{"z", "", "2"})
	broken := apierror.ErrIncomplete.Wrap(io.ErrUnexpectedEOF)
	for at := range form {
		body := io.MultiReader(strings.NewReader(form[:at]), &failing{broken})
		//lint:ignore errorsis the error must be the same
		if _, _, err := read(formType, body, len(form)); err != error(broken) {
			t.Fatalf("cut at %d: %v", at, err)
		}
	}
}

func TestParseFieldAcceptsClearDispositions(t *testing.T) {
	for _, row := range rows(t, "dispositions.txt") {
		want := field{row[0], row[1] == "file", row[2] == "named"}
		header := http.Header{"Content-Disposition": row[3:4]}
		if len(row) > 4 {
			header.Set("Content-Type", row[4])
		}
		if got, err := parseField(header); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", row[3:], got, err, want)
		}
	}
}

func TestParseFieldRejectsUnclearDispositions(t *testing.T) {
	long := []string{"no end", `form-data; name="` + strings.Repeat("\xff", 8000)}
	for _, row := range append(rows(t, "dispositions-unclear.txt"), long) {
		_, err := parseField(http.Header{"Content-Disposition": row[1:]})
		e := apierror.AsError(err)
		if !errors.Is(err, ErrMalformed) || !strings.Contains(e.Detail, row[0]) || len(e.Detail) > 1000 || strings.Contains(err.Error(), "secret") {
			t.Errorf("%.80q: %d bytes, %.200s, logged %.200s", row, len(e.Detail), e.Detail, err)
		}
	}
}
