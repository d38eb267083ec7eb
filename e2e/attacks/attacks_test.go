package attacks

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// The tests in this file hold an attack from some source addresses while a victim at another address sends requests. They do not
// run beside other tests, since the victim's time counts.

const bundle = "/docs/swagger-ui-bundle.js"

// get returns a GET request.
func getRequest(path, header string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: localhost\r\n" + header + "\r\n"
}

// putRequest returns a PUT request with the first bytes of a picture of size bytes.
func putRequest(user string, size int, header string) string {
	return fmt.Sprintf("PUT /cat/%s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n%s\r\n%s", user, size, header, harness.Cat[:4<<10])
}

func TestSlowReadersLeaveVictimServed(t *testing.T) {
	sys := startShared(t, stack.SystemOptions{})
	harness.Put(t, sys, "victim", harness.Cat)
	c := newCrowd(t, sys)
	read := func(i int) {
		encoding := []string{"", "Accept-Encoding: gzip\r\n"}[i%2]
		if _, err := c.sendBy(t.Context(), slowReader("127.0.0.2"), getRequest(bundle, encoding)); err != nil {
			t.Error(err)
		}
	}
	const n = 300
	for i := range n {
		read(i)
	}
	c.settle(t)
	var more sync.WaitGroup
	stop := make(chan struct{})
	more.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Second / 6):
				read(i)
			}
		}
	})
	for range 3 {
		servesVictim(t, "GET", sys.URL+"/cat/victim", http.NoBody)
	}
	close(stop)
	more.Wait()
	got := c.responses()
	if got[200] > requestsShare || got[429] == 0 || got[200]+got[429] > connectionsShare || got[0] < n-connectionsShare {
		t.Errorf("the responses by status are %v (0: closed)", got)
	}
}

func TestIdleConnectionsLeaveVictimServed(t *testing.T) {
	sys := startShared(t, stack.SystemOptions{})
	harness.Put(t, sys, "victim", harness.Cat)
	c := newCrowd(t, sys)
	const addresses, each = 20, 55 // the frontend has 1,024 slots
	for i := range addresses * each {
		if _, err := c.send(t.Context(), fmt.Sprintf(attackers, 2+i%addresses), getRequest("/service", "")); err != nil {
			t.Fatal(err)
		}
	}
	c.settle(t)
	servesVictim(t, "GET", sys.URL+"/cat/victim", http.NoBody)
}

func TestSlowUploadsLeaveVictimServed(t *testing.T) {
	sys := startShared(t, stack.SystemOptions{})
	c := newCrowd(t, sys)
	const addresses, each = 4, 32
	for i := range addresses * each {
		conn, err := c.send(t.Context(), fmt.Sprintf(attackers, 2+i%addresses), putRequest(fmt.Sprint("slow", i), 30<<20, ""))
		if err != nil {
			t.Fatal(err)
		}
		c.trickle(conn, 18<<10/4, time.Second/4, false)
	}
	c.settle(t)
	for range 3 {
		servesVictim(t, "PUT", sys.URL+"/cat/victim", bytes.NewReader(harness.Cat))
	}
	if got := c.responses(); got[-1] > addresses*uploadsShare || got[429] < addresses*(each-uploadsShare) {
		t.Errorf("the responses by status are %v (-1: none yet)", got)
	}
}

func TestEndlessCommitsLeaveVictimServed(t *testing.T) {
	storage := harness.NewStorageProxy(t)
	sys := startShared(t, stack.SystemOptions{StorageURL: storage.URL, SignerEnv: map[string]string{"MAX_DIRECT_UPLOAD_SIZE": "1GiB"}})
	released := make(chan struct{})
	t.Cleanup(func() { close(released) })
	endless := func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		if r.Header.Get("X-Ms-Copy-Source") != "" {
			<-released
		}
		healthy.ServeHTTP(w, r)
	}
	commit := func(user string) string {
		k := harness.NewUploadSession(t, sys, user, int64(len(harness.Cat)))
		k.Send(t, bytes.NewReader(harness.Cat), int64(len(harness.Cat)))
		return "/cat/" + user + "/upload/" + k.ID + "/commit"
	}
	c := newCrowd(t, sys)
	const n = 20 // the signer has 16 slots
	for i := range n {
		user := fmt.Sprint("endless", i)
		storage.Set(user, endless)
		if _, err := c.send(t.Context(), "127.0.0.2", "POST "+commit(user)+" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	c.settle(t)
	servesVictim(t, "POST", sys.URL+commit("victim"), http.NoBody)
	if got := c.responses(); got[-1] != commitsShare || got[429] != n-commitsShare {
		t.Errorf("the responses by status are %v (-1: none yet)", got)
	}
}

func TestJunkTokensLeaveVictimServed(t *testing.T) {
	for _, addresses := range []int{1, 16} {
		t.Run(fmt.Sprint(addresses), func(t *testing.T) {
			p := harness.StartProvider(t, "0", "KEYS_ONCE=1")
			sys := startShared(t, harness.WithAuthentication(p.Issuer, nil))
			valid := p.Token(t, "mia", harness.Audience)
			header, rest, _ := strings.Cut(valid, ".")
			claims, _, _ := strings.Cut(rest, ".")
			harness.SendAs(t, valid, "PUT", sys.URL+"/cat/mia", harness.Cat).Want(t, 200)
			const n = 256
			var unavailable atomic.Int64
			var junk sync.WaitGroup
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			for i := range n {
				token := header + "." + claims + "." + strings.Repeat("A", 86) // a known key
				if i%2 == 0 {
					token = unknownKey(i) + "." + claims + "." + strings.Repeat("A", 86)
				}
				client := clientFrom(t, fmt.Sprintf(attackers, 2+i%addresses))
				junk.Go(func() {
					req, err := http.NewRequestWithContext(ctx, "GET", sys.URL+"/cat/mia", http.NoBody)
					if err != nil {
						t.Error(err)
						return
					}
					req.Header.Set("Authorization", "Bearer "+token)
					resp, err := client.Do(req)
					if err != nil {
						return // beyond the share of connections
					}
					defer resp.Body.Close()
					var b bytes.Buffer
					_, _ = b.ReadFrom(resp.Body)
					if strings.Contains(b.String(), "issuer_unavailable") {
						unavailable.Add(1)
					}
				})
			}
			(&crowd{sys: sys}).settle(t)
			servesVictim(t, "GET", sys.URL+"/cat/mia", http.NoBody, "Authorization", "Bearer "+valid)
			junk.Wait()
			if waited := unavailable.Load(); waited < 1 || waited > waitersForKeys {
				t.Errorf("%d requests waited for the issuer; want 1 to %d", waited, waitersForKeys)
			}
		})
	}
}

// unknownKey returns the header of a token that names a key which the issuer does not have.
func unknownKey(i int) string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"alg":"ES256","typ":"at+jwt","kid":"junk-%d"}`, i))
}

func TestUnreadResponsesHoldLittleKernelMemory(t *testing.T) {
	sys := startShared(t, stack.SystemOptions{})
	harness.Put(t, sys, "victim", harness.Cat)
	c := newCrowd(t, sys)
	const addresses, each = 2, 20
	for i := range addresses * each {
		pipelined := strings.Repeat(getRequest(bundle, []string{"", "Accept-Encoding: gzip\r\n"}[i%2]), 20)
		if i < 4 {
			pipelined = strings.Repeat(getRequest("/cat/victim", ""), 500)
		}
		if _, err := c.send(t.Context(), fmt.Sprintf(attackers, 2+i%addresses), pipelined); err != nil {
			t.Fatal(err)
		}
	}
	c.settle(t)
	servesVictim(t, "GET", sys.URL+"/cat/victim", http.NoBody)
	if held, bound := unsent(t, sys), int64(addresses*each*192<<10); held > bound {
		t.Errorf("the kernel holds %d KiB that the frontend has sent, in %d connections; want at most %d KiB", held>>10, addresses*each, bound>>10)
	}
}

// unsent returns how many bytes the frontend's public port has sent that no client has acknowledged.
func unsent(t *testing.T, sys *stack.System) (n int64) {
	t.Helper()
	_, port, _ := strings.Cut(strings.TrimPrefix(sys.URL, "http://"), ":")
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil && os.Getenv("CI") == "" {
		t.Skipf("needs Linux: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line) // number, local address, remote address, state, queues
		if len(fields) < 5 || !strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", number)) {
			continue
		}
		queued, _, _ := strings.Cut(fields[4], ":")
		bytes, err := strconv.ParseInt(queued, 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		n += bytes
	}
	return n
}

// A response has 10 seconds and its size at 16 KiB/s. The kernel must not keep it for longer.
func TestUnreadResponseIsDropped(t *testing.T) {
	t.Parallel()
	sys := startShared(t, stack.SystemOptions{})
	harness.Put(t, sys, "victim", harness.Cat)
	c := newCrowd(t, sys)
	for _, requests := range []string{
		strings.Repeat(getRequest("/cat/victim", ""), 1000),
		// Without requests that the frontend has not read, the kernel keeps the response after Close.
		strings.Repeat(getRequest("/docs/swagger-ui.css", "Accept-Encoding: gzip\r\n"), 12),
		getRequest("/docs/swagger-ui.css", "Accept-Encoding: gzip\r\nConnection: close\r\n"),
	} {
		if _, err := c.sendBy(t.Context(), slowReader("127.0.0.2"), requests); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	harness.Eventually(t, func() error {
		if n := unsent(t, sys); n < 64<<10 {
			return fmt.Errorf("the frontend has sent %d bytes", n)
		}
		return nil
	})
	for unsent(t, sys) > 0 {
		if time.Since(began) > 25*time.Second {
			t.Fatalf("the kernel holds %d bytes", unsent(t, sys))
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func TestPlainBundlesLeaveVictimServed(t *testing.T) {
	sys := startShared(t, stack.SystemOptions{})
	harness.Put(t, sys, "victim", harness.Cat)
	one := clientFrom(t, "127.0.0.3")
	plain := func() {
		harness.SendWith(t, one, "GET", sys.URL+bundle, "", "Accept-Encoding", "identity").Want(t, 200)
	}
	plain()
	const n = 64
	before := harness.Sum(t, sys.FrontendOps, "go_memstats_alloc_bytes_total")
	for range n {
		plain()
	}
	// To inflate the file takes 100 KiB of memory.
	if each := (harness.Sum(t, sys.FrontendOps, "go_memstats_alloc_bytes_total") - before) / n; each > 64<<10 {
		t.Errorf("the frontend allocated %.0f bytes for each of %d requests", each, n)
	}
	c := newCrowd(t, sys)
	for range n {
		if _, err := c.sendBy(t.Context(), slowReader("127.0.0.2"), getRequest(bundle, "")); err != nil {
			t.Fatal(err)
		}
	}
	c.settle(t)
	servesVictim(t, "GET", sys.URL+"/cat/victim", http.NoBody)
	if got := c.responses(); got[200] != requestsShare || got[429] != n-requestsShare {
		t.Errorf("the responses by status are %v", got)
	}
}

func TestSlowChunkedUploadsLeaveVictimServed(t *testing.T) {
	sys := startShared(t, stack.SystemOptions{})
	c := newCrowd(t, sys)
	first := harness.Picture(128<<10, 'b')
	var refused [600]atomic.Int64
	for i := range 8 { // the signer has buffers for five
		request := fmt.Sprintf("PUT /cat/slow%d HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", i, len(first), first)
		c.sending.Go(func() {
			for !c.stopped() {
				conn, err := c.send(t.Context(), "127.0.0.2", request)
				if err != nil {
					if !c.stopped() {
						t.Error(err)
					}
					return
				}
				c.trickle(conn, 1<<10, 400*time.Millisecond, true) // above MIN_UPLOAD_RATE
				if resp, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil {
					refused[resp.StatusCode].Add(1)
					resp.Body.Close()
				}
				conn.Close()
				time.Sleep(100 * time.Millisecond) // between two attempts
			}
		})
	}
	harness.Eventually(t, func() error {
		if n := harness.Sum(t, sys.SignerOps, "cats_signer_upload_buffers_in_use"); n == 0 {
			return errors.New("no buffer is in use")
		}
		return nil
	})
	for range 3 {
		servesVictim(t, chunkedPUT, sys.URL+"/cat/victim", bytes.NewReader(harness.Picture(5<<20, 'v')))
	}
	if refused[429].Load() == 0 {
		t.Error("no upload beyond the share was rejected with 429")
	}
}
