package api

import (
	"bytes"
	"encoding/binary"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// all types that are accepted, and how names of their files end.
var extensions = map[string]string{
	"image/jpeg": ".jpg", "image/png": ".png", "image/gif": ".gif", "image/webp": ".webp",
	"image/avif": ".avif", "image/heic": ".heic", "image/heif": ".heif",
	"image/heic-sequence": ".heics", "image/heif-sequence": ".heifs",
}

// after returns content with what stands behind mark, and so many bytes, made all
// ones: the size that a header announces.
func after(t *testing.T, content []byte, mark string, offset, length int, with byte) []byte {
	t.Helper()
	at := bytes.LastIndex(content, []byte(mark))
	if at < 0 {
		t.Fatalf("there is no %q in it", mark)
	}
	at += len(mark) + offset
	return slices.Concat(content[:at], bytes.Repeat([]byte{with}, length), content[at+length:])
}

// segments are n bytes, some less, that may stand before the frame of a JPEG.
func segments(n int) []byte {
	one := append(binary.BigEndian.AppendUint16([]byte{0xff, 0xe2}, 60_002), bytes.Repeat([]byte{'p'}, 60_000)...)
	return bytes.Repeat(one, n/len(one))
}

// sent is content in each way that there is to send it.
func sent(t *testing.T, url string, content []byte) []harness.Response {
	t.Helper()
	chunks, err := harness.Try(t.Context(), "PUT", url, "image/png", harness.Chunked{Reader: bytes.NewReader(content)})
	if err != nil {
		t.Fatal(err)
	}
	contentType, body := harness.Form(t, content)
	return []harness.Response{harness.Do(t, "PUT", url, "image/png", content), chunks, harness.Do(t, "POST", url, contentType, body)}
}

// wantServed checks as what storage serves a link.
func wantServed(t *testing.T, what, link, contentType, disposition, name string) []byte {
	t.Helper()
	a := harness.Do(t, "GET", link, "", nil).Want(t, 200)
	kind, params, err := mime.ParseMediaType(a.Header.Get("Content-Disposition"))
	if a.Header.Get("Content-Type") != contentType || kind != disposition || params["filename"] != name || err != nil {
		t.Errorf("%s is served as %q, %q; want %s, %s as %q", what, a.Header.Get("Content-Type"), a.Header.Get("Content-Disposition"), contentType, disposition, name)
	}
	return a.Body
}

func TestAPictureIsWhatItsFirstBytesSayAndIsServedAsThat(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	for want, extension := range extensions {
		content := harness.Pixel(t, want)
		if a := harness.Do(t, "PUT", sys.URL+"/cat/x", "text/html", content).Want(t, 200); a.Field(t, "content_type") != want {
			t.Errorf("%s: answered %s", want, a.Body)
		}
		inline, _ := harness.Link(t, sys, "x", "")
		saved, _ := harness.Link(t, sys, "x", "?download=evil.html")
		if !bytes.Equal(wantServed(t, want, inline, want, "inline", "cat"+extension), content) {
			t.Errorf("%s comes back as other bytes", want)
		}
		wantServed(t, want, saved, want, "attachment", "evil.html"+extension)
	}
	harness.Put(t, sys, "x", harness.Cat)
	for what, c := range map[string]struct{ content, mediaType string }{
		"text": {"hello", "text/plain"}, "HTML": {"<html><script>alert(1)</script>", "text/html"}, "HTML behind a comment": {"<!-- GIF89a --><script>alert(1)</script>", "text/html"},
		"SVG":        {`<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>`, "image/svg+xml"},
		"SVG as XML": {`<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>`, "image/svg+xml"},
		"PDF":        {"%PDF-1.7", "application/pdf"}, "script": {"#!/bin/sh\nid", "text/x-shellscript"}, "zip": {"PK\x03\x04", "application/zip"}, "TIFF": {"II*\x00", "image/tiff"},
		"MP4": {string(harness.Branded(harness.Pixel(t, "image/heic"), "mp42", "isom", "mp42")), "video/mp4"}, "MOV": {string(harness.Branded(harness.Pixel(t, "image/heic"), "qt  ", "qt  ")), "video/quicktime"},
		"CR3": {string(harness.Branded(harness.Pixel(t, "image/heic"), "crx ", "crx ", "isom")), "video/mp4"},
	} {
		for _, user := range []string{"x", "nobody"} {
			for _, a := range sent(t, sys.URL+"/cat/"+user, []byte(c.content)) {
				a.WantProblem(t, http.StatusUnsupportedMediaType, "unsupported_media_type")
				if want := "the file is " + c.mediaType + ", which is not accepted; accepted types: image/jpeg, image/png, "; !strings.HasPrefix(a.Field(t, "detail").(string), want) {
					t.Errorf("%s: %s; want %s", what, a.Body, want)
				}
			}
		}
	}
	if all := harness.BlobNames(t, sys); !slices.Equal(all, []string{"x/cat"}) || !bytes.Equal(harness.Served(t, sys, "x"), harness.Cat) {
		t.Errorf("the old picture is gone, or another is there: %q", all)
	}
}

// What is a picture and something else at once is a picture.
func TestAPictureThatIsAlsoAPageIsServedAsAPicture(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	const page = "<html><script>alert(1)</script></html>"
	for want, content := range map[string][]byte{
		"image/gif": []byte("GIF89a/*\x01\x01\x00\x00\x00*/=1;alert(1);//" + page), // valid JavaScript, of 10,799 × 257 pixels
		"image/png": append(bytes.Clone(harness.Pixel(t, "image/png")), page...),
		// Its first segment is a comment, which is a page.
		"image/jpeg": slices.Concat([]byte("\xff\xd8\xff\xfe\x00\x28"), []byte(page), harness.Pixel(t, "image/jpeg")[2:]),
	} {
		harness.Do(t, "PUT", sys.URL+"/cat/x", "text/html", content).Want(t, 200)
		for query, served := range map[string]struct{ disposition, name string }{"": {"inline", "cat"}, "?download=page.html": {"attachment", "page.html"}} {
			at, _ := harness.Link(t, sys, "x", query)
			if !bytes.Equal(wantServed(t, want, at, want, served.disposition, served.name+extensions[want]), content) {
				t.Errorf("%s comes back as other bytes", want)
			}
		}
	}
}

func TestUploadRejectsAnnouncedPixels(t *testing.T) {
	t.Parallel()
	sys := harness.StartDirect(t, stack.SystemOptions{})
	harness.Put(t, sys, "x", harness.Cat)
	jpeg := after(t, harness.Pixel(t, "image/jpeg"), "\xff\xc0", 3, 4, 0xff)
	late := func(n int) []byte { return slices.Concat(jpeg[:2], segments(n), jpeg[2:]) }
	canvas := slices.Concat([]byte("RIFF\x16\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x00\x00\x00\x00"), bytes.Repeat([]byte{0xff}, 6))
	for what, c := range map[string]struct {
		content []byte
		pixels  uint64 // 0 if it is accepted
	}{
		"PNG":                           {harness.PNG(20_000, 20_000), 4e8},
		"PNG, beyond its decoder":       {harness.PNG(1<<31-1, 1<<31-1), (1<<31 - 1) * (1<<31 - 1)},
		"PNG, beyond its format":        {after(t, harness.Cat, "IHDR", 0, 8, 0x80), 0x80808080 * 0x80808080},
		"GIF":                           {after(t, harness.Pixel(t, "image/gif"), "GIF89a", 0, 4, 0xff), 65535 * 65535},
		"WebP":                          {after(t, harness.Pixel(t, "image/webp"), "\x9d\x01\x2a", 0, 4, 0xff), 16383 * 16383},
		"WebP, beyond its decoder":      {canvas, 1 << 48},
		"JPEG":                          {jpeg, 65535 * 65535},
		"JPEG behind 60 KB":             {late(60_010), 65535 * 65535},
		"JPEG behind 300 KB":            {late(300_000), 0},
		"JPEG behind more than a block": {late(harness.OneBlob + 100_000), 0},
		"GIF with a large second frame": {slices.Concat(harness.Pixel(t, "image/gif")[:34], []byte(",\xff\xff\xff\xff\xff\xff\xff\xff\x00\x02\x02\x44\x01\x00;")), 0},
		"PNG that ends early":           {harness.Cat[:20], 0},
		"AVIF":                          {after(t, harness.Pixel(t, "image/avif"), "ispe", 4, 8, 0xff), 0},
		"HEIC":                          {after(t, harness.Pixel(t, "image/heic"), "ispe", 4, 8, 0xff), 0},
	} {
		user := map[bool]string{true: "y", false: "x"}[c.pixels == 0]
		k := harness.NewUploadSession(t, sys, user, int64(len(c.content)))
		k.Send(t, bytes.NewReader(c.content), int64(len(c.content)))
		for _, a := range append(sent(t, sys.URL+"/cat/"+user, c.content), k.Commit(t, sys, user, "")) {
			if c.pixels == 0 {
				if a.StatusCode != http.StatusOK {
					t.Errorf("%s: %d %s", what, a.StatusCode, a.Body)
				}
				continue
			}
			a.WantProblem(t, http.StatusRequestEntityTooLarge, "too_large")
			if says := "the picture has " + strconv.FormatUint(c.pixels, 10) + " pixels "; !strings.Contains(string(a.Body), says) || !strings.Contains(string(a.Body), " 210000000 are accepted") {
				t.Errorf("%s: %s; want %q", what, a.Body, says)
			}
		}
	}
	if all := harness.BlobNames(t, sys); !slices.Equal(all, []string{"x/cat", "y/cat"}) || !bytes.Equal(harness.Served(t, sys, "x"), harness.Cat) {
		t.Errorf("the old picture is gone, or another is there: %q", all)
	}
}

// The signer takes nobody's word: not a frontend's whose limits are wider, nor of
// who speaks its API in place of one.
func TestTheSignerLooksAtPicturesItself(t *testing.T) {
	t.Parallel()
	sys := harness.StartDiffering(t, stack.SystemOptions{SignerEnv: map[string]string{"ACCEPTED_TYPES": "image/png,image/jpeg", "MAX_PIXELS": "1000"}})
	small := harness.Pixel(t, "image/png")
	harness.Put(t, sys, "x", small)
	for _, a := range sent(t, sys.URL+"/cat/x", harness.Cat) {
		a.WantProblem(t, http.StatusRequestEntityTooLarge, "too_large")
	}
	for _, a := range sent(t, sys.URL+"/cat/x", harness.Pixel(t, "image/gif")) {
		a.WantProblem(t, http.StatusUnsupportedMediaType, "unsupported_media_type")
	}
	for what, c := range map[string]struct {
		content string
		status  int
	}{
		"HTML":            {"<html><script>alert(1)</script>", 415},
		"SVG":             {`<svg xmlns="http://www.w3.org/2000/svg"/>`, 415},
		"too many pixels": {string(harness.Cat), 413},
		"too many, later": {"\xff\xd8" + string(segments(60_010)) + string(after(t, harness.Pixel(t, "image/jpeg"), "\xff\xc0", 3, 4, 0xff)[2:]), 413},
	} {
		if a := harness.Send(t, "PUT", sys.SignerAPI+"/v1/picture?user=x", c.content, "Cats-Contract", "1", "Content-Type", "image/png"); a.StatusCode != c.status {
			t.Errorf("%s: %d %s; want %d", what, a.StatusCode, a.Body, c.status)
		}
	}
	if all := harness.BlobNames(t, sys); !slices.Equal(all, []string{"x/cat"}) || !bytes.Equal(harness.Served(t, sys, "x"), small) {
		t.Errorf("the old picture is gone, or another is there: %q", all)
	}
}

// Somebody with a role on the container can put there what he likes. No link makes
// a browser run it, neither a new one nor one that was given before.
func TestABlobThatIsNoPictureIsOnlyEverSaved(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	const page = "<html><script>alert(1)</script></html>"
	harness.Put(t, sys, "x", harness.Cat)
	before, _ := harness.Link(t, sys, "x", "")
	for _, contentType := range []string{"text/html", "image/svg+xml", "text/javascript", "application/pdf", "image/png; charset=utf-8", "IMAGE/PNG"} {
		if err := sys.Storage.Put(t.Context(), sys.Container, "x/cat", contentType, []byte(page)); err != nil {
			t.Fatal(err)
		}
		at, _ := harness.Link(t, sys, "x", "")
		if got := wantServed(t, contentType, at, "application/octet-stream", "attachment", "cat.bin"); string(got) != page {
			t.Errorf("%s: %q", contentType, got)
		}
		at, _ = harness.Link(t, sys, "x", "?download=page.html")
		wantServed(t, contentType, at, "application/octet-stream", "attachment", "page.html.bin")
		at = harness.Do(t, "GET", sys.URL+"/cat/x/picture", "", nil).Want(t, 307).Header.Get("Location")
		wantServed(t, contentType, at, "application/octet-stream", "attachment", "cat.bin")
		wantServed(t, contentType+" by an old link", before, "image/png", "inline", "cat.png")
	}
	if err := sys.Storage.Put(t.Context(), sys.Container, "x/cat", "image/png", []byte(page)); err != nil {
		t.Fatal(err)
	}
	at, _ := harness.Link(t, sys, "x", "")
	wantServed(t, "a page that says that it is a PNG", at, "image/png", "inline", "cat.png")
	harness.Put(t, sys, "x", harness.Pixel(t, "image/gif"))
	at, _ = harness.Link(t, sys, "x", "")
	wantServed(t, "the GIF in its place", at, "image/gif", "inline", "cat.gif")
}
