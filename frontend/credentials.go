package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/procfs"
)

// tokenFiles are the paths at which the pod mounts a token: the workload identity webhook up to 1.5, the webhook since 1.6, and
// Kubernetes itself.
var tokenFiles = []string{
	"/var/run/secrets/azure/tokens/azure-identity-token",
	"/var/run/secrets/azure/wi/token/azure-identity-token",
	"/var/run/secrets/kubernetes.io/serviceaccount/token",
}

// tokenVariables are the variables of token endpoints that azidentity's ManagedIdentityCredential reads (App Service, Azure Arc,
// Service Fabric, Azure ML, Cloud Shell). Names that begin with AZURE_ are not listed.
var tokenVariables = []string{"IDENTITY_ENDPOINT", "IDENTITY_HEADER", "IDENTITY_SERVER_THUMBPRINT", "IMDS_ENDPOINT", "MSI_ENDPOINT", "MSI_SECRET"}

const credentialsFix = "the public container must have no credential: " +
	"in Kubernetes, the pod needs the annotation azure.workload.identity/skip-containers with the name of this container " +
	"(several names are separated by a semicolon), automountServiceAccountToken: false, and no annotation azure.workload.identity/inject-proxy-sidecar"

// checkNoCredentials returns an error if this process could obtain a token: a variable of environ belongs to a credential, one of
// files exists, or endpoints, the addresses of token endpoints, is not empty.
//
// The webhook's annotation skip-containers has the name of the container. If the container is renamed, it gets a token, and
// nothing else would report that. The error is one line that has all names and no values.
func checkNoCredentials(environ, files, endpoints []string) error {
	var found []string
	for _, v := range environ {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "AZURE_") || slices.Contains(tokenVariables, name) {
			found = append(found, "variable "+name)
		}
	}
	for _, f := range files {
		if _, err := os.Stat(f); !errors.Is(err, fs.ErrNotExist) {
			found = append(found, "token file "+f)
		}
	}
	for _, e := range endpoints {
		found = append(found, "token endpoint "+e)
	}
	if found == nil {
		return nil
	}
	slices.Sort(found)
	return fmt.Errorf("the frontend finds credentials and does not start: %s; %s", strings.Join(slices.Compact(found), ", "), credentialsFix)
}

// Of the search for token endpoints.
const (
	endpointTimeout     = time.Second // of a probe; a readiness probe times out after 3 s
	maxEndpointResponse = 8 << 10     // bytes read of a response, including its header
	tokenPath           = "/metadata/identity/oauth2/token"
	tcpListen           = 0x0A // state of a listening socket (proc_net_tcp(5))
)

// endpointAddresses returns the addresses on the loopback interface at which a token endpoint may listen. Any process of the pod
// can get tokens from one without a credential. own are the addresses of the frontend and of the signer; their ports are left
// out. procPath is /proc.
//
// With the annotation azure.workload.identity/inject-proxy-sidecar, the workload identity webhook adds a proxy to the pod. It
// listens on localhost, on port 8000 or the port in the annotation proxy-sidecar-port. It answers requests for tokenPath with
// tokens of the pod's identity and does not check the Metadata header (azure-workload-identity, pkg/proxy/proxy.go and
// pkg/webhook/webhook.go). The webhook puts the proxy before all other containers, so the search at the start finds it; later
// searches find a proxy that started late.
//
// Outside of Kubernetes, the search covers only port 8000: a request to each port of a developer's machine would disturb other
// programs. In a pod, it covers the ports with a listener on a loopback address or on all addresses. It does not cover the node's
// metadata service, 169.254.169.254: the NetworkPolicy blocks it, and intrusion detection reports containers that connect to it.
func endpointAddresses(environ, own []string, procPath string) []string {
	addresses := []string{"127.0.0.1:8000", "[::1]:8000"}
	if slices.ContainsFunc(environ, func(v string) bool { return strings.HasPrefix(v, "KUBERNETES_SERVICE_HOST=") }) {
		addresses = append(addresses, loopbackListeners(procPath)...)
	}
	addresses = slices.DeleteFunc(addresses, func(a string) bool {
		port := a[strings.LastIndex(a, ":"):]
		return slices.ContainsFunc(own, func(o string) bool { return strings.HasSuffix(strings.TrimSuffix(o, "/"), port) })
	})
	slices.Sort(addresses)
	return slices.Compact(addresses)
}

// loopbackListeners returns the loopback addresses of listening sockets. It returns none if procPath has no socket tables.
func loopbackListeners(procPath string) (addresses []string) {
	proc, _ := procfs.NewFS(procPath)
	//lint:ignore SA1019 netlink, its replacement, needs another library
	sockets, _ := proc.NetTCP()
	//lint:ignore SA1019 as above
	sockets6, _ := proc.NetTCP6()
	for _, s := range append(sockets, sockets6...) {
		host := s.LocalAddr.String()
		if s.LocalAddr.IsUnspecified() { // a listener on [::] accepts connections to 127.0.0.1, too
			host = "127.0.0.1"
		}
		if s.St == tcpListen && net.ParseIP(host).IsLoopback() {
			addresses = append(addresses, net.JoinHostPort(host, strconv.FormatUint(s.LocalPort, 10)))
		}
	}
	return addresses
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
	form, ok := tokenBodies[resp.StatusCode]
	return tokenServer.MatchString(resp.Header.Get("Server")) || ok && form.Match(body)
}

// tokenServer matches the Server header of token endpoints: of the webhook's proxy and of the Azure Instance Metadata Service.
var tokenServer = regexp.MustCompile("^(azure-workload-identity|IMDS)/")

// tokenBodies match the bodies of responses of token endpoints, by status: tokens and errors in JSON (RFC 6749 sections 5.1 and
// 5.2), and errors of the webhook's proxy and of the metadata service, which rejects requests without the Metadata header.
var tokenBodies = map[int]*regexp.Regexp{
	200: regexp.MustCompile(`(?is)^\s*\{.*"access_token"`),
	400: regexp.MustCompile(`(?is)^\s*\{.*"error_description"|metadata header|resource parameter is required|client_id parameter`),
}
