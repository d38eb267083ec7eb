package api

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"cats.example/e2e/harness"
)

func TestFormsOfClientsAreStored(t *testing.T) { testForms(t, "forms.txt") }

func TestInvalidFormsStoreNothing(t *testing.T) { testForms(t, "forms-invalid.txt") }

// testForms posts each form of a file, with a length and in chunks, over a stored picture. Only a form with status 200 may replace it.
func testForms(t *testing.T, file string) {
	t.Parallel()
	sys := harness.Shared(t)
	large := string(harness.Random(sizes[1], 1))
	_, forms, _ := strings.Cut(readFile(t, file), "\n== ")
	for text := range strings.SplitSeq(forms, "\n== ") {
		heading, form, _ := strings.Cut(text, "\n")
		contentType, body, _ := strings.Cut(form, "\n")
		name, response, _ := strings.Cut(heading, ": ")
		content := string(harness.Cat)
		if strings.Contains(body, "{large}") {
			content = large
		}
		body = strings.NewReplacer("\n", "\r\n", "{large}", large, "{cat}", string(harness.Cat)).Replace(body)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			user := harness.User(t)
			for _, reader := range []io.Reader{strings.NewReader(body), harness.Chunked{Reader: strings.NewReader(body)}} {
				harness.Put(t, sys, user, harness.OtherPicture)
				a, err := harness.Try(t.Context(), "POST", sys.URL+"/cat/"+user, contentType, reader)
				if err != nil {
					t.Fatal(err)
				}
				got := fmt.Sprint(a.StatusCode)
				want := content
				if got != "200" {
					a.WantProblem(t, a.StatusCode, fmt.Sprint(a.Field(t, "code")))
					got, want = fmt.Sprint(a.StatusCode, " ", a.Field(t, "code"), " ", a.Field(t, "detail")), string(harness.OtherPicture)
				}
				code, detail, _ := strings.Cut(response, ", ")
				if !strings.HasPrefix(got, code) || !strings.Contains(got, detail) {
					t.Errorf("%s; want %s", got, response)
				}
				harness.WantPicture(t, sys, user, []byte(want))
			}
		})
	}
}

// The program must limit the headers of parts, which is a setting of the Go runtime.
func TestFormsWithManyPartsAreRejectedEarly(t *testing.T) {
	t.Parallel()
	sys, user := harness.Shared(t), harness.User(t)
	lines := func(n int) string {
		return strings.Replace(harness.FormFile(harness.Cat), "\r\n\r\n", "\r\n"+strings.Repeat("X: x\r\n", n-1)+"\r\n", 1)
	}
	field := harness.FormField(`name="a"`, "")
	for body, detail := range map[string]string{
		lines(64): "", lines(65): "64 lines", field + lines(65): "64 lines",
		strings.Repeat(field, 99) + harness.FormFile(harness.Cat): "", strings.Repeat(field, 100) + harness.FormFile(harness.Cat): "100 parts",
	} {
		a := harness.Do(t, "POST", sys.URL+"/cat/"+user, harness.FormType, []byte(body+harness.LastBoundary))
		if detail == "" {
			a.Want(t, 200)
		} else if a.WantProblem(t, 400, "malformed_form"); !strings.Contains(a.Field(t, "detail").(string), detail) {
			t.Errorf("%s; want %s", a.Body, detail)
		}
	}
	// The first 256 KiB of 32 MiB are enough.
	part := harness.FormField("name=\"a\"\r\n"+strings.TrimSuffix(strings.Repeat("x:\r\n", 60), "\r\n"), "")
	conn := harness.Dial(t, sys)
	fmt.Fprintf(conn, "POST /cat/%s HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", user, harness.FormType, 32<<20)
	if _, err := io.WriteString(conn, strings.Repeat(part, 256<<10/len(part))); err != nil {
		t.Fatal(err)
	}
	if status := harness.ReadStatus(t, conn); status != 400 {
		t.Errorf("a form of many parts: %d", status)
	}
}

// Parts of pictures and encoded pictures are rejected, as a request and as the file of a form.
func TestUploadRejectsPartsAndEncodings(t *testing.T) {
	t.Parallel()
	sys := harness.Shared(t)
	for _, row := range readTable(t, "headers.txt") {
		status, code, lines := row[0], row[1], row[2:]
		t.Run(fmt.Sprintf("%.60s", strings.Join(lines, ", ")), func(t *testing.T) {
			t.Parallel()
			user, field := harness.User(t), ""
			if name, value, ok := strings.Cut(lines[0], "="); ok && !strings.Contains(name, ":") {
				lines, field = nil, harness.FormField(fmt.Sprintf("name=%q", name), value)
			}
			var header []string
			for _, line := range lines {
				name, value, _ := strings.Cut(line, ": ")
				header = append(header, name, value)
			}
			inPart := harness.FormField(strings.Join(append([]string{`name="file"; filename="x"`}, lines...), "\r\n"), string(harness.Cat))
			plain := append(header, "Content-Type", harness.FormType)
			uploads := []harness.Call{
				{Method: "PUT", Body: harness.Cat, Header: header},
				{Method: "POST", Body: []byte(harness.FormFile(harness.Cat) + harness.LastBoundary), Header: plain},
				{Method: "POST", Body: []byte(inPart + harness.LastBoundary), Header: plain[len(header):]},
			}
			if field != "" {
				uploads = []harness.Call{
					{Method: "POST", Body: []byte(field + harness.FormFile(harness.Cat) + harness.LastBoundary), Header: plain},
					{Method: "POST", Body: []byte(harness.FormFile(harness.Cat) + field + harness.LastBoundary), Header: plain},
				}
			}
			for i, u := range uploads {
				harness.Put(t, sys, user, harness.OtherPicture)
				u.Target = "/cat/" + user
				a, want := u.Do(t, sys), harness.OtherPicture
				if fmt.Sprint(a.StatusCode) != status {
					t.Errorf("upload %d: %d %s; want %s", i, a.StatusCode, a.Body, status)
				}
				if status == "200" {
					want = harness.Cat
				} else if a.WantProblem(t, a.StatusCode, code); status == "415" && i < 2 && a.Header.Get("Accept-Encoding") != "identity" {
					t.Errorf("upload %d: Accept-Encoding %q", i, a.Header.Get("Accept-Encoding"))
				}
				harness.WantPicture(t, sys, user, want)
			}
		})
	}
}
