package attacks

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestLimitsApplyToOneClient(t *testing.T) {
	t.Parallel()
	const burst, direct, proxy = 20, "127.0.0.2", "127.0.1.1"
	env := map[string]string{"RATE_LIMIT": "0.5", "RATE_BURST": fmt.Sprint(burst), "TRUSTED_PROXIES": "127.0.1.0/24"}
	sys := startShared(t, stack.SystemOptions{FrontendEnv: env})
	service := func(address, forwarded, id string) harness.Response {
		t.Helper()
		return harness.SendWith(t, from(t, address), "GET", sys.URL+"/service", "", "X-Forwarded-For", forwarded, "X-Request-Id", id)
	}
	served := 0
	for served < 2*burst && service(direct, fmt.Sprint("203.0.113.", served), "").StatusCode == 200 {
		served++
	}
	if served < burst || served > burst+5 {
		t.Errorf("%d requests were served; want %d", served, burst)
	}
	c := newCrowd(t, sys.URL)
	for range 3 { // in case the client has a token again
		service(direct, "", "")
	}
	if a := service(direct, "", "").Want(t, 429); a.Field(t, "code") != "rate_limited" || a.Header.Get("Retry-After") == "" {
		t.Errorf("a request over the limit: %v %s", a.Header, a.Body)
	}
	upload := "PUT /cat/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n"
	if s := harness.ReadResponse(t, c.send(t, direct, upload)).StatusCode; s != 429 {
		t.Errorf("an upload before its body: %d; want 429", s)
	}
	service("127.0.0.3", "", "direct").Want(t, 200)

	// The last address of X-Forwarded-For is the client of a trusted proxy.
	for i := range burst {
		service(proxy, fmt.Sprintf("10.0.0.%d, 203.0.113.7:%d", i, 1000+i), "").Want(t, 200)
	}
	for range 3 {
		service(proxy, "203.0.113.7", "")
	}
	service(proxy, "203.0.113.7", "").Want(t, 429)
	service(proxy, "203.0.113.8", "by-proxy").Want(t, 200)
	harness.WaitForLog(t, sys.Frontend.Log, 0, `"request_id":"by-proxy"`, `"client.address":"203.0.113.8"`,
		`"network.peer.address":"127.0.1.1`)
	line := harness.WaitForLog(t, sys.Frontend.Log, 0, `"request_id":"direct"`, `"network.peer.address":"127.0.0.3`)
	if strings.Contains(line, "client.address") {
		t.Errorf("the address in X-Forwarded-For of a client is logged: %s", line)
	}
	waitForMetric(t, sys.FrontendOps, "cats_frontend_requests_rate_limited_total", func(n float64) bool { return n >= 3 })

	// A trusted proxy has no share of the connections; a client behind it has its share of the uploads.
	for i := range 2 * connectionsShare {
		c.send(t, proxy, getRequest("/service", fmt.Sprintf("X-Forwarded-For: 198.51.100.%d\r\n", i)))
	}
	for range uploadsShare + 1 {
		c.send(t, proxy, putRequest("endless", len(harness.Cat), "X-Forwarded-For: 203.0.113.9\r\n"))
	}
	c.settle(t, sys)
	if n := c.statuses(); n[200] != 2*connectionsShare || n[-1] != uploadsShare || n[429] != 1 {
		t.Errorf("the responses by status are %v (-1: none yet)", n)
	}
	harness.SendWith(t, from(t, proxy), "PUT", sys.URL+"/cat/x", string(harness.Cat), "X-Forwarded-For", "203.0.113.10").Want(t, 200)
}

// While more than half of the slots are taken, uploads must bring 16 KiB/s.
func TestSlowUploadsReleaseSlots(t *testing.T) {
	t.Parallel()
	const slots = 6
	env := map[string]string{"MAX_UPLOADS": fmt.Sprint(slots), "MIN_UPLOAD_RATE": "1", "STALL_TIMEOUT": "3s", "ALLOWED_HOSTS": ""}
	sys := harness.Start(t, stack.SystemOptions{FrontendEnv: env, SignerEnv: env})
	harness.Put(t, sys, "slow0", harness.OtherPicture)
	c := newCrowd(t, sys.URL)
	for i := range slots {
		u := harness.RawUploads(t, fmt.Sprint("slow", i), harness.Random(1<<20, 1))[i%3]
		c.trickle(c.send(t, "127.0.0.1", u.Header+u.Body[:5000]), strings.Repeat("x", 100), 100*time.Millisecond)
	}
	waitForMetric(t, sys.SignerOps, "cats_signer_http_requests_in_flight", func(n float64) bool { return n >= slots })
	harness.Do(t, "PUT", sys.URL+"/cat/fast", "", harness.Cat).Want(t, 503)
	rejected := 0
	harness.Eventually(t, func() error {
		if rejected += c.statuses()[http.StatusRequestTimeout]; rejected < slots/2 {
			return errors.New("the slow uploads still have their slots")
		}
		return nil
	})
	harness.Put(t, sys, "fast", harness.Cat)
	harness.WantPicture(t, sys, "fast", harness.Cat)
	harness.WantPicture(t, sys, "slow0", harness.OtherPicture)

	// Without ALLOWED_HOSTS.
	reached(t, "GET", sys.URL+"/cat/fast", "evil.example").Want(t, 200)
	harness.WaitForLog(t, sys.Frontend.Log, 0, "requests for any host name are accepted", "ALLOWED_HOSTS")
}
