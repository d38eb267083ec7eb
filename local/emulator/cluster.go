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

// cluster is the issuer of the federated tokens.
type cluster struct {
	issuer string       // issuer (iss) of its tokens
	client *http.Client // fetches the OpenID configuration and keys of issuer
}

// newCluster reads the cluster's issuer from the API server. dir contains the files of the pod's service account. newCluster tries again
// until it succeeds or ctx is done.
func newCluster(ctx context.Context, dir string, log *slog.Logger) (*cluster, error) {
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("reading the cluster's CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, errors.New("the cluster's CA file contains no certificate")
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
		if err := json.Unmarshal(b, &document); err != nil {
			return fmt.Errorf("parsing the cluster's OpenID configuration: %w", err)
		}
		if c.issuer = document.Issuer; c.issuer == "" {
			return errors.New("the cluster's OpenID configuration contains no issuer")
		}
		return nil
	})
	return c, err
}

// throughAPI redirects requests for the cluster's OpenID configuration and keys to its API server. The issuer's URL may not be reachable
// from a pod, and the API server may require authentication.
type throughAPI struct {
	next      http.RoundTripper
	server    string // URL of the API server
	tokenFile string // rotated by the kubelet
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
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, t.server+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	return t.next.RoundTrip(req)
}
