package picture

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"cats.example/shared/apierror"
	"cats.example/shared/config"
)

func defaults(t testing.TB, environ ...string) Limits {
	t.Helper()
	var l Limits
	if err := config.Parse(&l, environ); err != nil {
		t.Fatal(err)
	}
	return l
}

// pixel returns a picture of one pixel.
func pixel(t testing.TB, mediaType string) string {
	t.Helper()
	_, kind, _ := strings.Cut(mediaType, "/")
	switch kind {
	case "jpeg":
		return file(t, "pixel.jpg")
	case "heif", "heic-sequence", "heif-sequence":
		return branded(file(t, "pixel.heic"), map[string]string{"heif": "mif1", "heic-sequence": "hevc", "heif-sequence": "msf1"}[kind])
	}
	return file(t, "pixel."+kind)
}

func TestInspectAcceptsEveryDefaultType(t *testing.T) {
	l := defaults(t)
	if err := l.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, want := range l.AcceptedTypes {
		content := pixel(t, want) + strings.Repeat("\x00", 10_000)
		got, whole, err := l.Inspect(iotest.OneByteReader(strings.NewReader(content)), int64(len(content)))
		if err != nil || got != want {
			t.Errorf("%s: %q, %v", want, got, err)
			continue
		}
		if b, err := io.ReadAll(whole); err != nil || string(b) != content {
			t.Errorf("%s: %d bytes were returned of %d, %v", want, len(b), len(content), err)
		}
	}
}

func TestInspectNamesRejectedTypes(t *testing.T) {
	for content, name := range map[string]string{
		"hello": "text/plain", "<!DOCTYPE html><script>": "text/html", `<svg xmlns="http://www.w3.org/2000/svg"></svg>`: "image/svg+xml",
		"II*\x00": "image/tiff", "\x89PNG\r\n\x1a": "application/octet-stream", "the ftypheicheic is text": "text/plain",
		box("ftyp", "qt  \x00\x00\x02\x00qt  "):     "video/quicktime",
		box("ftyp", "crx \x00\x00\x00\x01crx isom"): "video/mp4", // a raw image of Canon
		box("ftyp", "heix")[:11]:                    "application/octet-stream",
	} {
		_, _, err := defaults(t).Inspect(strings.NewReader(content), -1)
		want := "the file is " + name + ", which is not accepted; accepted types: image/jpeg, image/png, "
		if !errors.Is(err, apierror.ErrUnsupportedMediaType) || !strings.HasPrefix(apierror.AsError(err).Detail, want) {
			t.Errorf("%.20q: %v; want %q", content, err, want)
		}
	}
	l := defaults(t, "ACCEPTED_TYPES=image/heif,image/png")
	for mediaType, want := range map[string]string{
		"image/heic": "image/heif", "image/heic-sequence": "", "image/heif-sequence": "", "image/avif": "", "image/jpeg": "",
	} {
		got, _, err := l.Inspect(strings.NewReader(pixel(t, mediaType)), -1)
		if got != want || (want == "") != errors.Is(err, apierror.ErrUnsupportedMediaType) {
			t.Errorf("%s if HEIF and PNG are accepted: %q, %v; want %q", mediaType, got, err, want)
		}
	}
}

func TestWithExtensionKeepsKnownExtensions(t *testing.T) {
	for _, c := range []struct{ name, mediaType, want string }{
		{"cat.JPEG", "image/jpeg", "cat.JPEG"},
		{"cat.png", "image/jpeg", "cat.png.jpg"},
		{"DSC01.HIF", "image/heic", "DSC01.HIF"},
		{"burst.heic", "image/heic-sequence", "burst.heic"},
		{"cat.heics", "image/heic", "cat.heics.heic"},
		{".jpg", "image/jpeg", ".jpg.jpg"},
		{"cat", "image/tiff", "cat"},
	} {
		if got, ok := WithExtension(c.name, c.mediaType); got != c.want || ok != (c.mediaType != "image/tiff") {
			t.Errorf("%s of %s: %q, %v; want %q", c.name, c.mediaType, got, ok, c.want)
		}
	}
}

func TestInspectEnforcesSizes(t *testing.T) {
	l := defaults(t, "MAX_PICTURE_SIZE=10000")
	png := pixel(t, "image/png")
	for _, c := range []struct {
		length, announced int
		want              error
	}{
		{10_000, -1, nil},
		{10_001, -1, apierror.ErrTooLarge},
		{50_000, 100, apierror.ErrIncomplete},
		{5_000, 4_999, apierror.ErrIncomplete},
		{5_000, 5_001, apierror.ErrIncomplete},
		{100, 101, apierror.ErrIncomplete},
		{0, -1, apierror.ErrEmpty},
		{0, 5, apierror.ErrIncomplete},
	} {
		content := (png + strings.Repeat("\x00", 60_000))[:c.length]
		_, whole, err := l.Inspect(strings.NewReader(content), int64(c.announced))
		var n int64
		if err == nil {
			n, err = io.Copy(io.Discard, whole)
		}
		if !errors.Is(err, c.want) || c.want == nil && n != int64(c.length) || n > 10_000 {
			t.Errorf("%d bytes announced as %d: %d read, %v; want %v", c.length, c.announced, n, err, c.want)
		}
	}
}

// A broken body must not look like the end of a picture, whatever the error and wherever it breaks.
func TestInspectReturnsErrorsOfTheBody(t *testing.T) {
	l := defaults(t)
	for _, cause := range []error{fmt.Errorf("x: %w", io.EOF), io.ErrUnexpectedEOF, apierror.ErrStalled} {
		for _, at := range []int{0, 1, typeBytes - 1, typeBytes, HeadBytes - 1, HeadBytes, HeadBytes + 1, 100_000} {
			for _, content := range []string{pixel(t, "image/png") + strings.Repeat("\x00", 200_000), samples(t)["JPEG with long segments"].content} {
				body := func() io.Reader { return io.MultiReader(strings.NewReader(content[:at]), iotest.ErrReader(cause)) }
				_, whole, err := l.Inspect(body(), -1)
				if err == nil {
					_, err = io.Copy(io.Discard, whole)
				}
				//lint:ignore errorsis the error must be unchanged
				if err != cause {
					t.Errorf("%.4q cut at %d by %v: %v", content, at, cause, err)
				}
				//lint:ignore errorsis the error must be unchanged
				if _, err := l.InspectHead(body()); err != cause && (err != nil || at < typeBytes) {
					t.Errorf("the head of %.4q cut at %d by %v: %v", content, at, cause, err)
				}
			}
		}
	}
}

func TestValidateNamesTheFaultySetting(t *testing.T) {
	for _, environ := range []string{
		"MAX_PICTURE_SIZE=0", "MAX_PIXELS=0", "ACCEPTED_TYPES=image/*", "ACCEPTED_TYPES=cat,image/png", "ACCEPTED_TYPES=*",
		"ACCEPTED_TYPES=image/svg+xml", "ACCEPTED_TYPES=image/png,text/html", "ACCEPTED_TYPES=image/tiff", "ACCEPTED_TYPES=video/mp4",
	} {
		err := defaults(t, environ).Validate()
		if name, _, _ := strings.Cut(environ, "="); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", environ, err)
		}
	}
}

// FuzzInspectHead checks that an accepted picture is returned unchanged, and that InspectHead decides like Inspect, whatever the
// sizes of the reads.
func FuzzInspectHead(f *testing.F) {
	for mediaType := range extensions {
		f.Add([]byte(pixel(f, mediaType)))
	}
	for _, s := range samples(f) {
		f.Add([]byte(s.content))
		f.Add([]byte(s.content + strings.Repeat("\x00", 100_000)))
	}
	f.Add([]byte("<svg"))
	f.Fuzz(func(t *testing.T, content []byte) {
		l := defaults(t)
		wantType, whole, want := l.Inspect(bytes.NewReader(content), -1)
		if want == nil {
			got, err := io.ReadAll(whole)
			if want = err; err == nil && (!bytes.Equal(got, content) || !slices.Contains(l.AcceptedTypes, wantType)) {
				t.Fatalf("%d bytes were returned as %d of type %q", len(content), len(got), wantType)
			}
		}
		got, err := l.InspectHead(iotest.OneByteReader(bytes.NewReader(content[:min(len(content), HeadBytes)])))
		if fmt.Sprint(err) != fmt.Sprint(want) || got != wantType {
			t.Fatalf("InspectHead returns %q, %v; Inspect %q, %v", got, err, wantType, want)
		}
	})
}
