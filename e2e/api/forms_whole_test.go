package api

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// uploadsWith returns the header and the body of a PUT and of a form, each with a header of its own.
func uploadsWith(header string) []harness.RawUpload {
	form := harness.FormField("name=\"file\"; filename=\"x\"\r\n"+header, string(harness.Cat)) + harness.LastBoundary
	plain := harness.FormFile(harness.Cat) + harness.LastBoundary
	return []harness.RawUpload{
		{Name: "PUT", Header: fmt.Sprintf("PUT /cat/x HTTP/1.1\r\nHost: localhost\r\n%s\r\nContent-Length: %d\r\n", header, len(harness.Cat)), Body: string(harness.Cat)},
		{Name: "POST", Header: fmt.Sprintf("POST /cat/x HTTP/1.1\r\nHost: localhost\r\n%s\r\nContent-Type: %s\r\nContent-Length: %d\r\n", header, harness.FormType, len(plain)), Body: plain},
		{Name: "POST of a part", Header: fmt.Sprintf("POST /cat/x HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\n", harness.FormType, len(form)), Body: form},
	}
}

func TestUploadRejectsPartsOfPictures(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	old := harness.Random(7000, 9)
	harness.Put(t, sys, "x", old)
	for header, partial := range map[string]bool{
		"Content-Range: bytes 0-999/5000": true, "content-range: bytes 0-4999/5000": true, "Content-Range: bytes */5000": true, "Content-Range: items 1-2/3": true, "Content-Range: nonsense": true,
		"Upload-Complete: ?0": true, "Upload-Complete: 0": true, "Upload-Incomplete: ?1": true, "Upload-Offset: 0": true, "Upload-Offset: 5000": true, "Upload-Complete: ?1\r\nUpload-Offset: 100": true,
		"Upload-Complete: ?1": false, "Upload-Incomplete: ?0": false, "Range: bytes=0-9": false, "Upload-Length: 5000": false, "X-Content-Range: bytes 0-9/10": true,
	} {
		for _, u := range uploadsWith(header) {
			a := u.AnswerOf(t, sys.URL)
			want := old
			if !partial {
				a.Want(t, 200)
				want = harness.Cat
			} else if a.WantProblem(t, 400, "partial_upload"); !strings.Contains(a.Field(t, "detail").(string), "whole pictures only") {
				t.Errorf("%s with %s: %s", u.Name, header, a.Body)
			}
			if !bytes.Equal(harness.Served(t, sys, "x"), want) {
				t.Errorf("%s with %s: another picture is stored", u.Name, header)
			}
			if !partial {
				harness.Put(t, sys, "x", old)
			}
		}
	}
	wantUnread(t, sys, "Content-Range: bytes 0-999/5000", 400)
}

func TestFormRejectsChunksOfUploaders(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	old := harness.Random(7000, 9)
	harness.Put(t, sys, "x", old)
	for total, partial := range map[[2]string]bool{
		{"dztotalchunkcount", "3"}: true, {"chunks", "2"}: true, {"resumableTotalChunks", "12"}: true, {"flowTotalChunks", " 4 "}: true, {"qqtotalparts", "2"}: true, {"Chunks", "99999"}: true,
		{"dztotalchunkcount", "1"}: false, {"chunks", "0"}: false, {"resumableTotalChunks", ""}: false, {"chunks", "many"}: false, {"totalchunks", "3"}: false,
	} {
		extra := harness.FormField(fmt.Sprintf("name=%q", total[0]), total[1])
		for where, body := range map[string]string{"before": extra + harness.FormFile(harness.Cat), "after": harness.FormFile(harness.Cat) + extra} {
			a := harness.Do(t, "POST", sys.URL+"/cat/x", harness.FormType, []byte(body+harness.LastBoundary))
			want := harness.Cat
			if partial {
				a.WantProblem(t, 400, "partial_upload")
				want = old
			} else {
				a.Want(t, 200)
			}
			if !bytes.Equal(harness.Served(t, sys, "x"), want) {
				t.Errorf("%q %s the file: another picture is stored", total, where)
			}
			harness.Put(t, sys, "x", old)
		}
	}
}

func TestUploadRejectsContentCodings(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	old := harness.Random(7000, 9)
	harness.Put(t, sys, "x", old)
	for header, coding := range map[string]string{ // "" is accepted
		"Content-Encoding: gzip": "gzip", "Content-Encoding: br": "br", "Content-Encoding: aws-chunked": "aws-chunked", "Content-Encoding: identity, zstd": "zstd", "Content-Encoding: X-GZIP": "X-GZIP", "Content-Encoding: gzip, gzip": "gzip, gzip",
		"Content-Encoding: identity\r\nContent-Encoding: deflate": "deflate", "Content-Encoding: gzip;q=1": "gzip;q=1", "Content-Encoding: " + strings.Repeat("x", 3000): strings.Repeat("x", 80),
		"Content-Transfer-Encoding: base64": "base64", "Content-Transfer-Encoding: Quoted-Printable": "Quoted-Printable", "content-transfer-encoding: x-uuencode": "x-uuencode",
		"Content-Encoding: identity": "", "Content-Encoding: Identity, IDENTITY": "", "Content-Encoding: ": "", "Content-Encoding: ,": "", "Accept-Encoding: gzip": "",
		"Content-Transfer-Encoding: binary": "", "Content-Transfer-Encoding: 8BIT": "", "Content-Transfer-Encoding: 7bit": "", "Content-Transfer-Encoding: ": "",
	} {
		for _, u := range uploadsWith(header) {
			a := u.AnswerOf(t, sys.URL)
			want := old
			if coding == "" {
				a.Want(t, 200)
				want = harness.Cat
			} else {
				a.WantProblem(t, 415, "unsupported_media_type")
				if detail := a.Field(t, "detail").(string); !strings.Contains(detail, coding) || len(detail) > 500 {
					t.Errorf("%s with %.100s: %s", u.Name, header, a.Body)
				}
				if u.Name != "POST of a part" && a.Header.Get("Accept-Encoding") != "identity" {
					t.Errorf("%s with %.100s: Accept-Encoding %q", u.Name, header, a.Header.Get("Accept-Encoding"))
				}
			}
			if !bytes.Equal(harness.Served(t, sys, "x"), want) {
				t.Errorf("%s with %.100s: another picture is stored", u.Name, header)
			}
			if coding == "" {
				harness.Put(t, sys, "x", old)
			}
		}
	}
	wantUnread(t, sys, "Content-Encoding: gzip", 415)
}

// wantUnread checks that uploads with a header are rejected before their body is read.
func wantUnread(t *testing.T, sys *stack.System, header string, status int) {
	t.Helper()
	for _, u := range uploadsWith(header)[:2] {
		conn := harness.Dial(t, sys)
		if _, err := fmt.Fprintf(conn, "%sExpect: 100-continue\r\n\r\n", u.Header); err != nil {
			t.Fatal(err)
		}
		if got := harness.ReadStatus(t, conn); got != status {
			t.Errorf("%s with %s: %d; want %d at once", u.Name, header, got, status)
		}
	}
}
