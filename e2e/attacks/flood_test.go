package attacks

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cats.example/e2e/harness"
)

// flood opens connections to the signer's port that are there to be in the way.
type flood struct {
	h    *hostile
	stop chan struct{}
	once sync.Once
	wg   sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
}

// add opens a connection, sends what comes first, and then one byte of rest every so
// often until it is closed, or has been sent.
func (f *flood) add(ctx context.Context, first, rest string, every time.Duration) error {
	conn, err := (&net.Dialer{Timeout: 20 * time.Second}).DialContext(ctx, "tcp", f.h.address)
	if err != nil {
		return err
	}
	f.mu.Lock()
	f.conns = append(f.conns, conn)
	f.mu.Unlock()
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second)) // for who reads no answers
	_, _ = io.WriteString(conn, first)
	if rest == "" {
		return nil
	}
	_ = conn.SetWriteDeadline(time.Time{})
	f.wg.Go(func() {
		for i := range rest {
			select {
			case <-f.stop:
				return
			case <-time.After(every):
			}
			if _, err := io.WriteString(conn, rest[i:i+1]); err != nil {
				return
			}
		}
	})
	return nil
}

// end closes them all.
func (f *flood) end() {
	f.once.Do(func() { close(f.stop) })
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns {
		_ = c.Close()
	}
	f.wg.Wait()
}

// Ten thousand connections, and six hundred uploads that hardly come, take as much
// of the signer as it has to give, and no more: it stays within the memory that the
// manifests give it, serves who behaves, and is as before when they are gone.
//
// It runs beside no other test of this package, which would all be slowed down.
func TestAFloodDoesNotTakeTheSignerDown(t *testing.T) {
	const limit, most = 36 << 20, 4 * 128 // GOMEMLIMIT as the manifests' 60 MiB make it; connections
	harness.NeedStack(t)
	idle := 1_500 // three times as many as there are slots
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	if files.Cur < files.Max {
		files.Cur = files.Max
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files) // or it stays as it is, and there are fewer
	}
	if files.Cur < 4096 {
		const short = "needs some thousands of open files; the limit (ulimit -n) is %d"
		if os.Getenv("CI") != "" {
			t.Fatalf(short, files.Cur)
		}
		t.Skipf(short, files.Cur)
	}
	if room := int(min(files.Cur, 1<<20)) - 3500; room < idle { // what this and other tests have besides
		idle = room
		t.Logf("%d connections only: the limit of open files is %d", idle, files.Cur)
	}

	h := newHostile(t, map[string]string{"GOMEMLIMIT": fmt.Sprint(limit)})
	sys, pid := h.sys, h.sys.Signer.Pid()
	harness.Put(t, sys, "good", harness.Cat)
	harness.Link(t, sys, "good", "")
	goroutines, fds := harness.Sum(t, sys.SignerOps, "go_goroutines"), harness.Sum(t, sys.SignerOps, "process_open_fds")

	// Who looks on: Kubernetes, and Prometheus.
	var worst, memory, connections atomic.Int64
	watching, unwatch := context.WithCancel(t.Context())
	var watcher sync.WaitGroup
	watcher.Go(func() {
		for watching.Err() == nil {
			began := time.Now()
			a, err := harness.Try(t.Context(), http.MethodGet, sys.SignerOps+"/livez", "", http.NoBody)
			if err != nil || a.StatusCode != 200 {
				t.Errorf("/livez: %v", err)
				return
			}
			worst.Store(max(worst.Load(), time.Since(began).Milliseconds()))
			text := string(harness.Do(t, http.MethodGet, sys.SignerOps+"/metrics", "", nil).Want(t, http.StatusOK).Body)
			value := func(series string) (v float64) {
				_, after, _ := strings.Cut(text, "\n"+series+" ")
				if _, err := fmt.Sscan(after, &v); err != nil {
					t.Errorf("%s: %v", series, err)
				}
				return v
			}
			memory.Store(max(memory.Load(), int64(value("go_memstats_sys_bytes")-value("go_memstats_heap_released_bytes"))))
			connections.Store(max(connections.Load(), int64(value(`cats_signer_pool_slots_taken{pool="connections"}`))))
			time.Sleep(400 * time.Millisecond)
		}
	})

	f := &flood{h: h, stop: make(chan struct{})}
	t.Cleanup(f.end)
	put1 := func(i int) string {
		return call("PUT", fmt.Sprintf("/v1/picture?user=flood%d&size=100000", i), known+"Content-Length: 100000\r\n", string(harness.Cat[:4<<10]))
	}
	ever := strings.Repeat("x", 10_000)
	wave := func(n int, connect func(i int) error) *sync.WaitGroup {
		var wg sync.WaitGroup
		for w := range 32 {
			wg.Go(func() {
				for i := w; i < n; i += 32 {
					if err := connect(i); err != nil {
						t.Errorf("connection %d of %d: %v", i, n, err)
						return
					}
				}
			})
		}
		return &wg
	}
	// A client of the frontend gets one of statuses for a link and for an upload. During the flood that can be 503: a compromised
	// frontend can take all slots of the signer.
	good := func(statuses ...int) {
		t.Helper()
		began := time.Now()
		get := harness.Do(t, http.MethodGet, sys.URL+"/cat/good", "", nil)
		put := harness.Do(t, http.MethodPut, sys.URL+"/cat/good", "", harness.Cat)
		t.Logf("a client has %d for a link and %d for an upload, after %v", get.StatusCode, put.StatusCode, time.Since(began))
		if !slices.Contains(statuses, get.StatusCode) || !slices.Contains(statuses, put.StatusCode) {
			t.Errorf("link: %s; upload: %s", get.Body, put.Body)
		}
	}
	// Chunked uploads take all buffers, and keep them until they turn out to be slow.
	part := string(harness.Picture(7<<19, 'b'))
	wave(5, func(i int) error {
		return f.add(t.Context(), call("PUT", fmt.Sprintf("/v1/picture?user=floodbuffer%d", i), known+"Transfer-Encoding: chunked\r\n", fmt.Sprintf("%x\r\n%s", 8<<20, part)), ever, time.Second)
	}).Wait()
	harness.Eventually(t, func() error {
		if n := harness.Sum(t, sys.SignerOps, "cats_signer_upload_buffers_in_use"); n < 5 {
			return fmt.Errorf("%v buffers are taken", n)
		}
		return nil
	})
	began := time.Now()
	wave(600, func(i int) error { return f.add(t.Context(), put1(i), ever[:i%3*len(ever)/2], time.Second) }).Wait() // a third stop
	good(200, 503)
	var lines strings.Builder // 19 KB of them, which net/http makes 480 of
	for i := 0; lines.Len() < 19_000; i++ {
		fmt.Fprintf(&lines, "%x:\n", i)
	}
	wave(400, func(int) error {
		return f.add(t.Context(), "GET / HTTP/1.1\r\nHost: localhost\r\n"+lines.String(), "", 0)
	}).Wait()
	many := wave(idle, func(i int) error {
		switch i % 200 {
		case 0, 50, 100, 150: // a header that hardly comes
			return f.add(t.Context(), "GET /v1/link?user=good HTTP/1.1\r\n", ever, time.Second)
		case 1: // reads no answers
			return f.add(t.Context(), strings.Repeat("GET /v1/link?user=good HTTP/1.1\r\nHost: localhost\r\n\r\n", 300), "", 0)
		case 2, 52, 102, 152: // one long line
			return f.add(t.Context(), "GET / HTTP/1.1\r\nHost: localhost\r\nX: "+strings.Repeat("x", 19_000), "", 0)
		case 3, 53, 103, 153: // a lookup that nobody waits for
			return f.add(t.Context(), call("GET", fmt.Sprintf("/v1/link?user=nobody%d", i), known, ""), "", 0)
		}
		return f.add(t.Context(), "", "", 0)
	})
	good(200, 503)
	many.Wait()
	t.Logf("%d connections in %v", 1000+idle, time.Since(began))
	unwatch()
	watcher.Wait()
	t.Logf("/livez took %d ms at most; %d KiB of memory, %d connections", worst.Load(), memory.Load()>>10, connections.Load())
	// The container has 60 MiB. The Go runtime does not count what the kernel holds of the connections, nor the program's pages,
	// which the kernel can drop.
	if room := int64(60<<20 - 4<<20); memory.Load() > room {
		t.Errorf("%d bytes of memory, of %d", memory.Load(), room)
	}
	if connections.Load() > most {
		t.Errorf("%d connections, of %d", connections.Load(), most)
	}
	if worst.Load() > 5000 {
		t.Errorf("/livez took %d ms: the kubelet would give up", worst.Load())
	}
	f.end()

	harness.Eventually(t, func() error {
		g, o := harness.Sum(t, sys.SignerOps, "go_goroutines"), harness.Sum(t, sys.SignerOps, "process_open_fds")
		if inFlight := harness.Sum(t, sys.SignerOps, "cats_signer_http_requests_in_flight"); g > goroutines+2*128+60 || o > fds+128+60 || inFlight > 0 { // 128 connections to storage are kept for a while
			return fmt.Errorf("%v goroutines, %v before; %v open files, %v before; %v requests in flight", g, goroutines, o, fds, inFlight)
		}
		return nil
	})
	good(200)
	harness.WantRecovery(t, sys)
	if sys.Signer.Pid() != pid || harness.Sum(t, sys.SignerOps, "cats_signer_http_panics_total") != 0 || harness.Sum(t, sys.SignerOps, "cats_signer_upload_buffers_in_use") != 0 {
		t.Error("the signer was restarted, has panicked, or still holds memory of uploads")
	}
	for _, name := range harness.BlobNames(t, sys) {
		if strings.HasPrefix(name, "flood") {
			t.Errorf("an upload that never ended is stored as %s", name)
		}
	}
	for _, what := range h.beyond {
		t.Errorf("the signer asked storage for %s", what)
	}
}
