//go:debug multipartmaxheaders=64

package web

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"cats.example/shared/apierror"
)

// part is one field of a form; a part with a file name is a file.
type part struct{ field, file, content string }

func formOf(t testing.TB, parts ...part) (contentType string, body []byte) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for _, p := range parts {
		var pw io.Writer
		var err error
		if p.file != "" {
			pw, err = w.CreateFormFile(p.field, p.file)
		} else {
			pw, err = w.CreateFormField(p.field)
		}
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(pw, p.content)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return w.FormDataContentType(), b.Bytes()
}

func TestAFormMayHaveOtherFieldsAroundTheFile(t *testing.T) {
	h, m, _ := newWeb(t)
	contentType, body := formOf(t, part{"a", "", "1"}, part{"other", "x.bin", strings.Repeat("z", 100_000)}, part{"file", "cat.png", png}, part{"z", "", "2"})
	if rec := send(t, h, "POST", "/cat/x", contentType, bytes.NewReader(body)); rec.Code != 200 || m.cats["x"] != png {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

func TestFormHasOneContentType(t *testing.T) {
	h, m, _ := newWeb(t)
	contentType, body := formOf(t, part{"file", "cat.png", png})
	for _, types := range [][]string{{contentType, "text/plain"}, {contentType + ";", contentType}} {
		r := httptest.NewRequestWithContext(t.Context(), "POST", "/cat/x", bytes.NewReader(body))
		r.Header["Content-Type"] = types
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		wantProblem(t, rec, 400, "malformed_form")
	}
	if m.cats["x"] != "" {
		t.Error("a picture was stored")
	}
}

func TestFormLimitsTheBytesAfterTheFile(t *testing.T) {
	const last = "\r\n--x--"
	preamble := strings.Repeat("y", 15<<10) + "\r\n"
	field := func(n int, header string) string {
		return "\r\n--x\r\nContent-Disposition: form-data; name=a" + header + "\r\n\r\n" + strings.Repeat("y", n)
	}
	longHeader := field(0, "\r\nX: "+strings.Repeat("x", 8000))
	h, m, _ := newWebWith(t, "RATE_LIMIT=0", "MAX_PICTURE_SIZE=16MiB")
	for name, c := range map[string]struct {
		after string
		code  string // "" if the form is accepted
	}{
		"nothing":                         {last, ""},
		"a line end":                      {last + "\r\n", ""},
		"a field of 64 KiB":               {field(64<<10, "") + last, ""},
		"a field of 64 KiB and a byte":    {field(64<<10+1, "") + last, "invalid_argument"},
		"a file of 64 KiB":                {field(64<<10, "; filename=b") + last + "\r\n", ""},
		"a file of 3 MiB":                 {field(3<<20, "; filename=b") + last + "\r\n", "invalid_argument"},
		"8 fields of 8000 bytes":          {strings.Repeat(field(8000, ""), 8) + last, ""},
		"9 fields of 8000 bytes":          {strings.Repeat(field(8000, ""), 9) + last, "invalid_argument"},
		"8 headers of 8000 bytes":         {strings.Repeat(longHeader, 8) + last, ""},
		"12 headers of 8000 bytes":        {strings.Repeat(longHeader, 12) + last, "invalid_argument"},
		"an epilogue of 64 KiB":           {last + "\r\n" + strings.Repeat("y", 64<<10), ""},
		"an epilogue of 84 KiB":           {last + "\r\n" + strings.Repeat("y", 84<<10), "invalid_argument"},
		"an epilogue of 3 MiB":            {last + strings.Repeat("\r\n", 3<<19), "invalid_argument"},
		"a field and an epilogue":         {field(60<<10, "") + last + "\r\n" + strings.Repeat("y", 24<<10), "invalid_argument"},
		"another file of 64 KiB":          {strings.Replace(field(64<<10, "; filename=b"), "=a", "=file", 1) + last, "two_files"},
		"another file of 3 MiB":           {strings.Replace(field(3<<20, "; filename=b"), "=a", "=file", 1) + last, "two_files"},
		"3 MiB without the last boundary": {field(3<<20, ""), "invalid_argument"},
		"nothing, not the last boundary":  {"\r\n--x\r\n", "malformed_form"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, size := range []int{40, 5000, 64<<10 - 1, 64 << 10, 300 << 10, 6 << 20} {
				content := png[:40] + strings.Repeat("z", size-40)
				form := preamble + "--x\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\n" + content + c.after
				read := 0
				for _, body := range []io.Reader{strings.NewReader(form), io.TeeReader(strings.NewReader(form), counter{&read})} { // The second hides the length.
					m.cats["x"] = "old"
					rec := send(t, h, "POST", "/cat/x", "multipart/form-data; boundary=x", body)
					want := content
					if c.code != "" {
						want = "old"
						wantProblem(t, rec, status[c.code], c.code)
					}
					if got := m.cats["x"]; got != want {
						t.Errorf("after %d bytes: %d %s; %d bytes are stored", size, rec.Code, rec.Body, len(got))
					}
				}
				if most := len(preamble) + size + maxAfterFile + 3*readAhead + formRead; read > most {
					t.Errorf("after %d bytes: %d bytes were read; want at most %d", size, read, most)
				}
			}
		})
	}
}

func TestFormRejectsTooLargeFileEarly(t *testing.T) {
	for name, c := range map[string]struct {
		field, file, after int // lengths
		code               string
	}{
		"a picture over the limit":           {0, maxSize + maxAfterFile + 2*readAhead, 0, "too_large"},
		"a picture far over the limit":       {0, 8 << 20, 0, "too_large"},
		"the same with a field":              {5000, 8 << 20, 0, "too_large"},
		"a large picture in the wrong field": {8 << 20, 100, 0, "missing_file"},
		"a large field after the picture":    {0, 5000, 8 << 20, "too_large"},
	} {
		h, m, _ := newWeb(t)
		contentType, body := formOf(t, part{"a", "a", strings.Repeat("x", c.field)}, part{"file", "cat.png", png[:40] + strings.Repeat("x", c.file)}, part{"b", "", strings.Repeat("x", c.after)})
		read := 0
		r := httptest.NewRequestWithContext(t.Context(), "POST", "/cat/x", io.TeeReader(bytes.NewReader(body), counter{&read}))
		r.ContentLength = int64(len(body))
		r.Header.Set("Content-Type", contentType)
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		p := wantProblem(t, rec, status[c.code], c.code)
		if read > formOverhead+3*formRead || c.code == "too_large" && (read > 3*formRead || !strings.Contains(p.Detail, "64 KiB")) || len(m.cats) > 0 {
			t.Errorf("%s: %s, after %d bytes", name, p.Detail, read)
		}
	}
}

// lines are n short lines of a header.
func lines(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%x:\n", i)
	}
	return b.String()
}

func TestFormOfManyPartsIsRejectedEarly(t *testing.T) {
	header := "--x\r\nContent-Disposition: form-data; name=a\r\n" + strings.Repeat("x:\r\n", 59) + "\r\n\r\n"
	for name, c := range map[string]struct{ before, part, detail string }{
		"many parts with many lines": {"", header, "100 parts"}, "many parts": {"", "--x\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n", "100 parts"},
		"a header without end": {"--x\r\n", "x:\r\n", "64 lines"}, "a line without end": {"--x\r\n", "x", "8192 bytes"}, "a folded line without end": {"--x\r\nx: x\r\n", " x\r\n", "64 lines"}, "no boundary": {"", "x\r\n", "does not occur"},
		"a later header without end": {"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n--x\r\n", "x:\r\n", "64 lines"},
	} {
		h, _, _ := newWeb(t)
		read := 0
		body := io.TeeReader(strings.NewReader(c.before+strings.Repeat(c.part, formOverhead/len(c.part))), counter{&read})
		p := wantProblem(t, send(t, h, "POST", "/cat/x", "multipart/form-data; boundary=x", body), 400, "malformed_form")
		if !strings.Contains(p.Detail, c.detail) || read > 3*formRead {
			t.Errorf("%s: %s, after %d bytes", name, p.Detail, read)
		}
	}
}

func TestFormErrorsHaveNoBytesOfTheBody(t *testing.T) {
	for _, body := range []string{
		"--x\r\nsecret\r\n\r\n", "--x\r\n secret: secret\r\n\r\n", "--x\r\nContent-Disposition: form-data; name=file; filename=\"secret.png\r\n\r\n--x--\r\n", "--x\r\nContent-Disposition: form-data; name=secret\r\n\r\n\r\n--x--\r\n",
		"--x\r\nContent-Disposition: form-data; name=file; filename=secret\r\n\r\nsecret\r\n--x", "--x\r\nContent-Disposition: form-data; name=secret\r\n\r\n" + strings.Repeat("x", formOverhead+1), "--secret\r\n",
		"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n--x \tsecret\r\n",
	} {
		r := httptest.NewRequestWithContext(t.Context(), "POST", "/cat/x", strings.NewReader(body))
		r.Header.Set("Content-Type", "multipart/form-data; boundary=x")
		form, err := openForm(r)
		if err != nil {
			t.Fatal(err)
		}
		file, _, err := form.file()
		if err == nil {
			_, err = io.Copy(io.Discard, file)
		}
		if err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%.100q: %v", body, err)
		}
	}
}

type counter struct{ n *int }

func (c counter) Write(p []byte) (int, error) {
	*c.n += len(p)
	return len(p), nil
}

func TestBadUploadsAreRefusedAndChangeNothing(t *testing.T) {
	good, goodBody := formOf(t, part{"file", "cat.png", png})
	boundary := strings.TrimPrefix(good, "multipart/form-data; boundary=")
	formBody := func(parts ...part) string {
		contentType, body := formOf(t, parts...)
		return strings.ReplaceAll(string(body), strings.TrimPrefix(contentType, "multipart/form-data; boundary="), boundary)
	}
	whole := string(goodBody)
	huge := png + strings.Repeat("x", maxSize)
	for _, c := range []struct {
		name, method, contentType, body string
		status                          int
		code                            string
	}{
		{"no form", "POST", "", "", 422, "missing_file"},
		{"JSON", "POST", "application/json", "{}", 422, "missing_file"},
		{"an URL-encoded form", "POST", "application/x-www-form-urlencoded", "file=x", 422, "missing_file"},
		{"no boundary", "POST", "multipart/form-data", whole, 400, "malformed_form"},
		{"a boundary beyond RFC 2046", "POST", "multipart/form-data; boundary=" + strings.Repeat("x", 71), whole, 400, "malformed_form"},
		{"garbage", "POST", good, "garbage", 400, "malformed_form"},
		{"an empty body", "POST", good, "", 400, "malformed_form"},
		{"an empty form", "POST", good, "--" + boundary + "--\r\n", 422, "missing_file"},
		{"no file", "POST", good, formBody(part{"a", "", "1"}), 422, "missing_file"},
		{"file as text", "POST", good, formBody(part{"file", "", png}), 422, "missing_file"},
		{"two files", "POST", good, formBody(part{"file", "a", png}, part{"file", "b", png}), 422, "two_files"},
		{"a second file as text", "POST", good, formBody(part{"file", "a", png}, part{"file", "", "x"}), 422, "two_files"},
		{"an empty file", "POST", good, formBody(part{"file", "a", ""}), 422, "empty"},
		{"no last boundary", "POST", good, strings.TrimSuffix(whole, "--"+boundary+"--\r\n"), 400, "malformed_form"},
		{"half a last boundary", "POST", good, strings.TrimSuffix(whole, "--\r\n"), 400, "malformed_form"},
		{"cut within the file", "POST", good, whole[:len(whole)/2], 400, "malformed_form"},
		{"cut within a later field", "POST", good, strings.TrimSuffix(formBody(part{"file", "a", png}, part{"z", "", "long value"}), "ue\r\n--"+boundary+"--\r\n"), 400, "malformed_form"},
		{"cut behind a boundary", "POST", good, strings.TrimSuffix(whole, "--\r\n") + "\r\n", 400, "malformed_form"},
		{"cut within the header of a further part", "POST", good, strings.TrimSuffix(whole, "--\r\n") + "\r\nContent-Disposition: form-data; na", 400, "malformed_form"},
		{"a header without end", "POST", good, "--" + boundary + "\r\nX: " + strings.Repeat("x", 100_000), 400, "malformed_form"},
		{"a header of many lines", "POST", good, "--" + boundary + "\r\n" + lines(100) + strings.TrimPrefix(whole, "--"+boundary+"\r\n"), 400, "malformed_form"},
		{"a header of many lines without end", "POST", good, "--" + boundary + "\r\n" + lines(3500), 400, "malformed_form"},
		{"a preamble without end", "POST", good, strings.Repeat("x\r\n", 50_000) + whole, 400, "malformed_form"},
		{"a file over the limit", "POST", good, formBody(part{"file", "a", huge}), 413, "too_large"},
		{"other fields over the limit", "POST", good, formBody(part{"a", "", strings.Repeat("x", formOverhead+1)}, part{"file", "a", png}), 422, "missing_file"},
		{"other fields over the limit behind the file", "POST", good, formBody(part{"file", "a", png}, part{"a", "", strings.Repeat("x", maxAfterFile+1)}), 422, "invalid_argument"},
		{"text", "POST", good, formBody(part{"file", "cat.png", "hello"}), 415, "unsupported_media_type"},
		{"an SVG", "PUT", "image/png", `<svg xmlns="http://www.w3.org/2000/svg"/>`, 415, "unsupported_media_type"},
		{"nothing", "PUT", "image/png", "", 422, "empty"},
		{"a body over the limit", "PUT", "image/png", huge, 413, "too_large"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, m, reg := newWeb(t)
			m.cats["x"] = "old"
			for _, known := range []bool{true, false} {
				var body io.Reader = strings.NewReader(c.body)
				if !known {
					body = io.MultiReader(body) // hides the length: chunked
				}
				wantProblem(t, send(t, h, c.method, "/cat/x", c.contentType, body), c.status, c.code)
			}
			if m.cats["x"] != "old" {
				t.Errorf("the old picture is gone: %q", m.cats["x"])
			}
			if got := rejected(t, reg, c.code); got != 2 {
				t.Errorf("%v rejections counted as %s; want 2", got, c.code)
			}
		})
	}
}

func TestABodyThatBreaksOffChangesNothing(t *testing.T) {
	contentType, whole := formOf(t, part{"file", "cat.png", png})
	for _, broken := range []error{io.ErrUnexpectedEOF, fmt.Errorf("reading: %w", io.EOF), errors.New("reset by peer")} {
		for at := 0; at <= len(whole); at += 317 {
			h, m, _ := newWeb(t)
			m.cats["x"] = "old"
			body := io.MultiReader(bytes.NewReader(whole[:at]), &failing{broken})
			wantProblem(t, send(t, h, "POST", "/cat/x", contentType, body), 400, "incomplete")
			body = io.MultiReader(strings.NewReader(png[:min(at, len(png))]), &failing{broken})
			wantProblem(t, send(t, h, "PUT", "/cat/x", "", body), 400, "incomplete")
			if m.cats["x"] != "old" {
				t.Fatalf("cut at %d: the old picture is gone", at)
			}
		}
	}
}

func TestFormKeepsTheErrorOfItsBody(t *testing.T) {
	contentType, whole := formOf(t, part{"a", "", "1"}, part{"file", "cat.png", png}, part{"z", "", "2"})
	for at := range whole {
		r := httptest.NewRequestWithContext(t.Context(), "POST", "/cat/x", io.MultiReader(bytes.NewReader(whole[:at]), &failing{io.ErrUnexpectedEOF}))
		r.Header.Set("Content-Type", contentType)
		form, err := openForm(r)
		if err != nil {
			t.Fatal(err)
		}
		file, _, err := form.file()
		if err == nil {
			_, err = io.Copy(io.Discard, file)
		}
		if !errors.Is(err, apierror.ErrIncomplete) {
			t.Fatalf("cut at %d: %v", at, err)
		}
	}
}

// failing is a body that breaks off with err. Like that of net/http, it ends after that.
type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) {
	err := f.err
	f.err = io.EOF
	return 0, err
}

// rejected returns how many uploads the metrics say were refused for reason.
func rejected(t *testing.T, reg *prometheus.Registry, reason string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "cats_frontend_uploads_rejected_total" && m.GetLabel()[0].GetValue() == reason {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

// FuzzForm has strangers' forms read: never a 500, and nothing stored but the
// content of the one file of a whole form.
func FuzzForm(f *testing.F) {
	short := png[:40] // the fuzzer spends minutes on making long inputs shorter
	contentType, body := formOf(f, part{"a", "", "1"}, part{"file", "cat.png", short}, part{"z", "", "2"})
	f.Add(contentType, body)
	f.Add(contentType, body[:len(body)-4])
	f.Add(contentType, append(bytes.Clone(body), "epilogue"...))
	f.Add("multipart/form-data; boundary=x", []byte("--x\r\nContent-Disposition: form-data; name=\"file\"; filename=a\r\n\r\n"+short+"\r\n--x--"))
	f.Add("multipart/form-data; boundary=\"\"", []byte("----"))
	f.Add("multipart/form-data; boundary=x", []byte("--x\r\nContent-Transfer-Encoding: quoted-printable\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\n=89PNG\r\n--x--\r\n"))
	f.Add("multipart/form-data; boundary=a=b; x", []byte("--a=b\r\nContent-Disposition: form-data;; name=file; filename=my cat.png\r\n\r\n"+short+"\r\n--a=b--"))
	f.Add("multipart/form-data; boundary=x", []byte("p\n--x \nContent-Disposition: name=\"a\nContent-Type: image/png\n\n\n--x--"))
	two, body := formOf(f, part{"file", "a", short}, part{"file", "b", short})
	f.Add(two, body)
	h, m, _ := newWeb(f)
	f.Fuzz(func(t *testing.T, contentType string, body []byte) {
		clear(m.cats)
		rec := send(t, h, "POST", "/cat/x", contentType, bytes.NewReader(body))
		content, stored := m.cats["x"]
		if rec.Code >= 500 || stored != (rec.Code == 200) {
			t.Fatalf("%d %s; stored: %v", rec.Code, rec.Body, stored)
		}
		if !stored {
			return
		}
		// What was taken is a form to who reads it whole as well, with one picture in it.
		var files []string
		_, params, err := parseParams(contentType)
		if err != nil {
			t.Fatal(err)
		}
		for parts := multipart.NewReader(bytes.NewReader(body), params["boundary"]); ; {
			p, err := parts.NextRawPart()
			if err == io.EOF { //nolint:errorlint // a wrapped io.EOF is a broken form, not its end
				break
			}
			if err != nil {
				t.Fatalf("stored %q, of a form that is broken: %v", content, err)
			}
			b, err := io.ReadAll(p)
			if err != nil {
				t.Fatalf("stored %q, of a form that is broken: %v", content, err)
			}
			field, err := fieldOf(http.Header(p.Header))
			if err != nil {
				t.Fatalf("stored %q, of a form with an unclear part: %v", content, err)
			}
			if field.name == "file" {
				files = append(files, string(b))
			}
		}
		if content == "" || len(content) > maxSize || len(files) != 1 || files[0] != content {
			t.Fatalf("stored %q; the form has %q", content, files)
		}
	})
}

// BenchmarkForm is what it costs to find the picture in a form.
func BenchmarkForm(b *testing.B) {
	contentType, body := formOf(b, part{"file", "cat.png", png + strings.Repeat("some of the picture\n", 10<<20/20)})
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	buffer := make([]byte, 32<<10)
	for b.Loop() {
		r := httptest.NewRequestWithContext(b.Context(), "POST", "/cat/x", bytes.NewReader(body))
		r.Header.Set("Content-Type", contentType)
		form, err := openForm(r)
		if err != nil {
			b.Fatal(err)
		}
		file, _, err := form.file()
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, file, buffer); err != nil {
			b.Fatal(err)
		}
	}
}
