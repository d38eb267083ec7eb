package picture

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"cats.example/shared/service"
	"cats.example/shared/signerapi"
)

func defaults(t testing.TB, environ ...string) Limits {
	t.Helper()
	var l Limits
	if err := service.Parse(&l, environ); err != nil {
		t.Fatal(err)
	}
	return l
}

// pixel returns a whole picture of each type, of one pixel.
func pixel(t testing.TB, mediaType string) string {
	t.Helper()
	name := map[string]string{
		"image/jpeg": "pixel.jpg", "image/png": "pixel.png", "image/gif": "pixel.gif", "image/webp": "pixel.webp",
		"image/avif": "pixel.avif", "image/heic": "pixel.heic", "image/heif": "pixel.heic",
	}[mediaType]
	content, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	if mediaType == "image/heif" { // the same, made for more than HEVC
		content = bytes.Replace(content, []byte("ftypheic"), []byte("ftypmif1"), 1)
	}
	return string(content)
}

func TestWebImagesAreTakenForWhatTheyAre(t *testing.T) {
	l := defaults(t)
	if err := l.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, want := range l.Types {
		content := pixel(t, want) + strings.Repeat("\x00", 10_000)
		got, whole, err := l.Open(iotest.OneByteReader(strings.NewReader(content)), int64(len(content)))
		if err != nil || got != want {
			t.Errorf("%s: %q, %v", want, got, err)
			continue
		}
		if b, err := io.ReadAll(whole); err != nil || string(b) != content {
			t.Errorf("%s: %d bytes came back of %d, %v", want, len(b), len(content), err)
		}
	}
}

func TestAnAnimatedPNGIsAPNG(t *testing.T) {
	apng := pixel(t, "image/png")[:33] + "\x00\x00\x00\x08acTL\x00\x00\x00\x01"
	if got, _, err := defaults(t).Open(strings.NewReader(apng), -1); err != nil || got != "image/png" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestWhatIsNoWebImageIsRefused(t *testing.T) {
	for name, content := range map[string]string{
		"text": "hello", "html": "<!DOCTYPE html><script>", "svg": `<svg xmlns="http://www.w3.org/2000/svg"></svg>`,
		"pdf": "%PDF-1.7", "zip": "PK\x03\x04", "tiff": "II*\x00", "zeros": "\x00\x00\x00", "a PNG, one byte short": "\x89PNG\r\n\x1a",
		"a PNG, and no more": "\x89PNG\r\n\x1a\n", "a GIF, and no more": "GIF89a", "a JPEG, and no more": "\xff\xd8\xff\xe0",
	} {
		if _, _, err := defaults(t).Open(strings.NewReader(content), -1); !errors.Is(err, signerapi.ErrUnsupportedMediaType) {
			t.Errorf("%s: %v; want ErrUnsupportedMediaType", name, err)
		}
	}
}

func TestLengthsAreHeldTo(t *testing.T) {
	l := defaults(t, "MAX_PICTURE_SIZE=10000")
	png := pixel(t, "image/png")
	for _, c := range []struct {
		length, announced int
		want              error
	}{
		{10_000, 10_000, nil},
		{10_000, -1, nil},
		{10_001, -1, signerapi.ErrTooLarge},
		{10_001, 10_001, signerapi.ErrTooLarge},
		{50_000, 100, signerapi.ErrIncomplete},
		{5_000, 4_999, signerapi.ErrIncomplete},
		{5_000, 5_001, signerapi.ErrIncomplete},
		{100, 99, signerapi.ErrIncomplete},
		{100, 101, signerapi.ErrIncomplete},
		{0, -1, signerapi.ErrEmpty},
		{0, 0, signerapi.ErrEmpty},
		{0, 5, signerapi.ErrIncomplete},
	} {
		content := (png + strings.Repeat("\x00", 60_000))[:c.length]
		_, whole, err := l.Open(strings.NewReader(content), int64(c.announced))
		var n int64
		if err == nil {
			n, err = io.Copy(io.Discard, whole)
		}
		if !errors.Is(err, c.want) || (c.want == nil && n != int64(c.length)) {
			t.Errorf("%d bytes announced as %d: %d read, %v; want %v", c.length, c.announced, n, err, c.want)
		}
		if c.want != nil && n > 10_000 {
			t.Errorf("%d bytes announced as %d: %d passed the limit", c.length, c.announced, n)
		}
	}
}

// A body that breaks, whatever the error and wherever, must not look like one
// that has ended.
func TestABrokenBodyStaysBroken(t *testing.T) {
	l := defaults(t)
	for _, cause := range []error{fmt.Errorf("x: %w", io.EOF), io.ErrUnexpectedEOF, signerapi.ErrStalled} {
		for _, at := range []int{0, 1, 100, headBytes - 1, headBytes, headBytes + 1, 100_000} {
			content := pixel(t, "image/png") + strings.Repeat("\x00", 200_000)
			_, whole, err := l.Open(io.MultiReader(strings.NewReader(content[:at]), iotest.ErrReader(cause)), -1)
			if err == nil {
				_, err = io.Copy(io.Discard, whole)
			}
			if err != cause { //nolint:errorlint // as it came
				t.Errorf("cut at %d by %v: %v", at, cause, err)
			}
		}
	}
}

func TestFaultySettingsAreNamed(t *testing.T) {
	for _, environ := range []string{
		"MAX_PICTURE_SIZE=0", "MAX_PIXELS=0", "PICTURE_TYPES=image/*", "PICTURE_TYPES=cat,image/png", "PICTURE_TYPES=*",
		"PICTURE_TYPES=image/svg+xml", "PICTURE_TYPES=image/png,text/html", "PICTURE_TYPES=image/tiff", "PICTURE_TYPES=video/mp4",
	} {
		err := defaults(t, environ).Validate()
		if name, _, _ := strings.Cut(environ, "="); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", environ, err)
		}
	}
}

// FuzzOpen holds that what is accepted comes back byte for byte, and within the limit.
func FuzzOpen(f *testing.F) {
	for mediaType := range formats {
		f.Add([]byte(pixel(f, mediaType)), int64(-1))
	}
	f.Add([]byte("<svg"), int64(4))
	f.Fuzz(func(t *testing.T, content []byte, size int64) {
		l := defaults(t, "MAX_PICTURE_SIZE=5000")
		if size < -1 {
			return
		}
		mediaType, whole, err := l.Open(bytes.NewReader(content), size)
		if err != nil {
			return
		}
		if !strings.HasPrefix(mediaType, "image/") || mediaType == "image/svg+xml" {
			t.Fatalf("accepted as %q", mediaType)
		}
		got, err := io.ReadAll(whole)
		if err == nil && (!bytes.Equal(got, content) || len(got) > 5000 || (size >= 0 && size != int64(len(got)))) {
			t.Fatalf("%d bytes announced as %d came back as %d", len(content), size, len(got))
		}
	})
}

// FuzzInspect holds that the first bytes alone are judged as those of a whole picture
// are, in whatever pieces they come.
func FuzzInspect(f *testing.F) {
	for mediaType := range formats {
		f.Add([]byte(pixel(f, mediaType)), 1)
	}
	f.Add([]byte(gifOf(1, 1, gifFrameOf(0, 0, 65535, 65535))), 5000)
	f.Add([]byte(avif(boxOf("mdat", "x"), meta(ispe(1<<31, 1)))), 7)
	f.Add([]byte("<svg"), 4)
	f.Fuzz(func(t *testing.T, content []byte, piece int) {
		l := defaults(t)
		wantType, whole, want := l.Open(bytes.NewReader(content), -1)
		if want == nil {
			_, want = io.Copy(io.Discard, whole)
		}
		got, err := l.Inspect(&pieces{content, max(piece, 1)})
		if (want == nil) != (err == nil) || want != nil && signerapi.AsError(err).Code != signerapi.AsError(want).Code || err == nil && got != wantType {
			t.Fatalf("it is %q, %v; looked at whole it is %q, %v", got, err, wantType, want)
		}
	})
}

func TestInspectReadsNoMoreThanItTakes(t *testing.T) {
	tail := strings.Repeat("\x00", 1<<20)
	for name, c := range map[string]struct {
		content string
		most    int // bytes, and a buffer
		want    error
	}{
		"PNG":                     {pngOf(1, 1) + tail, 24, nil},
		"JPEG":                    {jpegOf(0xc0, strings.Repeat(segment(0xe2, strings.Repeat("x", 60_000)), 5), 7, 7) + tail, 300_100, nil},
		"AVIF, sizes at the end":  {avif(boxOf("mdat", tail), meta(ispe(1, 1))), 1 << 21, nil},
		"AVIF, sizes not reached": {avif(boxOf("mdat", tail), meta(ispe(1, 1)))[:1<<20], 1 << 20, signerapi.ErrUnsupportedMediaType},
	} {
		r := strings.NewReader(c.content)
		if _, err := defaults(t).Inspect(r); !errors.Is(err, c.want) || len(c.content)-r.Len() > c.most+32<<10 {
			t.Errorf("%s: %v, after %d bytes of %d; want %v", name, err, len(c.content)-r.Len(), len(c.content), c.want)
		}
	}
	for _, broken := range []error{errBroken, io.ErrUnexpectedEOF} { // as net/http has one that was cut
		if _, err := defaults(t).Inspect(io.MultiReader(strings.NewReader(gifOf(1, 1)), iotest.ErrReader(broken))); !errors.Is(err, broken) {
			t.Errorf("a read that fails: %v; want %v", err, broken)
		}
	}
	if _, err := defaults(t).Inspect(strings.NewReader("")); !errors.Is(err, signerapi.ErrEmpty) {
		t.Errorf("nothing: %v", err)
	}
}

var errBroken = errors.New("broken")
