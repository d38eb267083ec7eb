package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strings"

	"cats.example/frontend/internal/web"
	"cats.example/shared/service"
)

const (
	name  = "frontend"
	about = "frontend takes pictures in from the public and hands out signed links to them, which the signer makes.\n" + service.AboutTraces
)

type config struct {
	ListenAddress string `env:"LISTEN_ADDRESS" envDefault:":8080" help:"where the public API is"`
	OpsAddress    string `env:"OPS_ADDRESS" envDefault:":8090" help:"where /metrics, /livez and /readyz are"`
	SignerURL     string `env:"SIGNER_URL" envDefault:"http://127.0.0.1:8081" help:"the signer's local API"`

	web.Options
	service.Settings
}

// parse reads the settings and returns all their faults, joined.
func parse(environ []string) (config, error) {
	var c config
	if err := service.Parse(&c, environ); err != nil {
		return c, err
	}
	return c, errors.Join(c.Options.Validate(), c.Settings.Validate(), c.signerFault())
}

// signerFault reports a SIGNER_URL that the signer would answer with 421.
func (c config) signerFault() error {
	if u, err := url.Parse(c.SignerURL); err == nil && !service.LocalHost(u.Host) {
		return fmt.Errorf("SIGNER_URL is %q: want http://HOST:PORT with an IP address or localhost as HOST", c.SignerURL)
	}
	return nil
}

// tokenFiles are where a token would be, had the pod given one to this container:
// of the workload-identity webhook up to 1.5 and from 1.6 on, and of the cluster.
var tokenFiles = []string{
	"/var/run/secrets/azure/tokens/azure-identity-token",
	"/var/run/secrets/azure/wi/token/azure-identity-token",
	"/var/run/secrets/kubernetes.io/serviceaccount/token",
}

// checkSplit returns an error when this process could get hold of a credential:
// any AZURE_ variable is set, or one of files exists. The webhook's opt-out goes
// by the name of the container, so that a rename is enough to break the split
// without anyone noticing. The error names what was found and never its value.
func checkSplit(environ, files []string) error {
	var faults []error
	for _, v := range environ {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "AZURE_") {
			faults = append(faults, fmt.Errorf("the variable %s is set in the frontend: %s", name, splitFix))
		}
	}
	for _, f := range files {
		if _, err := os.Stat(f); !errors.Is(err, fs.ErrNotExist) {
			faults = append(faults, fmt.Errorf("the token file %s is there in the frontend: %s", f, splitFix))
		}
	}
	return errors.Join(faults...)
}

const splitFix = "the container that faces the internet must have no credential, and does not start with one; " +
	"in Kubernetes, the pod needs the annotation azure.workload.identity/skip-containers with the name of this container " +
	"(several are separated by a semicolon), and automountServiceAccountToken: false"
