// Package picture decides which files are accepted as pictures, by their size, their first bytes and their number of pixels.
//
// Both containers use it: the frontend to reject files before it forwards them, the signer because it does not trust the
// frontend.
package picture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	_ "image/gif"  // registers its format for image.DecodeConfig
	_ "image/jpeg" // registers its format
	_ "image/png"  // registers its format
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/docker/go-units"
	"github.com/gabriel-vasile/mimetype"
	_ "golang.org/x/image/webp" // registers its format

	"cats.example/shared/apierror"
	"cats.example/shared/config"
)

// extensions maps the media types that can be accepted to the extensions of their files. The first is the usual one.
var extensions = map[string][]string{
	"image/jpeg":          {".jpg", ".jpeg"},
	"image/png":           {".png"},
	"image/gif":           {".gif"},
	"image/webp":          {".webp"},
	"image/avif":          {".avif"},
	"image/heic":          {".heic", ".heif", ".hif"},
	"image/heif":          {".heif", ".heic", ".hif"},
	"image/heic-sequence": {".heics", ".heifs", ".heic", ".heif", ".hif"}, // cameras name bursts like single images
	"image/heif-sequence": {".heifs", ".heics", ".heif", ".heic", ".hif"},
}

// WithExtension returns name with an extension of the media type: it appends the usual one unless name already has one. It
// returns name and false if no accepted picture can have the media type.
func WithExtension(name, mediaType string) (string, bool) {
	known, ok := extensions[mediaType]
	if !ok {
		return name, false
	}
	if e := path.Ext(name); e != name && slices.Contains(known, strings.ToLower(e)) {
		return name, true
	}
	return name + known[0], true
}

// Limits are the settings that decide which pictures are accepted.
type Limits struct {
	MaxPictureSize Size     `env:"MAX_PICTURE_SIZE" shared:"true" envDefault:"32MiB" help:"largest picture that is uploaded through the service, such as 512KiB or 32MiB, at most 4000MiB"`
	AcceptedTypes  []string `env:"ACCEPTED_TYPES" shared:"true" envDefault:"image/jpeg,image/png,image/gif,image/webp,image/avif,image/heic,image/heif,image/heic-sequence,image/heif-sequence" help:"accepted media types, separated by commas, determined from the first bytes of the file; only types of the default are possible"`

	MaxPixels uint64 `env:"MAX_PIXELS" shared:"true" envDefault:"210000000" help:"maximum number of pixels, width times height, in the header of a JPEG, PNG, GIF or WebP"`
}

// Size is a number of bytes. Its text form is "32MiB", "512KiB" or "1000".
type Size int64

// UnmarshalText implements [encoding.TextUnmarshaler].
func (s *Size) UnmarshalText(text []byte) error {
	n, err := units.RAMInBytes(string(text))
	*s = Size(n)
	return err
}

// String returns the size in its text form, rounded to four digits.
func (s Size) String() string { return units.BytesSize(float64(s)) }

// Validate returns all validation errors, joined.
func (l Limits) Validate() error {
	faults := []error{config.Require(l.MaxPictureSize > 0 && l.MaxPixels > 0, "MAX_PICTURE_SIZE and MAX_PIXELS must be above zero")}
	for _, t := range l.AcceptedTypes {
		if _, ok := extensions[t]; !ok {
			faults = append(faults, fmt.Errorf("ACCEPTED_TYPES: %q is not possible, only %s are", t, strings.Join(slices.Sorted(maps.Keys(extensions)), ", ")))
		}
	}
	return errors.Join(faults...)
}

// ValidateSize returns ErrTooLarge if size, in bytes, exceeds MAX_PICTURE_SIZE, and ErrEmpty if it is 0. A size of -1 is unknown
// and valid.
func (l Limits) ValidateSize(size int64) error {
	switch {
	case size > int64(l.MaxPictureSize):
		return apierror.ErrTooLarge.WithDetail(fmt.Sprintf("the picture is larger than %v", l.MaxPictureSize))
	case size == 0:
		return apierror.ErrEmpty
	}
	return nil
}

// Inspect reads the beginning of body, at most [HeadBytes], and returns the media type of the picture and a reader of the whole
// picture. size is the length of body in bytes, or -1 if unknown.
//
// Inspect returns ErrEmpty, ErrUnsupportedMediaType, or ErrTooLarge for a size or a number of pixels above the limits. The reader
// returns ErrTooLarge after MAX_PICTURE_SIZE, and ErrIncomplete if size is known and body has another length. Both return errors
// of body unchanged.
func (l Limits) Inspect(body io.Reader, size int64) (mediaType string, whole io.Reader, err error) {
	if err := l.ValidateSize(size); err != nil {
		return "", nil, err
	}
	limited := &limitedReader{r: body, limits: l, size: size}
	h := newHead(limited)
	if mediaType, err = l.check(h); err != nil {
		return "", nil, err
	}
	return mediaType, io.MultiReader(bytes.NewReader(h.kept), limited), nil
}

// Sniff is Inspect without the limit of pixels. It buffers 3 KiB of the picture, where Inspect may buffer HeadBytes.
func (l Limits) Sniff(body io.Reader, size int64) (mediaType string, whole io.Reader, err error) {
	l.MaxPixels = 0
	return l.Inspect(body, size)
}

// InspectHead returns the media type of the picture that begins with first, and the same errors as Inspect. It reads at most
// HeadBytes. It returns errors of first unchanged.
func (l Limits) InspectHead(first io.Reader) (mediaType string, err error) {
	return l.check(newHead(first))
}

// limitedReader enforces the limit and the known size of a picture.
type limitedReader struct {
	r       io.Reader
	limits  Limits
	size, n int64 // size is -1 if unknown; n bytes were read
}

func (r *limitedReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.n += int64(n)
	if tooLarge := r.limits.ValidateSize(max(r.n, 1)); tooLarge != nil {
		return 0, tooLarge
	}
	if r.size >= 0 && (r.n > r.size || err == io.EOF && r.n < r.size) {
		return 0, apierror.ErrIncomplete.WithDetail("the picture is not as long as announced; nothing was stored")
	}
	return n, err
}

const (
	// HeadBytes is the maximum number of bytes of a picture that are read to decide whether it is accepted.
	HeadBytes = 64 << 10
	// typeBytes is the number of bytes that determine the media type.
	typeBytes = 3072
)

// head reads and keeps the first HeadBytes of a picture.
type head struct {
	r    io.Reader
	kept []byte
	err  error // of r, except io.EOF
}

func newHead(r io.Reader) *head { return &head{r: io.LimitReader(r, HeadBytes)} }

// Read implements [io.Reader].
func (h *head) Read(p []byte) (int, error) {
	if h.err != nil {
		return 0, h.err
	}
	n, err := h.r.Read(p)
	h.kept = append(h.kept, p[:n]...)
	if err != io.EOF { // a wrapped io.EOF is not the end of the picture
		h.err = err
	}
	return n, err
}

// check returns the media type of h if it is accepted. A MaxPixels of 0 is no limit.
func (l Limits) check(h *head) (mediaType string, err error) {
	_, _ = io.ReadFull(h, make([]byte, typeBytes)) // h keeps the bytes and the error
	mediaType, accepted := l.detect(h.kept)
	switch {
	case h.err != nil:
		return "", h.err
	case len(h.kept) == 0:
		return "", apierror.ErrEmpty
	case !accepted:
		return "", apierror.ErrUnsupportedMediaType.WithDetail(
			fmt.Sprintf("the file is %s, which is not accepted; accepted types: %s", mediaType, strings.Join(l.AcceptedTypes, ", ")))
	case l.MaxPixels == 0:
		return mediaType, nil
	}
	width, height := dimensions(mediaType, h)
	if h.err != nil {
		return "", h.err
	}
	if pixels := width * height; pixels > l.MaxPixels {
		return "", apierror.ErrTooLarge.WithDetail(
			fmt.Sprintf("the picture has %d pixels (%d × %d); at most %d are accepted", pixels, width, height, l.MaxPixels))
	}
	return mediaType, nil
}

// detect returns the accepted media type of a file that begins with first: its own, or a more general one (an animated PNG is a
// PNG). If none is accepted, it returns false and the media type for the error.
func (l Limits) detect(first []byte) (string, bool) {
	if t := imageType(first); t != "" {
		general := strings.Replace(t, "image/heic", "image/heif", 1) // every HEIC file is a HEIF file
		if !slices.Contains(l.AcceptedTypes, t) && slices.Contains(l.AcceptedTypes, general) {
			t = general
		}
		return t, slices.Contains(l.AcceptedTypes, t)
	}
	found := mimetype.Detect(first)
	if p := found.Parent(); p != nil && p.Is("video/mp4") && strings.HasPrefix(found.String(), "image/") {
		found = p // an image by a brand that is not registered for images
	}
	for m := found; m != nil; m = m.Parent() {
		if i := slices.IndexFunc(l.AcceptedTypes, m.Is); i >= 0 {
			return l.AcceptedTypes[i], true
		}
	}
	mediaType, _, _ := strings.Cut(found.String(), ";") // without a charset
	return mediaType, false
}

// dimensions returns the width and height in the first HeadBytes, each below 2^32, or 0 and 0 if they are not there. It does not
// look into AVIF, HEIC and HEIF: no package registers these formats with package image.
//
// No decoder allocates memory by the dimensions.
func dimensions(mediaType string, h *head) (width, height uint64) {
	config, _, err := image.DecodeConfig(io.MultiReader(bytes.NewReader(h.kept), h))
	switch first := h.kept; {
	case err == nil:
		return uint64(config.Width), uint64(config.Height) // never negative
	case len(first) < 30:
	case mediaType == "image/png" && string(first[12:16]) == "IHDR": // image/png rejects 2^31 pixels in one direction
		return uint64(binary.BigEndian.Uint32(first[16:])), uint64(binary.BigEndian.Uint32(first[20:]))
	case mediaType == "image/webp" && string(first[12:20]) == "VP8X\x0a\x00\x00\x00": // webp rejects a canvas of 2^31 pixels
		uint24 := func(b []byte) uint64 { return uint64(b[0]) | uint64(b[1])<<8 | uint64(b[2])<<16 }
		return uint24(first[24:]) + 1, uint24(first[27:]) + 1
	}
	return 0, 0
}

// imageBrands maps the brands of ISO base media files to media types, in order of precedence.
//
// coding says that the brands determine how the images are encoded. The other brands describe the structure of the file.
//
// Sources: the IANA registrations of image/heic, image/heif and their sequences; AV1 Image File Format (AOMedia), for AVIF;
// ISO/IEC 23000-22, for miaf and the profiles MiHA, MiHB and MiHE.
var imageBrands = []struct {
	mediaType string
	coding    bool
	brands    []string
}{
	{"image/avif", true, []string{"avif", "avis", "avio", "MA1A", "MA1B"}},
	{"image/heic", true, []string{"heic", "heix", "heim", "heis"}},
	{"image/heic-sequence", true, []string{"hevc", "hevx", "hevm", "hevs"}},
	{"image/heic", true, []string{"MiHA", "MiHB", "MiHE"}},
	{"image/heif", false, []string{"mif1", "mif2"}},
	{"image/heif-sequence", false, []string{"msf1"}},
	{"image/heif", false, []string{"miaf"}},
}

// imageType returns the media type of an ISO base media file that begins with head, or "" if none of its brands is a brand of
// images.
//
// A major brand with a coding determines the type. Otherwise the compatible brands determine it: cameras and encoders write a
// structural major brand, such as mif1, and list the coding after it.
func imageType(head []byte) string {
	all := brands(head)
	if len(all) == 0 {
		return ""
	}
	var found []string
	for _, i := range imageBrands {
		switch {
		case i.coding && slices.Contains(i.brands, all[0]):
			return i.mediaType
		case slices.ContainsFunc(i.brands, func(b string) bool { return slices.Contains(all, b) }):
			found = append(found, i.mediaType)
		}
	}
	if len(found) == 0 {
		return ""
	}
	// The major brand decides between images and sequences in one file.
	if sequence := found[0] + "-sequence"; all[0] == "msf1" && slices.Contains(found, sequence) {
		return sequence
	}
	return found[0]
}

// brands returns the major brand and the compatible brands of the ftyp box at the beginning of head (ISO/IEC 14496-12 section
// 4.3), or nil if there is no such box. It ignores brands after the end of head.
func brands(head []byte) (brands []string) {
	if len(head) < 12 || string(head[4:8]) != "ftyp" || head[0] != 0 { // a text may contain "ftyp" there; an ftyp box is smaller than 16 MiB
		return nil
	}
	end := min(int(binary.BigEndian.Uint32(head)), len(head))
	for at := 8; at+4 <= end; at += 4 {
		if at != 12 { // the minor version
			brands = append(brands, string(head[at:at+4]))
		}
	}
	return brands
}
