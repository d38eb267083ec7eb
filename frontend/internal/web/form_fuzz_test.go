package web

import (
	"bytes"
	"io"
	"math/rand/v2"
	"mime/multipart"
	"net/http/httptest"
	"net/textproto"
	"strconv"
	"strings"
	"testing"
)

// FuzzWrittenForm posts forms as clients write them, with any fields and in any shape. A form with up to 64 KiB after the file
// must be accepted, and its picture stored to the byte; with much more, it must be rejected.
func FuzzWrittenForm(f *testing.F) {
	f.Add("a", "1", "cat.png", []byte("picture"), "z", "2", uint64(0))
	f.Add("file2", "--\r\n--", "a\"b\\c\r\n.png", []byte("\r\n--\r\n\r\n--x--\r\n"), "", "\r\n", uint64(0))
	for shape := range uint64(100) {
		f.Add("a", "1", "cat.png", []byte("\r\n--picture"), "z", "2", shape)
	}
	h, m, _ := newWebWith(f, "RATE_LIMIT=0", "MAX_PICTURE_SIZE=1MiB")
	f.Fuzz(func(t *testing.T, before, value, name string, content []byte, after, last string, shape uint64) {
		control := func(r rune) bool { return r != '\r' && r != '\n' && (r < ' ' || r == 0x7f) } // which no header may hold; line ends are written as others
		if before == "file" || after == "file" || name == "" || strings.ContainsFunc(before+name+after, control) || len(before)+len(name)+len(after) > 4<<10 || len(content) > maxSize-40 {
			return
		}
		contentType, body, want, rest := shapedForm(t, shape, before, value, name, png[:40]+string(content), after, last)
		for _, length := range []int64{int64(len(body)), -1} {
			clear(m.cats)
			r := httptest.NewRequestWithContext(t.Context(), "POST", "/cat/x", &pieces{body, []int{1, 100, 4 << 10, 5000, 1 << 20}[shape%5]})
			r.ContentLength = length
			r.Header.Set("Content-Type", contentType)
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r)
			stored, ok := m.cats["x"]
			switch {
			case rec.Code == 200 && rest <= maxAfterFile+2*readAhead && stored == want && (m.put.MaxSize > 0) == (length >= 0):
			case rec.Code == 422 && rest > maxAfterFile && !ok && strings.Contains(rec.Body.String(), "64 KiB"):
			default:
				t.Fatalf("a form of %d of %d bytes with %d after the file: %d %s; stored %d bytes with %+v", length, len(body), rest, rec.Code, rec.Body, len(stored), m.put)
			}
		}
	})
}

// shapedForm returns a form with a field before and a field after the file. shape decides on the size of the parts, the
// boundary, the preamble, the epilogue and the header of the file. rest is the number of bytes after the file, without the
// closing boundary.
func shapedForm(t *testing.T, shape uint64, before, value, name, content, after, last string) (contentType string, body []byte, file string, rest int) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(shape, 0))
	long := func(sizes ...int) string { // random bytes, of about one of the sizes
		b := make([]byte, max(0, sizes[rnd.IntN(len(sizes))]+rnd.IntN(5)-2))
		_, _ = rand.NewChaCha8([32]byte{byte(shape)}).Read(b)
		return string(b)
	}
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	if err := w.SetBoundary(strings.Repeat("-", rnd.IntN(36)) + strings.Repeat("b", 1+rnd.IntN(35))); err != nil {
		t.Fatal(err)
	}
	if rnd.IntN(3) == 0 {
		form.WriteString(strings.Repeat("y", rnd.IntN(16<<10-100)) + "\r\n")
	}
	write := func(part io.Writer, err error, content string) {
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(part, content)
	}
	if rnd.IntN(3) > 0 {
		part, err := w.CreateFormField(before)
		write(part, err, value+long(0, 100, 3000, 4096, 8192, 100_000))
	}
	file = content + long(0, 0, 3000, 4096, 60_000, 64<<10, 72<<10, 128<<10, 300<<10)
	header := textproto.MIMEHeader{"Content-Disposition": {multipart.FileContentDisposition("file", name)}}
	for _, line := range [][2]string{{"Content-Type", "image/png"}, {"Content-Length", strconv.Itoa(len(file))}, {"X-Long", strings.Repeat("x", 3000)}} {
		if rnd.IntN(2) == 0 {
			header.Set(line[0], line[1])
		}
	}
	part, err := w.CreatePart(header)
	write(part, err, file)
	end := form.Len()
	if rnd.IntN(3) > 0 {
		part, err := w.CreateFormField(after)
		write(part, err, last+long(0, 0, 100, 4096, 60_000, 64<<10, 100_000))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	switch rnd.IntN(3) {
	case 0:
		form.Truncate(form.Len() - len("\r\n"))
	case 1:
		form.WriteString(long(0, 4096, 60_000, 64<<10, 75_000, 100_000))
	}
	return w.FormDataContentType(), form.Bytes(), file, form.Len() - end - len("\r\n--"+w.Boundary()+"--")
}

// pieces is a body of which a Read returns up to most bytes.
type pieces struct {
	left []byte
	most int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.left) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.most)], p.left)
	p.left = p.left[n:]
	return n, nil
}
