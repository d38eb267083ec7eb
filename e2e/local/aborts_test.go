package local

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"cats.example/e2e/harness"
)

const downloadSize = 16 << 20 // more than the buffers of a connection

// requestsOf returns one request of each kind by the listener of the stack.
func requestsOf(t *testing.T, l *localStack) map[string][]string {
	t.Helper()
	text := func(line, header, body string) string {
		if body != "" {
			header += fmt.Sprintf("Content-Length: %d\r\n", len(body))
		}
		return line + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + header + "\r\n" + body
	}
	target := func(method, path, field string) string {
		signed, _ := harness.Do(t, method, l.url(path), "", nil).Field(t, field).(string)
		u, err := url.Parse(signed)
		if err != nil {
			t.Fatal(err)
		}
		return u.RequestURI()
	}
	content := string(harness.Random(10<<10, 1))
	link, upload := target("GET", "/cat/big", "picture_url"), target("POST", "/cat/small/upload?size=10240", "upload_url")
	all := map[string][]string{
		"FRONTEND": {
			text("GET /cat/big", "", ""), text("GET /cat/big/picture", "", ""), text("DELETE /cat/small", "", ""),
			text("GET /", "", ""), text("GET /docs", "", ""),
		},
		"STORAGE": {
			text("GET "+link, "", ""), text("GET "+link, "Range: bytes=1000-9000000\r\n", ""), text("HEAD "+link, "", ""),
			text("PUT "+upload, "X-Ms-Blob-Type: BlockBlob\r\n", content), text("PUT /cats/x", "", content),
		},
		"FRONTEND_OPS": {text("GET /metrics", "", "")},
		"SIGNER":       {text("GET /v1/link?user=big", "Cats-Contract: 1\r\n", "")},
	}
	for _, u := range harness.RawUploads(t, "small", []byte(content)) {
		all["FRONTEND"] = append(all["FRONTEND"], strings.Replace(u.Header, "Host:", "Connection: close\r\nHost:", 1)+u.Body)
	}
	return all
}

// abort sends a request and aborts the connection, in some ways after it has read bytes of the response.
func abort(t *testing.T, address, request, way string, read int64) {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Error(err)
		return
	}
	conn := c.(*net.TCPConn)
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Error(err)
	}
	_, _ = io.WriteString(conn, request) // fails if the response comes earlier
	switch {
	case way == "response not read":
		t.Cleanup(func() { _ = conn.Close() })
		return
	case way == "half-close":
		_ = conn.CloseWrite()
		_, _ = io.CopyN(io.Discard, conn, read)
	case strings.HasSuffix(way, "during the response"):
		_, _ = io.CopyN(io.Discard, conn, read)
	}
	if strings.HasPrefix(way, "reset") {
		_ = conn.SetLinger(0)
	}
	_ = conn.Close()
}

// TestLocalSurvivesAborts aborts requests of every kind in every way, at random bytes. Then the stack must still serve the
// picture, and bin/local must have closed its connections.
func TestLocalSurvivesAborts(t *testing.T) {
	t.Parallel()
	l := startLocal(t, "", "PROMETHEUS_PORT=0", "RATE_LIMIT=0", "CLIENT_SHARE=0", "STALL_TIMEOUT=5s")
	l.waitReady(t)
	picture, err := io.ReadAll(harness.Large(downloadSize))
	if err != nil {
		t.Fatal(err)
	}
	harness.Do(t, "PUT", l.url("/cat/big"), "", picture).Want(t, 200)
	descriptors := func() int {
		found, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", l.process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(found)
	}
	before, r := descriptors(), rand.New(rand.NewPCG(1, 0))
	ways := []string{"reset", "close", "half-close", "reset during the response", "close during the response", "response not read"}
	var wg sync.WaitGroup
	for _, way := range ways {
		for listener, requests := range requestsOf(t, l) {
			for _, request := range requests {
				if r.IntN(2) == 0 && !strings.Contains(way, "response") {
					request = request[:r.IntN(len(request))]
				}
				read := 1 + r.Int64N(1<<(1+r.IntN(24)))
				wg.Go(func() { abort(t, l.address(listener), request, way, read) })
			}
		}
	}
	wg.Wait()
	harness.Eventually(t, func() error {
		if n := descriptors(); n > before+32 { // those of the unread responses
			return fmt.Errorf("%d descriptors, %d before", n, before)
		}
		return nil
	})
	signed, _ := harness.Do(t, "GET", l.url("/cat/big"), "", nil).Want(t, 200).Field(t, "picture_url").(string)
	if got := harness.Do(t, "GET", signed, "", nil).Want(t, 200).Body; !bytes.Equal(got, picture) {
		t.Error("the picture has changed")
	}
	for _, name := range []string{"frontend", "signer"} {
		harness.WantNoFaults(t, filepath.Join(l.dir, ".local", "logs", name+".log"), t.Errorf)
	}
}
