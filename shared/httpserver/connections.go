package httpserver

import (
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/time/rate"

	"cats.example/shared/ratelimit"
)

// Sizes of the kernel's buffers of an accepted connection, in bytes. By default they grow to megabytes, which count as memory of
// the container.
const (
	receiveBuffer = 256 << 10 // a smaller one slows uploads down
	sendBuffer    = 32 << 10  // Linux doubles it (socket(7))
	// maxSegment is less than half of sendBuffer. On the loopback interface, segments have 64 KiB: the buffer would hold one at a
	// time, and the kernel would wait 40 ms for the acknowledgment of each.
	maxSegment = 8 << 10
)

// tcpUserTimeout is TCP_USER_TIMEOUT in linux/tcp.h: how long the kernel keeps data that the client does not acknowledge. Without
// it, the kernel keeps such data for minutes after Close.
const tcpUserTimeout = 18

// listener accepts connections that get a slot, and closes the others: a client has its share of the slots.
type listener struct {
	net.Listener
	slots   *ratelimit.Pool
	proxies []netip.Prefix // their connections have no share: a proxy has many clients
	log     *slog.Logger
	noFiles rate.Sometimes // logs that there are no file descriptors
}

// Accept implements [net.Listener].
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if errors.Is(err, syscall.EMFILE) {
			l.noFiles.Do(func() {
				l.log.Error("no file descriptor for a connection", "fix", "raise the limit of open files (ulimit -n) to 12 for each of MAX_UPLOADS, or lower MAX_UPLOADS")
			})
		}
		if err != nil {
			return nil, err // net/http retries after EMFILE
		}
		tcp, _ := c.RemoteAddr().(*net.TCPAddr) // always succeeds
		key, ip := "", tcp.AddrPort().Addr().Unmap()
		if !slices.ContainsFunc(l.proxies, func(p netip.Prefix) bool { return p.Contains(ip) }) {
			key = ratelimit.ClientKey(ip)
		}
		release, err := l.slots.Take(key)
		if err == nil {
			return &conn{Conn: c, release: sync.OnceFunc(release)}, nil
		}
		_ = c.Close()
	}
}

// socketOptions sets the options of a listening socket. Its connections inherit them.
func socketOptions(_, _ string, socket syscall.RawConn) error {
	var failed error
	err := socket.Control(func(fd uintptr) {
		failed = errors.Join(
			syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, receiveBuffer),
			syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF, sendBuffer))
		if runtime.GOOS == "linux" {
			failed = errors.Join(failed,
				syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(responseTimeout.Milliseconds())),
				syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_MAXSEG, maxSegment))
		}
	})
	return errors.Join(err, failed)
}

const (
	// maxHeaderLines is the maximum number of lines in a request header. [http.Server] limits only the bytes, and needs 100 bytes
	// of memory for a line of 4 bytes.
	maxHeaderLines = 128
	// headerRead is the maximum size of a read that may contain a header. Bytes of the next header can arrive with the end of a
	// header or of a body; they are not counted. net/http reads at most serverBuffer bytes at once, except of a body.
	headerRead   = 1 << 10
	serverBuffer = 4 << 10
)

// errHeaderLines is a read error of a connection. net/http answers with 400 and closes the connection.
var errHeaderLines = errors.New("the header has too many lines")

// conn limits the lines of the request headers that are read from a connection.
type conn struct {
	net.Conn
	release  func()        // releases the slot of the connection
	request  *http.Request // the current request, as net/http knows it
	answered atomic.Bool   // the next bytes belong to the header of the next request
	header   headerLines   // of the current request; only Read uses it
}

// Close implements [net.Conn].
func (c *conn) Close() error {
	c.release()
	return c.Conn.Close()
}

// Read implements [net.Conn].
func (c *conn) Read(p []byte) (int, error) {
	if len(p) <= serverBuffer {
		p = p[:min(len(p), headerRead)]
	}
	n, err := c.Conn.Read(p)
	if c.answered.Swap(false) {
		c.header = headerLines{}
	}
	if !c.header.add(p[:n]) {
		return 0, errHeaderLines
	}
	return n, err
}

// headerLines counts the lines of a header up to the blank line at its end. Blank lines before the header do not count: net/http
// skips them after a POST.
type headerLines struct {
	n     int
	text  bool // the current line is not blank
	ended bool
}

// add counts the lines in p, the next bytes, and reports whether the header has at most maxHeaderLines so far.
func (h *headerLines) add(p []byte) bool {
	for i := 0; i < len(p) && !h.ended; i++ { // the body is not searched
		switch b := p[i]; {
		case b == '\r':
		case b != '\n':
			h.text = true
		case h.text:
			h.n, h.text = h.n+1, false
		default:
			h.ended = h.n > 0
		}
	}
	return h.n <= maxHeaderLines
}

type connKey struct{}

// trackHeaders tells the connection of each request when the request was answered.
func trackHeaders(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(connKey{}).(*conn); ok {
			defer c.answered.Store(true)
			c.request, r.Trailer = r, nil // trailers are not used, and one header line can announce thousands
		}
		h.ServeHTTP(w, r)
	})
}
