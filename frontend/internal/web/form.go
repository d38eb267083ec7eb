package web

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strings"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
)

const (
	// formOverhead limits the content of the fields before the file, in bytes.
	formOverhead = 1 << 20
	// maxAfterFile limits the content of the fields after the file, in bytes. All bytes after the file, with headers,
	// boundaries and the epilogue, may be up to 2*readAhead more.
	maxAfterFile = 64 << 10
	// readAhead is more than the 4 KiB that the multipart reader buffers, in bytes.
	readAhead = 8 << 10
	// maxParts and maxPartHeader, in bytes, limit the parts of a form: every part takes CPU time. The multipart reader accepts
	// as many lines in a header as main.go says.
	maxParts      = 100
	maxPartHeader = 8 << 10
	// maxNamed limits the names of fields in an error.
	maxNamed = 10
	// maxPreamble limits the preamble before the first boundary, in bytes.
	maxPreamble = 16 << 10
	// formRead is the size of a read of the body, in bytes. The multipart reader asks for 4 KiB at a time.
	formRead = 32 << 10
)

// form is a multipart/form-data body on its way: no part of it is ever held
// whole, in memory or on disk.
type form struct {
	boundary string
	size     int64 // of the body, in bytes; -1 if unknown
	parts    *multipart.Reader
	in       *bufio.Reader // bytes of the body that are not parsed yet; ends in errBodyEnd
	raw      *meter
	count    int      // of parts
	spare    int64    // what fields other than the file may still hold, in bytes
	atLeast  int64    // lower bound of the file's size in bytes, once the file begins
	atMost   int64    // upper bound; 0 if there are no bounds
	names    []string // of the first fields before the field "file"
}

// openForm looks at the request's header only. The errors are errMissingFile for
// a body that is no form, and errMalformedForm.
func openForm(r *http.Request) (*form, error) {
	mediaType, params, err := parseParams(r.Header.Get("Content-Type"))
	if mediaType != "multipart/form-data" {
		return nil, errMissingFile
	}
	if len(r.Header.Values("Content-Type")) > 1 {
		err = errors.New("it is given more than once")
	}
	if err != nil {
		return nil, malformed("the Content-Type cannot be parsed: "+err.Error(), "")
	}
	boundary := params["boundary"]
	if boundary == "" || len(boundary) > 70 { // RFC 2046 section 5.1.1
		return nil, malformed("the Content-Type has no parameter boundary of 1 to 70 bytes: let the client library set the header", "")
	}
	digests, err := digestsOf(r.Header)
	if err != nil {
		return nil, err
	}
	// The multipart reader accepts an io.EOF in the header of a part as the clean end of the form, so the body ends in another
	// error. Without io.EOF, the reader needs a line end after the last boundary.
	whole := io.MultiReader(digests.Reader(signerapi.BodyReader{Body: r.Body}), strings.NewReader("\r\n"), bodyEnd{})
	in := bufio.NewReaderSize(whole, formRead)
	raw := &meter{r: in, most: math.MaxInt64, header: math.MaxInt64}
	return &form{boundary: boundary, size: r.ContentLength, in: in, raw: raw, spare: formOverhead}, nil
}

// begin reads up to the first boundary.
func (f *form) begin() error {
	for left := maxPreamble; left > 0; {
		line, err := f.in.ReadSlice('\n')
		f.raw.given += int64(len(line))
		if e, ok := errors.AsType[*apierror.Error](err); ok {
			return e
		}
		if rest, ok := bytes.CutPrefix(line, []byte("--"+f.boundary)); ok && len(bytes.Trim(bytes.TrimPrefix(rest, []byte("--")), " \t\r\n")) == 0 {
			f.parts = multipart.NewReader(io.MultiReader(strings.NewReader(string(line)), f.raw), f.boundary)
			return nil
		}
		if left -= len(line); errors.Is(err, errBodyEnd) {
			break
		}
	}
	return malformed("the boundary in the Content-Type does not occur in the body, or only after more than 16 KiB", fmt.Sprintf(": %q", f.boundary))
}

// file reads up to the field "file" and returns the field's content and header. It sets atLeast and atMost. The content ends
// in io.EOF only after the whole form was read and is valid. So the parts after the file can still cause a rejection.
func (f *form) file() (io.Reader, textproto.MIMEHeader, error) {
	if err := f.begin(); err != nil {
		return nil, nil, err
	}
	part, field, err := f.find()
	switch {
	case err == io.EOF: //nolint:errorlint // a wrapped io.EOF is a broken form, not its end
		return nil, nil, f.missing(`the form has no field "file"`)
	case errors.Is(err, errNoSpare):
		return nil, nil, f.missing(`the form has no field "file" in its first 1 MiB`)
	case err != nil:
		return nil, nil, err
	case !field.file:
		return nil, nil, errFileIsText
	}
	if f.size >= 0 {
		left := f.size - f.raw.given - f.closing() // The file begins up to readAhead bytes earlier.
		f.atLeast, f.atMost = max(0, left-maxAfterFile-readAhead), left+readAhead
	}
	return &fileReader{form: f, part: part, named: field.named}, part.Header, nil
}

// find returns the next part with the name "file" and skips the parts before it. The error is io.EOF, bare, if there is none,
// and errNoSpare if the others hold more than is spare.
func (f *form) find() (*multipart.Part, field, error) {
	for {
		part, field, err := f.next()
		if err != nil || field.name == "file" {
			return part, field, err
		}
		if len(f.names) < maxNamed {
			f.names = append(f.names, field.name)
		}
		value, _ := io.ReadAll(io.LimitReader(part, 20)) // as much as a number needs; the next Read has the error, too
		n, err := io.Copy(io.Discard, io.LimitReader(part, f.spare+1))
		if err != nil {
			return nil, field, f.failed(err)
		}
		if err := checkChunks(field.name, string(value)); err != nil {
			return nil, field, err
		}
		if f.spare -= int64(len(value)) + n; f.spare < 0 {
			return nil, field, errNoSpare
		}
	}
}

// closing returns the length of the closing boundary in bytes.
func (f *form) closing() int64 { return int64(len("\r\n--" + f.boundary + "--")) }

// missing returns errMissingFile with what is wrong and the names of the first fields.
func (f *form) missing(wrong string) error {
	if len(f.names) == 0 {
		return errMissingFile
	}
	detail := fmt.Sprintf(`%s; its first fields are %.40q; the picture must be a file in the field "file"`, wrong, f.names)
	return errMissingFile.WithDetail(detail).Wrap(errors.New("the picture is missing from the form"))
}

// next returns the next part and what its header says; io.EOF, bare, is the last boundary.
func (f *form) next() (*multipart.Part, field, error) {
	// The boundary comes first, and the multipart reader reads up to 4 KiB ahead.
	f.raw.header = f.raw.given + maxPartHeader + 256 + 4<<10
	part, err := f.parts.NextRawPart()
	f.raw.header = math.MaxInt64
	switch f.count++; {
	case err == io.EOF: //nolint:errorlint // a wrapped io.EOF is a broken form, not its end
		return nil, field{}, err
	case err != nil:
		return nil, field{}, f.failed(err)
	case f.count > maxParts:
		return nil, field{}, malformed(fmt.Sprintf("the form has more than %d parts", maxParts), "")
	}
	field, err := fieldOf(http.Header(part.Header))
	return part, field, err
}

var (
	errNoSpare    = errors.New("the fields besides the file are too long")
	errAfterFile  = apierror.ErrInvalidArgument.WithDetail("more than 64 KiB follow the file in the form: send the other fields before the file; nothing was stored")
	errPartHeader = malformed(fmt.Sprintf("the header of a part of the form has more than %d bytes or 64 lines", maxPartHeader), "")
)

// fileReader is the content of the field "file".
type fileReader struct {
	form  *form
	part  *multipart.Part
	named bool  // whether the file has a name
	size  int64 // bytes read
	err   error // sticky
}

func (r *fileReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	// The multipart reader gives 4 KiB at a time, each of which would be a chunk and
	// a write of its own.
	n, err := r.part.Read(p)
	for err == nil && n < len(p) && r.form.in.Buffered() > 0 {
		var k int
		k, err = r.part.Read(p[n:])
		n += k
	}
	r.size += int64(n)
	switch end := err == io.EOF; { //nolint:errorlint // a wrapped io.EOF is a broken form, not its end
	case end && r.size == 0 && !r.named:
		r.err = errNoFileChosen
	case end:
		r.err = r.rest()
	case err != nil:
		r.err = r.form.failed(err)
	}
	if n > 0 {
		return n, nil
	}
	return 0, r.err
}

// rest reads the form from the end of the file on and returns io.EOF if the form is valid.
func (r *fileReader) rest() error {
	f := r.form
	f.spare, f.raw.most = maxAfterFile, f.raw.given+maxAfterFile+readAhead+f.closing()
	switch _, _, err := f.find(); {
	case err == nil:
		return errTwoFiles
	case errors.Is(err, errNoSpare):
		return errAfterFile
	case err != io.EOF: //nolint:errorlint // a wrapped io.EOF is a broken form, not its end
		return err
	}
	// After the last boundary the body must end cleanly, or else the client did not send what it announced.
	if _, err := io.Copy(io.Discard, f.raw); !errors.Is(err, errBodyEnd) {
		return f.failed(err)
	}
	if r.size < f.atLeast {
		return errAfterFile
	}
	return io.EOF
}

// failed returns the error of the body if there is one, and otherwise errMalformedForm. It does not wrap err, an error of the
// multipart reader: that shows bytes of the body, which would be logged.
func (f *form) failed(err error) error {
	if e, ok := errors.AsType[*apierror.Error](f.raw.err); ok {
		return e
	}
	if errors.Is(err, multipart.ErrMessageTooLarge) {
		return errPartHeader
	}
	if errors.Is(f.raw.err, errBodyEnd) {
		return malformed("the form ends before its last boundary", "")
	}
	return malformed(fmt.Sprintf("the header of part %d of the form cannot be parsed", f.count), "")
}

// malformed returns errMalformedForm for that reason. The client is also shown what the log is not: a piece of the form.
func malformed(reason, shown string) error {
	return errMalformedForm.WithDetail(reason + shown + "; nothing was stored").Wrap(errors.New(reason))
}

// errBodyEnd is the error after the last byte of a body, in place of io.EOF.
var errBodyEnd = errors.New("the body has ended")

type bodyEnd struct{}

func (bodyEnd) Read([]byte) (int, error) { return 0, errBodyEnd }

// meter limits how much of a body is read: after the file, and between two parts, where the multipart reader would hold up to
// 10 MiB of a header in memory.
type meter struct {
	r      io.Reader
	given  int64 // bytes of the body that were read, with those before the meter
	most   int64 // limit of given after the file
	header int64 // limit of given while a header is read
	err    error
}

func (m *meter) Read(p []byte) (n int, err error) {
	if m.err == nil {
		n, m.err = m.r.Read(p)
	}
	switch m.given += int64(n); {
	case m.given > m.most:
		m.err = errAfterFile
	case m.given > m.header:
		m.err = errPartHeader
	}
	return n, m.err
}
