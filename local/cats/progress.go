package main

import (
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/schollz/progressbar/v3"
)

// progress shows how much of a picture has moved. Nil shows nothing.
type progress struct{ bar *progressbar.ProgressBar }

// newProgress returns nil when nobody looks. size is -1 when it is not known.
func (o *options) newProgress(what string, size int64) *progress {
	if !o.watched() || size == 0 {
		return nil
	}
	return &progress{progressbar.NewOptions64(size,
		progressbar.OptionSetWriter(os.Stderr),
		progressbar.OptionSetDescription(escape(what)),
		progressbar.OptionShowBytes(true), progressbar.OptionUseIECUnits(true),
		progressbar.OptionSetWidth(30), progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionSetRenderBlankState(true), progressbar.OptionClearOnFinish(),
	)}
}

// add counts bytes that have moved; below zero those that have to move again.
func (p *progress) add(n int64) {
	if p != nil {
		_ = p.bar.Add64(n) // what cannot be shown is not shown
	}
}

// clear takes it away until it is shown anew.
func (p *progress) clear() {
	if p != nil {
		_ = p.bar.Clear() // as add
	}
}

// close takes it away for good.
func (p *progress) close() {
	if p != nil {
		_ = p.bar.Exit() // as add
		_ = p.bar.Clear()
	}
}

// counted is a reader whose bytes p shows, and took counts them.
type counted struct {
	r     io.Reader
	p     *progress
	took  atomic.Int64
	ended atomic.Bool // r has returned io.EOF
}

// counted may still be read, a little, when its request has failed.
func (c *counted) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.took.Add(int64(n))
	c.p.add(int64(n))
	if err == io.EOF { // a wrapped io.EOF is a broken body
		c.ended.Store(true)
	}
	return n, err
}

// again takes back what was counted, since it has to move again.
func (c *counted) again() {
	c.p.add(-c.took.Swap(0))
}
