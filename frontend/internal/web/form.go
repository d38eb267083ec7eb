package web

import (
	"bufio"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/textproto"

	"cats.example/shared/signerapi"
)

const (
	// formOverhead is what a form may hold besides the picture, in bytes.
	formOverhead = 1 << 20
	// partHeader is the most that may come between two parts, headers included.
	partHeader = 16 << 10
	// maxPartLines is how many lines those may have: a line of four bytes takes a
	// hundred of memory, and 128 such headers would be more than the container has.
	// What the multipart reader has already read when they begin, and what it reads of
	// the part that they are of, goes with them one way or the other: 4 KiB each.
	maxPartLines  = 256
	maxPartFields = 64 // that stay while the part is read
	// formRead is how much of a form is read at once, in bytes. The multipart reader
	// by itself asks for 4 KiB at a time.
	formRead = 32 << 10
)

// bodyReader is a request's body whose errors say what they mean.
type bodyReader struct{ r io.Reader }

func (b bodyReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	return n, signerapi.BodyError(err)
}

// form is a multipart/form-data body on its way: no part of it is ever held
// whole, in memory or on disk.
type form struct {
	parts *multipart.Reader
	in    *bufio.Reader // what was read of the body and not yet looked at
	raw   *meter
	spare int64 // what fields other than the file may still hold, in bytes
}

// openForm looks at the request's header only. The errors are errMissingFile for
// a body that is no form, and errMalformedForm.
func openForm(r *http.Request, maxFile int64) (*form, error) {
	mediaType, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if mediaType != "multipart/form-data" {
		return nil, errMissingFile
	}
	boundary := params["boundary"]
	if err != nil || boundary == "" || len(boundary) > 70 { // RFC 2046 section 5.1.1
		return nil, errMalformedForm.With("the form's boundary is missing or not valid")
	}
	digests, err := digestsOf(r.Header)
	if err != nil {
		return nil, err
	}
	in := bufio.NewReaderSize(digests.Reader(bodyReader{r.Body}), formRead)
	raw := &meter{r: in, left: maxFile + formOverhead, tail: "\r\n"}
	return &form{parts: multipart.NewReader(raw, boundary), in: in, raw: raw, spare: formOverhead}, nil
}

// file goes to the field "file" and returns its content and header. That ends in
// io.EOF only once all of the form has been read and found whole, with no second
// file, so that what comes after the file can still refuse it.
func (f *form) file() (io.Reader, textproto.MIMEHeader, error) {
	for {
		part, err := f.next()
		switch {
		case err == io.EOF: //nolint:errorlint // a wrapped io.EOF is a broken form, not its end
			return nil, nil, errMissingFile
		case err != nil:
			return nil, nil, err
		case part.FormName() != "file":
			if err := f.skip(part); err != nil {
				return nil, nil, err
			}
		case part.FileName() == "":
			return nil, nil, errFileIsText
		default:
			return &fileReader{form: f, part: part}, part.Header, nil
		}
	}
}

// next returns the next part; io.EOF, bare, is the end of a whole form.
func (f *form) next() (*multipart.Part, error) {
	f.raw.allow(partHeader)
	defer f.raw.allow(-1)
	part, err := f.parts.NextRawPart()
	if err == io.EOF {
		// Behind the last boundary only a clean end of the body may come, or else
		// the client did not send what it announced.
		if _, err := io.Copy(io.Discard, f.raw); err != errBodyEnd { //nolint:errorlint // nothing wraps it
			return nil, formError(err)
		}
		return nil, io.EOF
	}
	if err != nil {
		return nil, formError(err)
	}
	if len(part.Header) > maxPartFields {
		return nil, errPartHeader
	}
	return part, nil
}

var errPartHeader = errMalformedForm.With("the header of a part of the form is too large")

// skip reads to the end of a part that nobody asked for.
func (f *form) skip(part *multipart.Part) error {
	n, err := io.Copy(io.Discard, io.LimitReader(part, f.spare+1))
	if err != nil {
		return formError(err)
	}
	if f.spare -= n; f.spare < 0 {
		return signerapi.ErrTooLarge.With("the fields besides the file are larger than 1 MiB")
	}
	return nil
}

// fileReader is the content of the field "file".
type fileReader struct {
	form *form
	part *multipart.Part
	err  error // sticky
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
	switch {
	case err == io.EOF: //nolint:errorlint // a wrapped io.EOF is a broken form, not its end
		r.err = r.rest()
	case err != nil:
		r.err = formError(err)
	}
	if n > 0 {
		return n, nil
	}
	return 0, r.err
}

// rest reads what comes after the file and returns io.EOF when all is well.
func (r *fileReader) rest() error {
	for {
		part, err := r.form.next()
		if err != nil {
			return err
		}
		if part.FormName() == "file" {
			return errTwoFiles
		}
		if err := r.form.skip(part); err != nil {
			return err
		}
	}
}

// formError keeps what went wrong with the body, and calls everything else a
// malformed form.
func formError(err error) error {
	if e, ok := errors.AsType[*signerapi.Error](err); ok {
		return e
	}
	return errMalformedForm.Wrap(err)
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
	r      io.Reader
	tail   string // to give at the end
	left   int64
	header int64 // -1 for no limit of its own
	lines  int   // between two parts, since the last empty one
	empty  bool  // the line that has begun
}

func (m *meter) allow(n int64) { m.header, m.lines, m.empty = n, 0, true }

// count counts the lines of p.
func (m *meter) count(p []byte) {
	for _, c := range p {
		switch {
		case c == '\n' && m.empty:
			m.lines = 0
		case c == '\n':
			m.lines, m.empty = m.lines+1, true
		case c != '\r':
			m.empty = false
		}
	}
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	if n == 0 && err == io.EOF {
		n = copy(p, m.tail)
		m.tail = m.tail[n:]
		if n > 0 {
			return n, nil
		}
		return 0, errBodyEnd
	}
	if err == io.EOF {
		err = nil
	}
	if m.left -= int64(n); m.left < 0 {
		return 0, signerapi.ErrTooLarge.With("the form is too large")
	}
	if m.header >= 0 {
		m.count(p[:n])
		if m.header -= int64(n); m.header < 0 || m.lines > maxPartLines {
			return 0, errPartHeader
		}
	}
	return n, err
}
