package httpserver

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/time/rate"

	"cats.example/shared/ratelimit"
)

// Sizes of the kernel's buffers of an accepted connection, in bytes. By default they grow to megabytes, which count as memory of
// the container.
const (
	receiveBuffer = 256 << 10 // a smaller one slows uploads down
	sendBuffer    = 32 << 10  // Linux doubles it (socket(7))
)

// tcpUserTimeout is TCP_USER_TIMEOUT in linux/tcp.h: how long the kernel keeps data that the client does not acknowledge. Without
// it, the kernel keeps such data for minutes after Close.
const tcpUserTimeout = 18

// openFilesInterval is the minimum time between two log lines about missing file descriptors.
const openFilesInterval = 10 * time.Second

// listener accepts connections that get a slot, and closes the others.
type listener struct {
	net.Listener
	slots   *ratelimit.Pool
	proxies []netip.Prefix // clients without a share
	log     *slog.Logger
	noFiles rate.Sometimes
}

// limited returns l with the limits of the work listener: a client has its share of the slots. If all slots are taken, new
// connections wait in the queue of the kernel.
func (s Server) limited(l net.Listener) net.Listener {
	return &listener{
		Listener: netutil.LimitListener(l, s.Connections.Total()), slots: s.Connections, proxies: s.TrustedProxies, log: s.Log,
		noFiles: rate.Sometimes{Interval: openFilesInterval},
	}
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
		release, err := l.slots.Take(l.clientKey(c.RemoteAddr()))
		if err == nil {
			return &conn{Conn: c, release: sync.OnceFunc(release), inHeader: true}, nil
		}
		_ = c.Close()
	}
}

// clientKey returns the key under which connections from addr are counted, or "" for a trusted proxy, which has many clients.
func (l *listener) clientKey(addr net.Addr) string {
	tcp, _ := addr.(*net.TCPAddr) // always succeeds
	ip := tcp.AddrPort().Addr().Unmap()
	if slices.ContainsFunc(l.proxies, func(p netip.Prefix) bool { return p.Contains(ip) }) {
		return ""
	}
	return ratelimit.ClientKey(ip)
}

// socketOptions sets the options of a listening socket. Its connections inherit them.
func socketOptions(_, _ string, socket syscall.RawConn) error {
	var failed error
	err := socket.Control(func(fd uintptr) {
		failed = errors.Join(
			syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, receiveBuffer),
			syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF, sendBuffer))
		if runtime.GOOS == "linux" {
			failed = errors.Join(failed, syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(responseTimeout.Milliseconds())))
		}
	})
	return errors.Join(err, failed)
}
