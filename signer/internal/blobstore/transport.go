package blobstore

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"strings"
	"time"
)

// NewTransport returns the HTTP client for Azure: HTTP/1.1 only, since a
// cancelled upload over HTTP/2 lets go of buffers that the connection still
// reads (azure-sdk-for-go issue 21555), a limit for each phase, and no redirects,
// which would carry the token elsewhere. Names under .localhost are loopback, as
// RFC 6761 section 6.3 says and Go's resolver does not.
func NewTransport() *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	dialer := &net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}
	return &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment,
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				if host, port, err := net.SplitHostPort(address); err == nil && strings.HasSuffix(host, ".localhost") {
					address = net.JoinHostPort("127.0.0.1", port)
				}
				return dialer.DialContext(ctx, network, address)
			},
			Protocols:             protocols,
			TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:   5 * time.Second,
			ResponseHeaderTimeout: 30 * time.Second,
			ExpectContinueTimeout: time.Second,
			MaxIdleConns:          256,
			MaxIdleConnsPerHost:   128, // as many as there are lookups at once
			IdleConnTimeout:       90 * time.Second,
			DisableCompression:    true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
