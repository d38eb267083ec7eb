package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"

	"cats.example/frontend/internal/web"
	"cats.example/shared/config"
	"cats.example/shared/httpserver"
	"cats.example/shared/telemetry"
)

const (
	name  = "frontend"
	about = "frontend takes pictures in from the public and hands out signed links to them, which the signer makes.\n" + telemetry.TracesHelp
)

type settings struct {
	ListenAddress string `env:"LISTEN_ADDRESS" envDefault:":8080" help:"where the public API is"`
	OpsAddress    string `env:"OPS_ADDRESS" envDefault:":8090" help:"where /metrics, /livez and /readyz are"`
	SignerURL     string `env:"SIGNER_URL" envDefault:"http://127.0.0.1:8081" help:"the signer's local API"`

	web.Options
	httpserver.Settings
}

// parse reads the settings and returns all their faults, joined.
func parse(environ []string) (settings, error) {
	var c settings
	if err := config.Parse(&c, environ); err != nil {
		return c, err
	}
	return c, errors.Join(c.Options.Validate(), c.Settings.Validate(), c.signerFault())
}

// signerFault reports a SIGNER_URL that the signer would answer with 421.
func (c settings) signerFault() error {
	if u, err := url.Parse(c.SignerURL); err == nil && !httpserver.LocalHost(u.Host) {
		return fmt.Errorf("SIGNER_URL is %q: want http://HOST:PORT with an IP address or localhost as HOST", c.SignerURL)
	}
	return nil
}

// ports returns the ports of the frontend's listeners and of the signer's API.
func (c settings) ports() (ports []string) {
	signer := strings.Trim(strings.TrimPrefix(c.SignerURL, "http:"), "/")
	for _, address := range []string{c.ListenAddress, c.OpsAddress, signer} {
		_, port, _ := net.SplitHostPort(address) // "" where it is not valid
		ports = append(ports, port)
	}
	return ports
}

// tokenFiles are where a token would be, had the pod given one to this container:
// of the workload-identity webhook up to 1.5 and from 1.6 on, and of the cluster.
var tokenFiles = []string{
	"/var/run/secrets/azure/tokens/azure-identity-token",
	"/var/run/secrets/azure/wi/token/azure-identity-token",
	"/var/run/secrets/kubernetes.io/serviceaccount/token",
}

// tokenVariables name a token endpoint, or let its client in: those of azidentity's ManagedIdentityCredential (App Service,
// Azure Arc, Service Fabric, Azure ML, Cloud Shell). Variables that begin with AZURE_ come on top.
var tokenVariables = []string{"IDENTITY_ENDPOINT", "IDENTITY_HEADER", "IDENTITY_SERVER_THUMBPRINT", "IMDS_ENDPOINT", "MSI_ENDPOINT", "MSI_SECRET"}

// checkSplit returns an error when this process could get hold of a credential: a variable of environ belongs to one, one
// of files exists, or endpoints, the addresses of token endpoints, has any. The webhook's opt-out goes by the name of the
// container, so that a rename is enough to break the split without anyone noticing. The error is one line; it has all
// names, and no value.
func checkSplit(environ, files, endpoints []string) error {
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
	return fmt.Errorf("the frontend finds credentials, and does not start: %s; %s", strings.Join(slices.Compact(found), ", "), splitFix)
}

const splitFix = "the container that faces the internet must have no credential: " +
	"in Kubernetes, the pod needs the annotation azure.workload.identity/skip-containers with the name of this container " +
	"(several are separated by a semicolon), automountServiceAccountToken: false, and no annotation azure.workload.identity/inject-proxy-sidecar"
