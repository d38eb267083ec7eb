package web

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strings"

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
	// maxParts, maxPartHeader in bytes and maxPartLines limit the parts of a form. A short line of a header takes 25 times
	// its length of memory, and every part takes CPU time.
	maxParts      = 100
	maxPartHeader = 8 << 10
	maxPartLines  = 64
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
	in       *bufio.Reader // what was read of the body and not yet looked at
	raw      *meter
	count    int      // of parts
	spare    int64    // what fields other than the file may still hold, in bytes
	atLeast  int64    // lower bound of the file's size in bytes, once the file begins
	atMost   int64    // upper bound; 0 if there are no bounds
	names    []string // of the fields before the field "file"
	hasFile  bool     // whether one of these fields holds a file
}

// openForm looks at the request's header only. The errors are errMissingFile for
// a body that is no form, and errMalformedForm.
func openForm(r *http.Request, maxFile int64) (*form, error) {
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
	switch {
	case boundary == "":
		return nil, malformed("the Content-Type has no parameter boundary: let the client library set the header", "")
	case len(boundary) > 70:
		return nil, malformed("the boundary in the Content-Type is longer than 70 bytes (RFC 2046 section 5.1.1)", "")
	}
	digests, err := digestsOf(r.Header)
	if err != nil {
		return nil, err
	}
	in := bufio.NewReaderSize(digests.Reader(signerapi.BodyReader{Body: r.Body}), formRead)
	raw := &meter{r: in, most: maxFile + formOverhead + maxAfterFile, tail: "\r\n"}
	return &form{boundary: boundary, size: r.ContentLength, in: in, raw: raw, spare: formOverhead}, nil
}

// begin reads up to the first boundary.
func (f *form) begin() error {
	switch _, err := f.in.Peek(1); {
	case err == io.EOF: // bare: a wrapped io.EOF is a body that broke off
		return malformed("the body is empty: the boundary in the Content-Type does not occur in the body", fmt.Sprintf(": %q", f.boundary))
	case err != nil:
		return err
	}
	for left := maxPreamble; left > 0; {
		line, err := f.in.ReadSlice('\n')
		f.raw.given += int64(len(line))
		if e, ok := errors.AsType[*signerapi.Error](err); ok {
			return e
		}
		if rest, ok := bytes.CutPrefix(line, []byte("--"+f.boundary)); ok && len(bytes.Trim(bytes.TrimPrefix(rest, []byte("--")), " \t\r\n")) == 0 {
			f.parts = multipart.NewReader(io.MultiReader(strings.NewReader(string(line)), f.raw), f.boundary)
			return nil
		}
		if left -= len(line); errors.Is(err, io.EOF) {
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
	for {
		part, field, err := f.next()
		switch {
		case err == io.EOF: //nolint:errorlint // a wrapped io.EOF is a broken form, not its end
			return nil, nil, f.missing(`the form has no field "file"`)
		case err != nil:
			return nil, nil, err
		case field.name == "file" && !field.file:
			return nil, nil, errFileIsText
		case field.name == "file":
			if f.size >= 0 {
				left := f.size - f.raw.given - f.closing() // The file begins up to readAhead bytes earlier.
				f.atLeast, f.atMost = max(0, left-maxAfterFile-readAhead), left+readAhead
			}
			return &fileReader{form: f, part: part, unchosen: !field.named}, part.Header, nil
		}
		f.names, f.hasFile = append(f.names, field.name), f.hasFile || field.file
		err = f.skip(part, field.name)
		if f.hasFile && errors.Is(err, signerapi.ErrTooLarge) {
			// The name of the field is more likely wrong than its size.
			err = f.missing(`the form has no field "file" in its first 1 MiB`)
		}
		if err != nil {
			return nil, nil, err
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
	const most = 10
	names := fmt.Sprintf("%.40q", f.names[:min(len(f.names), most)])
	if more := len(f.names) - most; more > 0 {
		names += fmt.Sprintf(" and %d more", more)
	}
	detail := fmt.Sprintf(`%s, but the fields %s; the picture must be a file in the field "file"`, wrong, names)
	return errMissingFile.With(detail).Wrap(errors.New("the picture is missing from the form"))
}

// next returns the next part and what its header says; io.EOF, bare, is the end of a whole form.
func (f *form) next() (*multipart.Part, field, error) {
	f.raw.limit()
	defer f.raw.unlimit()
	part, err := f.parts.NextRawPart()
	if err == io.EOF { //nolint:errorlint // a wrapped io.EOF is a broken form, not its end
		// Behind the last boundary only a clean end of the body may come, or else
		// the client did not send what it announced.
		f.raw.unlimit()
		if _, err := io.Copy(io.Discard, f.raw); err != errBodyEnd { //nolint:errorlint // nothing wraps it
			return nil, field{}, f.failed(err)
		}
		return nil, field{}, io.EOF
	}
	if err != nil {
		return nil, field{}, f.failed(err)
	}
	if f.count++; f.count > maxParts {
		return nil, field{}, errTooManyParts
	}
	size, lines := 0, 0
	for name, values := range part.Header {
		for _, value := range values {
			size += len(name) + len(value) + len(": \r\n")
			lines++
		}
	}
	if size > maxPartHeader || lines > maxPartLines {
		return nil, field{}, errPartHeader
	}
	field, err := fieldOf(http.Header(part.Header))
	return part, field, err
}

var (
	errTooManyParts = malformed(fmt.Sprintf("the form has more than %d parts", maxParts), "")
	errAfterFile    = signerapi.ErrInvalidArgument.With("more than 64 KiB follow the file in the form: send the other fields before the file; nothing was stored")
	errPartHeader   = malformed(fmt.Sprintf("the header of a part of the form has more than %d bytes or %d lines", maxPartHeader, maxPartLines), "")
)

// skip reads to the end of a part other than the file.
func (f *form) skip(part *multipart.Part, name string) error {
	value, err := io.ReadAll(io.LimitReader(part, 20)) // as much as a number needs
	if err != nil {
		return f.failed(err)
	}
	if err := checkChunks(name, string(value)); err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, io.LimitReader(part, f.spare+1))
	if err != nil {
		return f.failed(err)
	}
	n += int64(len(value))
	if f.spare -= n; f.spare < 0 {
		detail := fmt.Sprintf("the fields before the file are larger than 1 MiB, with the field %.40q", name)
		return signerapi.ErrTooLarge.With(detail).Wrap(errors.New("the fields before the file are larger than 1 MiB"))
	}
	return nil
}

// fileReader is the content of the field "file".
type fileReader struct {
	form     *form
	part     *multipart.Part
	unchosen bool  // whether the file has no name, and no content so far
	size     int64 // bytes read
	err      error // sticky
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
	r.unchosen = r.unchosen && n == 0
	switch {
	case err == io.EOF: //nolint:errorlint // a wrapped io.EOF is a broken form, not its end
		if r.err = errNoFileChosen; !r.unchosen {
			r.err = r.rest()
		}
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
	for {
		part, field, err := f.next()
		if err == nil && field.name == "file" {
			return errTwoFiles
		}
		if err == nil {
			err = f.skip(part, field.name)
		}
		switch end := err == io.EOF; { //nolint:errorlint // a wrapped io.EOF is a broken form, not its end
		case end && r.size < f.atLeast, errors.Is(err, signerapi.ErrTooLarge):
			return errAfterFile
		case err != nil:
			return err
		}
	}
}

// failed returns the error of the body if there is one, and otherwise errMalformedForm. It does not wrap err, an error of the
// multipart reader: that shows bytes of the body, which would be logged.
func (f *form) failed(err error) error {
	if e, ok := errors.AsType[*signerapi.Error](f.raw.err); ok {
		return e
	}
	if errors.Is(f.raw.err, errBodyEnd) {
		return malformed("the form ends before its last boundary", "")
	}
	return malformed(fmt.Sprintf("the header of part %d of the form cannot be parsed", f.count+1), "")
}

// malformed returns errMalformedForm for that reason. The client is also shown what the log is not: a piece of the form.
func malformed(reason, shown string) error {
	return errMalformedForm.With(reason + shown + "; nothing was stored").Wrap(errors.New(reason))
}

// errBodyEnd is how a meter ends.
var errBodyEnd = errors.New("the body has ended")

// meter bounds how much of a body is read: in all, and between two parts, where
// the multipart reader would hold up to 10 MiB of headers in memory.
//
// It ends in a line end of its own and then errBodyEnd: the multipart reader takes
// an io.EOF amid the header of a part for the clean end of the form, and without
// io.EOF it does not see a last boundary that has no line end behind it.
type meter struct {
	r     *bufio.Reader
	tail  string // to give at the end
	given int64  // bytes of the body, with those before the meter
	most  int64  // limit of given
	bytes int    // of the header that is being read, which may still come
	lines int    // of it; negative outside of headers
	err   error
}

// limit makes m give single lines, and no more of them than between two parts: a blank line, the boundary, the header of
// a part, and another blank line.
func (m *meter) limit()   { m.bytes, m.lines = maxPartHeader+256, maxPartLines+3 }
func (m *meter) unlimit() { m.lines = -1 }

func (m *meter) Read(p []byte) (n int, err error) {
	if m.err == nil {
		n, m.err = m.read(p)
	}
	return n, m.err
}

func (m *meter) read(p []byte) (int, error) {
	_, err := m.r.Peek(1)
	switch {
	case err == io.EOF && m.tail != "": // bare: a wrapped one is a body that broke off
		n := copy(p, m.tail)
		m.tail = m.tail[n:]
		return n, nil
	case err == io.EOF:
		return 0, errBodyEnd
	case err != nil:
		return 0, err
	}
	if m.lines >= 0 {
		line, _ := m.r.Peek(min(len(p), m.r.Buffered()))
		if i := bytes.IndexByte(line, '\n'); i >= 0 {
			line = line[:i+1]
			m.lines--
		}
		if m.bytes -= len(line); m.bytes < 0 || m.lines < 0 {
			return 0, errPartHeader
		}
		p = p[:len(line)]
	}
	n, err := m.r.Read(p)
	if m.given += int64(n); m.given > m.most {
		return 0, signerapi.ErrTooLarge.With("the form is too large")
	}
	return n, err
}
