package picture

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"image"
	_ "image/gif"  // registers its format for image.DecodeConfig
	_ "image/jpeg" // registers its format
	_ "image/png"  // registers its format
	"io"
	"slices"
	"strings"

	"github.com/gabriel-vasile/mimetype"
	_ "golang.org/x/image/webp" // registers its format

	"cats.example/shared/apierror"
)

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

// sniff returns the media type of h if it is accepted.
func (l Limits) sniff(h *head) (mediaType string, err error) {
	_, _ = io.ReadFull(h, make([]byte, typeBytes)) // h keeps the bytes and the error
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

// checkHead is sniff with the limit of pixels.
func (l Limits) checkHead(h *head) (mediaType string, err error) {
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
