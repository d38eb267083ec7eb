package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// listen opens a listener on port of host until the test ends or the caller closes it.
func listen(t *testing.T, host string, port int) net.Listener {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// freePort returns a port that is free on all addresses. The kernel does not assign it to connections of other processes.
func freePort(t *testing.T) int {
	t.Helper()
	for range 100 {
		port := firstSuggested + rand.IntN(suggestionRange)
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", net.JoinHostPort("", strconv.Itoa(port)))
		if err == nil && l.Close() == nil && free(t.Context(), port) == nil {
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// A stack that has ended leaves ports in TIME-WAIT.
func TestPortsInTimeWaitAreFreeUnlessAClientHasThem(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		port := freePort(t)
		l := listen(t, host, port)
		client, err := new(net.Dialer).DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if err := free(t.Context(), port); err == nil || err.Error() != "is in use" {
			t.Errorf("with a listener on %s: %v", host, err)
		}
		err = free(t.Context(), client.LocalAddr().(*net.TCPAddr).Port)
		if host == "127.0.0.1" && (err == nil || !strings.Contains(err.Error(), "is the local port of a connection")) {
			t.Errorf("the port of a client: %v", err)
		}
		_ = server.Close() // The side that closes first is in TIME-WAIT.
		if _, err := client.Read(make([]byte, 1)); err == nil {
			t.Fatal("the connection is still open")
		}
		_ = client.Close()
		_ = l.Close()
		if err := free(t.Context(), port); err != nil {
			t.Errorf("after a listener on %s: %v", host, err)
		}
		listen(t, "127.0.0.1", port)
	}
}

func TestCheckPortsNamesTheVariables(t *testing.T) {
	cfg, next := settings{}, freePort(t)
	for _, port := range []*int{&cfg.FrontendPort, &cfg.FrontendOpsPort, &cfg.SignerPort, &cfg.SignerOpsPort, &cfg.StoragePort} {
		for free(t.Context(), next) != nil {
			next++
		}
		*port, next = next, next+1
	}
	if err := cfg.checkPorts(t.Context()); err != nil {
		t.Fatal(err)
	}
	listen(t, "", cfg.SignerPort)
	listen(t, "127.0.0.1", cfg.SignerOpsPort)
	cfg.FrontendOpsPort = cfg.FrontendPort
	err := cfg.checkPorts(t.Context())
	if err == nil {
		t.Fatal("no error")
	}
	want := fmt.Sprintf(`^FRONTEND_PORT and FRONTEND_OPS_PORT are both %d: change one
port %d is in use: set another with SIGNER_PORT=(\d+)
port %d is in use: set another with SIGNER_OPS_PORT=(\d+)$`, cfg.FrontendPort, cfg.SignerPort, cfg.SignerOpsPort)
	m := regexp.MustCompile(want).FindStringSubmatch(err.Error())
	if m == nil || m[1] == m[2] {
		t.Fatalf("got %v; want %s", err, want)
	}
	// A suggestion is not the port of another setting, even if nothing listens on it.
	if cfg.PrometheusPort, err = strconv.Atoi(m[1]); err != nil {
		t.Fatal(err)
	}
	if err := cfg.checkPorts(t.Context()); strings.Contains(err.Error(), "SIGNER_PORT="+m[1]) {
		t.Errorf("the port of Prometheus is suggested: %v", err)
	}
}
