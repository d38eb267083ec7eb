package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// A form as it is on the wire, made by hand so that it can be wrong.
const (
	boundary     = "a-boundary"
	formType     = "multipart/form-data; boundary=" + boundary
	lastBoundary = "--" + boundary + "--\r\n"
)

// field is one part of a form; its disposition is all but "form-data".
func field(disposition, content string) string {
	return "--" + boundary + "\r\nContent-Disposition: form-data; " + disposition + "\r\n\r\n" + content + "\r\n"
}

// file is the part that matters.
func file(content []byte) string { return field(`name="file"; filename="cat.png"`, string(content)) }

// sizes are of pictures that go to storage in one piece and in several.
var sizes = []int{5000, oneBlob + 5000}

func TestAFormMayHaveOtherFieldsAndAnyLegalShape(t *testing.T) {
	t.Parallel()
	sys := public(t)
	for _, size := range sizes {
		content := append(random(size, 1), "\r\n--a-boundar\r\n--\r\n--another--\r\n"...)
		for name, c := range map[string]struct{ contentType, body string }{
			"the file alone":          {formType, file(content) + lastBoundary},
			"fields before and after": {formType, field(`name="title"`, "x") + field(`name="long"`, strings.Repeat("x", 600<<10)) + file(content) + field(`name="z"`, strings.Repeat("z", 60<<10)) + lastBoundary},
			"another file before":     {formType, field(`name="other"; filename="cat.png"`, "no picture") + file(content) + lastBoundary},
			"preamble and epilogue":   {formType, "a preamble\r\n" + file(content) + lastBoundary + "an epilogue"},
			"no line end at the end":  {formType, file(content) + strings.TrimSuffix(lastBoundary, "\r\n")},
			"no quotes":               {formType, field(`name=file; filename=cat.png`, string(content)) + lastBoundary},
			"a file name in Cyrillic": {formType, field(`name="file"; filename="Мурчик.png"`, string(content)) + lastBoundary},
			"a path for a file name":  {formType, field(`name="file"; filename="../../etc/passwd"`, string(content)) + lastBoundary},
			"a claimed content type":  {formType, field("name=\"file\"; filename=\"cat.png\"\r\nContent-Type: text/html", string(content)) + lastBoundary},
			"a quoted boundary":       {`Multipart/Form-Data; charset=utf-8; boundary="` + boundary + `"`, file(content) + lastBoundary},
		} {
			if size > oneBlob && name != "fields before and after" {
				continue // what is large is slow, and the shape is all the same
			}
			for _, body := range []io.Reader{strings.NewReader(c.body), chunked{strings.NewReader(c.body)}} {
				put(t, sys, "x", cat)
				a, err := try(t.Context(), "POST", sys.URL+"/cat/x", c.contentType, body)
				if err != nil {
					t.Fatal(err)
				}
				if a.StatusCode != 200 || a.field(t, "content_type") != "image/png" || a.field(t, "size") != float64(len(content)) {
					t.Errorf("%s: %d %s", name, a.StatusCode, a.body)
				}
				if !bytes.Equal(served(t, sys, "x"), content) {
					t.Errorf("%s: another picture is stored", name)
				}
			}
		}
	}
}

func TestAFormThatIsNotWholeStoresNothing(t *testing.T) {
	t.Parallel()
	sys := public(t)
	old := random(7000, 9)
	put(t, sys, "x", old)
	for _, size := range sizes {
		content := random(size, 1)
		whole := file(content) + lastBoundary
		for name, c := range map[string]struct {
			contentType, body string
			status            int
			code              string
		}{
			"no last boundary":            {formType, strings.TrimSuffix(whole, lastBoundary), 400, "malformed_form"},
			"half a last boundary":        {formType, strings.TrimSuffix(whole, "ry--\r\n"), 400, "malformed_form"},
			"a last boundary without --":  {formType, strings.TrimSuffix(whole, "--\r\n"), 400, "malformed_form"},
			"the middle of the file":      {formType, whole[:len(whole)/2], 400, "malformed_form"},
			"another part, cut":           {formType, file(content) + field(`name="a"`, "x")[:40], 400, "malformed_form"},
			"another part of no byte":     {formType, file(content) + "--" + boundary + "\r\n", 400, "malformed_form"},
			"two files":                   {formType, file(content) + file(cat) + lastBoundary, 422, "two_files"},
			"two files, far apart":        {formType, file(content) + field(`name="a"`, "x") + file(cat) + lastBoundary, 422, "two_files"},
			"two files, the second text":  {formType, file(content) + field(`name="file"`, "x") + lastBoundary, 422, "two_files"},
			"two files, the second empty": {formType, file(content) + file(nil) + lastBoundary, 422, "two_files"},
			"no file":                     {formType, field(`name="picture"; filename="a.png"`, string(content[:5000])) + lastBoundary, 422, "missing_file"},
			"no field":                    {formType, lastBoundary, 422, "missing_file"},
			"the file as text":            {formType, field(`name="file"`, string(content[:5000])) + lastBoundary, 422, "missing_file"},
			"an empty file":               {formType, file(nil) + lastBoundary, 422, "empty"},
			"an empty body":               {formType, "", 400, "malformed_form"},
			"another boundary":            {formType + "2", whole, 400, "malformed_form"},
			"no boundary":                 {"multipart/form-data", whole, 400, "malformed_form"},
			"an endless boundary":         {"multipart/form-data; boundary=" + strings.Repeat("b", 100), whole, 400, "malformed_form"},
			"long fields before":          {formType, field(`name="a"`, strings.Repeat("x", 1<<20+1)) + whole, 422, "missing_file"},
			"long fields after":           {formType, file(content) + field(`name="a"`, strings.Repeat("x", 64<<10+1)) + lastBoundary, 422, "invalid_argument"},
			"a long header":               {formType, field(`name="a"; x="`+strings.Repeat("x", 30<<10)+`"`, "x") + whole, 400, "malformed_form"},
			"a form without files":        {"application/x-www-form-urlencoded", "file=cat", 422, "missing_file"},
			"no content type":             {"", whole, 422, "missing_file"},
			"multipart/mixed":             {"multipart/mixed; boundary=" + boundary, whole, 422, "missing_file"},
		} {
			if size > oneBlob && len(c.body) < oneBlob {
				continue // the same as before
			}
			for _, user := range []string{"x", "nobody"} {
				a := do(t, "POST", sys.URL+"/cat/"+user, c.contentType, []byte(c.body))
				if a.StatusCode != c.status || a.field(t, "code") != c.code {
					t.Errorf("%s, %d bytes: %d %s; want %d %s", name, size, a.StatusCode, a.body, c.status, c.code)
				}
			}
			if !bytes.Equal(served(t, sys, "x"), old) {
				t.Errorf("%s, %d bytes: the old picture is gone", name, size)
				put(t, sys, "x", old)
			}
		}
	}
	if all := names(t, sys); len(all) != 1 {
		t.Errorf("%q are stored; want the old picture alone", all)
	}
	if elsewhere != nil {
		return // its metrics are out of reach
	}
	eventually(t, func() error { // the client may have its answer before the signer is done
		if held := metric(t, sys.SignerOps, "cats_signer_upload_buffers_in_use"); held != 0 {
			return fmt.Errorf("%v bytes of buffers were not given back", held)
		}
		return nil
	})
}

// A client that waits to be asked is asked for what may be stored, and for
// nothing else.
func TestAClientThatWaitsIsAskedForWhatMayBeStored(t *testing.T) {
	t.Parallel()
	sys := public(t)
	const header = "Host: localhost\r\nExpect: 100-continue\r\n"
	for name, c := range map[string]struct {
		request string
		status  int
	}{
		"PUT over the limit":       {"PUT /cat/x HTTP/1.1\r\n" + header + "Content-Length: 33554433\r\n\r\n", 413},
		"POST over the limit":      {"POST /cat/x HTTP/1.1\r\n" + header + "Content-Type: " + formType + "\r\nContent-Length: 1000000000\r\n\r\n", 413},
		"PUT for a name not valid": {"PUT /cat/a%5Cb HTTP/1.1\r\n" + header + "Content-Length: 1000\r\n\r\n", 422},
		"POST that is no form":     {"POST /cat/x HTTP/1.1\r\n" + header + "Content-Type: image/png\r\nContent-Length: 1000\r\n\r\n", 422},
		"PUT elsewhere":            {"PUT /service HTTP/1.1\r\n" + header + "Content-Length: 1000\r\n\r\n", 405},
		"PUT nowhere":              {"PUT /dog/x HTTP/1.1\r\n" + header + "Transfer-Encoding: chunked\r\n\r\n", 404},
	} {
		conn := dial(t, sys)
		if _, err := io.WriteString(conn, c.request); err != nil {
			t.Fatal(err)
		}
		if status := statusOf(t, conn); status != c.status { // of the first answer: 100 if it is asked for
			t.Errorf("%s: %d; want %d at once", name, status, c.status)
		}
	}
	conn := dial(t, sys)
	fmt.Fprintf(conn, "PUT /cat/x HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n", header, len(cat))
	if status := statusOf(t, conn); status != http.StatusContinue {
		t.Fatalf("PUT: %d; want 100", status)
	}
	if _, err := conn.Write(cat); err != nil {
		t.Fatal(err)
	}
	if status := statusOf(t, conn); status != 200 || !bytes.Equal(served(t, sys, "x"), cat) {
		t.Errorf("PUT, when asked: %d", status)
	}
}

// clientForms returns the forms that widely used clients write for content. Some have a field after the file.
func clientForms(content []byte) map[string]formAnswer {
	forms := map[string]formAnswer{}
	for name, c := range map[string]struct{ boundary, header, end, after string }{
		"curl":                    {"------------------------a1B2c3D4e5F6g7H8i9J0k1", "Content-Type: image/png\r\n", "\r\n", ""},
		"Chrome":                  {"----WebKitFormBoundary7MA4YWxkTrZu0gW", "Content-Type: image/png\r\n", "\r\n", "Save"},
		"Node.js 20":              {"----formdata-undici-027512345678", "Content-Type: application/octet-stream\r\n", "", ""},
		"Node.js 20 with a field": {"----formdata-undici-027512345678", "Content-Type: application/octet-stream\r\n", "", strings.Repeat("z", 60<<10)},
		"Python requests":         {"1a79a4d60de6718e8e5b326e338ae533", "", "\r\n", "tabby"},
		"a boundary of 1 byte":    {"x", "", "", strings.Repeat("z", 64<<10)},
		"a boundary of 70 bytes":  {strings.Repeat("b", 70), "Content-Type: image/png\r\nContent-Length: 1\r\n", "\r\n", ""},
	} {
		form := "--" + c.boundary + "\r\nContent-Disposition: form-data; name=\"title\"\r\n\r\nMia\r\n" +
			"--" + c.boundary + "\r\nContent-Disposition: form-data; name=\"file\"; filename=\"cat.png\"\r\n" + c.header + "\r\n" + string(content) + "\r\n"
		if c.after != "" {
			form += "--" + c.boundary + "\r\nContent-Disposition: form-data; name=\"submit\"\r\n\r\n" + c.after + "\r\n"
		}
		forms[name] = formAnswer{"multipart/form-data; boundary=" + c.boundary, form + "--" + c.boundary + "--" + c.end, 200, "", nil}
	}
	return forms
}

func TestFormOfEachClientIsStored(t *testing.T) {
	t.Parallel()
	sys := public(t)
	for _, size := range []int{100 << 10, 3 << 20, 6 << 20} {
		content := random(size, 1)
		wantForms(t, sys, content, clientForms(content))
	}
}

func TestFormLimitsTheBytesAfterTheFile(t *testing.T) {
	t.Parallel()
	sys := public(t)
	for _, size := range []int{1000, 100 << 10, 6 << 20} {
		content := random(size, 1)
		whole := file(content) + lastBoundary
		forms := map[string]formAnswer{
			"no last boundary":              {formType, file(content), 400, "malformed_form", nil},
			"half a last boundary":          {formType, strings.TrimSuffix(whole, "-\r\n"), 400, "malformed_form", nil},
			"a field of 64 KiB":             {formType, file(content) + field(`name="a"`, strings.Repeat("x", 64<<10)) + lastBoundary, 200, "", nil},
			"an epilogue of 64 KiB":         {formType, whole + strings.Repeat("x", 64<<10), 200, "", nil},
			"another file of 100 KiB":       {formType, file(content) + file(random(100<<10, 2)) + lastBoundary, 422, "two_files", nil},
			"an epilogue without last line": {formType, whole + strings.Repeat("x", 100<<10), 422, "invalid_argument", []string{"64 KiB", "before the file"}},
		}
		for name, after := range map[string]string{
			"a field of 64 KiB and a byte": field(`name="a"`, strings.Repeat("x", 64<<10+1)),
			"a field of 1 MiB":             field(`name="a"`, strings.Repeat("x", 1<<20)),
			"a file of 2 MiB":              field(`name="b"; filename="b"`, strings.Repeat("x", 2<<20)),
			"90 fields":                    strings.Repeat(field(`name="a"`, strings.Repeat("x", 1000)), 90),
		} {
			forms[name] = formAnswer{formType, file(content) + after + lastBoundary, 422, "invalid_argument", []string{"64 KiB", "before the file"}}
			if len(after) < 1<<20 {
				forms[name+" before the file"] = formAnswer{formType, after + whole, 200, "", nil}
			}
		}
		wantForms(t, sys, content, forms)
	}
}
