package form

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"mime/multipart"
	"net/http"
	"strings"
)

// Limits of the content of the fields before and after the file, in bytes. All bytes after the file, with headers, boundaries
// and the epilogue, may be up to 2*readAhead more than MaxAfter.
const (
	MaxBefore = 1 << 20
	MaxAfter  = 64 << 10
)

// Other limits, in bytes unless stated otherwise.
const (
	maxParts      = 100      // number of parts; each takes CPU time
	maxPartHeader = 8 << 10  // the limit of 64 lines is set in the frontend's main.go
	maxPreamble   = 16 << 10 // before the first boundary
	maxValue      = 20       // start of a field's value that is checked; enough for a number
	maxNames      = 10       // number of field names in an error
	readAhead     = 8 << 10  // more than the 4 KiB that the multipart reader buffers
	bufferSize    = 32 << 10 // of a read of the body; the multipart reader alone would read 4 KiB at a time
)

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

// newParts returns the parts of body, positioned at the first boundary.
//
// [multipart.Reader] accepts an io.EOF in the header of a part as the clean end of the form, so the body ends in another error.
// Without an io.EOF, it needs a line end after the last boundary.
func newParts(boundary string, body io.Reader, checkField func(name, value string) error) (*parts, error) {
	buffered := bufio.NewReaderSize(io.MultiReader(body, strings.NewReader("\r\n"), bodyEnd{}), bufferSize)
	p := &parts{
		boundary: boundary, checkField: checkField, body: buffered, budget: MaxBefore,
		meter: &meter{r: buffered, limit: math.MaxInt64, headerLimit: math.MaxInt64},
	}
	for left := maxPreamble; left > 0; {
		line, err := p.body.ReadSlice('\n')
		p.meter.read += int64(len(line))
		ended := errors.Is(err, errBodyEnd)
		if err != nil && !ended && !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
		if rest, ok := bytes.CutPrefix(line, []byte("--"+boundary)); ok && len(bytes.Trim(bytes.TrimPrefix(rest, []byte("--")), " \t\r\n")) == 0 {
			p.multipart = multipart.NewReader(io.MultiReader(strings.NewReader(string(line)), p.meter), boundary)
			return p, nil
		}
		if left -= len(line); ended {
			break
		}
	}
	return nil, malformed("the boundary in the Content-Type does not occur in the body, or only after more than 16 KiB", fmt.Sprintf(": %q", boundary))
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
	p.meter.headerLimit = p.meter.read + maxPartHeader + 256 + 4<<10
	part, err := p.multipart.NextRawPart()
	p.meter.headerLimit = math.MaxInt64
	p.count++
	if err == nil && p.count > maxParts {
		return nil, malformed(fmt.Sprintf("the form has more than %d parts", maxParts), "")
	}
	if err != nil && !isEnd(err) {
		err = p.readError(err)
	}
	return part, err
}

// closingLen returns the length of the closing boundary in bytes.
func (p *parts) closingLen() int64 { return int64(len("\r\n--" + p.boundary + "--")) }

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

var errPartHeader = malformed(fmt.Sprintf("the header of a part of the form has more than %d bytes or 64 lines", maxPartHeader), "")

// isEnd reports whether err is io.EOF itself. A wrapped io.EOF means that the form or its body is broken.
func isEnd(err error) bool { return err == io.EOF }

// bodyEnd is an empty reader that ends in errBodyEnd.
type bodyEnd struct{}

func (bodyEnd) Read([]byte) (int, error) { return 0, errBodyEnd }

// meter limits how many bytes of a body are read. Without it, the multipart reader would buffer up to 10 MiB of a part header.
type meter struct {
	r           io.Reader
	read        int64 // bytes of the body that were read, including those before the meter
	limit       int64 // of read; errAfterFile
	headerLimit int64 // of read while a part header is read; errPartHeader
	err         error // sticky
}

func (m *meter) Read(p []byte) (n int, err error) {
	if m.err == nil {
		n, m.err = m.r.Read(p)
	}
	switch m.read += int64(n); {
	case m.read > m.limit:
		m.err = errAfterFile
	case m.read > m.headerLimit:
		m.err = errPartHeader
	}
	return n, m.err
}
