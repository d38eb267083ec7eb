package attacks

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// The share of one client in each pool, by the default settings.
const connectionsShare, requestsShare, uploadsShare, commitsShare = 64, 32, 8, 4

const bundle = "/docs/swagger-ui-bundle.js"

// startShared returns a system with the default CLIENT_SHARE.
func startShared(t *testing.T, opts stack.SystemOptions) *stack.System {
	t.Helper()
	shares := map[string]string{"CLIENT_SHARE": "0.0625"}
	opts.FrontendEnv, opts.SignerEnv = harness.Merge(shares, opts.FrontendEnv), harness.Merge(shares, opts.SignerEnv)
	return harness.Start(t, opts)
}

func getRequest(path, header string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: localhost\r\n" + header + "\r\n"
}

// putRequest returns a PUT request with the first bytes of a picture of size bytes.
func putRequest(user string, size int, header string) string {
	return fmt.Sprintf("PUT /cat/%s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n%s\r\n%s", user, size, header,
		harness.Cat[:4<<10])
}

// gzip asks for a compressed response in each second request.
func gzip(i int) string { return []string{"", "Accept-Encoding: gzip\r\n"}[i%2] }

// It runs alone, since the victim's time counts. Each attack has addresses of its own.
func TestAttacksLeaveVictimServed(t *testing.T) {
	storage := harness.NewStorageProxy(t)
	sys := startShared(t, stack.SystemOptions{StorageURL: storage.URL, SignerEnv: map[string]string{"MAX_DIRECT_UPLOAD_SIZE": "1GiB"}})
	harness.Put(t, sys, "victim", harness.Cat)
	pids := [2]int{sys.Frontend.Pid(), sys.Signer.Pid()}
	var released chan struct{}               // closed after each attack, before a timeout opens the circuit breaker
	hold := func(user string, copies bool) { // makes storage hold the requests for the picture of user
		released := released
		storage.Set(user, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
			if !copies || r.Header.Get("X-Ms-Copy-Source") != "" {
				<-released
			}
			healthy.ServeHTTP(w, r)
		})
	}
	commit := func(user string) string {
		return "POST /cat/" + user + "/upload/" + harness.Stage(t, sys, user, harness.Cat).ID + "/commit"
	}
	const get = "GET /cat/victim"
	for row, attack := range []struct {
		name            string
		addresses, each int
		request         func(i int) string
		trickle         string                 // sent four times a second
		victim          string                 // its method and path
		bounds          func(map[int]int) bool // of the responses by status
	}{
		{"slow readers", 1, 300, func(i int) string { return getRequest(bundle, gzip(i)) }, "", get, func(n map[int]int) bool {
			return n[200] <= requestsShare && n[429] > 0 && n[200]+n[429] <= connectionsShare && n[0] >= 300-connectionsShare
		}},
		// The frontend has 1,024 slots for connections.
		{"idle connections", 20, 55, func(int) string { return getRequest("/service", "") }, "", get, nil},
		{"pipelined requests", 2, 20, func(i int) string {
			if i < 4 {
				return strings.Repeat(getRequest("/cat/victim", ""), 500)
			}
			return strings.Repeat(getRequest(bundle, gzip(i)), 20)
		}, "", get, nil},
		{"slow uploads", 4, 32, func(i int) string {
			return putRequest(fmt.Sprint("slow", i), 30<<20, "")
		}, strings.Repeat("x", 18<<10/4), "PUT /cat/victim", func(n map[int]int) bool {
			return n[-1] <= 4*uploadsShare && n[429] >= 4*(32-uploadsShare)
		}},
		{"lookups that storage holds", 1, 40, func(i int) string {
			user := fmt.Sprint("held", i)
			hold(user, false)
			return getRequest("/cat/"+user, "")
		}, "", get, func(n map[int]int) bool { return n[-1]+n[503] == requestsShare && n[429] == 40-requestsShare }},
		// The signer has 16 slots for commits.
		{"commits that storage holds", 1, 20, func(i int) string {
			user := fmt.Sprint("commit", i)
			hold(user, true)
			return commit(user) + " HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
		}, "", commit("victim"), func(n map[int]int) bool { return n[-1]+n[503] == commitsShare && n[429] == 20-commitsShare }},
		{"full pools", 16, connectionsShare - 1, func(i int) string {
			if k := i / 16; k < uploadsShare {
				return putRequest(fmt.Sprint("endless", k), len(harness.Cat), "")
			} else if k < requestsShare {
				return getRequest(bundle, "")
			}
			return "GET /service HTT"
		}, "", "", nil},
	} {
		t.Run(attack.name, func(t *testing.T) {
			released = make(chan struct{})
			t.Cleanup(func() { close(released) })
			c := newCrowd(t, sys.URL)
			for i := range attack.addresses * attack.each {
				conn := c.send(t, fmt.Sprintf("127.0.%d.%d", 1+row, 1+i%attack.addresses), attack.request(i))
				if attack.trickle != "" {
					c.trickle(conn, attack.trickle, time.Second/4)
				}
			}
			c.settle(t, sys)
			if attack.victim == "" { // it may get a 503
				if a := harness.SendWith(t, from(t, victim), "GET", sys.URL+"/cat/victim", ""); a.StatusCode != 200 && a.StatusCode != 503 {
					t.Errorf("%d %s; want 200 or 503", a.StatusCode, a.Body)
				}
				return
			}
			method, path, _ := strings.Cut(attack.victim, " ")
			for range 3 {
				wantServed(t, method, sys.URL+path, map[string]string{"PUT": string(harness.Cat)}[method])
			}
			if held := unsent(t, sys); held > attack.addresses*attack.each*192<<10 {
				t.Errorf("the kernel holds %d KiB of responses", held>>10)
			}
			if n := c.statuses(); attack.bounds != nil && !attack.bounds(n) {
				t.Errorf("the responses by status are %v (0: closed, -1: none yet)", n)
			}
		})
	}
	t.Run("slow uploads in chunks", func(t *testing.T) {
		c := newCrowd(t, sys.URL)
		first := harness.Picture(128<<10, 'b')
		for i := range 8 { // the signer has buffers for five
			request := fmt.Sprintf("PUT /cat/slow%d HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", i,
				len(first), first)
			c.sending.Go(func() {
				for c.attack.Err() == nil {
					conn := c.send(t, "127.0.10.1", request)
					c.trickle(conn, "400\r\n"+strings.Repeat("x", 1<<10)+"\r\n", 400*time.Millisecond) // above MIN_UPLOAD_RATE
					_, _ = io.Copy(io.Discard, conn)
					conn.Close()
					time.Sleep(100 * time.Millisecond) // between two attempts
				}
			})
		}
		waitForMetric(t, sys.SignerOps, "cats_signer_upload_buffers_in_use", func(n float64) bool { return n > 0 })
		harness.WaitForLog(t, sys.Frontend.Log, 0, `"network.peer.address":"127.0.10.1:`, `"http.response.status_code":429`)
		for range 3 {
			wantServed(t, "chunked PUT", sys.URL+"/cat/victim", string(harness.Picture(5<<20, 'v')))
		}
	})
	wantServed(t, "GET", sys.URL+"/cat/victim", "")
	if now := [2]int{sys.Frontend.Pid(), sys.Signer.Pid()}; now != pids {
		t.Errorf("the processes are %v; they were %v", now, pids)
	}
}

// unsent returns how many bytes the frontend's public listener has sent that no client has acknowledged.
func unsent(t *testing.T, sys *stack.System) (n int) {
	t.Helper()
	port, err := strconv.Atoi(sys.URL[strings.LastIndexByte(sys.URL, ':')+1:])
	table, tableErr := os.ReadFile("/proc/net/tcp")
	if err := errors.Join(err, tableErr); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		var number, local, remote, state string
		var queued int
		if _, err := fmt.Sscanf(line, "%s %s %s %s %x:", &number, &local, &remote, &state, &queued); err == nil &&
			strings.HasSuffix(local, fmt.Sprintf(":%04X", port)) {
			n += queued
		}
	}
	return n
}

// The kernel must not keep a response for longer than the frontend does: 10 s and its size at 16 KiB/s.
func TestUnreadResponsesAreDropped(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	c := newCrowd(t, sys.URL)
	c.send(t, "127.0.0.2", strings.Repeat(getRequest("/docs/swagger-ui.css", gzip(1)), 12))
	c.send(t, "127.0.0.2", getRequest("/docs/swagger-ui.css", gzip(1)+"Connection: close\r\n")) // the kernel keeps it after the close
	for _, bound := range []int{16 << 10, 0} {
		harness.Eventually(t, func() error {
			if n := unsent(t, sys); n > bound {
				return fmt.Errorf("the kernel holds %d bytes", n)
			}
			return nil
		})
	}
}
