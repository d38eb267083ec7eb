package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// client is a kind of slow client.
type client struct {
	header  string // request header and first bytes of the body; send replaces USER with a unique name
	burst   int    // bytes of the body sent at once
	rate    int    // bytes sent per second after the burst
	chunked bool
	idle    bool // keeps the connection open after the response
	unread  bool // does not read the response
	again   bool // reconnects a second after the server has closed the connection
}

// idleClient is a client with an idle connection.
var idleClient = client{header: "GET /cat/probe HTTP/1.1\r\nHost: localhost\r\n\r\n", idle: true}

// silentClient is a client that sends only a part of a header.
var silentClient = client{header: "GET /cat/probe HTTP/1.1\r\n", again: true}

// slowReader is a client that does not read its response.
var slowReader = client{header: "GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n", unread: true}

// longHeader returns a client that sends an unfinished header of 15 KiB.
func longHeader(lines int) client {
	var b strings.Builder
	b.WriteString("GET /cat/probe HTTP/1.1\r\nHost: localhost\r\n")
	for i := range lines {
		fmt.Fprintf(&b, "%03x:%s\r\n", i, strings.Repeat("x", max(0, 15<<10/lines-len("fff:\r\n"))))
	}
	return client{header: b.String(), again: true}
}

// slowPUT returns a client that uploads size bytes: first burst bytes, then rate bytes per second. slowForm and slowChunked do
// the same by another kind of request.
func slowPUT(size, burst, rate int) client {
	header := fmt.Sprintf("PUT /cat/USER HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n%s", size, pngMagic)
	return client{header: header, burst: burst, rate: rate}
}

func slowForm(size, burst, rate int) client {
	contentType, form := formOf([]byte(pngMagic))
	begin, end, _ := bytes.Cut(form, []byte(pngMagic))
	header := fmt.Sprintf("POST /cat/USER HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s%s",
		contentType, len(begin)+size+len(end), begin, pngMagic)
	return client{header: header, burst: burst, rate: rate}
}

func slowChunked(burst, rate int) client {
	header := fmt.Sprintf("PUT /cat/USER HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n%s",
		chunk([]byte(pngMagic)))
	return client{header: header, burst: burst, rate: rate, chunked: true}
}

// commit returns a client that commits a direct upload. The sink delays the response.
func commit() client {
	id := fmt.Sprintf("%d-%d-%s", time.Now().Add(time.Hour).Unix(), mib, rand.Text())
	return client{header: "POST /cat/USER/upload/" + id + "/commit HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"}
}

func chunk(b []byte) []byte { return fmt.Appendf(nil, "%x\r\n%s\r\n", len(b), b) }

// clients are many slow clients, each with its own address in 127.0.0.0/8.
type clients struct {
	ended   atomic.Int64 // clients whose connection the server has answered or closed
	stop    context.CancelFunc
	running sync.WaitGroup
}

// connect starts one slow client for each of kinds.
func connect(ctx context.Context, url string, kinds ...client) (*clients, error) {
	ctx, stop := context.WithCancel(ctx)
	c := &clients{stop: stop}
	for i, kind := range kinds {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, byte(i/250), byte(1+i%250))}}
		if kind.unread {
			dialer.Control = shrinkBuffers
		}
		open := func() (net.Conn, error) { return dialer.DialContext(ctx, "tcp", strings.TrimPrefix(url, "http://")) }
		conn, err := open()
		if err != nil {
			c.close()
			return nil, err
		}
		offset := time.Duration(i) * time.Second / time.Duration(len(kinds))
		c.running.Go(func() {
			for {
				c.use(ctx, conn, kind, fmt.Sprintf("slow-%d", i), offset)
				c.ended.Add(1)
				if !kind.again || !pause(ctx, time.Second) {
					return
				}
				if conn, err = open(); err != nil {
					return
				}
				c.ended.Add(-1)
			}
		})
	}
	return c, nil
}

// use sends the request of one client on conn, and returns when the server has answered or closed the connection.
func (c *clients) use(ctx context.Context, conn net.Conn, kind client, user string, offset time.Duration) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	c.running.Go(func() { kind.send(ctx, conn, user, offset) })
	if kind.unread {
		<-ctx.Done()
		return
	}
	_, _ = conn.Read(make([]byte, 1<<10))
	if kind.idle {
		_, _ = io.Copy(io.Discard, conn)
	}
}

// shrinkBuffers sets Ethernet's segment size and a small receive buffer, because the kernel buffers megabytes of each loopback
// connection by default.
func shrinkBuffers(_, _ string, conn syscall.RawConn) error {
	var errs [2]error
	err := conn.Control(func(fd uintptr) {
		errs[0] = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, 1400)
		errs[1] = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<10)
	})
	return errors.Join(err, errs[0], errs[1])
}

// pause waits for d. It returns false if ctx is done first.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// send sends the request of one client until the connection is closed. It waits for offset before its first piece, so that
// clients do not send in step.
func (k client) send(ctx context.Context, conn net.Conn, user string, offset time.Duration) {
	if _, err := io.WriteString(conn, strings.ReplaceAll(k.header, "USER", user)); err != nil {
		return
	}
	body := func(n int) []byte {
		b := bytes.Repeat([]byte("x"), n)
		if k.chunked {
			b = chunk(b)
		}
		return b
	}
	if k.burst > 0 {
		if _, err := conn.Write(body(k.burst)); err != nil {
			return
		}
	}
	if k.rate == 0 {
		return
	}
	piece := body(k.rate)
	for wait := offset; pause(ctx, wait); wait = time.Second {
		if _, err := conn.Write(piece); err != nil {
			return
		}
	}
}

func (c *clients) close() {
	c.stop()
	c.running.Wait()
}

// repeat returns n clients of one kind.
func repeat(n int, kind client) (all []client) {
	for range n {
		all = append(all, kind)
	}
	return all
}
