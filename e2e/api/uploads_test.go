package api

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestPicturesOfEverySizeComeBackByteForByte(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	for i, size := range []int{65, 3071, 3072, 3073, 100_000, harness.OneBlob - 1, harness.OneBlob, harness.OneBlob + 1, harness.OneBlob + 2, 2*harness.OneBlob + 2, 2*harness.OneBlob + 3, 20 << 20, 32 << 20} {
		content := harness.Random(size, uint64(i))
		user := fmt.Sprintf("%s/cat/size-%d", sys.URL, size)
		var a harness.Response
		var err error
		switch i % 3 {
		case 0:
			a, err = harness.Try(t.Context(), "PUT", user, "", bytes.NewReader(content))
		case 1:
			a, err = harness.Try(t.Context(), "PUT", user, "", harness.Chunked{Reader: bytes.NewReader(content)})
		case 2:
			contentType, body := harness.Form(t, content)
			a, err = harness.Try(t.Context(), "POST", user, contentType, bytes.NewReader(body))
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := a.Want(t, 200).Field(t, "size"); got != float64(size) {
			t.Errorf("%d bytes were stored as %v", size, got)
		}
		if !bytes.Equal(harness.Served(t, sys, fmt.Sprintf("size-%d", size)), content) {
			t.Errorf("%d bytes came back as others", size)
		}
	}
}

func TestAPictureOverTheLimitIsRefusedAndNothingIsStored(t *testing.T) {
	t.Parallel()
	const limit = 6 << 20
	sys := harness.Start(t, stack.SystemOptions{
		SignerEnv: map[string]string{"MAX_PICTURE_SIZE": "6MiB"}, FrontendEnv: map[string]string{"MAX_PICTURE_SIZE": "6MiB"},
	})
	signer := harness.StartDiffering(t, stack.SystemOptions{SignerEnv: map[string]string{"MAX_PICTURE_SIZE": "6MiB"}})
	old := harness.Random(1000, 1)
	harness.Put(t, sys, "x", old)
	harness.Put(t, sys, "x", harness.Random(limit, 2))
	harness.Put(t, sys, "x", old)
	over := harness.Random(limit+1, 3)
	contentType, body := harness.Form(t, over)
	for _, s := range []*stack.System{sys, signer} { // the second has only the signer refuse
		harness.Do(t, "PUT", s.URL+"/cat/x", "", over).WantProblem(t, 413, "too_large")
		harness.Do(t, "POST", s.URL+"/cat/x", contentType, body).WantProblem(t, 413, "too_large")
		a, err := harness.Try(t.Context(), "PUT", s.URL+"/cat/x", "", harness.Chunked{Reader: bytes.NewReader(over)})
		if err != nil {
			t.Fatal(err)
		}
		a.WantProblem(t, 413, "too_large")
	}
	if !bytes.Equal(harness.Served(t, sys, "x"), old) || len(harness.BlobNames(t, signer)) > 0 {
		t.Error("a picture over the limit was stored")
	}
	// By its header alone: a client that asks first sends nothing.
	conn := harness.Dial(t, sys)
	fmt.Fprintf(conn, "PUT /cat/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n", 1<<40)
	if status := harness.ReadStatus(t, conn); status != 413 {
		t.Errorf("a terabyte, announced: %d; want 413 at once", status)
	}
}

func TestAClientThatLiesAboutItsLengthIsRefused(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{FrontendEnv: map[string]string{"STALL_TIMEOUT": "1s"}})
	old := harness.Random(5000, 1)
	harness.Put(t, sys, "x", old)
	contentType, whole := harness.Form(t, harness.Random(10_000, 2))
	for name, c := range map[string]struct{ announced, status int }{
		"less than there is": {len(whole) - 100, 400},
		"more than there is": {len(whole) + 100, 408},
	} {
		conn := harness.Dial(t, sys)
		fmt.Fprintf(conn, "POST /cat/x HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", contentType, c.announced, whole)
		if status := harness.ReadStatus(t, conn); status != c.status {
			t.Errorf("a form announced as %s: %d; want %d", name, status, c.status)
		}
	}
	for name, body := range map[string]string{
		"no last boundary":  strings.TrimSuffix(string(whole), "--\r\n"),
		"two files":         strings.TrimSuffix(string(whole), "--\r\n") + "\r\nContent-Disposition: form-data; name=\"file\"; filename=\"b\"\r\n\r\nx\r\n" + strings.TrimPrefix(strings.Split(string(whole), "\r\n")[0], "") + "--\r\n",
		"garbage in chunks": "garbage",
	} {
		if a := harness.Do(t, "POST", sys.URL+"/cat/x", contentType, []byte(body)); a.StatusCode != 400 && a.StatusCode != 422 {
			t.Errorf("%s: %d %s", name, a.StatusCode, a.Body)
		}
	}
	harness.Do(t, "POST", sys.URL+"/cat/x", "multipart/form-data", whole).WantProblem(t, 400, "malformed_form")
	harness.Do(t, "POST", sys.URL+"/cat/x", "application/json", []byte("{}")).WantProblem(t, 422, "missing_file")
	harness.Do(t, "PUT", sys.URL+"/cat/x", "image/png", nil).WantProblem(t, 422, "empty")
	if !bytes.Equal(harness.Served(t, sys, "x"), old) {
		t.Error("the old picture is gone")
	}
}

func TestAStalledClientIsCutOffAndASlowOneIsNot(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{FrontendEnv: map[string]string{"STALL_TIMEOUT": "700ms", "MIN_UPLOAD_RATE": "2"}})
	old, content := harness.Random(5000, 1), harness.Random(6000, 2)
	for _, user := range []string{"PUT", "POST"} {
		harness.Put(t, sys, user, old)
	}
	const piece = 250 // at least 512 bytes of a chunk in each STALL_TIMEOUT
	var wg sync.WaitGroup
	for _, u := range append(harness.RawUploads(t, "slow", content), harness.RawUploads(t, "slow", harness.Random(harness.OneBlob+100, 4))...) {
		wg.Go(func() { // in more time than a stall may take, but never still
			conn := harness.Dial(t, sys)
			middle := len(u.Body) / 2
			_, _ = io.WriteString(conn, u.Header+u.Body[:middle])
			for i := range 10 {
				time.Sleep(150 * time.Millisecond)
				_, _ = io.WriteString(conn, u.Body[middle+piece*i:middle+piece*(i+1)])
			}
			_, _ = io.WriteString(conn, u.Body[middle+piece*10:])
			if status := harness.ReadStatus(t, conn); status != 200 && status != 409 {
				t.Errorf("%s, slowly: %d", u.Name, status)
			}
		})
	}
	for _, u := range harness.RawUploads(t, "PUT", content) {
		for _, sent := range []int{0, 100, len(u.Body) / 2, len(u.Body) - 1} {
			wg.Go(func() {
				conn := harness.Dial(t, sys)
				_, _ = io.WriteString(conn, u.Header+u.Body[:sent])
				status := harness.ReadStatus(t, conn)
				// Within the framing of the last chunk net/http cannot tell a stall from a cut.
				if status != 408 && (status != 400 || u.Name != "PUT in chunks" || sent != len(u.Body)-1) {
					t.Errorf("%s, stalled after %d bytes: %d; want 408", u.Name, sent, status)
				}
			})
		}
	}
	wg.Wait()
	if !bytes.Equal(harness.Served(t, sys, "PUT"), old) {
		t.Error("the old picture is gone")
	}
}

// Of many at once, each is told the truth, and what is served is one of those
// that were told that they are stored.
func TestOfManyUploadsToOneNameOneWinsWhole(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	for _, size := range []int{100_000, harness.OneBlob + 1_000_000} {
		user := fmt.Sprintf("at-once-%d", size)
		var mu sync.Mutex
		var stored [][]byte
		var wg sync.WaitGroup
		for i := range uint64(8) {
			wg.Go(func() {
				content := harness.Random(size, 100+i)
				a, err := harness.Try(context.WithoutCancel(t.Context()), "PUT", sys.URL+"/cat/"+user, "", bytes.NewReader(content))
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err != nil:
					t.Error(err)
				case a.StatusCode == 200:
					stored = append(stored, content)
				case a.StatusCode != 409:
					t.Errorf("%d bytes: %d %s", size, a.StatusCode, a.Body)
				}
			})
		}
		wg.Wait()
		got := harness.Served(t, sys, user)
		found := false
		for _, content := range stored {
			found = found || bytes.Equal(got, content)
		}
		if !found {
			t.Errorf("%d bytes: what is served is none of the %d that were told 200", size, len(stored))
		}
	}
}
