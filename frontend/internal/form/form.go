// Package form finds the picture in a multipart/form-data body (RFC 7578) while the body arrives. It holds no part of the form
// as a whole, neither in memory nor on disk.
package form

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"mime/multipart"
	"net/http"
	"regexp"
	"strings"

	"cats.example/shared/apierror"
)

// Limits of the content of the fields before and after the file, in bytes. If the size of a form is known, all bytes after its
// file, with headers, boundaries and the epilogue, may be up to 3*readAhead more than MaxAfter.
const (
	MaxBefore = 1 << 20
	MaxAfter  = 64 << 10
)

// Other limits, in bytes unless stated otherwise.
const (
	maxParts      = 100      // number of parts; each takes CPU time
	maxPartHeader = 8 << 10  // with the preamble of the form; the limit of 64 lines is set in the frontend's main.go
	maxValue      = 20       // start of a field's value that is checked; enough for a number
	maxNames      = 10       // number of field names in an error
	readAhead     = 8 << 10  // more than the 4 KiB that the multipart reader buffers
	bufferSize    = 32 << 10 // of a read of the body; the multipart reader alone would read 4 KiB at a time
)

// Errors of this package. Errors with the same code differ in their details.
var (
	ErrMissingFile = &apierror.Error{Code: "missing_file", Status: http.StatusUnprocessableEntity, Detail: `the picture is missing: send multipart/form-data with the picture in the field "file", or PUT the picture itself`}
	ErrTwoFiles    = &apierror.Error{Code: "two_files", Status: http.StatusUnprocessableEntity, Detail: `the form has more than one field "file"; nothing was stored`}
	ErrMalformed   = &apierror.Error{Code: "malformed_form", Status: http.StatusBadRequest, Detail: "the form is malformed; nothing was stored"}
)

var (
	errNoFileChosen   = ErrMissingFile.WithDetail(`no file was chosen: the field "file" has no file name and no content`)
	errFileIsText     = ErrMissingFile.WithDetail(`the field "file" is text: send it as a file, with a file name`)
	errAfterFile      = apierror.ErrInvalidArgument.WithDetail("more than 64 KiB follow the file in the form: send the other fields before the file; nothing was stored")
	errPartHeader     = malformed(fmt.Sprintf("the header of a part of the form has more than %d bytes or 64 lines", maxPartHeader), "")
	errFieldsTooLarge = errors.New("the fields besides the file are too large")
)

// malformed returns ErrMalformed with the detail reason. The detail, but not the log, also has shown, a piece of the form.
func malformed(reason, shown string) error {
	return ErrMalformed.WithDetail(reason + shown + "; nothing was stored").Wrap(errors.New(reason))
}

// missingFile returns ErrMissingFile with the detail reason and the names of the first fields, which the log does not get.
func missingFile(reason string, names []string) error {
	if len(names) == 0 {
		return ErrMissingFile
	}
	detail := fmt.Sprintf(`%s; its first fields are %.40q; the picture must be a file in the field "file"`, reason, names)
	return ErrMissingFile.WithDetail(detail).Wrap(errors.New("the picture is missing from the form"))
}

// File is the content of the field "file" of a form.
type File struct {
	Header http.Header // of the part
	// MinSize and MaxSize are bounds of the size of the file in bytes. Both are 0 if the size of the form is unknown.
	MinSize, MaxSize int64

	parts *parts
	part  *multipart.Part
	named bool  // whether the file has a name
	size  int64 // bytes read
	err   error // sticky
}

// Open reads a form up to the content of its field "file".
//
// header is the header of the request, body its body, and size the length of body in bytes, -1 if unknown. Open and Read call
// checkField with the name of each other field and the start of its value; an error of checkField ends the form.
//
// Open and Read return ErrMissingFile, ErrTwoFiles, ErrMalformed, ErrInvalidArgument if more than MaxAfter follows the file, and
// the errors of body and checkField as they are.
func Open(header http.Header, body io.Reader, size int64, checkField func(name, value string) error) (*File, error) {
	boundary, err := boundaryOf(header)
	if err != nil {
		return nil, err
	}
	p := newParts(boundary, body, checkField)
	part, field, err := p.nextFile()
	switch {
	case isEnd(err):
		return nil, missingFile(`the form has no field "file"`, p.names)
	case errors.Is(err, errFieldsTooLarge):
		return nil, missingFile(`the form has no field "file" in its first 1 MiB`, p.names)
	case err != nil:
		return nil, err
	case !field.file:
		return nil, errFileIsText
	}
	f := &File{Header: http.Header(part.Header), parts: p, part: part, named: field.named}
	if size >= 0 {
		left := size - p.meter.read // the file begins up to readAhead bytes earlier
		f.MinSize, f.MaxSize = max(0, left-MaxAfter-2*readAhead), left+readAhead
	}
	return f, nil
}

// boundaryOf returns the boundary in the Content-Type of a request, ErrMissingFile if the request has no form.
func boundaryOf(header http.Header) (string, error) {
	mediaType, params, err := parseParams(header.Get("Content-Type"))
	boundary := params["boundary"]
	switch {
	case mediaType != "multipart/form-data":
		return "", ErrMissingFile
	case len(header.Values("Content-Type")) > 1:
		return "", malformed("the request has more than one Content-Type", "")
	case err != nil:
		return "", malformed("the Content-Type cannot be parsed: "+err.Error(), "")
	case boundary == "" || len(boundary) > 70: // RFC 2046 section 5.1.1
		return "", malformed("the Content-Type has no parameter boundary of 1 to 70 bytes: let the client library set the header", "")
	}
	return boundary, nil
}

// Read returns io.EOF only after it has read the whole form and found it valid, so parts after the file can still cause an error.
func (f *File) Read(p []byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	// The multipart reader returns 4 KiB at a time, and each would become a write and a chunk of its own.
	n, err := f.part.Read(p)
	for err == nil && n < len(p) && f.parts.body.Buffered() > 0 {
		var more int
		more, err = f.part.Read(p[n:])
		n += more
	}
	f.size += int64(n)
	switch {
	case isEnd(err) && f.size == 0 && !f.named:
		f.err = errNoFileChosen
	case isEnd(err):
		f.err = f.readRest()
	case err != nil:
		f.err = f.parts.readError(err)
	}
	if n > 0 {
		return n, nil
	}
	return 0, f.err
}

// readRest reads the form after the file and returns io.EOF if the form is valid.
func (f *File) readRest() error {
	p := f.parts
	p.budget = MaxAfter
	switch _, _, err := p.nextFile(); {
	case err == nil:
		return ErrTwoFiles
	case errors.Is(err, errFieldsTooLarge):
		return errAfterFile
	case !isEnd(err):
		return err
	}
	// The body must end cleanly after the last boundary, or the client did not send all of it.
	_, err := io.CopyN(io.Discard, p.meter, p.budget+readAhead)
	if err != nil && !errors.Is(err, errBodyEnd) {
		return p.readError(err)
	}
	if err == nil || f.size < f.MinSize {
		return errAfterFile
	}
	return io.EOF
}

// parts reads the parts of a form one after the other.
type parts struct {
	boundary   string
	checkField func(name, value string) error
	body       *bufio.Reader // ends in errBodyEnd
	meter      *meter        // reads body
	multipart  *multipart.Reader
	count      int      // parts read
	budget     int64    // bytes that fields other than the file may still have
	names      []string // of the first fields that are not the file
}

// newParts returns the parts of body.
//
// [multipart.Reader] accepts an io.EOF in the header of a part as the clean end of the form, so the body ends in another error.
// Without an io.EOF, it needs a line end after the last boundary.
func newParts(boundary string, body io.Reader, checkField func(name, value string) error) *parts {
	buffered := bufio.NewReaderSize(io.MultiReader(body, strings.NewReader("\r\n"), bodyEnd{}), bufferSize)
	m := &meter{r: buffered, limit: math.MaxInt64}
	return &parts{boundary: boundary, checkField: checkField, body: buffered, meter: m, multipart: multipart.NewReader(m, boundary), budget: MaxBefore}
}

// nextFile returns the next part with the name "file" and skips the parts before it. The error is io.EOF, not wrapped, after the
// last part, and errFieldsTooLarge if the skipped parts exceed the budget.
func (p *parts) nextFile() (*multipart.Part, field, error) {
	for {
		part, err := p.next()
		if err != nil {
			return nil, field{}, err
		}
		field, err := parseField(http.Header(part.Header))
		if err != nil || field.name == "file" {
			return part, field, err
		}
		if len(p.names) < maxNames {
			p.names = append(p.names, field.name)
		}
		value, _ := io.ReadAll(io.LimitReader(part, maxValue)) // the next Read returns the error, too
		n, err := io.Copy(io.Discard, io.LimitReader(part, p.budget+1))
		if err != nil {
			return nil, field, p.readError(err)
		}
		if err := p.checkField(field.name, string(value)); err != nil {
			return nil, field, err
		}
		if p.budget -= int64(len(value)) + n; p.budget < 0 {
			return nil, field, errFieldsTooLarge
		}
	}
}

// next returns the next part. The error is io.EOF, not wrapped, after the last part.
func (p *parts) next() (*multipart.Part, error) {
	// The multipart reader reads the boundary first, and up to 4 KiB ahead.
	p.meter.limit = p.meter.read + maxPartHeader + 256 + 4<<10
	part, err := p.multipart.NextRawPart()
	p.meter.limit = math.MaxInt64
	p.count++
	if err == nil && p.count > maxParts {
		return nil, malformed(fmt.Sprintf("the form has more than %d parts", maxParts), "")
	}
	if err != nil && !isEnd(err) {
		err = p.readError(err)
	}
	if p.count == 1 && errors.Is(err, ErrMalformed) {
		reason := fmt.Sprintf("the boundary in the Content-Type does not occur in the body, or the header of the first part "+
			"cannot be parsed, or has more than %d bytes or 64 lines", maxPartHeader)
		return nil, malformed(reason, fmt.Sprintf(": %q", p.boundary))
	}
	return part, err
}

// readError returns the error of the body if there is one, and ErrMalformed otherwise. It does not wrap err, an error of the
// multipart reader, whose text contains bytes of the body: the log must not have them.
func (p *parts) readError(err error) error {
	ended := errors.Is(p.meter.err, errBodyEnd)
	switch {
	case p.meter.err != nil && !ended:
		return p.meter.err
	case errors.Is(err, multipart.ErrMessageTooLarge):
		return errPartHeader
	case ended:
		return malformed("the form ends before its last boundary", "")
	}
	return malformed(fmt.Sprintf("the header of part %d of the form cannot be parsed", p.count), "")
}

// field describes a part of a form by the header of the part.
type field struct {
	name  string
	file  bool // whether it holds a file
	named bool // whether the file has a name
}

// parseField reads the Content-Disposition of a part (RFC 7578 section 4.2). A field holds a file if it has a file name, even
// an empty one or one that cannot be decoded, or a Content-Type other than text. The error is ErrMalformed. Its detail shows the
// Content-Disposition; the log does not get it, because it contains the file name.
func parseField(h http.Header) (field, error) {
	line := strings.Join(h.Values("Content-Disposition"), ", ")
	_, params, err := parseParams(line)
	name, ok := params["name"]
	switch {
	case len(h.Values("Content-Disposition")) != 1:
		err = errors.New("a part of the form has no Content-Disposition, or more than one")
	case err != nil:
		err = fmt.Errorf("the Content-Disposition of a part cannot be parsed: %w", err)
	case !ok:
		err = errors.New("the Content-Disposition of a part has no name")
	}
	if err != nil {
		return field{}, malformed(err.Error(), fmt.Sprintf("; the part has the Content-Disposition %.200q", line))
	}
	fileName, file := params["filename"]
	contentType := strings.ToLower(h.Get("Content-Type"))
	binary := contentType != "" && !strings.HasPrefix(contentType, "text/")
	undecoded := strings.Contains(strings.ToLower(line), "filename*") // mime omits a parameter that it cannot decode
	return field{name, file || binary || undecoded, fileName != ""}, nil
}

// paramForm matches a parameter: its name, and its value in quotes or without.
var paramForm = regexp.MustCompile(`(?s)([^;=]+)=\s*(?:"(.*?)"\s*(?:;|$)|([^;]*))`)

// parseParams splits v, a Content-Type or Content-Disposition field, into its first word and its parameters. Both have names in
// lower case, as in [mime.ParseMediaType].
//
// In addition, it accepts syntax that old and simple clients send: unquoted values with any characters up to the next semicolon,
// quotes inside a quoted value, empty parameters, and words without a value, which it ignores. The first word is valid even if
// there is an error.
func parseParams(v string) (word string, params map[string]string, err error) {
	if word, params, err = mime.ParseMediaType(v); err == nil {
		return word, params, nil
	}
	word, _, _ = strings.Cut(v, ";")
	word, params = strings.ToLower(strings.TrimSpace(word)), map[string]string{}
	for _, m := range paramForm.FindAllStringSubmatch(v, -1) {
		name, value := strings.ToLower(strings.TrimSpace(m[1])), cmp.Or(m[2], strings.TrimSpace(m[3]))
		if strings.HasPrefix(m[3], `"`) {
			return word, nil, errors.New("a quoted value has no end")
		}
		if other, exists := params[name]; exists && other != value {
			return word, nil, errors.New("a parameter has two different values")
		}
		params[name] = value
	}
	return word, params, nil
}

// isEnd reports whether err is io.EOF itself. A wrapped io.EOF means that the form or its body is broken.
func isEnd(err error) bool { return err == io.EOF }

// bodyEnd is an empty reader that ends in errBodyEnd.
type bodyEnd struct{}

var errBodyEnd = errors.New("the body has ended") // in place of io.EOF

func (bodyEnd) Read([]byte) (int, error) { return 0, errBodyEnd }

// meter limits how many bytes of a body are read. Without it, the multipart reader would buffer up to 10 MiB of a part header.
type meter struct {
	r     io.Reader
	read  int64 // bytes
	limit int64 // of read; errPartHeader
	err   error // sticky
}

func (m *meter) Read(p []byte) (n int, err error) {
	if m.err == nil {
		n, m.err = m.r.Read(p)
	}
	if m.read += int64(n); m.read > m.limit {
		m.err = errPartHeader
	}
	return n, m.err
}
