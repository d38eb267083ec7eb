package api

import (
	"bytes"
	"encoding/binary"
	"mime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cats.example/e2e/harness"
)

// extensions are the accepted types with the extensions of their file names.
var extensions = map[string]string{
	"image/jpeg": ".jpg", "image/png": ".png", "image/gif": ".gif", "image/webp": ".webp",
	"image/avif": ".avif", "image/heic": ".heic", "image/heif": ".heif",
	"image/heic-sequence": ".heics", "image/heif-sequence": ".heifs",
}

const page = "<html><script>alert(1)</script></html>"

// lateMeta returns heic with its meta box after an mdat box with padding, as some phones write it.
func lateMeta(heic []byte) []byte {
	boxes := map[string][]byte{}
	for rest := heic; len(rest) >= 8; {
		size := binary.BigEndian.Uint32(rest)
		boxes[string(rest[4:8])], rest = rest[:size], rest[size:]
	}
	return slices.Concat(boxes["ftyp"], harness.Box("mdat", boxes["mdat"][8:], make([]byte, harness.OneBlob)), boxes["meta"])
}

// lateFrame returns jpeg with n segments of 60 KB before its frame header, which announces the width and height of 65535.
func lateFrame(jpeg []byte, n int) []byte {
	frame := bytes.LastIndex(jpeg, []byte("\xff\xc0")) + 5
	segment := append(binary.BigEndian.AppendUint16([]byte{0xff, 0xe2}, 60_002), make([]byte, 60_000)...)
	return slices.Concat(jpeg[:2], bytes.Repeat(segment, n), jpeg[2:frame], bytes.Repeat([]byte{0xff}, 4), jpeg[frame+4:])
}

// wantServed fetches a signed URL and compares type, disposition and file name with want. It returns the blob.
func wantServed(t *testing.T, what, signed string, want ...string) []byte {
	t.Helper()
	a := harness.Do(t, "GET", signed, "", nil).Want(t, 200)
	disposition, params, err := mime.ParseMediaType(a.Header.Get("Content-Disposition"))
	if diff := cmp.Diff(want, []string{a.Header.Get("Content-Type"), disposition, params["filename"]}); diff != "" || err != nil {
		t.Errorf("%s: %v\n%s", what, err, diff)
	}
	return a.Body
}

func TestContentDecidesTheType(t *testing.T) {
	t.Parallel()
	sys := harness.Shared(t)
	jpeg, heic := harness.Pixel(t, "image/jpeg"), harness.Pixel(t, "image/heic")
	type row struct {
		name, mediaType string
		content         []byte
	}
	rows := []row{
		{"GIF that is a script", "image/gif", []byte("GIF89a/*\x01\x01\x00\x00\x00*/=1;alert(1);//" + page)}, // valid JavaScript
		{"PNG before a page", "image/png", append(harness.Pixel(t, "image/png"), page...)},
		// The first segment is a comment, which contains the page.
		{"JPEG around a page", "image/jpeg", slices.Concat([]byte("\xff\xd8\xff\xfe\x00\x28"), []byte(page), jpeg[2:])},
		{"JPEG with a late frame", "image/jpeg", lateFrame(jpeg, 5)},
		{"JPEG, frame in another block", "image/jpeg", lateFrame(jpeg, harness.OneBlob/60_000+1)},
		{"HEIC with a late meta box", "image/heic", lateMeta(heic)},
		{"HEIC before a broken box", "image/heic", slices.Concat(heic, []byte("\x00\x00\x00\x03free"))},
		{"HEIC with a video brand", "image/heic", harness.Branded(heic, "mp42", "isom", "mif1", "heic")},
	}
	for mediaType := range extensions {
		rows = append(rows, row{mediaType, mediaType, harness.Pixel(t, mediaType)})
	}
	for _, c := range rows {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			user, extension := harness.User(t), extensions[c.mediaType]
			for way, a := range sendAll(t, sys, user, c.content) {
				if got := a.Want(t, 200).Field(t, "content_type"); got != c.mediaType {
					t.Errorf("%s: content_type is %q", way, got)
				}
			}
			shown, _ := harness.Link(t, sys, user, "")
			if !bytes.Equal(wantServed(t, "shown", shown, c.mediaType, "inline", "cat"+extension), c.content) {
				t.Error("another picture is served")
			}
			saved, _ := harness.Link(t, sys, user, "?download=evil.html")
			wantServed(t, "saved", saved, c.mediaType, "attachment", "evil.html"+extension)
		})
	}
}

// The direct uploads show that the signer checks content itself; TestCompromisedFrontendGetsOnlyTheContract sends it more.
func TestUploadRejectsOtherContent(t *testing.T) {
	t.Parallel()
	sys := harness.Shared(t)
	const unsupported, types = "unsupported_media_type", ", which is not accepted; accepted types: image/jpeg, image/png, "
	gif := harness.Pixel(t, "image/gif")
	for _, c := range []struct {
		name, content string
		status        int
		code, detail  string
	}{
		{"HTML", "<!-- GIF89a -->" + page, 415, unsupported, "text/html" + types},
		{"SVG", `<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>`, 415, unsupported, "image/svg+xml" + types},
		{"MP4", string(harness.Branded(harness.Pixel(t, "image/heic"), "mp42", "isom", "mp42")), 415, unsupported, "video/mp4" + types},
		{"PNG of 2^62", string(harness.PNG(1<<31-1, 1<<31-1)), 413, "too_large", " 4611686014132420609 pixels "},
		{"GIF of 2^32", string(gif[:6]) + "\xff\xff\xff\xff" + string(gif[10:]), 413, "too_large", "at most 210000000 are accepted"},
		{"JPEG after 60KB", string(lateFrame(harness.Pixel(t, "image/jpeg"), 1)), 413, "too_large", " 4294836225 pixels "},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			user, nobody := harness.User(t), harness.User(t)
			harness.Put(t, sys, user, harness.OtherPicture)
			for _, name := range []string{user, nobody} {
				for way, a := range sendAll(t, sys, name, []byte(c.content)) {
					if a.WantProblem(t, c.status, c.code); !strings.Contains(a.Field(t, "detail").(string), c.detail) {
						t.Errorf("%s: %s; want %q", way, a.Body, c.detail)
					}
				}
			}
			harness.WantPicture(t, sys, user, harness.OtherPicture)
			if got := harness.BlobNames(t, sys, user, nobody); len(got) != 1 {
				t.Errorf("stored are %q", got)
			}
		})
	}
}

// Other clients with a role on the container can store any blob there. No signed URL, new or old, makes a browser execute it.
func TestForeignBlobsAreServedAsDownloads(t *testing.T) {
	t.Parallel()
	harness.NeedOwnSystem(t) // may cache the type
	sys, user := harness.Shared(t), harness.User(t)
	harness.Put(t, sys, user, harness.Cat)
	old, _ := harness.Link(t, sys, user, "")
	for _, contentType := range []string{"text/html", "image/svg+xml", "image/png; charset=utf-8", "IMAGE/PNG"} {
		if err := sys.Storage.Put(t.Context(), sys.Container, user+"/cat", contentType, []byte(page)); err != nil {
			t.Fatal(err)
		}
		shown, _ := harness.Link(t, sys, user, "")
		saved, _ := harness.Link(t, sys, user, "?download=page.html")
		wantServed(t, contentType+", an old signed URL", old, "image/png", "inline", "cat.png")
		wantServed(t, contentType, shown, "application/octet-stream", "attachment", "cat.bin")
		wantServed(t, contentType, saved, "application/octet-stream", "attachment", "page.html.bin")
	}
	harness.Put(t, sys, user, harness.Pixel(t, "image/gif"))
	shown, _ := harness.Link(t, sys, user, "")
	wantServed(t, "GIF after it", shown, "image/gif", "inline", "cat.gif")
}
