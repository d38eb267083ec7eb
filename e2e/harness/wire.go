package harness

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cats.example/local/stack"
)

// Parts of a form as bytes, so that tests can send malformed forms.
const (
	Boundary     = "a-boundary"
	FormType     = "multipart/form-data; boundary=" + Boundary
	LastBoundary = "--" + Boundary + "--\r\n"
)

// FormField returns one part of a form. disposition is the value of Content-Disposition behind "form-data; ".
func FormField(disposition, content string) string {
	return "--" + Boundary + "\r\nContent-Disposition: form-data; " + disposition + "\r\n\r\n" + content + "\r\n"
}

// FormFile returns the part with the picture.
func FormFile(content []byte) string {
	return FormField(`name="file"; filename="cat.png"`, string(content))
}

// Dial connects to the public API.
func Dial(t *testing.T, sys *stack.System) *net.TCPConn {
	t.Helper()
	conn, err := (&net.Dialer{Timeout: Patience}).DialContext(t.Context(), "tcp", strings.TrimPrefix(sys.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

// ReadResponse returns the response on conn, with status 0 if there is none.
func ReadResponse(t *testing.T, conn net.Conn) Response {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(Patience)); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return Response{Response: &http.Response{}}
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return Response{resp, body}
}

// RawUpload is an upload request as bytes.
type RawUpload struct{ Name, Header, Body string }

// RawUploads returns one upload of content in each form that the API accepts.
func RawUploads(t *testing.T, user string, content []byte) []RawUpload {
	t.Helper()
	contentType, whole := Form(t, content)
	header := func(method, format string, args ...any) string {
		return method + " /cat/" + user + " HTTP/1.1\r\nHost: localhost\r\n" + fmt.Sprintf(format, args...) + "\r\n\r\n"
	}
	chunks := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(content), content)
	return []RawUpload{
		{"PUT with a length", header("PUT", "Content-Length: %d", len(content)), string(content)},
		{"PUT in chunks", header("PUT", "Transfer-Encoding: chunked"), chunks},
		{"POST of a form", header("POST", "Content-Type: %s\r\nContent-Length: %d", contentType, len(whole)), string(whole)},
	}
}

// ReadStatuses sends raw bytes and returns the status lines of all responses until the server closes the connection. It fails the
// test if the server does not.
func ReadStatuses(t *testing.T, sys *stack.System, what, raw string) []string {
	t.Helper()
	conn := Dial(t, sys)
	if err := conn.SetDeadline(time.Now().Add(12 * time.Second)); err != nil {
		t.Error(err)
	}
	go func() { _, _ = io.WriteString(conn, raw) }() // it may well be cut off amid that
	all, err := io.ReadAll(conn)
	if err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("%s: the connection was left open: %v", what, err)
	}
	var lines []string
	for line := range strings.Lines(string(all)) {
		if _, status, ok := strings.Cut(line, "HTTP/1.1 "); ok { // right behind the body of the one before
			lines = append(lines, strings.TrimSpace(status))
		}
	}
	return lines
}

var nextPort atomic.Int64

func init() { nextPort.Store(rand.Int64N(20_000)) } // other packages run at the same time

// FreePort returns a free port that the kernel does not assign to other sockets. Each call returns another one.
func FreePort(t *testing.T) string {
	t.Helper()
	for {
		port := strconv.FormatInt(10_000+nextPort.Add(1)%20_000, 10)
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:"+port)
		if err == nil {
			_ = l.Close()
			return port
		}
	}
}
