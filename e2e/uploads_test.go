package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"cats.example/local/stack"
)

// oneBlob is the largest picture that the signer stores in one piece.
const oneBlob = 4 << 20

// random returns a picture of n bytes, the same for the same seed.
func random(n int, seed uint64) []byte {
	b := make([]byte, n)
	source := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	_, _ = source.Read(b) // never fails
	copy(b, cat[:64])
	return b
}

// chunked hides the length of a body.
type chunked struct{ io.Reader }

func TestPicturesOfEverySizeComeBackByteForByte(t *testing.T) {
	t.Parallel()
	sys := public(t)
	for i, size := range []int{65, 3071, 3072, 3073, 100_000, oneBlob - 1, oneBlob, oneBlob + 1, oneBlob + 2, 2*oneBlob + 2, 2*oneBlob + 3, 20 << 20, 32 << 20} {
		content := random(size, uint64(i))
		user := fmt.Sprintf("%s/cat/size-%d", sys.URL, size)
		var a answer
		var err error
		switch i % 3 {
		case 0:
			a, err = try(t.Context(), "PUT", user, "", bytes.NewReader(content))
		case 1:
			a, err = try(t.Context(), "PUT", user, "", chunked{bytes.NewReader(content)})
		case 2:
			contentType, body := form(t, content)
			a, err = try(t.Context(), "POST", user, contentType, bytes.NewReader(body))
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := a.want(t, 200).field(t, "size"); got != float64(size) {
			t.Errorf("%d bytes were stored as %v", size, got)
		}
		if !bytes.Equal(served(t, sys, fmt.Sprintf("size-%d", size)), content) {
			t.Errorf("%d bytes came back as others", size)
		}
	}
}

func TestAPictureOverTheLimitIsRefusedAndNothingIsStored(t *testing.T) {
	t.Parallel()
	const limit = 6 << 20
	sys := start(t, stack.SystemOptions{
		SignerEnv: map[string]string{"MAX_PICTURE_SIZE": "6MiB"}, FrontendEnv: map[string]string{"MAX_PICTURE_SIZE": "6MiB"},
	})
	signer := startDiffering(t, stack.SystemOptions{SignerEnv: map[string]string{"MAX_PICTURE_SIZE": "6MiB"}})
	old := random(1000, 1)
	put(t, sys, "x", old)
	put(t, sys, "x", random(limit, 2))
	put(t, sys, "x", old)
	over := random(limit+1, 3)
	contentType, body := form(t, over)
	for _, s := range []*stack.System{sys, signer} { // the second has only the signer refuse
		do(t, "PUT", s.URL+"/cat/x", "", over).problem(t, 413, "too_large")
		do(t, "POST", s.URL+"/cat/x", contentType, body).problem(t, 413, "too_large")
		a, err := try(t.Context(), "PUT", s.URL+"/cat/x", "", chunked{bytes.NewReader(over)})
		if err != nil {
			t.Fatal(err)
		}
		a.problem(t, 413, "too_large")
	}
	if !bytes.Equal(served(t, sys, "x"), old) || len(names(t, signer)) > 0 {
		t.Error("a picture over the limit was stored")
	}
	// By its header alone: a client that asks first sends nothing.
	conn := dial(t, sys)
	fmt.Fprintf(conn, "PUT /cat/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n", 1<<40)
	if status := statusOf(t, conn); status != 413 {
		t.Errorf("a terabyte, announced: %d; want 413 at once", status)
	}
}

// dial connects to the public API.
func dial(t *testing.T, sys *stack.System) *net.TCPConn {
	t.Helper()
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(t.Context(), "tcp", strings.TrimPrefix(sys.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

// statusOf reads the status of the answer on conn; 0 when there is none.
func statusOf(t *testing.T, conn net.Conn) int {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); resp.StatusCode >= 400 && err == nil {
		t.Logf("%d %s", resp.StatusCode, body)
	}
	return resp.StatusCode
}

// upload is one way to send a picture, as bytes on the wire.
type upload struct{ name, header, body string }

// uploads returns content in each way that there is.
func uploads(t *testing.T, user string, content []byte) []upload {
	t.Helper()
	contentType, whole := form(t, content)
	return []upload{
		{"PUT with a length", fmt.Sprintf("PUT /cat/%s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n", user, len(content)), string(content)},
		{"PUT in chunks", fmt.Sprintf("PUT /cat/%s HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", user), fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(content), content)},
		{"POST of a form", fmt.Sprintf("POST /cat/%s HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", user, contentType, len(whole)), string(whole)},
	}
}

func TestAClientThatLiesAboutItsLengthIsRefused(t *testing.T) {
	t.Parallel()
	sys := start(t, stack.SystemOptions{FrontendEnv: map[string]string{"STALL_TIMEOUT": "1s"}})
	old := random(5000, 1)
	put(t, sys, "x", old)
	contentType, whole := form(t, random(10_000, 2))
	for name, c := range map[string]struct{ announced, status int }{
		"less than there is": {len(whole) - 100, 400},
		"more than there is": {len(whole) + 100, 408},
	} {
		conn := dial(t, sys)
		fmt.Fprintf(conn, "POST /cat/x HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", contentType, c.announced, whole)
		if status := statusOf(t, conn); status != c.status {
			t.Errorf("a form announced as %s: %d; want %d", name, status, c.status)
		}
	}
	for name, body := range map[string]string{
		"no last boundary":  strings.TrimSuffix(string(whole), "--\r\n"),
		"two files":         strings.TrimSuffix(string(whole), "--\r\n") + "\r\nContent-Disposition: form-data; name=\"file\"; filename=\"b\"\r\n\r\nx\r\n" + strings.TrimPrefix(strings.Split(string(whole), "\r\n")[0], "") + "--\r\n",
		"garbage in chunks": "garbage",
	} {
		if a := do(t, "POST", sys.URL+"/cat/x", contentType, []byte(body)); a.StatusCode != 400 && a.StatusCode != 422 {
			t.Errorf("%s: %d %s", name, a.StatusCode, a.body)
		}
	}
	do(t, "POST", sys.URL+"/cat/x", "multipart/form-data", whole).problem(t, 400, "malformed_form")
	do(t, "POST", sys.URL+"/cat/x", "application/json", []byte("{}")).problem(t, 422, "missing_file")
	do(t, "PUT", sys.URL+"/cat/x", "image/png", nil).problem(t, 422, "empty")
	if !bytes.Equal(served(t, sys, "x"), old) {
		t.Error("the old picture is gone")
	}
}

func TestAStalledClientIsCutOffAndASlowOneIsNot(t *testing.T) {
	t.Parallel()
	sys := start(t, stack.SystemOptions{FrontendEnv: map[string]string{"STALL_TIMEOUT": "700ms", "MIN_UPLOAD_RATE": "2"}})
	old, content := random(5000, 1), random(6000, 2)
	for _, user := range []string{"PUT", "POST"} {
		put(t, sys, user, old)
	}
	const piece = 250 // at least 512 bytes of a chunk in each STALL_TIMEOUT
	var wg sync.WaitGroup
	for _, u := range append(uploads(t, "slow", content), uploads(t, "slow", random(oneBlob+100, 4))...) {
		wg.Go(func() { // in more time than a stall may take, but never still
			conn := dial(t, sys)
			middle := len(u.body) / 2
			_, _ = io.WriteString(conn, u.header+u.body[:middle])
			for i := range 10 {
				time.Sleep(150 * time.Millisecond)
				_, _ = io.WriteString(conn, u.body[middle+piece*i:middle+piece*(i+1)])
			}
			_, _ = io.WriteString(conn, u.body[middle+piece*10:])
			if status := statusOf(t, conn); status != 200 && status != 409 {
				t.Errorf("%s, slowly: %d", u.name, status)
			}
		})
	}
	for _, u := range uploads(t, "PUT", content) {
		for _, sent := range []int{0, 100, len(u.body) / 2, len(u.body) - 1} {
			wg.Go(func() {
				conn := dial(t, sys)
				_, _ = io.WriteString(conn, u.header+u.body[:sent])
				status := statusOf(t, conn)
				// Within the framing of the last chunk net/http cannot tell a stall from a cut.
				if status != 408 && (status != 400 || u.name != "PUT in chunks" || sent != len(u.body)-1) {
					t.Errorf("%s, stalled after %d bytes: %d; want 408", u.name, sent, status)
				}
			})
		}
	}
	wg.Wait()
	if !bytes.Equal(served(t, sys, "PUT"), old) {
		t.Error("the old picture is gone")
	}
}

// Of many at once, each is told the truth, and what is served is one of those
// that were told that they are stored.
func TestOfManyUploadsToOneNameOneWinsWhole(t *testing.T) {
	t.Parallel()
	sys := public(t)
	for _, size := range []int{100_000, oneBlob + 1_000_000} {
		user := fmt.Sprintf("at-once-%d", size)
		var mu sync.Mutex
		var stored [][]byte
		var wg sync.WaitGroup
		for i := range uint64(8) {
			wg.Go(func() {
				content := random(size, 100+i)
				a, err := try(context.WithoutCancel(t.Context()), "PUT", sys.URL+"/cat/"+user, "", bytes.NewReader(content))
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err != nil:
					t.Error(err)
				case a.StatusCode == 200:
					stored = append(stored, content)
				case a.StatusCode != 409:
					t.Errorf("%d bytes: %d %s", size, a.StatusCode, a.body)
				}
			})
		}
		wg.Wait()
		got := served(t, sys, user)
		found := false
		for _, content := range stored {
			found = found || bytes.Equal(got, content)
		}
		if !found {
			t.Errorf("%d bytes: what is served is none of the %d that were told 200", size, len(stored))
		}
	}
}
