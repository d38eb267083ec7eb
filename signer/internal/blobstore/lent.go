package blobstore

import (
	"errors"
	"io"
	"sync"
)

// lent is a body over pages that will be used again. An HTTP transport may go on
// reading the body of a request that was cancelled or answered early; once
// takeBack has returned, it reads nothing of the pages any more.
type lent struct {
	mu    sync.Mutex
	pages [][]byte // nil once they are back
	page  int      // where the next Read begins …
	at    int      // … and where in that page
}

func lend(pages [][]byte) *lent { return &lent{pages: pages} }

func (l *lent) Read(p []byte) (n int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pages == nil {
		return 0, io.ErrClosedPipe
	}
	for n < len(p) && l.page < len(l.pages) {
		k := copy(p[n:], l.pages[l.page][l.at:])
		n += k
		if l.at += k; l.at == len(l.pages[l.page]) {
			l.page, l.at = l.page+1, 0
		}
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// Seek goes to the begin or to the end, which is all that the SDK asks for.
func (l *lent) Seek(offset int64, whence int) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if offset != 0 || l.pages == nil {
		return 0, errors.ErrUnsupported
	}
	switch whence {
	case io.SeekStart:
		l.page, l.at = 0, 0
	case io.SeekEnd:
		l.page, l.at = len(l.pages), 0
	}
	var position int64
	for i, p := range l.pages[:min(l.page+1, len(l.pages))] {
		if i < l.page {
			position += int64(len(p))
		} else {
			position += int64(l.at)
		}
	}
	return position, nil
}

// Close is takeBack, for a transport.
func (l *lent) Close() error {
	l.takeBack()
	return nil
}

// takeBack ends every use of the pages.
func (l *lent) takeBack() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pages = nil
}
