// Package picture decides which files are accepted as pictures, by their size, their first bytes and their number of pixels.
//
// Both containers use it: the frontend to reject files before it forwards them, the signer because it does not trust the
// frontend.
package picture

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/docker/go-units"

	"cats.example/shared/apierror"
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
	MaxPictureSize Size     `env:"MAX_PICTURE_SIZE" shared:"true" envDefault:"32MiB" help:"largest picture that is uploaded through the service, such as 512KiB or 32MiB"`
	AcceptedTypes  []string `env:"ACCEPTED_TYPES" shared:"true" envDefault:"image/jpeg,image/png,image/gif,image/webp,image/avif,image/heic,image/heif,image/heic-sequence,image/heif-sequence" help:"accepted media types, determined from the first bytes of the file; only types of the default are possible"`

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
	var faults []error
	if l.MaxPictureSize <= 0 || l.MaxPixels == 0 {
		faults = append(faults, errors.New("MAX_PICTURE_SIZE and MAX_PIXELS must be above zero"))
	}
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
	return l.inspect(body, size, l.checkHead)
}

// Sniff is Inspect without the limit of pixels. It buffers 3 KiB of the picture, where Inspect may buffer HeadBytes.
func (l Limits) Sniff(body io.Reader, size int64) (mediaType string, whole io.Reader, err error) {
	return l.inspect(body, size, l.sniff)
}

func (l Limits) inspect(body io.Reader, size int64, check func(*head) (string, error)) (mediaType string, whole io.Reader, err error) {
	if err := l.ValidateSize(size); err != nil {
		return "", nil, err
	}
	limited := &limitedReader{r: body, limits: l, size: size}
	h := newHead(limited)
	if mediaType, err = check(h); err != nil {
		return "", nil, err
	}
	return mediaType, io.MultiReader(bytes.NewReader(h.kept), limited), nil
}

// InspectHead returns the media type of the picture that begins with first, and the same errors as Inspect. It reads at most
// HeadBytes. It returns errors of first unchanged.
func (l Limits) InspectHead(first io.Reader) (mediaType string, err error) {
	return l.checkHead(newHead(first))
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
