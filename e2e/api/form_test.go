package api

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cats.example/e2e/harness"
)

func TestFormsOfClientsAreStored(t *testing.T) { testForms(t, "forms.txt") }

func TestInvalidFormsStoreNothing(t *testing.T) { testForms(t, "forms-invalid.txt") }

// testForms posts each form of a file, with a length and in chunks, over a stored picture. Only a form with status 200 may replace it.
func testForms(t *testing.T, file string) {
	t.Parallel()
	sys, cat, large := harness.Shared(t), string(harness.Cat), string(harness.Random(sizes[1], 1))
	text, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range strings.Split(harness.Repeat(string(text)), "\n== ")[1:] {
		heading, form, _ := strings.Cut(text, "\n")
		name, response, _ := strings.Cut(heading, ": ")
		contentType, body, _ := strings.Cut(form, "\n")
		content := cat
		if strings.Contains(body, "{large}") {
			content = large
		}
		body = strings.NewReplacer("\n", "\r\n", `\n`, "\r\n", "{large}", large, "{cat}", cat).Replace(body)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			user := harness.User(t)
			for _, length := range []int64{int64(len(body)), -1} {
				harness.Put(t, sys, user, harness.OtherPicture)
				a := harness.SendStream(t, "POST", sys.URL+"/cat/"+user, strings.NewReader(body), length, "Content-Type", contentType)
				got, want := "200", content
				if a.StatusCode != 200 {
					got = fmt.Sprint(a.StatusCode, " ", a.Field(t, "code"), " ", a.Field(t, "detail"))
					want = string(harness.OtherPicture)
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

// Each header is sent with a PUT, with a form, and in the form's part with the file; each field before and after the file.
func TestUploadRejectsPartsAndEncodings(t *testing.T) {
	t.Parallel()
	sys, file := harness.Shared(t), harness.FormFile(harness.Cat)
	form := func(body string, header ...string) harness.Call {
		return harness.Call{Method: "POST", Body: []byte(body + harness.LastBoundary), Header: append(header, "Content-Type", harness.FormType)}
	}
	for _, row := range harness.Table(t, "headers.txt") {
		status, code, lines := row[0], row[1], row[2:]
		t.Run(fmt.Sprintf("%.60s", strings.Join(lines, ", ")), func(t *testing.T) {
			t.Parallel()
			var calls []harness.Call
			if name, value, ok := strings.Cut(lines[0], "="); ok && !strings.Contains(name, ":") {
				field := harness.FormField(fmt.Sprintf("name=%q", name), value)
				calls = []harness.Call{form(field + file), form(file + field)}
			} else {
				var header []string
				for _, line := range lines {
					name, value, _ := strings.Cut(line, ": ")
					header = append(header, name, value)
				}
				inPart := strings.Replace(file, "\r\n\r\n", "\r\n"+strings.Join(lines, "\r\n")+"\r\n\r\n", 1)
				calls = []harness.Call{{Method: "PUT", Body: harness.Cat, Header: header}, form(file, header...), form(inPart)}
			}
			user := harness.User(t)
			for i, k := range calls {
				harness.Put(t, sys, user, harness.OtherPicture)
				k.Target = "/cat/" + user
				a, want := k.Do(t, sys), harness.Cat
				if got := fmt.Sprint(a.StatusCode); got != status {
					t.Errorf("call %d: %s %s; want %s", i, got, a.Body, status)
				} else if got != "200" {
					a.WantProblem(t, a.StatusCode, code)
					want = harness.OtherPicture
				}
				if status == "415" && i < 2 && a.Header.Get("Accept-Encoding") != "identity" {
					t.Errorf("call %d: Accept-Encoding %q", i, a.Header.Get("Accept-Encoding"))
				}
				harness.WantPicture(t, sys, user, want)
			}
		})
	}
}
