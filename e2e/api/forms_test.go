package api

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"cats.example/e2e/harness"
)

// sizes are of pictures that go to storage in one piece and in several.
var sizes = []int{5000, harness.OneBlob + 5000}

func TestAFormMayHaveOtherFieldsAndAnyLegalShape(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	for _, size := range sizes {
		content := append(harness.Random(size, 1), "\r\n--a-boundar\r\n--\r\n--another--\r\n"...)
		for name, c := range map[string]struct{ contentType, body string }{
			"the file alone":          {harness.FormType, harness.FormFile(content) + harness.LastBoundary},
			"fields before and after": {harness.FormType, harness.FormField(`name="title"`, "x") + harness.FormField(`name="long"`, strings.Repeat("x", 600<<10)) + harness.FormFile(content) + harness.FormField(`name="z"`, strings.Repeat("z", 60<<10)) + harness.LastBoundary},
			"another file before":     {harness.FormType, harness.FormField(`name="other"; filename="cat.png"`, "no picture") + harness.FormFile(content) + harness.LastBoundary},
			"preamble and epilogue":   {harness.FormType, "a preamble\r\n" + harness.FormFile(content) + harness.LastBoundary + "an epilogue"},
			"no line end at the end":  {harness.FormType, harness.FormFile(content) + strings.TrimSuffix(harness.LastBoundary, "\r\n")},
			"no quotes":               {harness.FormType, harness.FormField(`name=file; filename=cat.png`, string(content)) + harness.LastBoundary},
			"a file name in Cyrillic": {harness.FormType, harness.FormField(`name="file"; filename="Мурчик.png"`, string(content)) + harness.LastBoundary},
			"a path for a file name":  {harness.FormType, harness.FormField(`name="file"; filename="../../etc/passwd"`, string(content)) + harness.LastBoundary},
			"a claimed content type":  {harness.FormType, harness.FormField("name=\"file\"; filename=\"cat.png\"\r\nContent-Type: text/html", string(content)) + harness.LastBoundary},
			"a quoted boundary":       {`Multipart/Form-Data; charset=utf-8; boundary="` + harness.Boundary + `"`, harness.FormFile(content) + harness.LastBoundary},
		} {
			if size > harness.OneBlob && name != "fields before and after" {
				continue // what is large is slow, and the shape is all the same
			}
			for _, body := range []io.Reader{strings.NewReader(c.body), harness.Chunked{Reader: strings.NewReader(c.body)}} {
				harness.Put(t, sys, "x", harness.Cat)
				a, err := harness.Try(t.Context(), "POST", sys.URL+"/cat/x", c.contentType, body)
				if err != nil {
					t.Fatal(err)
				}
				if a.StatusCode != 200 || a.Field(t, "content_type") != "image/png" || a.Field(t, "size") != float64(len(content)) {
					t.Errorf("%s: %d %s", name, a.StatusCode, a.Body)
				}
				if !bytes.Equal(harness.Served(t, sys, "x"), content) {
					t.Errorf("%s: another picture is stored", name)
				}
			}
		}
	}
}

func TestAFormThatIsNotWholeStoresNothing(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	old := harness.Random(7000, 9)
	harness.Put(t, sys, "x", old)
	for _, size := range sizes {
		content := harness.Random(size, 1)
		whole := harness.FormFile(content) + harness.LastBoundary
		for name, c := range map[string]struct {
			contentType, body string
			status            int
			code              string
		}{
			"no last boundary":            {harness.FormType, strings.TrimSuffix(whole, harness.LastBoundary), 400, "malformed_form"},
			"half a last boundary":        {harness.FormType, strings.TrimSuffix(whole, "ry--\r\n"), 400, "malformed_form"},
			"a last boundary without --":  {harness.FormType, strings.TrimSuffix(whole, "--\r\n"), 400, "malformed_form"},
			"the middle of the file":      {harness.FormType, whole[:len(whole)/2], 400, "malformed_form"},
			"another part, cut":           {harness.FormType, harness.FormFile(content) + harness.FormField(`name="a"`, "x")[:40], 400, "malformed_form"},
			"another part of no byte":     {harness.FormType, harness.FormFile(content) + "--" + harness.Boundary + "\r\n", 400, "malformed_form"},
			"two files":                   {harness.FormType, harness.FormFile(content) + harness.FormFile(harness.Cat) + harness.LastBoundary, 422, "two_files"},
			"two files, far apart":        {harness.FormType, harness.FormFile(content) + harness.FormField(`name="a"`, "x") + harness.FormFile(harness.Cat) + harness.LastBoundary, 422, "two_files"},
			"two files, the second text":  {harness.FormType, harness.FormFile(content) + harness.FormField(`name="file"`, "x") + harness.LastBoundary, 422, "two_files"},
			"two files, the second empty": {harness.FormType, harness.FormFile(content) + harness.FormFile(nil) + harness.LastBoundary, 422, "two_files"},
			"no file":                     {harness.FormType, harness.FormField(`name="picture"; filename="a.png"`, string(content[:5000])) + harness.LastBoundary, 422, "missing_file"},
			"no field":                    {harness.FormType, harness.LastBoundary, 422, "missing_file"},
			"the file as text":            {harness.FormType, harness.FormField(`name="file"`, string(content[:5000])) + harness.LastBoundary, 422, "missing_file"},
			"an empty file":               {harness.FormType, harness.FormFile(nil) + harness.LastBoundary, 422, "empty"},
			"an empty body":               {harness.FormType, "", 400, "malformed_form"},
			"another boundary":            {harness.FormType + "2", whole, 400, "malformed_form"},
			"no boundary":                 {"multipart/form-data", whole, 400, "malformed_form"},
			"an endless boundary":         {"multipart/form-data; boundary=" + strings.Repeat("b", 100), whole, 400, "malformed_form"},
			"long fields before":          {harness.FormType, harness.FormField(`name="a"`, strings.Repeat("x", 1<<20+1)) + whole, 422, "missing_file"},
			"long fields after":           {harness.FormType, harness.FormFile(content) + harness.FormField(`name="a"`, strings.Repeat("x", 64<<10+1)) + harness.LastBoundary, 422, "invalid_argument"},
			"a long header":               {harness.FormType, harness.FormField(`name="a"; x="`+strings.Repeat("x", 30<<10)+`"`, "x") + whole, 400, "malformed_form"},
			"a form without files":        {"application/x-www-form-urlencoded", "file=cat", 422, "missing_file"},
			"no content type":             {"", whole, 422, "missing_file"},
			"multipart/mixed":             {"multipart/mixed; boundary=" + harness.Boundary, whole, 422, "missing_file"},
		} {
			if size > harness.OneBlob && len(c.body) < harness.OneBlob {
				continue // the same as before
			}
			for _, user := range []string{"x", "nobody"} {
				a := harness.Do(t, "POST", sys.URL+"/cat/"+user, c.contentType, []byte(c.body))
				if a.StatusCode != c.status || a.Field(t, "code") != c.code {
					t.Errorf("%s, %d bytes: %d %s; want %d %s", name, size, a.StatusCode, a.Body, c.status, c.code)
				}
			}
			if !bytes.Equal(harness.Served(t, sys, "x"), old) {
				t.Errorf("%s, %d bytes: the old picture is gone", name, size)
				harness.Put(t, sys, "x", old)
			}
		}
	}
	if all := harness.BlobNames(t, sys); len(all) != 1 {
		t.Errorf("%q are stored; want the old picture alone", all)
	}
	if harness.Elsewhere != nil {
		return // its metrics are out of reach
	}
	harness.Eventually(t, func() error { // the client may have its answer before the signer is done
		if held := harness.Series(t, sys.SignerOps, "cats_signer_upload_buffers_in_use"); held != 0 {
			return fmt.Errorf("%v bytes of buffers were not given back", held)
		}
		return nil
	})
}

// A client that waits to be asked is asked for what may be stored, and for
// nothing else.
func TestAClientThatWaitsIsAskedForWhatMayBeStored(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	const header = "Host: localhost\r\nExpect: 100-continue\r\n"
	for name, c := range map[string]struct {
		request string
		status  int
	}{
		"PUT over the limit":       {"PUT /cat/x HTTP/1.1\r\n" + header + "Content-Length: 33554433\r\n\r\n", 413},
		"POST over the limit":      {"POST /cat/x HTTP/1.1\r\n" + header + "Content-Type: " + harness.FormType + "\r\nContent-Length: 1000000000\r\n\r\n", 413},
		"PUT for a name not valid": {"PUT /cat/a%5Cb HTTP/1.1\r\n" + header + "Content-Length: 1000\r\n\r\n", 422},
		"POST that is no form":     {"POST /cat/x HTTP/1.1\r\n" + header + "Content-Type: image/png\r\nContent-Length: 1000\r\n\r\n", 422},
		"PUT elsewhere":            {"PUT /service HTTP/1.1\r\n" + header + "Content-Length: 1000\r\n\r\n", 405},
		"PUT nowhere":              {"PUT /dog/x HTTP/1.1\r\n" + header + "Transfer-Encoding: chunked\r\n\r\n", 404},
	} {
		conn := harness.Dial(t, sys)
		if _, err := io.WriteString(conn, c.request); err != nil {
			t.Fatal(err)
		}
		if status := harness.ReadStatus(t, conn); status != c.status { // of the first answer: 100 if it is asked for
			t.Errorf("%s: %d; want %d at once", name, status, c.status)
		}
	}
	conn := harness.Dial(t, sys)
	fmt.Fprintf(conn, "PUT /cat/x HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n", header, len(harness.Cat))
	if status := harness.ReadStatus(t, conn); status != http.StatusContinue {
		t.Fatalf("PUT: %d; want 100", status)
	}
	if _, err := conn.Write(harness.Cat); err != nil {
		t.Fatal(err)
	}
	if status := harness.ReadStatus(t, conn); status != 200 || !bytes.Equal(harness.Served(t, sys, "x"), harness.Cat) {
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
	sys := harness.Public(t)
	for _, size := range []int{100 << 10, 3 << 20, 6 << 20} {
		content := harness.Random(size, 1)
		wantForms(t, sys, content, clientForms(content))
	}
}

func TestFormLimitsTheBytesAfterTheFile(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	for _, size := range []int{1000, 100 << 10, 6 << 20} {
		content := harness.Random(size, 1)
		whole := harness.FormFile(content) + harness.LastBoundary
		forms := map[string]formAnswer{
			"no last boundary":              {harness.FormType, harness.FormFile(content), 400, "malformed_form", nil},
			"half a last boundary":          {harness.FormType, strings.TrimSuffix(whole, "-\r\n"), 400, "malformed_form", nil},
			"a field of 64 KiB":             {harness.FormType, harness.FormFile(content) + harness.FormField(`name="a"`, strings.Repeat("x", 64<<10)) + harness.LastBoundary, 200, "", nil},
			"an epilogue of 64 KiB":         {harness.FormType, whole + strings.Repeat("x", 64<<10), 200, "", nil},
			"another file of 100 KiB":       {harness.FormType, harness.FormFile(content) + harness.FormFile(harness.Random(100<<10, 2)) + harness.LastBoundary, 422, "two_files", nil},
			"an epilogue without last line": {harness.FormType, whole + strings.Repeat("x", 100<<10), 422, "invalid_argument", []string{"64 KiB", "before the file"}},
		}
		for name, after := range map[string]string{
			"a field of 64 KiB and a byte": harness.FormField(`name="a"`, strings.Repeat("x", 64<<10+1)),
			"a field of 1 MiB":             harness.FormField(`name="a"`, strings.Repeat("x", 1<<20)),
			"a file of 2 MiB":              harness.FormField(`name="b"; filename="b"`, strings.Repeat("x", 2<<20)),
			"90 fields":                    strings.Repeat(harness.FormField(`name="a"`, strings.Repeat("x", 1000)), 90),
		} {
			forms[name] = formAnswer{harness.FormType, harness.FormFile(content) + after + harness.LastBoundary, 422, "invalid_argument", []string{"64 KiB", "before the file"}}
			if len(after) < 1<<20 {
				forms[name+" before the file"] = formAnswer{harness.FormType, after + whole, 200, "", nil}
			}
		}
		wantForms(t, sys, content, forms)
	}
}
