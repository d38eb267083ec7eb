package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	podFiles  = "/var/run/secrets/kubernetes.io/serviceaccount"
	apiServer = "https://kubernetes.default.svc"
	discovery = "/.well-known/openid-configuration"
	keys      = "/openid/v1/jwks"
)

// cluster is where the federated tokens come from.
type cluster struct {
	issuer string       // the iss of its tokens
	client *http.Client // gets the OpenID configuration and keys of issuer
}

// newCluster asks the API server, as the pod's own service account, whose files
// are in dir, who it says it is. It tries until that works or ctx is done.
func newCluster(ctx context.Context, dir string, log *slog.Logger) (*cluster, error) {
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt")) //nolint:gosec // the pod's own
	if err != nil {
		return nil, fmt.Errorf("reading the cluster's CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, errors.New("the cluster's CA holds no certificate")
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	c := &cluster{client: &http.Client{
		Timeout:   10 * time.Second,
		Transport: throughAPI{transport, apiServer, filepath.Join(dir, "token")},
	}}
	err = retry(ctx, log, "the cluster's OpenID configuration", func() error {
		b, err := get(ctx, c.client, apiServer+discovery)
		if err != nil {
			return err
		}
		var document struct{ Issuer string }
		if err := json.Unmarshal(b, &document); err != nil || document.Issuer == "" {
			return fmt.Errorf("the cluster's OpenID configuration names no issuer (%w)", err)
		}
		c.issuer = document.Issuer
		return nil
	})
	return c, err
}

// throughAPI gets the OpenID configuration and the keys of the cluster from its
// API server, whatever the issuer's URL: that need not be reachable from a pod,
// and the API server may want to know who asks.
type throughAPI struct {
	next      http.RoundTripper
	server    string // its URL
	tokenFile string // read each time, since it is rotated
}

func (t throughAPI) RoundTrip(r *http.Request) (*http.Response, error) {
	token, err := os.ReadFile(t.tokenFile)
	if err != nil {
		return nil, err
	}
	path := keys
	if strings.HasSuffix(r.URL.Path, discovery) {
		path = discovery
	}
	asked, err := http.NewRequestWithContext(r.Context(), http.MethodGet, t.server+path, nil)
	if err != nil {
		return nil, err
	}
	asked.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	return t.next.RoundTrip(asked)
}
