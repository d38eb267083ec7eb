package attacks

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// stall opens n uploads of address that do not end.
func (c *crowd) stall(t *testing.T, n int, address, header string) {
	t.Helper()
	for i := range n {
		if _, err := c.send(t.Context(), address, putRequest(fmt.Sprint("endless", i), len(harness.Cat), header)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestClientOverItsShareHintsAtTrustedProxies(t *testing.T) {
	t.Parallel()
	sys := startShared(t, stack.SystemOptions{})
	mark := sys.Frontend.Log.Mark()
	c := newCrowd(t, sys)
	c.stall(t, uploadsShare+3, "127.0.0.2", "X-Forwarded-For: 203.0.113.7\r\n")
	c.settle(t)
	if got := c.responses(); got[429] != 3 {
		t.Fatalf("the responses by status are %v", got)
	}
	harness.Send(t, "GET", sys.URL+"/service", "", "X-Request-Id", "afterwards").Want(t, 200)
	harness.WaitForLog(t, sys.Frontend.Log, mark, `"request_id":"afterwards"`)
	lines, err := sys.Frontend.Log.Since(mark)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(strings.Join(lines, "\n"), "TRUSTED_PROXIES"); n != 1 {
		t.Errorf("%d lines of the log name TRUSTED_PROXIES; want 1", n)
	}
}

func TestTrustedProxyHasNoShare(t *testing.T) {
	t.Parallel()
	const proxy = "127.0.0.9"
	sys := startShared(t, stack.SystemOptions{FrontendEnv: map[string]string{"TRUSTED_PROXIES": proxy + "/32"}})
	idle := newCrowd(t, sys)
	const n = 2 * connectionsShare
	for i := range n {
		if _, err := idle.send(t.Context(), proxy, getRequest("/service", fmt.Sprintf("X-Forwarded-For: 203.0.113.%d\r\n", i))); err != nil {
			t.Fatal(err)
		}
	}
	idle.settle(t)
	if got := idle.responses(); got[200] != n {
		t.Errorf("the responses by status are %v; want 200 on all %d connections", got, n)
	}
	c := newCrowd(t, sys)
	c.stall(t, uploadsShare+1, proxy, "X-Forwarded-For: 203.0.113.7\r\n")
	c.settle(t)
	if got := c.responses(); got[429] != 1 || got[-1] != uploadsShare {
		t.Errorf("uploads of one client behind the proxy: the responses by status are %v (-1: none yet)", got)
	}
	harness.SendWith(t, clientFrom(t, proxy), "PUT", sys.URL+"/cat/other", string(harness.Cat), "X-Forwarded-For", "203.0.113.8").Want(t, 200)
}

func TestFullPoolsEndNoProcess(t *testing.T) {
	sys := startShared(t, stack.SystemOptions{})
	harness.Put(t, sys, "victim", harness.Cat)
	pids := [2]int{sys.Frontend.Pid(), sys.Signer.Pid()}
	c := newCrowd(t, sys)
	const addresses = 16
	for i := range addresses {
		address := fmt.Sprintf(attackers, 2+i)
		c.stall(t, uploadsShare, address, "")
		for k := range connectionsShare - uploadsShare - 1 { // the victim has a connection, too
			request := "GET /service HTT"
			if k < requestsShare-uploadsShare {
				request = getRequest(bundle, "")
			}
			if _, err := c.sendBy(t.Context(), slowReader(address), request); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.settle(t)
	if n := harness.Sum(t, sys.FrontendOps, "cats_frontend_http_requests_in_flight"); n != addresses*requestsShare {
		t.Errorf("%v requests are in flight; want %d", n, addresses*requestsShare)
	}
	ask := clientFrom(t, victim)
	for range 10 {
		if a := harness.SendWith(t, ask, "GET", sys.URL+"/cat/victim", ""); a.StatusCode != 200 && a.StatusCode != 503 {
			t.Errorf("%d %s; want 200 or 503", a.StatusCode, a.Body)
		}
	}
	for _, base := range []string{sys.FrontendOps, sys.SignerOps} {
		harness.Do(t, "GET", base+"/livez", "", nil).Want(t, 200)
	}
	c.end()
	harness.Eventually(t, func() error {
		if a := harness.SendWith(t, ask, "GET", sys.URL+"/cat/victim", ""); a.StatusCode != 200 {
			return fmt.Errorf("after the attack: %d %s", a.StatusCode, a.Body)
		}
		return nil
	})
	if now := [2]int{sys.Frontend.Pid(), sys.Signer.Pid()}; now != pids {
		t.Errorf("the processes are %v; they were %v", now, pids)
	}
}

func TestClientShareZeroHasNoShares(t *testing.T) {
	t.Parallel()
	off := map[string]string{"CLIENT_SHARE": "0"}
	sys := startShared(t, stack.SystemOptions{FrontendEnv: off, SignerEnv: off})
	c := newCrowd(t, sys)
	const n = 300
	c.stall(t, 4*uploadsShare, "127.0.0.2", "")
	for range n - 4*uploadsShare {
		conn, err := c.send(t.Context(), "127.0.0.2", getRequest("/service", ""))
		if err != nil {
			t.Fatal(err)
		}
		if s := harness.ReadStatus(t, conn); s != http.StatusOK {
			t.Fatalf("a GET: %d", s)
		}
	}
	for i, conn := range c.conns[:4*uploadsShare] {
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := conn.Write(harness.Cat[4<<10:]); err != nil {
			t.Fatal(err)
		}
		if s := harness.ReadStatus(t, conn); s != http.StatusOK {
			t.Errorf("upload %d of %d at once: %d", i, 4*uploadsShare, s)
		}
	}
}
