package api

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// formAnswer is what POST must answer to a form; status 200 means that the form's picture is stored.
type formAnswer struct {
	contentType, body string
	status            int
	code              string
	detail            []string // pieces of it
}

// wantForms posts each form, with a length and in chunks, over a stored picture, which only a 200 may replace.
func wantForms(t *testing.T, sys *stack.System, content []byte, forms map[string]formAnswer) {
	t.Helper()
	old := harness.Random(7000, 9)
	harness.Put(t, sys, "x", old)
	for name, c := range forms {
		for _, body := range []io.Reader{strings.NewReader(c.body), harness.Chunked{Reader: strings.NewReader(c.body)}} {
			a, err := harness.Try(t.Context(), "POST", sys.URL+"/cat/x", c.contentType, body)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			want := old
			if c.status == 200 {
				want = content
			}
			if a.StatusCode != c.status || c.status != 200 && a.Field(t, "code") != c.code {
				t.Errorf("%s: %d %s; want %d %s", name, a.StatusCode, a.Body, c.status, c.code)
			}
			for _, piece := range c.detail {
				if detail, _ := a.Field(t, "detail").(string); !strings.Contains(detail, piece) || len(detail) > 1000 {
					t.Errorf("%s: the detail is %q; want %q in it", name, detail, piece)
				}
			}
			if !bytes.Equal(harness.Served(t, sys, "x"), want) {
				t.Errorf("%s: another picture is stored", name)
			}
			if a.StatusCode == 200 {
				harness.Put(t, sys, "x", old)
			}
		}
	}
}

func TestLargeFormNamesTheFieldFound(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{FrontendEnv: map[string]string{"MAX_PICTURE_SIZE": "1MiB"}, SignerEnv: map[string]string{"MAX_PICTURE_SIZE": "1MiB"}})
	large := strings.Repeat("x", 5<<20)
	for name, code := range map[string]string{"image": "missing_file", "photo": "missing_file", "file[]": "missing_file", "file": "too_large"} {
		body := harness.FormField(fmt.Sprintf(`name=%q; filename="cat.png"`, name), large) + harness.LastBoundary
		a, err := harness.Try(t.Context(), "POST", sys.URL+"/cat/x", harness.FormType, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if a.Field(t, "code") != code || code == "missing_file" && !strings.Contains(a.Field(t, "detail").(string), name) {
			t.Errorf("%s: %d %s; want %s", name, a.StatusCode, a.Body, code)
		}
	}
}

func TestFormNamesTheFieldFound(t *testing.T) {
	t.Parallel()
	forms := map[string]formAnswer{}
	for _, name := range []string{"image", "photo", "file[]", "File", "file ", "files%5B%5D", "a\tb"} {
		quoted := fmt.Sprintf("%q", name)
		for _, size := range []int{5000, 1<<20 + 1, 3 << 20} {
			forms[fmt.Sprintf("%d bytes in %s", size, quoted)] = formAnswer{
				harness.FormType, harness.FormField("name=\""+name+"\"; filename=\"cat.png\"\r\nContent-Type: image/png", string(harness.Random(size, 1))) + harness.LastBoundary,
				422, "missing_file",
				[]string{quoted, `"file"`},
			}
		}
	}
	var many strings.Builder
	for i := range 90 {
		many.WriteString(harness.FormField(fmt.Sprintf(`name="%d%s"; filename="x"`, i, strings.Repeat("n", 2000)), "x"))
	}
	large := strings.Repeat("x", 1<<20+1)
	forms["many fields"] = formAnswer{harness.FormType, many.String() + harness.LastBoundary, 422, "missing_file", []string{`"0nnn`, `"4nnn`}}
	forms["text alone"] = formAnswer{harness.FormType, harness.FormField(`name="title"`, "x") + harness.FormField(`name="text"`, "x") + harness.LastBoundary, 422, "missing_file", []string{`["title" "text"]`, `"file"`}}
	forms["a large file before the file"] = formAnswer{harness.FormType, harness.FormField(`name="image"; filename="a"`, large) + harness.FormFile(harness.Cat) + harness.LastBoundary, 422, "missing_file", []string{`"image"`}}
	forms["a file, and large text"] = formAnswer{harness.FormType, harness.FormField(`name="image"; filename="a"`, "x") + harness.FormField(`name="text"`, large) + harness.LastBoundary, 422, "missing_file", []string{`"image"`}}
	forms["a small file before the file"] = formAnswer{harness.FormType, harness.FormField(`name="image"; filename="a"`, "x") + harness.FormFile(harness.Cat) + harness.LastBoundary, 200, "", nil}
	forms["large text before the file"] = formAnswer{harness.FormType, harness.FormField(`name="text"`, large) + harness.FormFile(harness.Cat) + harness.LastBoundary, 422, "missing_file", []string{`"text"`, "in its first 1 MiB"}}
	forms["large text after the file"] = formAnswer{harness.FormType, harness.FormFile(harness.Cat) + harness.FormField(`name="after"`, large) + harness.LastBoundary, 422, "invalid_argument", []string{"before the file"}}
	forms["a large file after the file"] = formAnswer{harness.FormType, harness.FormFile(harness.Cat) + harness.FormField(`name="image"; filename="x"`, large) + harness.LastBoundary, 422, "invalid_argument", []string{"before the file"}}
	wantForms(t, harness.Public(t), harness.Cat, forms)
}

func TestFormReadsDispositionsOfSimpleClients(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	forms := map[string]formAnswer{}
	for _, disposition := range []string{
		`name="file"; filename=my cat.png`, `name="file"; filename=cat(1).png`, `name="file";; filename="cat.png"`, `name="file"; filename="cat.png";`, `name=file; filename=猫 [1], a=b.png`,
		`name="file"; filename="my "cat".png"`, `name="file"; filename="a;b" c.png"; size=5`, `name="file"; filename=x; filename*=UTF-8''%E7%8C%AB.png`, `name="file"; filename*=UTF-8''cat%201.png`,
		`name="file"; filename*=koi8-r''%CB.png`, `name="file"; filename*=broken%`, `NAME="file"; FILENAME=cat.png`, `name = "file" ; filename = "cat.png"`, `name="file"; filename="cat\"`,
	} {
		forms[disposition] = formAnswer{harness.FormType, harness.FormField(disposition, string(harness.Cat)) + harness.LastBoundary, 200, "", nil}
	}
	for _, line := range []string{`attachment; name="file"; filename="cat.png"`, `name="file"; filename="cat.png"`, `FORM-DATA;name=file;filename=cat.png`} {
		forms[line] = formAnswer{harness.FormType, "--" + harness.Boundary + "\r\ncontent-disposition:" + line + "\r\n\r\n" + string(harness.Cat) + "\r\n" + harness.LastBoundary, 200, "", nil}
	}
	for _, line := range []string{
		`form-data; name="file"; filename="cat.png`, `form-data; name="file"; name="other"; filename="cat.png"`, `form-data; name="file"; filename="x"; name="y"`, `form-data; filename="cat.png"`,
		`form-data; name="file; filename="cat.png`, `form-data`, `form-data; name="file"; filename="a"b`,
	} {
		part := "--" + harness.Boundary + "\r\nContent-Disposition: " + line + "\r\n\r\n" + string(harness.Cat) + "\r\n"
		shown := fmt.Sprintf("%q", line)
		forms[line] = formAnswer{harness.FormType, part + harness.LastBoundary, 400, "malformed_form", []string{"Content-Disposition", shown}}
		forms[line+" before the file"] = formAnswer{harness.FormType, part + harness.FormFile(harness.Cat) + harness.LastBoundary, 400, "malformed_form", []string{shown}}
		forms[line+" after the file"] = formAnswer{harness.FormType, harness.FormFile(harness.Cat) + part + harness.LastBoundary, 400, "malformed_form", []string{shown}}
	}
	for what, header := range map[string]string{
		"no Content-Disposition": "Content-Type: image/png\r\n", "an empty header": "", "no colon": "Content-Disposition form-data; name=\"a\"\r\n", "a folded first line": " Content-Disposition: form-data; name=\"a\"\r\n",
		"two of them": "Content-Disposition: form-data; name=\"file\"\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\n",
	} {
		part := "--" + harness.Boundary + "\r\n" + header + "\r\n" + string(harness.Cat) + "\r\n"
		forms[what] = formAnswer{harness.FormType, part + harness.LastBoundary, 400, "malformed_form", nil}
		forms[what+" after the file"] = formAnswer{harness.FormType, harness.FormFile(harness.Cat) + part + harness.LastBoundary, 400, "malformed_form", nil}
	}
	forms["a long one"] = formAnswer{harness.FormType, harness.FormField(`name="`+strings.Repeat("\x01", 7000), "x") + harness.LastBoundary, 400, "malformed_form", nil}
	forms["a folded one"] = formAnswer{harness.FormType, harness.FormField("name=\"file\";\r\n\tfilename=\"cat.png\"", string(harness.Cat)) + harness.LastBoundary, 200, "", nil}
	wantForms(t, sys, harness.Cat, forms)
	if harness.Elsewhere != nil {
		return // its log is out of reach
	}
	lines, err := sys.Frontend.Log.Since(0)
	if all := strings.Join(lines, "\n"); err != nil || strings.Contains(all, "cat.png") || strings.Contains(all, "filename") || !strings.Contains(all, "malformed_form") {
		t.Errorf("the log has names of files, or no reasons: %v\n%.5000s", err, all)
	}
}

func TestFormAcceptsUnquotedBoundaries(t *testing.T) {
	t.Parallel()
	forms := map[string]formAnswer{}
	for header, used := range map[string]string{
		"boundary=----=_Part_1_23.45": "----=_Part_1_23.45", "boundary=a/b": "a/b", "boundary=a:b?c": "a:b?c", "boundary=(a),b": "(a),b", "boundary=a b c": "a b c", "Boundary=x==; charset=utf-8": "x==",
		"boundary=x; charset": "x", "boundary=x;; a=b;": "x", `boundary="a=b"`: "a=b", "boundary=x; boundary=x": "x", "charset; boundary = a@b ": "a@b", "boundary=" + strings.Repeat("b", 70): strings.Repeat("b", 70), "boundary='x'": "'x'",
	} {
		forms[header] = formAnswer{"multipart/form-data; " + header, strings.ReplaceAll(harness.FormFile(harness.Cat)+harness.LastBoundary, "--"+harness.Boundary, "--"+used), 200, "", nil}
	}
	for _, header := range []string{"", "boundary=", `boundary=""`, "charset=x", "boundary=x; boundary=y", `boundary="x`, "boundary=" + strings.Repeat("b", 71)} {
		forms["rejected: "+header] = formAnswer{"multipart/form-data; " + header, strings.ReplaceAll(harness.FormFile(harness.Cat)+harness.LastBoundary, "--"+harness.Boundary, "--x"), 400, "malformed_form", nil}
	}
	wantForms(t, harness.Public(t), harness.Cat, forms)
}

func TestFormSaysThatTheBoundaryIsMissing(t *testing.T) {
	t.Parallel()
	forms := map[string]formAnswer{}
	whole := harness.FormFile(harness.Cat) + harness.LastBoundary
	for name, body := range map[string]string{
		"an empty body": "", "a picture": string(harness.Cat), "a large picture": string(harness.Random(1<<20, 1)), "another boundary": strings.ReplaceAll(whole, harness.Boundary, "another"), "another letter": strings.ReplaceAll(whole, harness.Boundary, "a-boundarx"),
		"another case": strings.ReplaceAll(whole, harness.Boundary, "A-boundary"), "more of it": strings.ReplaceAll(whole, harness.Boundary, harness.Boundary+"2"), "less of it": strings.ReplaceAll(whole, harness.Boundary, "a-bound"), "two more hyphens": strings.ReplaceAll(whole, harness.Boundary, harness.Boundary+"--2"),
		"amid a line": " " + strings.TrimSuffix(whole, harness.LastBoundary), "one long line": strings.Repeat("x", 200_000), "many lines": strings.Repeat("x\r\n", 50_000), "a long preamble": strings.Repeat("x\r\n", 10_000) + whole, "JSON": `{"file":"cat"}`, "no hyphens": strings.ReplaceAll(whole, "--", ""),
	} {
		forms[name] = formAnswer{harness.FormType, body, 400, "malformed_form", []string{"does not occur in the body", `"a-boundary"`}}
	}
	for name, preamble := range map[string]string{"a preamble": "a preamble\r\n\r\n", "a preamble with another boundary": "--another\r\n", "a preamble of 15 KiB": strings.Repeat("x", 15<<10) + "\r\n", "a preamble of lines": strings.Repeat("x\n", 7<<10)} {
		forms[name] = formAnswer{harness.FormType, preamble + whole, 200, "", nil}
	}
	forms["spaces behind the boundary"] = formAnswer{harness.FormType, strings.Replace(whole, "\r\n", " \t\r\n", 1), 200, "", nil}
	forms["line feeds alone"] = formAnswer{harness.FormType, "--" + harness.Boundary + "\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\n\n" + string(harness.Cat) + "\n--" + harness.Boundary + "--\n", 200, "", nil}
	forms["a long epilogue"] = formAnswer{harness.FormType, whole + strings.Repeat("x\r\n", 20_000), 200, "", nil}
	forms["an epilogue over the limit"] = formAnswer{harness.FormType, whole + strings.Repeat("x\r\n", 30_000), 422, "invalid_argument", []string{"64 KiB"}}
	wantForms(t, harness.Public(t), harness.Cat, forms)
}

func TestFormTellsFilesFromText(t *testing.T) {
	t.Parallel()
	part := func(header string, content []byte) string {
		return harness.FormField("name=\"file\""+header, string(content)) + harness.LastBoundary
	}
	forms := map[string]formAnswer{}
	for name, header := range map[string]string{
		"an image type": "\r\nContent-Type: image/png", "octets": "\r\nContent-Type: application/octet-stream", "an empty file name": `; filename=""`, "an empty name and a type": "; filename=\"\"\r\nContent-Type: application/octet-stream",
		"filename* alone": `; filename*=UTF-8''cat.png`, "an empty unquoted name": `; filename=`,
	} {
		forms[name] = formAnswer{harness.FormType, part(header, harness.Cat), 200, "", nil}
	}
	for name, header := range map[string]string{
		"a browser's": "; filename=\"\"\r\nContent-Type: application/octet-stream", "a browser's without a type": `; filename=""`, "an image type": "\r\nContent-Type: image/png", "an empty filename*": `; filename*=UTF-8''`,
	} {
		forms["not chosen: "+name] = formAnswer{harness.FormType, part(header, nil), 422, "missing_file", []string{"no file was chosen"}}
		forms["not chosen, more fields: "+name] = formAnswer{harness.FormType, harness.FormField(`name="a"`, "x") + strings.TrimSuffix(part(header, nil), harness.LastBoundary) + harness.FormField(`name="submit"`, "x") + harness.LastBoundary, 422, "missing_file", []string{"no file was chosen"}}
	}
	for name, header := range map[string]string{"a file name": `; filename="cat.png"`, "filename*": `; filename*=UTF-8''cat.png`} {
		forms["empty: "+name] = formAnswer{harness.FormType, part(header, nil), 422, "empty", nil}
	}
	for name, header := range map[string]string{"no type": "", "a text type": "\r\nContent-Type: text/plain; charset=utf-8", "an empty type": "\r\nContent-Type: "} {
		forms["text: "+name] = formAnswer{harness.FormType, part(header, harness.Cat), 422, "missing_file", []string{"is text"}}
	}
	wantForms(t, harness.Public(t), harness.Cat, forms)
}

func TestFormHasFewPartsAndSmallHeaders(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	header := func(lines, length int) string {
		var b strings.Builder
		b.WriteString("--" + harness.Boundary + "\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\n")
		for i := range lines - 1 {
			fmt.Fprintf(&b, "X%d: %s\r\n", i, strings.Repeat("x", length))
		}
		return b.String() + "\r\n"
	}
	rest := string(harness.Cat) + "\r\n" + harness.LastBoundary
	small := harness.FormField(`name="a"`, "")
	lines := harness.FormField(`name="a"`, strings.Repeat("1\n", 4000))
	bad := func(body string, detail ...string) formAnswer {
		return formAnswer{harness.FormType, body, 400, "malformed_form", detail}
	}
	good := func(body string) formAnswer { return formAnswer{harness.FormType, body, 200, "", nil} }
	forms := map[string]formAnswer{
		"99 parts and the file": good(strings.Repeat(small, 99) + harness.FormFile(harness.Cat) + harness.LastBoundary), "100 parts and the file": bad(strings.Repeat(small, 100)+harness.FormFile(harness.Cat)+harness.LastBoundary, "100 parts"), "100 parts behind the file": bad(harness.FormFile(harness.Cat)+strings.Repeat(small, 100)+harness.LastBoundary, "100 parts"),
		"64 lines": good(header(64, 1) + rest), "65 lines": bad(header(65, 1)+rest, "64 lines"), "64 lines of a later part": good(small + header(64, 1) + rest), "65 lines of a later part": bad(small+header(65, 1)+rest, "64 lines"),
		"3000 lines without end": bad(header(3000, 1), "64 lines"), "8000 bytes": good(header(2, 7900) + rest), "30 KiB": bad(header(2, 30<<10)+rest, "8192 bytes"), "30 KiB in a later part": bad(small+header(8, 4000)+rest, "8192 bytes"),
		"a field of short lines": good(lines + harness.FormFile(harness.Cat) + harness.LastBoundary), "two of them": good(lines + lines + harness.FormFile(harness.Cat) + lines + harness.LastBoundary),
	}
	wantForms(t, sys, harness.Cat, forms)

	// The first 256 KiB of 32 MiB are enough.
	part := strings.TrimSuffix(header(60, 0), "\r\n") + "\r\n\r\n"
	part = strings.ReplaceAll(part, "; filename=\"x\"", "")
	part = strings.ReplaceAll(part, `"file"`, `"a"`)
	conn := harness.Dial(t, sys)
	fmt.Fprintf(conn, "POST /cat/x HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", harness.FormType, 32<<20)
	if _, err := io.WriteString(conn, strings.Repeat(part, 256<<10/len(part))); err != nil {
		t.Fatal(err)
	}
	if status := harness.ReadStatus(t, conn); status != 400 {
		t.Errorf("the form of 138,967 parts: %d", status)
	}
}
