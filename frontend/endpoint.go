package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	endpointTimeout   = time.Second     // of a request to what may be a token endpoint; a readiness probe waits for 3 s
	endpointInterval  = 5 * time.Second // between two searches after the start
	maxEndpointAnswer = 8 << 10         // bytes that are read of a response, its header included
	tokenPath         = "/metadata/identity/oauth2/token"
)

// endpoints finds token endpoints on the loopback interface. Any process of the pod gets tokens from them without a
// credential of its own.
//
// With the annotation azure.workload.identity/inject-proxy-sidecar, the workload identity webhook adds one to the pod: its
// proxy listens on localhost, on port 8000 or the one of the annotation proxy-sidecar-port, and answers requests for
// tokenPath with tokens of the pod's identity. It ignores the header Metadata (azure-workload-identity, pkg/proxy/proxy.go
// and pkg/webhook/webhook.go). The webhook puts the proxy before all other containers, so a search at the start finds it;
// later searches find one that started late.
//
// Outside of Kubernetes, only port 8000 is searched: a request to each port of a developer's machine would disturb
// programs there. In a pod, the kernel lists the ports that listen on the loopback interface or on all; those of the frontend
// itself and of the signer's API are left out. The metadata service of the node, 169.254.169.254, is not asked: the
// NetworkPolicy blocks it, and tools for intrusion detection report containers that contact it.
type endpoints struct {
	search func() []string // returns the addresses of token endpoints
	log    *slog.Logger

	mu    sync.Mutex
	next  time.Time // of the next search
	found []string
}

// ready returns an error while a token endpoint answers. It logs the addresses when they change.
func (e *endpoints) ready() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if now := time.Now(); !now.Before(e.next) {
		found := e.search()
		if len(found) > 0 && !slices.Equal(found, e.found) {
			e.log.Error("token endpoint found on the loopback interface", "addresses", found, "fix", splitFix)
		}
		e.found, e.next = found, now.Add(endpointInterval)
	}
	if len(e.found) > 0 {
		return errors.New("a token endpoint answers at " + strings.Join(e.found, ", ") + ": the frontend must not reach one; the log has the fix")
	}
	return nil
}

// findEndpoints returns the addresses at which a token endpoint answers within timeout, in their order.
func findEndpoints(ctx context.Context, addresses []string, timeout time.Duration) []string {
	found := make([]string, len(addresses))
	var asked sync.WaitGroup
	for i, address := range addresses {
		asked.Go(func() {
			if askEndpoint(ctx, address, timeout) {
				found[i] = address
			}
		})
	}
	asked.Wait()
	return slices.DeleteFunc(found, func(address string) bool { return address == "" })
}

// askEndpoint reports whether a token endpoint answers at address. It sends neither the header Metadata nor a resource, so
// that a token endpoint answers with an error instead of a token. It is not an [http.Client], which logs what programs with
// other protocols send.
func askEndpoint(ctx context.Context, address string, timeout time.Duration) bool {
	deadline := time.Now().Add(timeout)
	conn, err := (&net.Dialer{Deadline: deadline}).DialContext(ctx, "tcp", address)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(deadline) // fails only on a closed connection
	const agent = "cats-api-frontend (search for token endpoints)"
	// If this fails, no response comes.
	_, _ = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: %s\r\nConnection: close\r\n\r\n", tokenPath, address, agent)
	resp, err := http.ReadResponse(bufio.NewReader(io.LimitReader(conn, maxEndpointAnswer)), nil)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	start, _ := io.ReadAll(resp.Body) // it may be longer than maxEndpointAnswer
	return isTokenEndpoint(resp.StatusCode, resp.Header.Get("Server"), bytes.ToLower(bytes.TrimSpace(start)))
}

// isTokenEndpoint reports whether a response with the field Server and the start of a body, in lower case, is that of a token
// endpoint: of the webhook's proxy, or in the form of the Azure Instance Metadata Service, which rejects requests without the
// header Metadata.
func isTokenEndpoint(status int, server string, body []byte) bool {
	if strings.HasPrefix(server, "azure-workload-identity/") || strings.HasPrefix(server, "IMDS/") {
		return true
	}
	has := func(text string) bool { return bytes.Contains(body, []byte(text)) }
	json := bytes.HasPrefix(body, []byte("{")) // RFC 6749 sections 5.1 and 5.2
	switch status {
	case http.StatusOK:
		return json && has(`"access_token"`)
	case http.StatusBadRequest:
		return json && has(`"error"`) && has(`"error_description"`) ||
			!json && (has("metadata header") || has("resource parameter is required") || has("client_id parameter"))
	}
	return false
}

// endpointAddresses returns the addresses on the loopback interface at which a token endpoint may be. Those with a port of
// known are not. procNet is the folder of the kernel's tables of sockets, /proc/net.
func endpointAddresses(environ, known []string, procNet string) []string {
	addresses := []string{"127.0.0.1:8000", "[::1]:8000"}
	if slices.ContainsFunc(environ, func(v string) bool { return strings.HasPrefix(v, "KUBERNETES_SERVICE_HOST=") }) {
		addresses = append(addresses, loopbackListeners(filepath.Join(procNet, "tcp"))...)
		addresses = append(addresses, loopbackListeners(filepath.Join(procNet, "tcp6"))...)
	}
	addresses = slices.DeleteFunc(addresses, func(a string) bool {
		_, port, _ := net.SplitHostPort(a)
		return slices.Contains(known, port)
	})
	slices.Sort(addresses)
	return slices.Compact(addresses)
}

// loopbackListeners returns the loopback addresses at which sockets in a table of the kernel listen (proc_net_tcp(5)), none if
// it cannot be read.
func loopbackListeners(table string) (addresses []string) {
	text, _ := os.ReadFile(table) //nolint:gosec // /proc/net/tcp, or one of a test
	for line := range strings.Lines(string(text)) {
		var ip, remote []byte
		var slot uint64
		var port, remotePort, state uint16
		_, err := fmt.Sscanf(line, "%d: %x:%x %x:%x %x", &slot, &ip, &port, &remote, &remotePort, &state)
		if err != nil || state != 0x0A || len(ip)%4 != 0 { // TCP_LISTEN
			continue
		}
		for word := range slices.Chunk(ip, 4) {
			slices.Reverse(word) // words in the byte order of amd64 and arm64
		}
		addr, _ := netip.AddrFromSlice(ip) // invalid unless ip has 4 or 16 bytes
		switch addr = addr.Unmap(); {
		case addr.IsLoopback():
			addresses = append(addresses, netip.AddrPortFrom(addr, port).String())
		case addr.IsUnspecified(): // [::] has connections to 127.0.0.1, too
			addresses = append(addresses, fmt.Sprintf("127.0.0.1:%d", port))
		}
	}
	return addresses
}
