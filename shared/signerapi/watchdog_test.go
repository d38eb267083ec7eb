package signerapi

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

// slow is a reader whose Reads take a time.
type slow struct {
	io.Reader
	each time.Duration
}

func (s slow) Read(p []byte) (int, error) {
	time.Sleep(s.each)
	return s.Reader.Read(p)
}

func TestWatchdogExpires(t *testing.T) {
	const next, answer = 30 * time.Second, time.Minute
	for name, c := range map[string]struct {
		r       io.Reader
		reads   int           // before the wait
		wait    time.Duration // after them
		expires bool
	}{
		"before the first Read":             {strings.NewReader("cat"), 0, time.Hour, false},
		"within the time for the next Read": {strings.NewReader("cat"), 1, next - 1, false},
		"without a next Read":               {strings.NewReader("cat"), 1, next, true},
		"during slow Reads":                 {slow{strings.NewReader("cat"), time.Hour}, 2, 0, false},
		"within the time for the answer":    {strings.NewReader("cat"), 4, answer - 1, false},
		"without an answer":                 {strings.NewReader("cat"), 4, answer, true},
		"after data with io.EOF":            {iotest.DataErrReader(strings.NewReader("c")), 1, answer - 1, false},
		"after a broken body":               {iotest.ErrReader(errors.New("broken")), 1, time.Hour, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var got error
				w := NewWatchdog(c.r, next, answer, func(err error) { got = err })
				for range c.reads {
					_, _ = w.Read(make([]byte, 1)) // the error is what some rows are about
				}
				time.Sleep(c.wait)
				synctest.Wait()
				if errors.Is(got, ErrWatchdogExpired) != c.expires {
					t.Errorf("expired with %v; want %v", got, c.expires)
				}
				got = nil
				w.Stop()
				if time.Sleep(time.Hour); got != nil {
					t.Errorf("expired after Stop with %v", got)
				}
			})
		})
	}
}
