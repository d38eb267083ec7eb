package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"cats.example/local/stack"
)

// uploadsWith returns the header and the body of a PUT and of a form, each with a header of its own.
func uploadsWith(header string) []upload {
	form := field("name=\"file\"; filename=\"x\"\r\n"+header, string(cat)) + lastBoundary
	plain := file(cat) + lastBoundary
	return []upload{
		{"PUT", fmt.Sprintf("PUT /cat/x HTTP/1.1\r\nHost: localhost\r\n%s\r\nContent-Length: %d\r\n", header, len(cat)), string(cat)},
		{"POST", fmt.Sprintf("POST /cat/x HTTP/1.1\r\nHost: localhost\r\n%s\r\nContent-Type: %s\r\nContent-Length: %d\r\n", header, formType, len(plain)), plain},
		{"POST of a part", fmt.Sprintf("POST /cat/x HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\n", formType, len(form)), form},
	}
}

// answerOf sends a request as it is, and returns its answer.
func (u upload) answerOf(t *testing.T, target string) answer {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(u.header, "\r\n"), "\r\n")
	method, _, _ := strings.Cut(lines[0], " ")
	req, err := http.NewRequestWithContext(t.Context(), method, target+"/cat/x", strings.NewReader(u.body))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range lines[1:] {
		if name, value, _ := strings.Cut(line, ": "); name != "Content-Length" && name != "Host" {
			req.Header.Add(name, value)
		}
	}
	return answerTo(t, client(), req)
}

func TestUploadRejectsPartsOfPictures(t *testing.T) {
	t.Parallel()
	sys := public(t)
	old := random(7000, 9)
	put(t, sys, "x", old)
	for header, partial := range map[string]bool{
		"Content-Range: bytes 0-999/5000": true, "content-range: bytes 0-4999/5000": true, "Content-Range: bytes */5000": true, "Content-Range: items 1-2/3": true, "Content-Range: nonsense": true,
		"Upload-Complete: ?0": true, "Upload-Complete: 0": true, "Upload-Incomplete: ?1": true, "Upload-Offset: 0": true, "Upload-Offset: 5000": true, "Upload-Complete: ?1\r\nUpload-Offset: 100": true,
		"Upload-Complete: ?1": false, "Upload-Incomplete: ?0": false, "Range: bytes=0-9": false, "Upload-Length: 5000": false, "X-Content-Range: bytes 0-9/10": true,
	} {
		for _, u := range uploadsWith(header) {
			a := u.answerOf(t, sys.URL)
			want := old
			if !partial {
				a.want(t, 200)
				want = cat
			} else if a.problem(t, 400, "partial_upload"); !strings.Contains(a.field(t, "detail").(string), "whole pictures only") {
				t.Errorf("%s with %s: %s", u.name, header, a.body)
			}
			if !bytes.Equal(served(t, sys, "x"), want) {
				t.Errorf("%s with %s: another picture is stored", u.name, header)
			}
			if !partial {
				put(t, sys, "x", old)
			}
		}
	}
	wantUnread(t, sys, "Content-Range: bytes 0-999/5000", 400)
}

func TestFormRejectsChunksOfUploaders(t *testing.T) {
	t.Parallel()
	sys := public(t)
	old := random(7000, 9)
	put(t, sys, "x", old)
	for total, partial := range map[[2]string]bool{
		{"dztotalchunkcount", "3"}: true, {"chunks", "2"}: true, {"resumableTotalChunks", "12"}: true, {"flowTotalChunks", " 4 "}: true, {"qqtotalparts", "2"}: true, {"Chunks", "99999"}: true,
		{"dztotalchunkcount", "1"}: false, {"chunks", "0"}: false, {"resumableTotalChunks", ""}: false, {"chunks", "many"}: false, {"totalchunks", "3"}: false,
	} {
		extra := field(fmt.Sprintf("name=%q", total[0]), total[1])
		for where, body := range map[string]string{"before": extra + file(cat), "after": file(cat) + extra} {
			a := do(t, "POST", sys.URL+"/cat/x", formType, []byte(body+lastBoundary))
			want := cat
			if partial {
				a.problem(t, 400, "partial_upload")
				want = old
			} else {
				a.want(t, 200)
			}
			if !bytes.Equal(served(t, sys, "x"), want) {
				t.Errorf("%q %s the file: another picture is stored", total, where)
			}
			put(t, sys, "x", old)
		}
	}
}

func TestUploadRejectsContentCodings(t *testing.T) {
	t.Parallel()
	sys := public(t)
	old := random(7000, 9)
	put(t, sys, "x", old)
	for header, coding := range map[string]string{ // "" is accepted
		"Content-Encoding: gzip": "gzip", "Content-Encoding: br": "br", "Content-Encoding: aws-chunked": "aws-chunked", "Content-Encoding: identity, zstd": "zstd", "Content-Encoding: X-GZIP": "X-GZIP", "Content-Encoding: gzip, gzip": "gzip, gzip",
		"Content-Encoding: identity\r\nContent-Encoding: deflate": "deflate", "Content-Encoding: gzip;q=1": "gzip;q=1", "Content-Encoding: " + strings.Repeat("x", 3000): strings.Repeat("x", 80),
		"Content-Transfer-Encoding: base64": "base64", "Content-Transfer-Encoding: Quoted-Printable": "Quoted-Printable", "content-transfer-encoding: x-uuencode": "x-uuencode",
		"Content-Encoding: identity": "", "Content-Encoding: Identity, IDENTITY": "", "Content-Encoding: ": "", "Content-Encoding: ,": "", "Accept-Encoding: gzip": "",
		"Content-Transfer-Encoding: binary": "", "Content-Transfer-Encoding: 8BIT": "", "Content-Transfer-Encoding: 7bit": "", "Content-Transfer-Encoding: ": "",
	} {
		for _, u := range uploadsWith(header) {
			a := u.answerOf(t, sys.URL)
			want := old
			if coding == "" {
				a.want(t, 200)
				want = cat
			} else {
				a.problem(t, 415, "unsupported_media_type")
				if detail := a.field(t, "detail").(string); !strings.Contains(detail, coding) || len(detail) > 500 {
					t.Errorf("%s with %.100s: %s", u.name, header, a.body)
				}
				if u.name != "POST of a part" && a.Header.Get("Accept-Encoding") != "identity" {
					t.Errorf("%s with %.100s: Accept-Encoding %q", u.name, header, a.Header.Get("Accept-Encoding"))
				}
			}
			if !bytes.Equal(served(t, sys, "x"), want) {
				t.Errorf("%s with %.100s: another picture is stored", u.name, header)
			}
			if coding == "" {
				put(t, sys, "x", old)
			}
		}
	}
	wantUnread(t, sys, "Content-Encoding: gzip", 415)
}

// wantUnread checks that uploads with a header are rejected before their body is read.
func wantUnread(t *testing.T, sys *stack.System, header string, status int) {
	t.Helper()
	for _, u := range uploadsWith(header)[:2] {
		conn := dial(t, sys)
		if _, err := fmt.Fprintf(conn, "%sExpect: 100-continue\r\n\r\n", u.header); err != nil {
			t.Fatal(err)
		}
		if got := statusOf(t, conn); got != status {
			t.Errorf("%s with %s: %d; want %d at once", u.name, header, got, status)
		}
	}
}
