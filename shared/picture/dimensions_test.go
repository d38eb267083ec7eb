package picture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/gif"
	"image/jpeg"
	"image/png"
	"io"
	"math"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/image/webp"

	"cats.example/shared/signerapi"
)

var (
	be16 = func(n int) string { return string(binary.BigEndian.AppendUint16(nil, uint16(n))) }
	be32 = func(n int) string { return string(binary.BigEndian.AppendUint32(nil, uint32(n))) }
	le16 = func(n int) string { return string(binary.LittleEndian.AppendUint16(nil, uint16(n))) }
	le24 = func(n int) string { return string(binary.LittleEndian.AppendUint32(nil, uint32(n))[:3]) }
	le32 = func(n int) string { return string(binary.LittleEndian.AppendUint32(nil, uint32(n))) }
)

func pngOf(w, h int) string {
	return "\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + be32(w) + be32(h) + "\x08\x06\x00\x00\x00"
}

func segment(marker byte, content string) string {
	return "\xff" + string([]byte{marker}) + be16(len(content)+2) + content
}

// jpegOf returns a JPEG with that frame header behind before.
func jpegOf(marker byte, before string, w, h int) string {
	return "\xff\xd8" + before + segment(marker, "\x08"+be16(h)+be16(w)+"\x01\x01\x11\x00") + "\xff\xda"
}

var jfif = segment(0xe0, "JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00")

func gifOf(w, h int, blocks ...string) string {
	return "GIF89a" + le16(w) + le16(h) + "\x80\x00\x00" + "\x00\x00\x00\xff\xff\xff" + strings.Join(blocks, "")
}

func gifFrameOf(left, top, w, h int) string {
	return "," + le16(left) + le16(top) + le16(w) + le16(h) + "\x00\x02\x02\x44\x01\x00"
}

func chunk(name, content string) string {
	return name + le32(len(content)) + content + "\x00"[:len(content)%2]
}

func webpOf(chunks ...string) string {
	all := "WEBP" + strings.Join(chunks, "")
	return "RIFF" + le32(len(all)) + all
}

func vp8(w, h int) string  { return chunk("VP8 ", "\x10\x00\x00\x9d\x01\x2a"+le16(w)+le16(h)) }
func vp8l(w, h int) string { return chunk("VP8L", "\x2f"+le32(w-1|(h-1)<<14)) }
func vp8x(w, h int) string { return chunk("VP8X", "\x00\x00\x00\x00"+le24(w-1)+le24(h-1)) }
func anmf(w, h int) string {
	return chunk("ANMF", le24(0)+le24(0)+le24(w-1)+le24(h-1)+"\x00\x00\x00\x00"+vp8(1, 1))
}

func boxOf(name string, contents ...string) string {
	all := strings.Join(contents, "")
	return be32(8+len(all)) + name + all
}

// largeBoxOf has its size in 64 bits.
func largeBoxOf(name, content string) string {
	return be32(1) + name + be32(0) + be32(16+len(content)) + content
}

const zero4 = "\x00\x00\x00\x00"

func ispe(w, h int) string { return boxOf("ispe", zero4, be32(w), be32(h)) }

// meta is the box of items with those properties.
func meta(properties ...string) string {
	return boxOf("meta", zero4, boxOf("hdlr", "pict"), boxOf("iprp", boxOf("ipco", properties...), boxOf("ipma")), boxOf("idat"))
}

// track is that of a sequence, of either version.
func track(version byte, w, h int) string {
	times := strings.Repeat("t", 20+12*int(version))
	return boxOf("trak", boxOf("tkhd", string([]byte{version, 0, 0, 0}), times, strings.Repeat("m", 52), be32(w<<16), be32(h<<16)), boxOf("mdia"))
}

var avifType = boxOf("ftyp", "avif", zero4, "avifmif1")

// avif returns an AVIF of those boxes.
func avif(boxes ...string) string { return avifType + strings.Join(boxes, "") }

// sized are pictures, and their sizes.
var sized = []struct {
	name, mediaType, content string
	width, height            uint32
}{
	{"PNG", "image/png", pngOf(3, 2), 3, 2},
	{"as large as a PNG can be", "image/png", pngOf(math.MaxUint32, math.MaxUint32), math.MaxUint32, math.MaxUint32},
	{"JPEG", "image/jpeg", jpegOf(0xc0, jfif, 3, 2), 3, 2},
	{"progressive", "image/jpeg", jpegOf(0xc2, jfif, 65535, 65535), 65535, 65535},
	{"arithmetic", "image/jpeg", jpegOf(0xc9, jfif, 3, 2), 3, 2},
	{"behind much else", "image/jpeg", jpegOf(0xc0, strings.Repeat(segment(0xe1, strings.Repeat("\xff\xc0", 30_000)), 9), 3, 2), 3, 2},
	{"behind tables, fill bytes and what is no segment", "image/jpeg", jpegOf(0xc1, segment(0xc4, "x")+segment(0xcc, "x")+"\xff\xff\xff\x01garbage\xff\x00\xff\xd0", 3, 2), 3, 2},
	{"GIF", "image/gif", gifOf(3, 2, gifFrameOf(0, 0, 3, 2), ";"), 3, 2},
	{"with a frame that reaches beyond the screen", "image/gif", gifOf(3, 2, "!\xf9\x04\x00\x00\x00\x00\x00", gifFrameOf(0, 0, 3, 2), "!\xfe\x01c\x02at\x00", gifFrameOf(65535, 65534, 65535, 65535), ";"), 131070, 131069},
	{"with a screen of nothing", "image/gif", gifOf(0, 0, gifFrameOf(0, 0, 3, 2), ";"), 3, 2},
	{"with a frame of nothing", "image/gif", gifOf(3, 2, gifFrameOf(9, 9, 0, 0), ";"), 3, 2},
	{"with something behind its end", "image/gif", gifOf(3, 2, ";", gifFrameOf(0, 0, 9, 9)), 3, 2},
	{"that ends early", "image/gif", gifOf(3, 2), 3, 2},
	{"WebP", "image/webp", webpOf(vp8(3, 2)), 3, 2},
	{"with scaling bits", "image/webp", webpOf(vp8(3|0x4000, 2|0xc000)), 3, 2},
	{"lossless", "image/webp", webpOf(vp8l(3, 2)), 3, 2},
	{"lossless and as large as can be", "image/webp", webpOf(vp8l(16384, 16384)), 16384, 16384},
	{"extended", "image/webp", webpOf(vp8x(3, 2), chunk("ICCP", "odd"), vp8(3, 2)), 3, 2},
	{"with the largest canvas", "image/webp", webpOf(vp8x(1<<24, 1<<24), vp8(3, 2)), 1 << 24, 1 << 24},
	{"with an image larger than its canvas", "image/webp", webpOf(vp8x(1, 1), chunk("ICCP", "odd"), vp8(300, 200)), 300, 200},
	{"with a frame larger than its canvas", "image/webp", webpOf(vp8x(1, 1), chunk("ANIM", "xxxxxx"), anmf(1, 1), anmf(300, 200)), 300, 200},
	{"with something behind its end", "image/webp", webpOf(vp8(3, 2)) + vp8(300, 200), 3, 2},
	{"AVIF", "image/avif", avif(meta(ispe(3, 2)), boxOf("mdat", "data")), 3, 2},
	{"with several images", "image/avif", avif(meta(ispe(3, 2), boxOf("pixi", "x"), ispe(30, 20), ispe(4, 4)), boxOf("mdat")), 30, 20},
	{"with its sizes at the end", "image/heic", avif(boxOf("mdat", strings.Repeat("ispe", 50_000)), largeBoxOf("mdat", "data"), meta(ispe(3, 2))), 3, 2},
	{"with boxes of 64 bits and one to the end", "image/heif", avif(largeBoxOf("free", "x"), largeBoxOf("meta", zero4+boxOf("iprp", boxOf("ipco", ispe(math.MaxUint32, math.MaxUint32)))), zero4+"mdat"+"data"), math.MaxUint32, math.MaxUint32},
	{"with a meta to the end", "image/avif", avif(boxOf("free"), zero4+"meta"+zero4+boxOf("iprp", boxOf("ipco", ispe(3, 2)))), 3, 2},
	{"with two metas", "image/avif", avif(meta(ispe(3, 2)), meta(ispe(300, 200))), 300, 200},
	{"a sequence", "image/avif", avif(meta(ispe(1, 1)), boxOf("moov", boxOf("mvhd"), track(0, 30, 20), track(1, 300, 200), track(0, 0, 0))), 300, 200},
	{"nothing but a sequence", "image/heif", avif(boxOf("moov", track(1, 3, 2))), 3, 2},
	{"broken off behind its header", "image/avif", avif(meta(ispe(3, 2)), be32(1000)+"mdat"), 3, 2},
}

// senseless are files that begin like pictures and are none.
var senseless = []struct{ name, mediaType, content string }{
	{"nothing behind the signature", "image/png", "\x89PNG\r\n\x1a\n"},
	{"an IHDR that breaks off", "image/png", pngOf(3, 2)[:23]},
	{"another chunk first", "image/png", "\x89PNG\r\n\x1a\n\x00\x00\x00\x04CgBI" + zero4 + pngOf(3, 2)[8:]},
	{"an IHDR of another length", "image/png", strings.Replace(pngOf(3, 2), "\r", "\x0c", 2)},
	{"no width", "image/png", pngOf(0, 2)},
	{"no height", "image/png", pngOf(3, 0)},
	{"nothing behind the start", "image/jpeg", "\xff\xd8\xff"},
	{"no frame header", "image/jpeg", "\xff\xd8" + jfif},
	{"the image before the frame header", "image/jpeg", "\xff\xd8" + jfif + "\xff\xda\x00\x02" + jpegOf(0xc0, "", 3, 2)[2:]},
	{"the end before the frame header", "image/jpeg", "\xff\xd8" + jfif + "\xff\xd9\x00\x02" + jpegOf(0xc0, "", 3, 2)[2:]},
	{"a second start", "image/jpeg", "\xff\xd8\xff\xd8\x00\x02" + jpegOf(0xc0, "", 3, 2)[2:]},
	{"a reserved marker", "image/jpeg", jpegOf(0xc0, "\xff\x02\x00\x02", 3, 2)},
	{"a segment shorter than its length", "image/jpeg", jpegOf(0xc0, "\xff\xe0\x00\x01", 3, 2)},
	{"a frame header shorter than its size", "image/jpeg", "\xff\xd8" + segment(0xc0, "\x08\x00\x02\x00\x03")},
	{"a height that comes later", "image/jpeg", jpegOf(0xc0, "", 3, 0)},
	{"half a screen", "image/gif", gifOf(3, 2)[:12]},
	{"a screen of nothing and no frames", "image/gif", gifOf(0, 2, ";")},
	{"no chunk", "image/webp", webpOf()},
	{"no image", "image/webp", webpOf(chunk("ICCP", "x"))},
	{"an image behind the end", "image/webp", webpOf(chunk("ICCP", "x")) + vp8(3, 2)},
	{"no key frame", "image/webp", webpOf(chunk("VP8 ", "\x11\x00\x00\x9d\x01\x2a\x03\x00\x02\x00"))},
	{"no start code", "image/webp", webpOf(chunk("VP8 ", "\x10\x00\x00\x9d\x01\x2b\x03\x00\x02\x00"))},
	{"a lossy image of nothing", "image/webp", webpOf(vp8(0, 2))},
	{"no lossless signature", "image/webp", webpOf(chunk("VP8L", "\x2e\x00\x00\x00\x00"))},
	{"a canvas too short for its size", "image/webp", webpOf(chunk("VP8X", "\x00\x00\x00\x00\x00\x00"), chunk("ICCP", "longer than that"))},
	{"no meta", "image/avif", avif(boxOf("mdat", ispe(3, 2)))},
	{"no sizes", "image/avif", avif(meta())},
	{"a size of nothing", "image/avif", avif(meta(ispe(3, 0)))},
	{"a size of nothing beside another", "image/avif", avif(meta(ispe(3, 2), ispe(0, 2)))},
	{"a size too short", "image/avif", avif(meta(boxOf("ispe", zero4, be32(3))))},
	{"a box smaller than its header", "image/avif", avif(be32(7) + "free" + meta(ispe(3, 2)))},
	{"a large box smaller than its header", "image/avif", avif(be32(1) + "free" + be32(0) + be32(15) + meta(ispe(3, 2)))},
	{"a box larger than any file", "image/avif", avif(be32(1) + "free" + be32(-1) + be32(-1) + meta(ispe(3, 2)))},
	{"a box larger than the one it is in", "image/avif", avif(meta(ispe(3, 2), be32(100)+"free"), meta(ispe(3, 2)))},
	{"a box to the end in another", "image/avif", avif(meta(ispe(3, 2), be32(0)+"free"))},
	{"half a box in another", "image/avif", avif(meta(ispe(3, 2), "free"))},
	{"a meta smaller than its version", "image/avif", avif(boxOf("meta", "x"), meta(ispe(3, 2)))},
	{"boxes too deep", "image/avif", avif(boxOf("moov", boxOf("moov", boxOf("moov", boxOf("moov", boxOf("moov"))))), meta(ispe(3, 2)))},
	{"a track of another version", "image/avif", avif(boxOf("moov", track(2, 3, 2)))},
	{"a track header that is too short", "image/avif", avif(boxOf("moov", boxOf("trak", boxOf("tkhd", strings.Repeat("\x01", 90)))), meta(ispe(3, 2)))},
}

// scanned is what comes of a scan of content in those pieces.
func scanned(mediaType string, most uint64, pieces io.Reader) (width, height uint32, err error) {
	s := newScan(mediaType, most)
	buf := make([]byte, 4096)
	for {
		n, err := pieces.Read(buf)
		if wrong := s.read(buf[:n]); wrong != nil {
			return 0, 0, wrong
		}
		if err != nil {
			return s.width, s.height, s.end()
		}
	}
}

func TestTheHeaderSaysHowLargeAPictureIs(t *testing.T) {
	for _, c := range sized {
		for _, pieces := range []io.Reader{strings.NewReader(c.content), iotest.OneByteReader(strings.NewReader(c.content))} {
			if w, h, err := scanned(c.mediaType, math.MaxUint64, pieces); err != nil || w != c.width || h != c.height {
				t.Errorf("%s, %s: %d × %d, %v; want %d × %d", c.mediaType, c.name, w, h, err, c.width, c.height)
			}
		}
		pixels := uint64(c.width) * uint64(c.height)
		if _, _, err := scanned(c.mediaType, pixels, strings.NewReader(c.content)); err != nil {
			t.Errorf("%s, %s: %v where so many are accepted", c.mediaType, c.name, err)
		}
		_, _, err := scanned(c.mediaType, pixels-1, strings.NewReader(c.content))
		if e := signerapi.AsError(err); !errors.Is(err, signerapi.ErrTooLarge) || !strings.Contains(e.Detail, fmt.Sprintf(" %d pixels ", pixels)) || !strings.Contains(e.Detail, fmt.Sprintf(" %d are accepted", pixels-1)) {
			t.Errorf("%s, %s: %v where one less is accepted", c.mediaType, c.name, err)
		}
	}
}

func TestAHeaderThatMakesNoSenseIsNoPicture(t *testing.T) {
	for _, c := range senseless {
		_, _, err := scanned(c.mediaType, math.MaxUint64, iotest.OneByteReader(strings.NewReader(c.content)))
		if e := signerapi.AsError(err); !errors.Is(err, signerapi.ErrUnsupportedMediaType) || !strings.HasPrefix(e.Detail, "the file begins like "+c.mediaType+", but ") {
			t.Errorf("%s, %s: %v", c.mediaType, c.name, err)
		}
	}
}

// What is in the first bytes is refused before any is passed on, and the rest as
// soon as it comes: never is the end of such a picture seen.
func TestABombIsRefusedByItsHeaderWhereverThatIs(t *testing.T) {
	l := defaults(t)
	behind := strings.Repeat(segment(0xe2, strings.Repeat("x", 60_000)), 5)
	tail := strings.Repeat("\x00", 1<<20)
	for name, c := range map[string]struct {
		content string
		passes  int // at most so many bytes
		want    error
	}{
		"PNG":                      {pngOf(1<<31, 1<<31) + tail, 0, signerapi.ErrTooLarge},
		"GIF":                      {gifOf(65535, 65535) + tail, 0, signerapi.ErrTooLarge},
		"WebP":                     {webpOf(vp8(16383, 16383), chunk("ICCP", tail)), 0, signerapi.ErrTooLarge},
		"AVIF":                     {avif(meta(ispe(math.MaxUint32, math.MaxUint32))) + tail, 0, signerapi.ErrTooLarge},
		"JPEG":                     {jpegOf(0xc2, behind, 65535, 65535) + tail, len(behind) + 100, signerapi.ErrTooLarge},
		"AVIF, sizes at the end":   {avif(boxOf("mdat", tail), meta(ispe(math.MaxUint32, 1))) + tail, len(tail) + 200, signerapi.ErrTooLarge},
		"JPEG without a frame":     {"\xff\xd8" + behind, len(behind) + 2, signerapi.ErrUnsupportedMediaType},
		"AVIF without sizes":       {avif(boxOf("mdat", tail)), len(tail) + 100, signerapi.ErrUnsupportedMediaType},
		"a GIF's 2nd frame, later": {gifOf(1, 1, gifFrameOf(0, 0, 1, 1), "!\xfe"+strings.Repeat("\xff"+strings.Repeat("x", 255), 100)+"\x00", gifFrameOf(0, 0, 65535, 65535)) + tail, 30_000, signerapi.ErrTooLarge},
	} {
		_, whole, err := l.Open(strings.NewReader(c.content), int64(len(c.content)))
		passed := 0
		for err == nil {
			var n int
			n, err = whole.Read(make([]byte, 64))
			passed += n
		}
		if !errors.Is(err, c.want) || passed > c.passes {
			t.Errorf("%s: %d bytes passed, %v; want at most %d, %v", name, passed, err, c.passes, c.want)
		}
	}
}

// To go through these would cost ten times what the MD5 does.
func TestAPictureOfNothingButTinyPiecesIsRefused(t *testing.T) {
	for name, c := range map[string]struct{ mediaType, head, piece string }{
		"no segments":    {"image/jpeg", "\xff\xd8\xff\xe0\x00\x02", "x"},
		"stuffed bytes":  {"image/jpeg", "\xff\xd8\xff\xe0\x00\x02", "\xff\x00"},
		"empty segments": {"image/jpeg", "\xff\xd8", "\xff\xe0\x00\x02"},
		"empty blocks":   {"image/gif", gifOf(1, 1), "!\xfe\x00"},
		"small blocks":   {"image/gif", gifOf(1, 1) + "!\xfe", "\x01x"},
	} {
		content := c.head + strings.Repeat(c.piece, 1_000_000/len(c.piece))
		if _, _, err := scanned(c.mediaType, math.MaxUint64, strings.NewReader(content)); !errors.Is(err, signerapi.ErrUnsupportedMediaType) || !strings.Contains(signerapi.AsError(err).Detail, "too many pieces") {
			t.Errorf("%s of %s: %v", c.mediaType, name, err)
		}
	}
}

// FuzzDimensions holds that whatever comes is gone through once, comes to the same
// in whatever pieces, and is never taken for smaller than what decoders take it for.
func FuzzDimensions(f *testing.F) {
	for _, c := range sized {
		if len(c.content) < 10_000 {
			f.Add([]byte(c.content), uint16(7))
		}
	}
	for _, c := range senseless {
		f.Add([]byte(c.content), uint16(1))
	}
	for mediaType := range formats {
		f.Add([]byte(pixel(f, mediaType)), uint16(3))
	}
	decoders := map[string]func(io.Reader) (image.Config, error){
		"image/png": png.DecodeConfig, "image/jpeg": jpeg.DecodeConfig, "image/gif": gif.DecodeConfig, "image/webp": webp.DecodeConfig,
	}
	l := Limits{Types: possible()}
	f.Fuzz(func(t *testing.T, content []byte, piece uint16) {
		mediaType, ok := l.detect(content)
		if !ok {
			return
		}
		w, h, err := scanned(mediaType, math.MaxUint64, bytes.NewReader(content))
		w2, h2, err2 := scanned(mediaType, math.MaxUint64, &pieces{content, int(piece)})
		if w2 != w || h2 != h || fmt.Sprint(err2) != fmt.Sprint(err) {
			t.Fatalf("%d × %d, %v; in pieces of %d: %d × %d, %v", w, h, err, piece, w2, h2, err2)
		}
		if err == nil && (w == 0 || h == 0) {
			t.Fatalf("accepted with %d × %d", w, h)
		}
		decode := decoders[mediaType]
		if decode == nil {
			return
		}
		config, decodeErr := decode(bytes.NewReader(content))
		if decodeErr != nil || config.Width <= 0 || config.Height <= 0 {
			return
		}
		same := uint64(config.Width) == uint64(w) && uint64(config.Height) == uint64(h)
		larger := uint64(w)*uint64(h) >= uint64(config.Width)*uint64(config.Height)
		switch mediaType {
		case "image/png", "image/jpeg":
			if err != nil || !same {
				t.Fatalf("%d × %d, %v; a decoder says %d × %d", w, h, err, config.Width, config.Height)
			}
		default: // of these, a decoder reads the first header only
			if err == nil && !larger || err != nil && mediaType == "image/gif" {
				t.Fatalf("%d × %d, %v; a decoder says %d × %d", w, h, err, config.Width, config.Height)
			}
		}
	})
}

// pieces gives at most n bytes at once.
type pieces struct {
	b []byte
	n int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.b) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.b[:min(p.n%64+1, len(p.b))])
	p.b = p.b[n:]
	return n, nil
}

// BenchmarkOpen is what a picture of 50 MiB costs to be looked at while it passes,
// as the signer reads it: the usual ones, and the most laborious ones that there are.
func BenchmarkOpen(b *testing.B) {
	const size = 50 << 20
	fill := func(head, with string) string { return head + strings.Repeat(with, (size-len(head))/len(with)) }
	for name, content := range map[string]string{
		"PNG":                      fill(pngOf(1, 1), "x"),
		"JPEG":                     fill(jpegOf(0xc0, jfif, 1, 1), "x"),
		"GIF":                      fill(gifOf(1, 1, gifFrameOf(0, 0, 1, 1), "!\xfe"), "\xff"+strings.Repeat("x", 255)),
		"AVIF":                     avif(boxOf("mdat", strings.Repeat("x", size-200)), meta(ispe(1, 1))),
		"GIF of small frames":      fill(gifOf(1, 1), "!\xf9\x04\x00\x00\x00\x00\x00"+gifFrameOf(0, 0, 1, 1)),
		"JPEG of small segments":   fill("\xff\xd8", segment(0xfe, strings.Repeat("x", 8))) + jpegOf(0xc0, "", 1, 1)[2:],
		"WebP of empty chunks":     webpOf(vp8x(1, 1), strings.Repeat(chunk("XXXX", ""), size/8)),
		"AVIF of empty boxes":      fill(avif(meta(ispe(1, 1))), boxOf("free")),
		"AVIF of many small sizes": avif(meta(strings.Repeat(ispe(1, 1), size/20))),
	} {
		b.Run(name, func(b *testing.B) {
			l := Limits{MaxSize: 64 << 20, Types: possible(), MaxPixels: 1 << 40}
			page := make([]byte, 32<<10)
			b.ReportAllocs()
			b.SetBytes(int64(len(content)))
			for b.Loop() {
				_, whole, err := l.Open(strings.NewReader(content), -1)
				for err == nil {
					_, err = whole.Read(page)
				}
				if err != io.EOF { //nolint:errorlint // as it has to be
					b.Fatal(err)
				}
			}
		})
	}
}
