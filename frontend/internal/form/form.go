// Package form finds the picture in a multipart/form-data body (RFC 7578) while the body arrives. It holds no part of the form
// as a whole, neither in memory nor on disk.
package form

import (
	"errors"
	"io"
	"mime/multipart"
	"net/http"
)

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
	p, err := newParts(boundary, body, checkField)
	if err != nil {
		return nil, err
	}
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
		left := size - p.meter.read - p.closingLen() // the file begins up to readAhead bytes earlier
		f.MinSize, f.MaxSize = max(0, left-MaxAfter-readAhead), left+readAhead
	}
	return f, nil
}

// boundaryOf returns the boundary in the Content-Type of a request, ErrMissingFile if the request has no form.
func boundaryOf(header http.Header) (string, error) {
	mediaType, params, err := parseParams(header.Get("Content-Type"))
	if mediaType != "multipart/form-data" {
		return "", ErrMissingFile
	}
	if len(header.Values("Content-Type")) > 1 {
		err = errors.New("the request has more than one")
	}
	if err != nil {
		return "", malformed("the Content-Type cannot be parsed: "+err.Error(), "")
	}
	boundary := params["boundary"]
	if boundary == "" || len(boundary) > 70 { // RFC 2046 section 5.1.1
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
	p.budget, p.meter.limit = MaxAfter, p.meter.read+MaxAfter+readAhead+p.closingLen()
	switch _, _, err := p.nextFile(); {
	case err == nil:
		return ErrTwoFiles
	case errors.Is(err, errFieldsTooLarge):
		return errAfterFile
	case !isEnd(err):
		return err
	}
	// The body must end cleanly after the last boundary, or the client did not send all of it.
	if _, err := io.Copy(io.Discard, p.meter); !errors.Is(err, errBodyEnd) {
		return p.readError(err)
	}
	if f.size < f.MinSize {
		return errAfterFile
	}
	return io.EOF
}
