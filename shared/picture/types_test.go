package picture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"cats.example/shared/apierror"
)

var (
	be16 = func(n int) string { return string(binary.BigEndian.AppendUint16(nil, uint16(n))) }
	be32 = func(n int) string { return string(binary.BigEndian.AppendUint32(nil, uint32(n))) }
	be64 = func(n int) string { return string(binary.BigEndian.AppendUint64(nil, uint64(n))) }
	le16 = func(n int) string { return string(binary.LittleEndian.AppendUint16(nil, uint16(n))) }
	le24 = func(n int) string { return string(binary.LittleEndian.AppendUint32(nil, uint32(n))[:3]) }
	le32 = func(n int) string { return string(binary.LittleEndian.AppendUint32(nil, uint32(n))) }
)

// box returns a box of an ISO base media file.
func box(name, content string) string { return be32(8+len(content)) + name + content }

// small returns a file of testdata.
func small(t testing.TB, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// branded returns content with another ftyp box.
func branded(content, major string, compatible ...string) string {
	size := binary.BigEndian.Uint32([]byte(content))
	return box("ftyp", strings.ReplaceAll(major+be32(0)+strings.Join(compatible, ""), "_", " ")) + content[size:]
}

// lateMeta returns content with its meta box after padding bytes of mdat.
func lateMeta(content string, padding int) string {
	var found [3]string // ftyp, mdat, meta
	for at := 0; at+8 <= len(content); {
		size := int(binary.BigEndian.Uint32([]byte(content[at:])))
		if i := strings.Index("ftypmdatmeta", content[at+4:at+8]); i >= 0 {
			found[i/4] = content[at : at+size]
		}
		at += size
	}
	return found[0] + box("mdat", found[1][8:]+strings.Repeat("\x00", padding)) + found[2]
}

// longHeader returns small.jpg with segments of 64 KiB before its dimensions.
func longHeader(t testing.TB, marker byte, segments int) string {
	t.Helper()
	content := small(t, "small.jpg")
	one := "\xff" + string([]byte{marker}) + be16(65535) + strings.Repeat("x", 65533)
	return content[:2] + strings.Repeat(one, segments) + content[2:]
}

// pngChunk returns a chunk with its checksum.
func pngChunk(name, content string) string {
	return be32(len(content)) + name + content + be32(int(crc32.ChecksumIEEE([]byte(name+content))))
}

// pngOf returns the beginning of an RGBA PNG.
func pngOf(width, height int) string {
	return "\x89PNG\r\n\x1a\n" + pngChunk("IHDR", be32(width)+be32(height)+"\x08\x06\x00\x00\x00")
}

// jpegOf returns the beginning of a gray JPEG with before in front of its frame header.
func jpegOf(marker byte, before string, width, height int) string {
	jfif := "\xff\xe0" + be16(16) + "JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
	return "\xff\xd8" + jfif + before + "\xff" + string([]byte{marker}) + be16(11) + "\x08" + be16(height) + be16(width) + "\x01\x01\x11\x00\xff\xda"
}

func gifOf(width, height int) string { return "GIF89a" + le16(width) + le16(height) + "\x00\x00\x00" }

func webpOf(chunk, content string) string {
	return "RIFF" + le32(12+len(content)) + "WEBP" + chunk + le32(len(content)) + content
}

func vp8(width, height int) string {
	return webpOf("VP8 ", "\x10\x00\x00\x9d\x01\x2a"+le16(width)+le16(height))
}

func vp8l(width, height int) string { return webpOf("VP8L", "\x2f"+le32(width-1|(height-1)<<14)) }

func vp8x(flags byte, width, height int) string {
	return webpOf("VP8X", string([]byte{flags, 0, 0, 0})+le24(width-1)+le24(height-1))
}

// inspected returns the media type of content, after it has read the whole picture.
func inspected(l Limits, content string) (mediaType string, err error) {
	mediaType, whole, err := l.Inspect(strings.NewReader(content), -1)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(whole)
	if err == nil && string(b) != content {
		err = fmt.Errorf("%d bytes were returned of %d, or other bytes", len(b), len(content))
	}
	return mediaType, err
}

func TestInspectFollowsMajorAndCompatibleBrands(t *testing.T) {
	bases := map[string]string{"avif": small(t, "small.avif"), "heic": small(t, "small.heic"), "sequence": small(t, "small-sequence.avif")}
	avif, heic := bases["avif"], bases["heic"]
	type row struct{ name, content, want string }
	rows := []row{
		{"size of 64 bits", be32(1) + "ftyp" + be64(32) + "mif1" + be32(0) + "mif1avif" + avif[32:], "image/avif"},
		{"box to the end", be32(0) + "ftyp" + "miaf" + be32(0) + "mif1heic", "image/heic"},
		{"box of 5,000 brands", branded(heic, "mif1", "heic", strings.Repeat("isom", 5000)), "image/heic"},
		{"box larger than the file", be32(500) + "ftyp" + "mif1" + be32(0) + "avifmi", "image/avif"},
	}
	table, err := os.ReadFile("testdata/brands.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(strings.TrimSpace(string(table)), "\n") {
		if strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Split(line, " | ")
		r := row{fields[0], bases[fields[1]], fields[3]}
		if brands := strings.Fields(fields[2]); brands[0] != "-" {
			r.content = branded(r.content, brands[0], brands[1:]...)
		}
		rows = append(rows, r)
	}
	for _, r := range rows {
		got, err := inspected(defaults(t), r.content)
		head, headErr := defaults(t).InspectHead(strings.NewReader(r.content))
		if got != r.want || head != r.want || err != nil || headErr != nil {
			t.Errorf("%s: %q, %v; head %q, %v; want %s", r.name, got, err, head, headErr, r.want)
		}
	}
	for what, content := range map[string]string{
		"brand behind the box":        box("ftyp", "mp42"+be32(0)+"isom") + "heicmif1",
		"brand as minor version":      box("ftyp", "isom"+"heic"+"isom"),
		"brand off the grid":          box("ftyp", "isom"+be32(0)+"xxheicxx"),
		"brand in capitals":           box("ftyp", "isom"+be32(0)+"HEICMIF1"),
		"size of 64 bits, no brand":   be32(1) + "ftyp" + be64(24) + "isom" + be32(0) + "heic",
		"size smaller than its field": be32(11) + "ftypisomheicheic",
	} {
		if got, err := inspected(defaults(t), content); !errors.Is(err, apierror.ErrUnsupportedMediaType) {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
}

// accepted returns pictures without dimensions in their first HeadBytes.
func accepted(t testing.TB) map[string]struct{ content, mediaType string } {
	t.Helper()
	avif, heic := small(t, "small.avif"), small(t, "small.heic")
	huge := strings.Replace(heic, "ispe\x00\x00\x00\x00", "ispe\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff", 1)
	return map[string]struct{ content, mediaType string }{
		"late-meta.heic":                    {lateMeta(heic, 9<<20), "image/heic"},
		"late-sof.jpg":                      {longHeader(t, 0xe1, 20), "image/jpeg"},
		"comments before the dimensions":    {longHeader(t, 0xfe, 1), "image/jpeg"},
		"dimensions cut by the end of head": {jpegOf(0xc0, "\xff\xe1"+be16(HeadBytes-30)+strings.Repeat("x", HeadBytes-32), 65535, 65535), "image/jpeg"},
		"PNG with a text of 70 KB":          {"\x89PNG\r\n\x1a\n" + pngChunk("tEXt", strings.Repeat("x", 70_000)) + pngOf(1<<20, 1<<20)[8:], "image/png"},
		"WebP with a profile of 70 KB":      {webpOf("ICCP", strings.Repeat("x", 70_000)) + vp8(16383, 16383)[12:], "image/webp"},
		"box smaller than its header":       {heic + be32(3) + "free", "image/heic"},
		"box larger than the file":          {heic + be32(1<<30) + "free", "image/heic"},
		"box larger than 2^63":              {avif + be32(1) + "free" + be64(-1), "image/avif"},
		"three bytes behind the last box":   {avif + "\xff\xff\xff", "image/avif"},
		"a page behind the last box":        {heic + "<html><script>alert(1)</script>", "image/heic"},
		"HEIC of 2^64 pixels":               {huge, "image/heic"},
		"AVIF without boxes":                {box("ftyp", "avif"+be32(0)+"avif"), "image/avif"},
		"PNG signature alone":               {"\x89PNG\r\n\x1a\n", "image/png"},
		"PNG with a cut IHDR":               {pngOf(1<<20, 1<<20)[:28], "image/png"},
		"PNG without width":                 {pngOf(0, 1<<31), "image/png"},
		"JPEG signature alone":              {"\xff\xd8\xff", "image/jpeg"},
		"JPEG with arithmetic coding":       {jpegOf(0xc9, "", 65535, 65535), "image/jpeg"},
		"JPEG whose height comes later":     {jpegOf(0xc0, "", 65535, 0), "image/jpeg"},
		"GIF signature alone":               {"GIF89a", "image/gif"},
		"GIF with a cut screen":             {gifOf(65535, 65535)[:12], "image/gif"},
		"animated PNG":                      {pngOf(1, 1) + pngChunk("acTL", be32(1)+be32(0)), "image/png"},
		"GIF with a large second frame":     {gifOf(1, 1) + ",\xff\xff\xff\xff\xff\xff\xff\xff\x00", "image/gif"},
		"WebP without an image":             {webpOf("ICCP", ""), "image/webp"},
		"WebP with a cut canvas":            {vp8x(0, 1<<24, 1<<24)[:29], "image/webp"},
	}
}

func TestInspectAcceptsUnknownDimensions(t *testing.T) {
	for what, c := range accepted(t) {
		if got, err := inspected(defaults(t), c.content); err != nil || got != c.mediaType {
			t.Errorf("%s: %q, %v; want %s", what, got, err, c.mediaType)
		}
	}
}

// bombs are files with so many pixels in their first HeadBytes.
var bombs = map[string]struct {
	content string
	pixels  uint64
}{
	"PNG":                       {pngOf(14492, 14492), 14492 * 14492},
	"PNG behind a text":         {"\x89PNG\r\n\x1a\n" + pngChunk("tEXt", strings.Repeat("x", 50_000)) + pngOf(1<<20, 1<<20)[8:], 1 << 40},
	"PNG, beyond its decoder":   {pngOf(1<<31-1, 1<<31-1), (1<<31 - 1) * (1<<31 - 1)},
	"PNG, wrong checksum":       {pngOf(1<<20, 1<<20)[:29] + "\x00\x00\x00\x00", 1 << 40},
	"PNG, unknown color type":   {strings.Replace(pngOf(1<<20, 1<<20), "\x08\x06", "\x07\x05", 1), 1 << 40},
	"PNG of 2^60 pixels":        {pngOf(1<<30, 1<<30), 1 << 60},
	"PNG, beyond its format":    {pngOf(1<<31, 1<<31), 1 << 62},
	"PNG, as many as there are": {pngOf(1<<32-1, 1<<32-1), (1<<32 - 1) * (1<<32 - 1)},
	"PNG, one beyond 2^31":      {pngOf(1<<31, 1), 1 << 31},
	"JPEG":                      {jpegOf(0xc0, "", 65535, 65535), 65535 * 65535},
	"JPEG, progressive":         {jpegOf(0xc2, "", 65535, 65535), 65535 * 65535},
	"JPEG behind 50 KB":         {jpegOf(0xc0, "\xff\xe1"+be16(50_002)+strings.Repeat("x", 50_000), 65535, 65535), 65535 * 65535},
	"GIF":                       {gifOf(65535, 65535), 65535 * 65535},
	"WebP, lossy":               {vp8(16383, 16383), 16383 * 16383},
	"WebP, lossless":            {vp8l(16384, 16384), 1 << 28},
	"WebP canvas":               {vp8x(0, 20000, 20000), 4e8},
	"WebP, beyond its decoder":  {vp8x(2, 1<<24, 1<<24), 1 << 48},
	"WebP, one beyond 2^31":     {vp8x(0, 1<<16, 1<<15), 1 << 31},
}

func TestInspectRejectsTooManyPixels(t *testing.T) {
	for what, c := range bombs {
		content := c.content + strings.Repeat("\x00", 100_000)
		_, _, err := defaults(t).Inspect(strings.NewReader(content), int64(len(content)))
		if e := apierror.AsError(err); !errors.Is(err, apierror.ErrTooLarge) || !strings.HasPrefix(e.Detail, fmt.Sprintf("the picture has %d pixels (", c.pixels)) ||
			!strings.HasSuffix(e.Detail, "; at most 210000000 are accepted") {
			t.Errorf("%s: %v", what, err)
		}
		l := defaults(t)
		l.MaxPixels = c.pixels
		if _, _, err := l.Inspect(strings.NewReader(content), -1); err != nil {
			t.Errorf("%s with a limit of as many pixels: %v", what, err)
		}
		l.MaxPixels = c.pixels - 1
		if _, _, err := l.Inspect(strings.NewReader(content), -1); !errors.Is(err, apierror.ErrTooLarge) {
			t.Errorf("%s with a limit of one pixel less: %v", what, err)
		}
	}
}

func TestInspectBuffersLittle(t *testing.T) {
	tail := strings.Repeat("\x00", 1<<20)
	for what, c := range map[string]struct {
		content string
		most    int // bytes
	}{
		"PNG":  {pngOf(1, 1) + tail, 8 << 10},
		"GIF":  {gifOf(1, 1) + tail, 8 << 10},
		"WebP": {vp8x(0, 1, 1) + tail, 8 << 10},
		"AVIF": {small(t, "small.avif") + tail, 8 << 10},
		"HEIC": {lateMeta(small(t, "small.heic"), 1<<20), 8 << 10},
		"JPEG": {longHeader(t, 0xe1, 9), HeadBytes},
	} {
		body := strings.NewReader(c.content)
		if _, _, err := defaults(t).Inspect(body, -1); err != nil || len(c.content)-body.Len() > c.most {
			t.Errorf("%s: %v, after %d bytes", what, err, len(c.content)-body.Len())
		}
	}
}

func TestDecodersAllocateNothingByDimensions(t *testing.T) {
	for what, c := range bombs {
		l := defaults(t)
		l.MaxPixels = 1<<64 - 1
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _, err := l.Inspect(strings.NewReader(c.content), -1)
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; err != nil || got > 1<<20 {
			t.Errorf("%s: %d bytes, %v", what, got, err)
		}
	}
}
