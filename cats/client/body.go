package client

import (
	"context"
	"crypto/md5"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// content is the picture of one Put.
type content struct {
	once        io.Reader   // set if the picture can be read only once
	r           io.ReaderAt // otherwise
	start, size int64       // of the picture in r; the size is -1 if it is unknown
}

func newContent(picture io.Reader) content {
	if r, ok := picture.(interface {
		io.ReaderAt
		io.Seeker
	}); ok {
		start, startErr := r.Seek(0, io.SeekCurrent)
		end, endErr := r.Seek(0, io.SeekEnd)
		if startErr == nil && endErr == nil { // a pipe is an *os.File too, but not seekable
			return content{r: r, start: start, size: max(0, end-start)}
		}
	}
	return content{once: picture, size: -1}
}

// body returns n bytes from offset on as the body of a request.
func (c content) body(offset, n int64, progress func(int64)) *body {
	if c.once != nil {
		return &body{r: c.once, size: -1, progress: progress}
	}
	return &body{r: io.NewSectionReader(c.r, c.start+offset, n), size: n, progress: progress}
}

// md5 returns the MD5 of n bytes from offset on, in base64.
func (c content) md5(offset, n int64) (string, error) {
	h := md5.New()
	if _, err := io.CopyN(h, io.NewSectionReader(c.r, c.start+offset, n), n); err != nil {
		return "", bodyError(err)
	}
	return base64.StdEncoding.EncodeToString(h.Sum(nil)), nil
}

// body is the body of one request.
type body struct {
	r                       io.Reader
	size                    int64 // -1 if it is unknown
	progress                func(int64)
	n                       atomic.Int64
	started, stopped, ended atomic.Bool
}

// Read implements [io.Reader]. The transport may still call it after the request has failed.
func (b *body) Read(p []byte) (int, error) {
	b.started.Store(true)
	if b.stopped.Load() {
		return 0, io.ErrClosedPipe
	}
	n, err := b.r.Read(p)
	b.n.Add(int64(n))
	if !b.stopped.Load() {
		b.progress(int64(n))
	}
	if err == io.EOF {
		b.ended.Store(true)
	} else if err != nil {
		err = bodyError(err)
	}
	return n, err
}

// stop prevents further reads, takes the bytes back from the progress, and reports whether r was read at all. A read that has
// begun may still take bytes from r.
func (b *body) stop() (started bool) {
	b.stopped.Store(true)
	b.progress(-b.n.Swap(0))
	return b.started.Load()
}

// complete reports whether the whole body may have been sent.
func (b *body) complete() bool {
	return b == nil || b.size < 0 && b.ended.Load() || b.size >= 0 && b.n.Load() >= b.size
}

var errStalled = fmt.Errorf("no byte was transferred for %v", stallTimeout)

// stallReader is the body of a request or a response. It cancels the request if the network does not move the body for
// stallTimeout. The network sends a request body between the calls of Read, and receives a response body within them.
type stallReader struct {
	io.ReadCloser
	timer   *time.Timer
	cancel  context.CancelCauseFunc
	request *http.Request // of a response body; nil for a request body
}

func newStallReader(body io.ReadCloser, cancel context.CancelCauseFunc, request *http.Request) *stallReader {
	timer := time.AfterFunc(stallTimeout, func() { cancel(errStalled) })
	timer.Stop() // until Read
	return &stallReader{body, timer, cancel, request}
}

// Read implements [io.Reader]. An error of a response body is an [*Error], unless it is [io.EOF].
func (s *stallReader) Read(p []byte) (int, error) {
	if s.request == nil {
		s.timer.Stop()
		n, err := s.ReadCloser.Read(p)
		if err == nil {
			s.timer.Reset(stallTimeout)
		}
		return n, err
	}
	s.timer.Reset(stallTimeout)
	n, err := s.ReadCloser.Read(p)
	s.timer.Stop()
	if err != nil && err != io.EOF {
		e := requestError(s.request, err)
		e.noResponse = true
		err = e
	}
	return n, err
}

// Close implements [io.Closer]. It ends the request if s is the body of the response.
func (s *stallReader) Close() error {
	s.timer.Stop()
	if s.request != nil {
		defer s.cancel(nil)
	}
	return s.ReadCloser.Close()
}
