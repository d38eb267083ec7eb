package attacks

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cats.example/e2e/harness"
)

// The signer must stay within the memory that the manifests give it, respond to its probes, and be as before when the flood is over.
func TestFloodDoesNotStopTheSigner(t *testing.T) {
	t.Parallel()
	const memory, slots = 36 << 20, 4 * 128 // GOMEMLIMIT of a container with 60 MiB; connections
	harness.NeedStack(t)
	a := newAttacker(t, map[string]string{"GOMEMLIMIT": fmt.Sprint(memory)})
	sys, pid := a.sys, a.sys.Signer.Pid()
	harness.Put(t, sys, "good", harness.Cat)
	harness.Link(t, sys, "good", "")
	goroutines, files := harness.Sum(t, sys.SignerOps, "go_goroutines"), harness.Sum(t, sys.SignerOps, "process_open_fds")

	// As the kubelet and Prometheus do.
	var most, connections float64
	probe := &http.Client{Timeout: 20 * time.Second}
	watching, end := context.WithCancel(t.Context())
	var watch sync.WaitGroup
	watch.Go(func() {
		for watching.Err() == nil {
			r, err := harness.TryWith(t.Context(), probe, http.MethodGet, sys.SignerOps+"/livez", "", http.NoBody)
			if err != nil || r.StatusCode != 200 {
				t.Errorf("/livez: %v", err)
				return
			}
			released := harness.Sum(t, sys.SignerOps, "go_memstats_heap_released_bytes")
			most = max(most, harness.Sum(t, sys.SignerOps, "go_memstats_sys_bytes")-released)
			connections = max(connections, harness.Series(t, sys.SignerOps, `cats_signer_pool_slots_taken{pool="connections"}`))
			time.Sleep(400 * time.Millisecond)
		}
	})
	// During the flood, clients of the frontend may get 503: a compromised frontend can take all slots of the signer.
	wantClients := func(statuses ...int) {
		t.Helper()
		for i, a := range harness.SendAll(t, sys, "good", harness.Cat, harness.Picture(harness.LargeSize, 1)) {
			if !slices.Contains(statuses, a.StatusCode) {
				t.Errorf("request %d: %d %s", i, a.StatusCode, a.Body)
			}
		}
	}
	c := newCrowd(t, sys.SignerAPI)
	flood := func(n int, request func(i int) (first string, trickles bool)) {
		harness.Each(n, func(i int) {
			first, trickles := request(i)
			if conn := c.send(t, "127.0.0.1", first); trickles {
				c.trickle(conn, "x", time.Second)
			}
		})
	}
	// Chunked uploads take all buffers, and keep them until they turn out to be slow.
	chunk := fmt.Sprintf("%x\r\n%s", 8<<20, harness.Picture(7<<19, 'b'))
	flood(5, func(i int) (string, bool) {
		return call(fmt.Sprintf("PUT /v1/picture?user=flood-buffer%d", i), "Transfer-Encoding: chunked\r\n", chunk), true
	})
	waitForMetric(t, sys.SignerOps, "cats_signer_upload_buffers_in_use", func(n float64) bool { return n >= 5 })
	flood(600, func(i int) (string, bool) { // a third sends no more
		head := call(fmt.Sprintf("PUT /v1/picture?user=flood%d&size=100000", i), "Content-Length: 100000\r\n", string(harness.Cat[:4<<10]))
		return head, i%3 > 0
	})
	wantClients(200, 503)
	var fields strings.Builder // 19 KB of short lines, which net/http turns into 480 KB
	for i := 0; fields.Len() < 19_000; i++ {
		fmt.Fprintf(&fields, "%x:\n", i)
	}
	flood(400, func(int) (string, bool) { return "GET / HTTP/1.1\r\nHost: localhost\r\n" + fields.String(), false })
	flood(slots*5/4, func(i int) (string, bool) {
		return map[int]string{
			0: "GET /v1/link?user=good HTTP/1.1\r\n",
			1: strings.Repeat(getRequest("/v1/link?user=good", ""), 300), // reads no response
			2: "GET / HTTP/1.1\r\nHost: localhost\r\nX: " + strings.Repeat("x", 19_000),
			3: call(fmt.Sprintf("GET /v1/link?user=nobody%d", i), "", ""), // a lookup whose client does not wait
		}[i%50], i%50 == 0
	})
	wantClients(200, 503)
	end()
	watch.Wait()
	// The container has 60 MiB. The Go runtime does not count the kernel's part of the connections, nor the program's pages. The
	// race detector adds 2 MiB.
	if t.Logf("%.1f MiB of memory, %v connections", most/(1<<20), connections); most > 58<<20 || connections > slots {
		t.Errorf("the bounds are 58 MiB and %d connections", slots)
	}
	c.end()
	// 128 connections to storage stay open for a while, each with two goroutines.
	waitForMetric(t, sys.SignerOps, "go_goroutines", func(n float64) bool { return n <= goroutines+2*128+60 })
	waitForMetric(t, sys.SignerOps, "process_open_fds", func(n float64) bool { return n <= files+128+60 })
	waitForMetric(t, sys.SignerOps, "cats_signer_http_requests_in_flight", func(n float64) bool { return n == 0 })
	wantClients(200)
	harness.WantRecovery(t, sys)
	waitForMetric(t, sys.SignerOps, "cats_signer_upload_buffers_in_use", func(n float64) bool { return n == 0 })
	a.wantUndisturbed(t, pid)
	for _, name := range harness.BlobNames(t, sys) {
		if strings.HasPrefix(name, "flood") {
			t.Errorf("an incomplete upload is stored as %s", name)
		}
	}
}
