package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
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
	"strconv"
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
	// search returns the addresses of token endpoints. Those in before stay when they do not answer in time.
	search func(before []string) []string
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
		found := e.search(e.found)
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

// findEndpoints returns the addresses at which a token endpoint answers within timeout, in their order, and those in before that
// accept a connection and do not answer in that time.
func findEndpoints(ctx context.Context, addresses, before []string, timeout time.Duration) []string {
	is := make([]bool, len(addresses))
	var asked sync.WaitGroup
	for i, address := range addresses {
		asked.Go(func() {
			var answered bool
			is[i], answered = askEndpoint(ctx, address, timeout)
			is[i] = is[i] || !answered && slices.Contains(before, address)
		})
	}
	asked.Wait()
	var found []string
	for i, address := range addresses {
		if is[i] {
			found = append(found, address)
		}
	}
	return found
}

// askEndpoint reports whether a token endpoint answers at address, and whether anything but a timeout was seen there. It sends
// neither the header Metadata nor a resource, so that a token endpoint answers with an error instead of a token. It is not an
// [http.Client], which logs what programs with other protocols send.
func askEndpoint(ctx context.Context, address string, timeout time.Duration) (is, answered bool) {
	deadline := time.Now().Add(timeout)
	conn, err := (&net.Dialer{Deadline: deadline}).DialContext(ctx, "tcp", address)
	if err != nil {
		return false, !timedOut(err)
	}
	defer conn.Close()
	err = conn.SetDeadline(deadline)
	if err == nil {
		_, err = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: cats-api-frontend (search for token endpoints)\r\nConnection: close\r\n\r\n", tokenPath, address)
	}
	if err != nil {
		return false, !timedOut(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(io.LimitReader(conn, maxEndpointAnswer)), nil)
	if err != nil {
		return false, !timedOut(err)
	}
	defer resp.Body.Close()
	start, err := io.ReadAll(resp.Body)
	is = isTokenEndpoint(resp.StatusCode, resp.Header.Get("Server"), bytes.ToLower(bytes.TrimSpace(start)))
	return is, is || !timedOut(err)
}

func timedOut(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
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
		for _, table := range []string{"tcp", "tcp6"} {
			addresses = append(addresses, loopbackListeners(filepath.Join(procNet, table))...)
		}
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
	f, err := os.Open(table) //nolint:gosec // /proc/net/tcp, or one of a test
	if err != nil {
		return nil
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 || fields[3] != "0A" { // TCP_LISTEN
			continue
		}
		host, port, _ := strings.Cut(fields[1], ":")
		ip, err := hex.DecodeString(host)
		n, portErr := strconv.ParseUint(port, 16, 16)
		if err != nil || portErr != nil || len(ip)%4 != 0 {
			continue
		}
		for word := range slices.Chunk(ip, 4) {
			slices.Reverse(word) // words in the byte order of amd64 and arm64
		}
		addr, ok := netip.AddrFromSlice(ip)
		switch addr = addr.Unmap(); {
		case !ok:
		case addr.IsLoopback():
			addresses = append(addresses, netip.AddrPortFrom(addr, uint16(n)).String())
		case addr.IsUnspecified(): // [::] has connections to 127.0.0.1, too
			addresses = append(addresses, fmt.Sprintf("127.0.0.1:%d", n))
		}
	}
	return addresses
}
