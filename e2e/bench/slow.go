package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// client is a kind of slow client.
type client struct {
	header  string // of its request, and the first bytes of its body; USER stands for a name of its own
	burst   int    // bytes of the body that it sends at once
	rate    int    // bytes that it sends every second from then on
	chunked bool
	idle    bool // keeps the connection open after the response
}

// idleClient is a client with an idle connection.
var idleClient = client{header: "GET /cat/probe HTTP/1.1\r\nHost: localhost\r\n\r\n", idle: true}

// slowPUT, slowForm, slowChunked and commit are clients that announce size bytes.
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

// commit is a client that commits a direct upload. The sink delays the response.
func commit() client {
	id := fmt.Sprintf("%d-%d-%s", time.Now().Add(time.Hour).Unix(), mib, rand.Text())
	return client{header: "POST /cat/USER/upload/" + id + "/commit HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"}
}

func chunk(b []byte) []byte { return fmt.Appendf(nil, "%x\r\n%s\r\n", len(b), b) }

// clients are many slow clients, each with an address of its own in 127.0.0.0/8.
type clients struct {
	conns  []net.Conn
	ended  atomic.Int64 // connections on which the server has answered, or which it has closed
	stop   context.CancelFunc
	during sync.WaitGroup
}

// connect starts one slow client for each of kinds.
func connect(ctx context.Context, url string, kinds ...client) (*clients, error) {
	ctx, stop := context.WithCancel(ctx)
	c := &clients{stop: stop}
	for i, kind := range kinds {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, byte(i/250), byte(1+i%250))}}
		conn, err := dialer.DialContext(ctx, "tcp", strings.TrimPrefix(url, "http://"))
		if err != nil {
			c.close()
			return nil, err
		}
		c.conns = append(c.conns, conn)
		c.during.Go(func() {
			_, _ = conn.Read(make([]byte, 1<<10)) // ends at a response, or when the connection is closed
			if kind.idle {
				_, _ = io.Copy(io.Discard, conn)
			}
			c.ended.Add(1)
			_ = conn.Close()
		})
		c.during.Go(func() {
			kind.send(ctx, conn, fmt.Sprintf("slow-%d", i), time.Duration(i)*time.Second/time.Duration(len(kinds)))
		})
	}
	return c, nil
}

// send sends the request of one client until the connection is closed. Its first
// pause begins after offset, so that not all clients send at once.
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
	for wait := offset; ; wait = time.Second {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if _, err := conn.Write(piece); err != nil {
			return
		}
	}
}

func (c *clients) close() {
	c.stop()
	for _, conn := range c.conns {
		_ = conn.Close()
	}
	c.during.Wait()
}

// repeat returns n clients of one kind.
func repeat(n int, kind client) (all []client) {
	for range n {
		all = append(all, kind)
	}
	return all
}
