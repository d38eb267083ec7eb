package main

import (
	"bufio"
	"bytes"
	"context"
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
	endpointTimeout     = time.Second     // of a probe; a readiness probe times out after 3 s
	endpointInterval    = 5 * time.Second // between two searches
	maxEndpointResponse = 8 << 10         // bytes read of a response, including its header
	tokenPath           = "/metadata/identity/oauth2/token"
)

// endpoints searches for token endpoints on the loopback interface. Any process of the pod can get tokens from them without a
// credential. It is safe for concurrent use.
//
// With the annotation azure.workload.identity/inject-proxy-sidecar, the workload identity webhook adds a proxy to the pod. It
// listens on localhost, on port 8000 or the port in the annotation proxy-sidecar-port. It answers requests for tokenPath with
// tokens of the pod's identity and does not check the Metadata header (azure-workload-identity, pkg/proxy/proxy.go and
// pkg/webhook/webhook.go). The webhook puts the proxy before all other containers, so the search at the start finds it; later
// searches find a proxy that started late.
//
// Outside of Kubernetes, the search covers only port 8000: a request to each port of a developer's machine would disturb other
// programs. In a pod, it covers the ports with a listener on a loopback address or on all addresses, except the ports of the
// frontend and of the signer. It does not cover the node's metadata service, 169.254.169.254: the NetworkPolicy blocks it, and
// intrusion detection reports containers that connect to it.
type endpoints struct {
	search func() []string // returns the addresses of token endpoints
	log    *slog.Logger

	mu    sync.Mutex
	next  time.Time // time of the next search
	found []string
}

// ready returns an error while a token endpoint answers. It logs the addresses when they change.
func (e *endpoints) ready() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if now := time.Now(); !now.Before(e.next) {
		found := e.search()
		if len(found) > 0 && !slices.Equal(found, e.found) {
			e.log.Error("token endpoint found on the loopback interface", "addresses", found, "fix", credentialsFix)
		}
		e.found, e.next = found, now.Add(endpointInterval)
	}
	if len(e.found) > 0 {
		return fmt.Errorf("a token endpoint answers at %s: the frontend must not reach one; the log has the fix", strings.Join(e.found, ", "))
	}
	return nil
}

// findEndpoints returns those of addresses at which a token endpoint answers within timeout, in the same order.
func findEndpoints(ctx context.Context, addresses []string, timeout time.Duration) []string {
	found := make([]string, len(addresses))
	var probes sync.WaitGroup
	for i, address := range addresses {
		probes.Go(func() {
			if probeEndpoint(ctx, address, timeout) {
				found[i] = address
			}
		})
	}
	probes.Wait()
	return slices.DeleteFunc(found, func(address string) bool { return address == "" })
}

// probeEndpoint reports whether a token endpoint answers at address. It sends neither the Metadata header nor a resource, so a
// token endpoint answers with an error instead of a token. It does not use [http.Client], which logs responses of other
// protocols.
func probeEndpoint(ctx context.Context, address string, timeout time.Duration) bool {
	deadline := time.Now().Add(timeout)
	conn, err := (&net.Dialer{Deadline: deadline}).DialContext(ctx, "tcp", address)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(deadline) // fails only on a closed connection
	const agent = "cats-api-frontend (search for token endpoints)"
	// If the write fails, there is no response.
	_, _ = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: %s\r\nConnection: close\r\n\r\n", tokenPath, address, agent)
	resp, err := http.ReadResponse(bufio.NewReader(io.LimitReader(conn, maxEndpointResponse)), nil)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body) // an error if the body is longer than maxEndpointResponse
	return isTokenEndpoint(resp.StatusCode, resp.Header.Get("Server"), bytes.ToLower(bytes.TrimSpace(body)))
}

// isTokenEndpoint reports whether a response is of a token endpoint: of the webhook's proxy, or in the format of the Azure
// Instance Metadata Service, which rejects requests without the Metadata header. server is the Server header; body is the start
// of the body in lower case.
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

// endpointAddresses returns the loopback addresses at which a token endpoint may listen, except those with a port of ownPorts.
// procNet is the directory of the kernel's socket tables, /proc/net.
func endpointAddresses(environ, ownPorts []string, procNet string) []string {
	addresses := []string{"127.0.0.1:8000", "[::1]:8000"}
	if slices.ContainsFunc(environ, func(v string) bool { return strings.HasPrefix(v, "KUBERNETES_SERVICE_HOST=") }) {
		addresses = append(addresses, loopbackListeners(filepath.Join(procNet, "tcp"))...)
		addresses = append(addresses, loopbackListeners(filepath.Join(procNet, "tcp6"))...)
	}
	addresses = slices.DeleteFunc(addresses, func(a string) bool {
		_, port, _ := net.SplitHostPort(a)
		return slices.Contains(ownPorts, port)
	})
	slices.Sort(addresses)
	return slices.Compact(addresses)
}

// loopbackListeners returns the loopback addresses of the listening sockets in a table of the kernel (proc_net_tcp(5)), and none
// if it cannot be read.
func loopbackListeners(table string) (addresses []string) {
	text, _ := os.ReadFile(table)
	for line := range strings.Lines(string(text)) {
		var ip, remote []byte
		var slot uint64
		var port, remotePort, state uint16
		_, err := fmt.Sscanf(line, "%d: %x:%x %x:%x %x", &slot, &ip, &port, &remote, &remotePort, &state)
		if err != nil || state != 0x0A || len(ip)%4 != 0 { // TCP_LISTEN
			continue
		}
		for word := range slices.Chunk(ip, 4) {
			slices.Reverse(word) // the byte order of amd64 and arm64
		}
		addr, _ := netip.AddrFromSlice(ip) // zero unless ip has 4 or 16 bytes
		switch addr = addr.Unmap(); {
		case addr.IsLoopback():
			addresses = append(addresses, netip.AddrPortFrom(addr, port).String())
		case addr.IsUnspecified(): // a listener on [::] accepts connections to 127.0.0.1, too
			addresses = append(addresses, fmt.Sprintf("127.0.0.1:%d", port))
		}
	}
	return addresses
}
