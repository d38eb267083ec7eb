package attacks

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// A client that sends a byte now and then is never still, and must not be able to
// keep a place for hours all the same.
func TestAClientThatTricklesIsGivenUp(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{FrontendEnv: map[string]string{"STALL_TIMEOUT": "1s"}}) // 2 KiB in each
	old := harness.Random(5000, 1)
	harness.Put(t, sys, "trickle", old)
	var wg sync.WaitGroup
	for _, u := range harness.RawUploads(t, "trickle", harness.Random(50_000, 2)) {
		wg.Go(func() {
			conn := harness.Dial(t, sys)
			_, _ = io.WriteString(conn, u.Header+u.Body[:5000])
			began := time.Now()
			done := make(chan struct{})
			go func() {
				for i := 5000; ; i++ {
					select {
					case <-done:
						return
					case <-time.After(20 * time.Millisecond):
						_, _ = conn.Write([]byte{u.Body[i]})
					}
				}
			}()
			status := harness.ReadStatus(t, conn)
			close(done)
			if took := time.Since(began); status != 408 || took > 10*time.Second {
				t.Errorf("%s: %d after %v", u.Name, status, took)
			}
		})
	}
	wg.Wait()
	if !bytes.Equal(harness.Served(t, sys, "trickle"), old) {
		t.Error("the old picture is gone")
	}
}

// Slow clients can hold all slots only for one STALL_TIMEOUT: while more than half are taken, they must bring 16 KiB/s.
func TestSlowClientsDoNotKeepOthersOut(t *testing.T) {
	t.Parallel()
	const slots = 6
	env := map[string]string{"MAX_UPLOADS": fmt.Sprint(slots), "MIN_UPLOAD_RATE": "1", "STALL_TIMEOUT": "3s"}
	sys := harness.Start(t, stack.SystemOptions{FrontendEnv: env, SignerEnv: env})
	statuses := make(chan int, slots)
	stop := make(chan struct{})
	for i := range slots {
		u := harness.RawUploads(t, fmt.Sprintf("slow-%d", i), harness.Random(1<<20, 1))[i%3]
		conn := harness.Dial(t, sys)
		if _, err := io.WriteString(conn, u.Header+u.Body[:5000]); err != nil {
			t.Fatal(err)
		}
		go func() { statuses <- harness.ReadStatus(t, conn) }()
		go func() {
			for at := 5000; ; at += 100 {
				select {
				case <-stop:
					return
				case <-time.After(100 * time.Millisecond):
					_, _ = io.WriteString(conn, u.Body[at:at+100])
				}
			}
		}()
	}
	defer close(stop)
	harness.Eventually(t, func() error {
		if n := harness.Sum(t, sys.SignerOps, "cats_signer_http_requests_in_flight"); n < slots {
			return fmt.Errorf("%v uploads are in progress", n)
		}
		return nil
	})
	harness.Do(t, "PUT", sys.URL+"/cat/fast", "", harness.Cat).Want(t, 503)
	for range slots / 2 {
		if status := <-statuses; status != http.StatusRequestTimeout {
			t.Errorf("a slow upload was answered %d; want 408", status)
		}
	}
	for i := range 3 {
		content := harness.Random(100_000, uint64(i))
		harness.Put(t, sys, "fast", content)
		if !bytes.Equal(harness.Served(t, sys, "fast"), content) {
			t.Error("another picture is served")
		}
	}
}
