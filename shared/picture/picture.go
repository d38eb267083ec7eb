// Package picture decides what may be stored as a picture, and as what. Both
// containers ask it: the frontend to turn strangers away early, the signer
// because it trusts nothing that the frontend checked.
package picture

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"strings"

	"github.com/docker/go-units"
	"github.com/gabriel-vasile/mimetype"

	"cats.example/shared/signerapi"
)

// headBytes is how much of a file decides its type.
const headBytes = 3072

// Limits are the settings of what is accepted.
type Limits struct {
	MaxSize Size     `env:"MAX_PICTURE_SIZE" shared:"true" envDefault:"32MiB" help:"largest picture that passes through the service, such as 512KiB or 32MiB"`
	Types   []string `env:"PICTURE_TYPES" shared:"true" envDefault:"image/jpeg,image/png,image/gif,image/webp,image/avif,image/heic,image/heif" help:"accepted media types, by the first bytes of the file; others than these are not possible"`

	MaxPixels uint64 `env:"MAX_PIXELS" shared:"true" envDefault:"210000000" help:"most pixels that a picture may have, width times height by its header"`
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
	if l.MaxSize <= 0 {
		faults = append(faults, errors.New("MAX_PICTURE_SIZE must be above zero"))
	}
	if l.MaxPixels == 0 {
		faults = append(faults, errors.New("MAX_PIXELS must be above zero"))
	}
	for _, t := range l.Types {
		if _, ok := formats[t]; !ok {
			faults = append(faults, fmt.Errorf("PICTURE_TYPES: %q is not possible, only %s are", t, strings.Join(possible(), ", ")))
		}
	}
	return errors.Join(faults...)
}

// CheckSize returns ErrTooLarge when size, in bytes, is over the limit, and
// ErrEmpty when it is zero. A size of -1 is not known and passes.
func (l Limits) CheckSize(size int64) error {
	switch {
	case size > int64(l.MaxSize):
		return signerapi.ErrTooLarge.With(fmt.Sprintf("the picture is larger than %v", l.MaxSize))
	case size == 0:
		return signerapi.ErrEmpty
	}
	return nil
}

// Open reads the first bytes of body and decides what it is. It returns the
// media type and a reader of the whole picture, which fails with ErrTooLarge
// once it has given the limit, and with ErrIncomplete where size is not -1 and
// body has another length. The errors of body come through as they are; Open's
// own are ErrEmpty, ErrTooLarge and ErrUnsupportedMediaType.
//
// The header of the picture is read on the way, and nothing else is decoded: too
// many pixels are ErrTooLarge, a header that is missing or makes no sense is
// ErrUnsupportedMediaType. Where it is not in the first bytes, the reader fails with
// that, in place of io.EOF at the latest.
func (l Limits) Open(body io.Reader, size int64) (mediaType string, whole io.Reader, err error) {
	if err := l.CheckSize(size); err != nil {
		return "", nil, err
	}
	r := &limitedReader{r: body, limits: l, want: size}
	head := make([]byte, headBytes)
	n := 0
	for n < len(head) && err == nil {
		var k int
		k, err = r.Read(head[n:])
		n += k
	}
	if err != nil && err != io.EOF { //nolint:errorlint // only a bare io.EOF is the end of a body
		return "", nil, err
	}
	if n == 0 {
		return "", nil, signerapi.ErrEmpty
	}
	head = head[:n]
	mediaType, ok := l.detect(head)
	if !ok {
		return "", nil, signerapi.ErrUnsupportedMediaType.With("the file is " + mediaType + ", which is not an accepted type")
	}
	header := newScan(mediaType, l.MaxPixels)
	if err := header.read(head); err != nil {
		return "", nil, err
	}
	if err == nil {
		return mediaType, io.MultiReader(bytes.NewReader(head), &scannedReader{r, header}), nil
	}
	if err := header.end(); err != nil {
		return "", nil, err
	}
	return mediaType, bytes.NewReader(head), nil
}

// Inspect decides by head, the first bytes of a picture, what it is, as Open does, and
// reads no more of them than that takes. What is not in them is not looked at, such as
// the later frames of a large GIF; but how many pixels the picture has must be. The
// errors of head come through as they are.
func (l Limits) Inspect(head io.Reader) (mediaType string, err error) {
	buf := make([]byte, 32<<10)
	n := 0
	for n < headBytes && err == nil {
		var k int
		k, err = head.Read(buf[n:])
		n += k
	}
	if err != nil && err != io.EOF {
		return "", err
	}
	if n == 0 {
		return "", signerapi.ErrEmpty
	}
	mediaType, ok := l.detect(buf[:min(n, headBytes)])
	if !ok {
		return "", signerapi.ErrUnsupportedMediaType.With("the file is " + mediaType + ", which is not an accepted type")
	}
	header := newScan(mediaType, l.MaxPixels)
	for {
		if wrong := header.read(buf[:n]); wrong != nil {
			return "", wrong
		}
		if err == io.EOF || header.step == nil {
			return mediaType, header.end()
		}
		if n, err = head.Read(buf); err != nil && err != io.EOF {
			return "", err
		}
	}
}

// detect returns the accepted media type that head is, or a more general one of
// which it is a kind (an animated PNG is a PNG); otherwise what it is.
func (l Limits) detect(head []byte) (string, bool) {
	found := mimetype.Detect(head)
	for m := found; m != nil; m = m.Parent() {
		for _, t := range l.Types {
			if m.Is(t) {
				return t, true
			}
		}
	}
	bare, _, err := mime.ParseMediaType(found.String())
	if err != nil {
		bare = found.String()
	}
	return bare, false
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
	if tooLarge := r.limits.CheckSize(max(r.n, 1)); tooLarge != nil {
		return 0, tooLarge
	}
	if r.want >= 0 && (r.n > r.want || err == io.EOF && r.n < r.want) {
		return 0, signerapi.ErrIncomplete.With("the picture is not as long as announced; nothing was stored")
	}
	return n, err
}

// scannedReader shows the header what it gives, and fails where that does.
type scannedReader struct {
	r      io.Reader
	header scan
}

func (r *scannedReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	wrong := r.header.read(p[:n])
	if err == io.EOF { // only a bare one is the end of a body
		wrong = r.header.end()
	}
	if wrong != nil {
		return 0, wrong
	}
	return n, err
}
