// Package picture decides what may be stored as a picture, and as what. Both
// containers ask it: the frontend to turn strangers away early, the signer
// because it trusts nothing that the frontend checked.
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
	"image/heic-sequence": {".heics", ".heifs", ".heic", ".heif", ".hif"}, // cameras name their bursts like single images
	"image/heif-sequence": {".heifs", ".heics", ".heif", ".heic", ".hif"},
}

// WithExtension returns name with the extension of the media type at its end, unless
// it has one of that type already. It is false, and name as it was, when no picture
// that was stored can have that type, whatever the limits are.
func WithExtension(name, mediaType string) (string, bool) {
	of, ok := extensions[mediaType]
	if !ok {
		return name, false
	}
	if e := path.Ext(name); e != name && slices.Contains(of, strings.ToLower(e)) {
		return name, true
	}
	return name + of[0], true
}

// Limits are the settings of what is accepted.
type Limits struct {
	MaxPictureSize Size     `env:"MAX_PICTURE_SIZE" shared:"true" envDefault:"32MiB" help:"largest picture that passes through the service, such as 512KiB or 32MiB"`
	AcceptedTypes  []string `env:"ACCEPTED_TYPES" shared:"true" envDefault:"image/jpeg,image/png,image/gif,image/webp,image/avif,image/heic,image/heif,image/heic-sequence,image/heif-sequence" help:"accepted media types, by the first bytes of the file; others than these are not possible"`

	MaxPixels uint64 `env:"MAX_PIXELS" shared:"true" envDefault:"210000000" help:"most pixels that the header of a JPEG, PNG, GIF or WebP may announce, width times height"`
}

// Size is a number of bytes, written as "32MiB", "512KiB" or "1000".
type Size int64

// UnmarshalText implements [encoding.TextUnmarshaler].
func (s *Size) UnmarshalText(text []byte) error {
	n, err := units.RAMInBytes(string(text))
	*s = Size(n)
	return err
}

// String implements [fmt.Stringer].
func (s Size) String() string { return units.BytesSize(float64(s)) }

// Validate reports the faults of the limits, joined.
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

// ValidateSize returns ErrTooLarge when size, in bytes, is over the limit, and
// ErrEmpty when it is zero. A size of -1 is not known and passes.
func (l Limits) ValidateSize(size int64) error {
	switch {
	case size > int64(l.MaxPictureSize):
		return apierror.ErrTooLarge.WithDetail(fmt.Sprintf("the picture is larger than %v", l.MaxPictureSize))
	case size == 0:
		return apierror.ErrEmpty
	}
	return nil
}

// Inspect reads the first bytes of body and decides what it is. It returns the media type and a reader of the whole picture.
//
// The reader fails with ErrTooLarge once it has returned the limit, and with ErrIncomplete if size is not -1 and body has
// another length. Errors of body come through unchanged. Inspect itself returns ErrEmpty, ErrTooLarge (size, or pixels
// announced in the first HeadBytes) and ErrUnsupportedMediaType.
func (l Limits) Inspect(body io.Reader, size int64) (mediaType string, whole io.Reader, err error) {
	return l.open(body, size, l.check)
}

// Sniff is Inspect without the check of the pixels. It keeps a few KiB of the picture, where Inspect may keep HeadBytes.
func (l Limits) Sniff(body io.Reader, size int64) (mediaType string, whole io.Reader, err error) {
	return l.open(body, size, l.sniff)
}

func (l Limits) open(body io.Reader, size int64, check func(*head) (string, error)) (mediaType string, whole io.Reader, err error) {
	if err := l.ValidateSize(size); err != nil {
		return "", nil, err
	}
	limited := &limitedReader{r: body, limits: l, want: size}
	h := newHead(limited)
	if mediaType, err = check(h); err != nil {
		return "", nil, err
	}
	return mediaType, io.MultiReader(bytes.NewReader(h.kept), limited), nil
}

// InspectHead decides what a picture is that begins with first, exactly as Inspect does. It reads at most HeadBytes. Errors of first
// come through unchanged.
func (l Limits) InspectHead(first io.Reader) (mediaType string, err error) {
	return l.check(newHead(first))
}

// limitedReader counts what it gives and fails at the limit.
type limitedReader struct {
	r      io.Reader
	limits Limits
	want   int64 // -1 when the length is not known
	n      int64
}

func (r *limitedReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.n += int64(n)
	if tooLarge := r.limits.ValidateSize(max(r.n, 1)); tooLarge != nil {
		return 0, tooLarge
	}
	if r.want >= 0 && (r.n > r.want || err == io.EOF && r.n < r.want) {
		return 0, apierror.ErrIncomplete.WithDetail("the picture is not as long as announced; nothing was stored")
	}
	return n, err
}
