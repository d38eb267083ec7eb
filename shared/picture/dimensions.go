package picture

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"cats.example/shared/signerapi"
)

// format is a kind of picture that can be accepted: one whose header says, in a
// way that is read here, how many pixels a decoder will have to make room for.
type format struct {
	extensions []string // of its files; the first is the usual one
	skip       uint64   // bytes before those that begin gets
	need       uint64   // bytes that begin gets
	begin      step
}

var formats = map[string]format{
	"image/jpeg": {[]string{".jpg", ".jpeg"}, 2, 1, jpegSeek},
	"image/png":  {[]string{".png"}, 8, 16, pngHeader},
	"image/gif":  {[]string{".gif"}, 0, 13, gifScreen},
	"image/webp": {[]string{".webp"}, 0, 12, webpHeader},
	"image/avif": {[]string{".avif"}, 0, 8, box},
	"image/heic": {[]string{".heic", ".heif"}, 0, 8, box},
	"image/heif": {[]string{".heif", ".heic"}, 0, 8, box},
}

// possible lists the media types that there can be.
func possible() []string { return slices.Sorted(maps.Keys(formats)) }

// FileName returns name with the extension of the media type at its end, unless
// it has one of that type already. It is false, and name as it was, when no picture
// that was stored can have that type, whatever the limits are.
func FileName(name, mediaType string) (string, bool) {
	f, ok := formats[mediaType]
	if !ok {
		return name, false
	}
	for _, e := range f.extensions {
		if len(name) > len(e) && strings.EqualFold(name[len(name)-len(e):], e) {
			return name, true
		}
	}
	return name + f.extensions[0], true
}

// scan reads how many pixels a picture has out of its header, as its bytes go by.
// It keeps no more of them than the few that one step needs, and passes over
// what is no header without looking at it. It goes by what decoders go by: the
// first frame header of a JPEG; the screen of a GIF and every frame; the canvas
// of a WebP, every frame, and the image itself; in the formats that are made of
// boxes, every item's size and every track's, wherever they are.
//
// It does not look into what is compressed, which can still contradict the header:
// a decoder has to notice that.
type scan struct {
	mediaType     string
	most          uint64 // pixels
	width, height uint32 // the largest that was found; 0 before

	step step   // what gets the next bytes; nil when nothing is looked for any more
	skip uint64 // bytes before those
	need uint64 // how many it gets, at most as have holds
	have [16]byte
	n    uint64 // of have

	at    uint64 // bytes that went by
	steps uint64

	rest uint64 // bytes of the chunk, or box, behind those that the step gets
	name uint32 // of the box
	ends [4]uint64
	deep int // of ends: the boxes that are open
	err  error
}

// step takes the bytes it asked for, and says with then what comes next.
type step func(s *scan, b []byte)

func newScan(mediaType string, most uint64) scan {
	f := formats[mediaType]
	return scan{mediaType: mediaType, most: most, step: f.begin, skip: f.skip, need: f.need}
}

func (s *scan) then(skip, need uint64, next step) { s.skip, s.need, s.step = skip, need, next }

// A picture that is made of smaller pieces than any real one is no picture: to go
// through it would cost more than all else that is done with its bytes. A GIF's
// smallest frames have seven pieces in 23 bytes.
const (
	freeSteps    = 1 << 16
	bytesPerStep = 3
)

// read takes the next bytes of the picture. It returns ErrTooLarge for one of too
// many pixels and ErrUnsupportedMediaType for a header that makes no sense.
func (s *scan) read(p []byte) error {
	for s.step != nil && s.err == nil && len(p) > 0 {
		if s.skip > 0 {
			k := min(s.skip, uint64(len(p)))
			s.skip -= k
			s.at += k
			p = p[k:]
			continue
		}
		b := p[:min(s.need-s.n, uint64(len(p)))]
		p = p[len(b):]
		s.at += uint64(len(b))
		if uint64(len(b)) < s.need { // all of them are not here at once
			copy(s.have[s.n:], b)
			s.n += uint64(len(b))
			if s.n < s.need {
				break
			}
			b = s.have[:s.need]
		}
		next := s.step
		s.step, s.n = nil, 0
		if s.steps++; s.steps > freeSteps+s.at/bytesPerStep {
			s.fail("has a header of too many pieces")
			break
		}
		next(s, b)
	}
	return s.err
}

// end is told that there are no more bytes. It returns ErrUnsupportedMediaType
// when they did not say how large the picture is.
func (s *scan) end() error {
	if s.err == nil && (s.width == 0 || s.height == 0) {
		s.fail("has no header that says how many pixels it has")
	}
	return s.err
}

func (s *scan) fail(what string) {
	s.err = signerapi.ErrUnsupportedMediaType.With("the file begins like " + s.mediaType + ", but " + what)
}

const nonsense = "has a header that contradicts itself"

// found is told of an image in the picture.
func (s *scan) found(width, height uint32) {
	if width == 0 || height == 0 {
		s.fail("has a header that says that it has no pixels")
		return
	}
	pixels := uint64(width) * uint64(height) // below 2^64
	if pixels > uint64(s.width)*uint64(s.height) {
		s.width, s.height = width, height
	}
	if pixels > s.most {
		s.err = signerapi.ErrTooLarge.With(fmt.Sprintf("the picture has %d pixels (%d × %d); at most %d are accepted", pixels, width, height, s.most))
	}
}

// PNG, section 5.6: IHDR is the first chunk.

func pngHeader(s *scan, b []byte) {
	if string(b[:8]) != "\x00\x00\x00\rIHDR" {
		s.fail("does not go on with an IHDR")
		return
	}
	s.found(binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint32(b[12:]))
}

// JPEG, ITU-T T.81 annex B: segments until the frame header. What is no segment
// between them is passed over, as decoders do.

func jpegSeek(s *scan, b []byte) {
	if b[0] == 0xff {
		s.then(0, 1, jpegMarker)
		return
	}
	s.then(0, 1, jpegSeek)
}

func jpegMarker(s *scan, b []byte) {
	switch m := b[0]; {
	case m == 0xff: // one may be preceded by any number
		s.then(0, 1, jpegMarker)
	case m == 0x00, m == 0x01, m >= 0xd0 && m <= 0xd7: // a stuffed byte, TEM, RSTn: they stand alone
		s.then(0, 1, jpegSeek)
	case m < 0xc0, m == 0xd8, m == 0xd9, m == 0xda: // reserved, a second start, the end, the scan
		s.fail("has no frame header before its image")
	case m <= 0xcf && m != 0xc4 && m != 0xc8 && m != 0xcc: // SOFn
		s.then(0, 7, jpegFrame)
	default:
		s.then(0, 2, jpegSegment)
	}
}

func jpegSegment(s *scan, b []byte) {
	n := uint64(binary.BigEndian.Uint16(b))
	if n < 2 {
		s.fail(nonsense)
		return
	}
	s.then(n-2, 1, jpegSeek)
}

func jpegFrame(s *scan, b []byte) {
	if binary.BigEndian.Uint16(b) < 8 {
		s.fail(nonsense)
		return
	}
	// A height of 0, to be told by a DNL behind the scan, is nothing that decoders take.
	s.found(uint32(binary.BigEndian.Uint16(b[5:])), uint32(binary.BigEndian.Uint16(b[3:])))
}

// GIF89a: the screen, and then blocks until the trailer. Frames can reach beyond
// the screen, and decoders make room for them.

func gifScreen(s *scan, b []byte) {
	s.gifExtent(0, 0, b[6:])
	s.then(palette(b[10]), 1, gifBlock)
}

// palette is the length of the color table that the flags announce.
func palette(flags byte) uint64 {
	if flags&0x80 == 0 {
		return 0
	}
	return 3 << (1 + flags&7)
}

// gifExtent widens the picture so that what is at left and top, and has the size
// that b begins with, fits into it. Some screens say 0, and mean the first frame's.
func (s *scan) gifExtent(left, top uint16, b []byte) {
	width, height := binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:])
	if width == 0 || height == 0 {
		return
	}
	s.found(max(s.width, uint32(left)+uint32(width)), max(s.height, uint32(top)+uint32(height)))
}

func gifBlock(s *scan, b []byte) {
	switch b[0] {
	case '!':
		s.then(1, 1, gifData)
	case ',':
		s.then(0, 9, gifFrame)
	}
	// Decoders take anything else for the end, as they do the trailer.
}

func gifFrame(s *scan, b []byte) {
	s.gifExtent(binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:]), b[4:])
	s.then(palette(b[8])+1, 1, gifData)
}

func gifData(s *scan, b []byte) {
	if b[0] == 0 {
		s.then(0, 1, gifBlock)
		return
	}
	s.then(uint64(b[0]), 1, gifData)
}

// WebP, RFC 9649: chunks until the end that RIFF announces.

func webpHeader(s *scan, b []byte) {
	s.ends[0] = 8 + uint64(binary.LittleEndian.Uint32(b[4:]))
	s.webpNext(0)
}

func (s *scan) webpNext(skip uint64) {
	if s.at+skip < s.ends[0] {
		s.then(skip, 8, webpChunk)
	}
}

func webpChunk(s *scan, b []byte) {
	size := uint64(binary.LittleEndian.Uint32(b[4:]))
	need, next := uint64(0), step(nil)
	switch string(b[:4]) {
	case "VP8 ":
		need, next = 10, webpLossy
	case "VP8L":
		need, next = 5, webpLossless
	case "VP8X":
		need, next = 10, webpCanvas
	case "ANMF":
		need, next = 16, webpFrame
	default:
		s.webpNext(size + size&1)
		return
	}
	if size < need {
		s.fail(nonsense)
		return
	}
	s.rest = size + size&1 - need
	s.then(0, need, next)
}

func webpLossy(s *scan, b []byte) {
	if b[0]&1 != 0 || string(b[3:6]) != "\x9d\x01\x2a" { // no key frame
		s.fail(nonsense)
		return
	}
	s.found(uint32(binary.LittleEndian.Uint16(b[6:]))&0x3fff, uint32(binary.LittleEndian.Uint16(b[8:]))&0x3fff)
	s.webpNext(s.rest)
}

func webpLossless(s *scan, b []byte) {
	bits := binary.LittleEndian.Uint32(b[1:])
	if b[0] != 0x2f {
		s.fail(nonsense)
		return
	}
	s.found(bits&0x3fff+1, bits>>14&0x3fff+1)
	s.webpNext(s.rest)
}

func webpCanvas(s *scan, b []byte) {
	s.found(uint24(b[4:])+1, uint24(b[7:])+1)
	s.webpNext(s.rest)
}

func webpFrame(s *scan, b []byte) {
	s.found(uint24(b[6:])+1, uint24(b[9:])+1)
	s.webpNext(s.rest)
}

func uint24(b []byte) uint32 { return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 }

// AVIF, HEIC and HEIF: boxes in boxes, ISO/IEC 14496-12 and 23008-12. The sizes
// of items are in meta/iprp/ipco/ispe, and those of sequences in moov/trak/tkhd. A
// box that does not fit into the one that it is in is refused, as decoders do:
// another would find other boxes there than we.

// nextBox goes on with the box that is skip bytes from here.
func (s *scan) nextBox(skip uint64) {
	for s.deep > 0 && s.at+skip == s.ends[s.deep-1] {
		s.deep--
	}
	if s.deep > 0 && s.ends[s.deep-1]-s.at-skip < 8 {
		s.fail(nonsense)
		return
	}
	s.then(skip, 8, box)
}

func box(s *scan, b []byte) {
	s.name = binary.BigEndian.Uint32(b[4:])
	if size := binary.BigEndian.Uint32(b); size != 1 {
		s.inBox(uint64(size), 8)
		return
	}
	s.then(0, 8, func(s *scan, b []byte) { s.inBox(binary.BigEndian.Uint64(b), 16) })
}

// The names of the boxes that matter.
const (
	boxMeta = 'm'<<24 | 'e'<<16 | 't'<<8 | 'a'
	boxIprp = 'i'<<24 | 'p'<<16 | 'r'<<8 | 'p'
	boxIpco = 'i'<<24 | 'p'<<16 | 'c'<<8 | 'o'
	boxIspe = 'i'<<24 | 's'<<16 | 'p'<<8 | 'e'
	boxMoov = 'm'<<24 | 'o'<<16 | 'o'<<8 | 'v'
	boxTrak = 't'<<24 | 'r'<<16 | 'a'<<8 | 'k'
	boxTkhd = 't'<<24 | 'k'<<16 | 'h'<<8 | 'd'
)

// inBox goes on behind the header of a box of that size, of which the header is a
// part; 0 is for all that is left of the file.
func (s *scan) inBox(size, header uint64) {
	left := math.MaxUint64 - s.at
	if s.deep > 0 {
		left = s.ends[s.deep-1] - s.at
	}
	switch {
	case size == 0 && s.deep == 0:
		size = left
	case size < header || size-header > left:
		s.fail(nonsense)
		return
	default:
		size -= header
	}
	switch s.name {
	case boxMeta:
		s.open(size, 4) // its version and flags
	case boxIprp, boxIpco, boxMoov, boxTrak:
		s.open(size, 0)
	case boxIspe:
		s.fixed(size, 12, itemSize)
	case boxTkhd:
		s.fixed(size, 1, trackHeader)
	default:
		s.nextBox(size)
	}
}

// open goes on with the boxes in the box, which are behind skip of its bytes.
func (s *scan) open(size, skip uint64) {
	if size < skip || s.deep == len(s.ends) {
		s.fail(nonsense)
		return
	}
	s.ends[s.deep] = s.at + size
	s.deep++
	s.nextBox(skip)
}

// fixed goes on with the first need bytes of what is in the box.
func (s *scan) fixed(size, need uint64, next step) {
	if size < need {
		s.fail(nonsense)
		return
	}
	s.rest = size - need
	s.then(0, need, next)
}

func itemSize(s *scan, b []byte) {
	s.found(binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:]))
	s.nextBox(s.rest)
}

// trackHeader gets the version, by which times have 32 or 64 bits.
func trackHeader(s *scan, b []byte) {
	before := uint64(75)
	if b[0] == 1 {
		before += 12
	}
	if b[0] > 1 || s.rest < before+8 {
		s.fail(nonsense)
		return
	}
	s.rest -= before + 8
	s.then(before, 8, trackSize)
}

// trackSize gets two numbers of 16.16 bits; those of a track without pixels are 0.
func trackSize(s *scan, b []byte) {
	if w, h := binary.BigEndian.Uint32(b)>>16, binary.BigEndian.Uint32(b[4:])>>16; w > 0 && h > 0 {
		s.found(w, h)
	}
	s.nextBox(s.rest)
}
