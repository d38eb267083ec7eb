package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"mime/multipart"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"
)

// load is what one attack saw.
type load struct {
	n       int
	seconds float64
	p50     time.Duration
	p99     time.Duration
	max     time.Duration
}

func (l load) rate() float64 { return float64(l.n) / l.seconds }

// attack asks targets in turn, over conns connections, for the time that is
// given: as fast as it is answered, or at rate requests a second when that is not
// 0. Any answer but a 200 is an error.
func attack(ctx context.Context, conns int, rate int, duration time.Duration, targets ...vegeta.Target) (load, error) {
	transport := &http.Transport{MaxIdleConnsPerHost: conns, DisableCompression: true}
	defer transport.CloseIdleConnections()                                                          // vegeta would leave them to the next attack's peer
	attacker := vegeta.NewAttacker(vegeta.Workers(uint64(conns)), vegeta.MaxWorkers(uint64(conns)), //nolint:gosec // a small number
		vegeta.Client(&http.Client{Transport: transport, Timeout: 2 * time.Minute}), vegeta.MaxBody(0))
	defer attacker.Stop()
	var pacer vegeta.Pacer = vegeta.Rate{}
	if rate > 0 {
		pacer = vegeta.ConstantPacer{Freq: rate, Per: time.Second}
	}
	stop := context.AfterFunc(ctx, func() { attacker.Stop() })
	defer stop()
	began := time.Now()
	var metrics vegeta.Metrics
	for result := range attacker.Attack(vegeta.NewStaticTargeter(targets...), pacer, duration, "") {
		metrics.Add(result)
		if result.Code != http.StatusOK && metrics.Success < 1 && len(metrics.Errors) > 8 {
			attacker.Stop()
		}
	}
	metrics.Close()
	took := time.Since(began)
	switch {
	case ctx.Err() != nil:
		return load{}, ctx.Err()
	case metrics.Requests == 0:
		return load{}, fmt.Errorf("%s: no answer", targets[0].URL)
	case metrics.Success < 1:
		return load{}, fmt.Errorf("%s %s: answers by code %v, %v", targets[0].Method, targets[0].URL, metrics.StatusCodes, metrics.Errors)
	}
	return load{int(metrics.Requests), took.Seconds(), metrics.Latencies.P50, metrics.Latencies.P99, metrics.Latencies.Max}, nil //nolint:gosec // not that many
}

// pngMagic is what makes a picture one, of one pixel.
const pngMagic = "\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01"

// pictureOf returns a picture of n bytes.
func pictureOf(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{}).Read(b) // never fails
	copy(b, pngMagic)
	return b
}

// formOf returns a form with the picture in its field file.
func formOf(picture []byte) (contentType string, body []byte) {
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	part, _ := w.CreateFormFile("file", "cat.png") // into memory, which never fails
	_, _ = part.Write(picture)
	_ = w.Close()
	return w.FormDataContentType(), form.Bytes()
}

// clients are many connections that each began to put a picture, and bring little
// or nothing of it.
type clients struct {
	conns  []net.Conn
	ended  atomic.Int64 // that were answered, or cut
	stop   context.CancelFunc
	during sync.WaitGroup
}

// slowClients opens n connections to url, each of which sends header, and then
// rate bytes a second, until close.
func slowClients(ctx context.Context, url string, n int, header string, rate int) (*clients, error) {
	ctx, stop := context.WithCancel(ctx)
	c := &clients{stop: stop}
	var dialer net.Dialer
	for range n {
		conn, err := dialer.DialContext(ctx, "tcp", strings.TrimPrefix(url, "http://"))
		if err != nil {
			c.close()
			return nil, err
		}
		c.conns = append(c.conns, conn)
	}
	piece := bytes.Repeat([]byte("x"), rate)
	for i, conn := range c.conns {
		c.during.Go(func() {
			defer c.ended.Add(1)
			if _, err := io.WriteString(conn, strings.ReplaceAll(header, "USER", fmt.Sprintf("slow-%d", i))); err != nil {
				return
			}
			over := make(chan struct{})
			go func() {
				defer close(over)
				_, _ = conn.Read(make([]byte, 1)) // an answer, or the end: it makes no difference
			}()
			time.Sleep(rand.N(time.Second)) //nolint:gosec // or all would send at once
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for {
				select {
				case <-over:
					return
				case <-tick.C:
				}
				if _, err := conn.Write(piece); err != nil {
					return
				}
			}
		})
	}
	return c, nil
}

// close cuts all connections.
func (c *clients) close() {
	c.stop()
	for _, conn := range c.conns {
		_ = conn.Close()
	}
	c.during.Wait()
}
