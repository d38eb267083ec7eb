package picture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"cats.example/shared/apierror"
)

func be32(n int) string { return string(binary.BigEndian.AppendUint32(nil, uint32(n))) }

// box returns a box of an ISO base media file.
func box(name, content string) string { return be32(8+len(content)) + name + content }

// branded returns content with another ftyp box.
func branded(content, major string, compatible ...string) string {
	size := binary.BigEndian.Uint32([]byte(content))
	return box("ftyp", strings.ReplaceAll(major+be32(0)+strings.Join(compatible, ""), "_", " ")) + content[size:]
}

// file returns a file of testdata.
func file(t testing.TB, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// table returns the fields of the lines of a file of testdata that are no comments.
func table(t testing.TB, name string) (rows [][]string) {
	t.Helper()
	for line := range strings.SplitSeq(strings.TrimSpace(file(t, name)), "\n") {
		if !strings.HasPrefix(line, "#") {
			rows = append(rows, strings.Split(line, " | "))
		}
	}
	return rows
}

// sample is the beginning of a picture. Its pixels are 0 if its dimensions are not in its first HeadBytes.
type sample struct {
	content, mediaType string
	pixels             uint64
}

// samples returns the pictures in testdata/pictures.txt by name.
func samples(t testing.TB) map[string]sample {
	t.Helper()
	all := map[string]sample{}
	for _, row := range table(t, "pictures.txt") {
		s := sample{mediaType: row[1]}
		if pixels, err := strconv.ParseUint(row[1], 10, 64); err == nil {
			s.pixels = pixels
		}
		for rest := row[2]; rest != ""; rest = strings.TrimPrefix(rest, " ") {
			times, quoted, repeats := strings.Cut(rest, "*")
			n, err := strconv.Atoi(times)
			if !repeats || err != nil {
				n, quoted = 1, rest
			}
			part, err := strconv.QuotedPrefix(quoted)
			if err != nil {
				t.Fatalf("%s: %q: %v", row[0], rest, err)
			}
			text, _ := strconv.Unquote(part) // QuotedPrefix has checked it
			s.content, rest = s.content+strings.Repeat(text, n), quoted[len(part):]
		}
		all[row[0]] = s
	}
	return all
}

func TestInspectFollowsMajorAndCompatibleBrands(t *testing.T) {
	bases := map[string]string{"avif": file(t, "small.avif"), "heic": file(t, "small.heic"), "sequence": file(t, "small-sequence.avif")}
	heic := bases["heic"]
	type row struct{ name, content, want string }
	rows := []row{
		{"box of 5,000 brands", branded(heic, "mif1", "heic", strings.Repeat("isom", 5000)), "image/heic"},
		{"box larger than the file", be32(500) + "ftyp" + "mif1" + be32(0) + "avifmi", "image/avif"},
		{"page behind the last box", heic + "<html><script>alert(1)</script>", "image/heic"},

		{"brand behind the box", box("ftyp", "mp42"+be32(0)+"isom") + "heicmif1", ""},
		{"brand as minor version", box("ftyp", "isom"+"heic"+"isom"), ""},
		{"brand off the grid", box("ftyp", "isom"+be32(0)+"xxheicxx"), ""},
		{"brand in capitals", box("ftyp", "isom"+be32(0)+"HEICMIF1"), ""},
		{"size smaller than its field", be32(11) + "ftypisomheicheic", ""},
	}
	for _, fields := range table(t, "brands.txt") {
		r := row{fields[0], bases[fields[1]], fields[3]}
		if brands := strings.Fields(fields[2]); brands[0] != "-" {
			r.content = branded(r.content, brands[0], brands[1:]...)
		}
		rows = append(rows, r)
	}
	for _, r := range rows {
		got, _, err := defaults(t).Inspect(strings.NewReader(r.content), -1)
		if got != r.want || (r.want == "") != errors.Is(err, apierror.ErrUnsupportedMediaType) {
			t.Errorf("%s: %q, %v; want %s", r.name, got, err, r.want)
		}
	}
}

func TestInspectLimitsPixels(t *testing.T) {
	for name, s := range samples(t) {
		content := s.content
		if s.pixels > 0 {
			content += strings.Repeat("\x00", 100_000)
		}
		inspect := func(maxPixels uint64) (string, error) {
			l := defaults(t)
			l.MaxPixels = maxPixels
			mediaType, whole, err := l.Inspect(strings.NewReader(content), int64(len(content)))
			if err == nil {
				if b, err := io.ReadAll(whole); err != nil || string(b) != content {
					t.Errorf("%s: %d bytes were returned of %d, or other bytes: %v", name, len(b), len(content), err)
				}
			}
			return mediaType, err
		}
		if mediaType, err := inspect(max(s.pixels, 1)); err != nil || s.pixels == 0 && mediaType != s.mediaType {
			t.Errorf("%s: %q, %v", name, mediaType, err)
		}
		if s.pixels == 0 {
			continue
		}
		_, err := inspect(s.pixels - 1)
		if detail := apierror.AsError(err).Detail; !errors.Is(err, apierror.ErrTooLarge) || !strings.Contains(detail, fmt.Sprintf("has %d pixels (", s.pixels)) {
			t.Errorf("%s with a limit of one pixel less: %v, %s", name, err, detail)
		}
	}
}

func TestInspectBuffersLittle(t *testing.T) {
	const tail = 1 << 20
	for name, most := range map[string]int{
		"pixel.png": 8 << 10, "pixel.gif": 8 << 10, "pixel.webp": 8 << 10, "small.avif": 8 << 10, "small.heic": 8 << 10, "JPEG with long segments": HeadBytes,
	} {
		content := samples(t)[name].content
		if content == "" {
			content = file(t, name)
		}
		body := strings.NewReader(content + strings.Repeat("\x00", tail))
		all := body.Len()
		if _, _, err := defaults(t).Inspect(body, -1); err != nil || all-body.Len() > most {
			t.Errorf("%s: %v, after %d bytes", name, err, all-body.Len())
		}
	}
}

func TestDecodersAllocateNothingByDimensions(t *testing.T) {
	for name, s := range samples(t) {
		l := defaults(t)
		l.MaxPixels = 1<<64 - 1
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _, err := l.Inspect(strings.NewReader(s.content), -1)
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; err != nil || got > 1<<20 {
			t.Errorf("%s: %d bytes, %v", name, got, err)
		}
	}
}
