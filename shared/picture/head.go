package picture

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"image"
	_ "image/gif"  // registers its format for image.DecodeConfig
	_ "image/jpeg" // the same
	_ "image/png"  // the same
	"io"
	"slices"
	"strings"

	"github.com/gabriel-vasile/mimetype"
	_ "golang.org/x/image/webp" // registers its format for image.DecodeConfig

	"cats.example/shared/apierror"
)

const (
	// HeadBytes is the most that is read of a picture to decide whether it is accepted.
	HeadBytes = 64 << 10
	// typeBytes decide its media type.
	typeBytes = 3072
)

// head keeps the bytes that are read of a picture, HeadBytes at most.
type head struct {
	r    io.Reader
	kept []byte
	err  error // of r, which can also just end
}

func newHead(r io.Reader) *head { return &head{r: io.LimitReader(r, HeadBytes)} }

// Read implements [io.Reader].
func (h *head) Read(p []byte) (int, error) {
	if h.err != nil {
		return 0, h.err
	}
	n, err := h.r.Read(p)
	h.kept = append(h.kept, p[:n]...)
	if err != io.EOF { // a wrapped io.EOF is a broken body, not its end
		h.err = err
	}
	return n, err
}

// sniff returns the media type of the picture that h reads if it is an accepted one.
func (l Limits) sniff(h *head) (mediaType string, err error) {
	_, _ = io.ReadFull(h, make([]byte, typeBytes)) // h keeps the bytes, and the error
	if h.err != nil {
		return "", h.err
	}
	if len(h.kept) == 0 {
		return "", apierror.ErrEmpty
	}
	mediaType, ok := l.detect(h.kept)
	if !ok {
		return "", apierror.ErrUnsupportedMediaType.WithDetail(
			fmt.Sprintf("the file is %s, which is not accepted; accepted types: %s", mediaType, strings.Join(l.AcceptedTypes, ", ")))
	}
	return mediaType, nil
}

// check is sniff that also rejects pictures that announce too many pixels.
func (l Limits) check(h *head) (mediaType string, err error) {
	if mediaType, err = l.sniff(h); err != nil {
		return "", err
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

// detect returns the accepted media type of a file that begins with first, or a more general one of which it is a kind (an
// animated PNG is a PNG). Otherwise it returns false and the media type for the error text.
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
		found = p // an image by a brand that is not registered for one
	}
	for m := found; m != nil; m = m.Parent() {
		if i := slices.IndexFunc(l.AcceptedTypes, m.Is); i >= 0 {
			return l.AcceptedTypes[i], true
		}
	}
	bare, _, _ := strings.Cut(found.String(), ";") // without a charset
	return bare, false
}

// dimensions returns the width and height that the first HeadBytes announce, each below 2^32. Both are 0 if they cannot be
// told from there. AVIF, HEIC and HEIF are not looked into: no package registers them with package image.
//
// None of the decoders allocates memory by the announced dimensions.
func dimensions(mediaType string, h *head) (width, height uint64) {
	config, _, err := image.DecodeConfig(io.MultiReader(bytes.NewReader(h.kept), h))
	switch first := h.kept; {
	case err == nil:
		return uint64(config.Width), uint64(config.Height)
	case len(first) < 30:
	case mediaType == "image/png" && string(first[12:16]) == "IHDR": // image/png rejects a width or height of 2^31 pixels
		return uint64(binary.BigEndian.Uint32(first[16:])), uint64(binary.BigEndian.Uint32(first[20:]))
	case mediaType == "image/webp" && string(first[12:20]) == "VP8X\x0a\x00\x00\x00": // webp rejects a canvas of 2^31 pixels
		uint24 := func(b []byte) uint64 { return uint64(b[0]) | uint64(b[1])<<8 | uint64(b[2])<<16 }
		return uint24(first[24:]) + 1, uint24(first[27:]) + 1
	}
	return 0, 0
}
