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

// timeWait returns a port in TIME-WAIT on host: the port of a server that has closed a connection, or of a client that has.
func timeWait(t *testing.T, host string, client bool) int {
	t.Helper()
	server, local := freePort(t), &net.TCPAddr{IP: net.ParseIP(host), Port: freePort(t)}
	l := listen(t, host, server)
	defer l.Close()
	first, err := (&net.Dialer{LocalAddr: local}).DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	second, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	port := local.Port
	if !client {
		first, second, port = second, first, server
	}
	// The side that closes first has TIME-WAIT.
	_ = first.Close()
	if _, err := second.Read(make([]byte, 1)); err == nil {
		t.Fatal("the connection is still open")
	}
	_ = second.Close()
	return port
}

func TestPortsInTimeWaitAreFree(t *testing.T) {
	for _, c := range []struct {
		host   string
		client bool
		want   string // in the error
	}{
		{"127.0.0.1", false, ""},
		{"127.0.0.2", false, ""},
		{"::1", false, ""},
		{"::1", true, ""},
		{"127.0.0.1", true, "is the local port of a connection"}, // the kernel rejects a listener
	} {
		t.Run(fmt.Sprintf("%s client %t", c.host, c.client), func(t *testing.T) {
			if probe, err := new(net.ListenConfig).Listen(t.Context(), "tcp", net.JoinHostPort(c.host, "0")); err != nil {
				t.Skip(err)
			} else {
				_ = probe.Close()
			}
			port := timeWait(t, c.host, c.client)
			err := free(t.Context(), port)
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				listen(t, "127.0.0.1", port)
			} else if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v; want %q", err, c.want)
			}
		})
	}
}

func TestPortsOfListenersAreInUse(t *testing.T) {
	for _, host := range []string{"", "0.0.0.0", "127.0.0.1", "::1", "::"} {
		port := freePort(t)
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			t.Logf("no %s: %v", host, err)
			continue
		}
		if err := free(t.Context(), port); err == nil || err.Error() != "is in use" {
			t.Errorf("listener on %q: %v", host, err)
		}
		_ = l.Close()
		if err := free(t.Context(), port); err != nil {
			t.Errorf("after a listener on %q: %v", host, err)
		}
	}
}

func TestSuggestedPortsCanBeUsed(t *testing.T) {
	for _, port := range []int{-1, 0, 80, 8080, 9999, 10_000, 19_999, 29_999, 30_000, 32_768, 50_000, 65_535, 65_536} {
		used := map[int]bool{port: true}
		for range 3 {
			name, value, _ := strings.Cut(suggest(t.Context(), "SIGNER_PORT", port, used), "=")
			got, err := strconv.Atoi(value)
			if name != "SIGNER_PORT" || err != nil || got < 1024 || got >= 32_768 || got == port {
				t.Fatalf("%s=%s is suggested instead of %d", name, value, port)
			}
			listen(t, "127.0.0.1", got).Close()
		}
		if len(used) != 4 {
			t.Errorf("the suggestions for %d repeat: %v", port, used)
		}
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
	listen(t, "127.0.0.1", cfg.SignerPort)
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
