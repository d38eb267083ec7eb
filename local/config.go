package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"cats.example/shared/config"
)

const about = `local runs the whole system on this machine: the real frontend and signer, Azurite in place of Blob Storage, and a token issuer
in place of Entra ID. Ctrl-C stops it. All variables of frontend and signer that do not depend on these can be set too: see
bin/frontend --help and bin/signer --help. With AZURE_STORAGE_ACCOUNT_URL, frontend and signer use a real storage account.`

type settings struct {
	FrontendPort    int    `env:"FRONTEND_PORT" envDefault:"8080" help:"port of the public API and the page"`
	FrontendOpsPort int    `env:"FRONTEND_OPS_PORT" envDefault:"8090" help:"port of the frontend's /metrics, /livez and /readyz"`
	SignerPort      int    `env:"SIGNER_PORT" envDefault:"8081" help:"port of the signer's API, which only the frontend uses"`
	SignerOpsPort   int    `env:"SIGNER_OPS_PORT" envDefault:"8091" help:"port of the signer's /metrics, /livez and /readyz"`
	StoragePort     int    `env:"STORAGE_PORT" envDefault:"8082" help:"port of the storage account in plain HTTP, for signed URLs only"`
	PrometheusPort  int    `env:"PROMETHEUS_PORT" envDefault:"9090" help:"port of Prometheus, which is started if it is installed; 0 for none"`
	Container       string `env:"STORAGE_CONTAINER" envDefault:"cats" help:"container of the pictures; created if missing, except in a real account"`
	AccountURL      string `env:"AZURE_STORAGE_ACCOUNT_URL" help:"URL of a real account, https://ACCOUNT.blob.core.windows.net; log in with az first"`
}

var (
	// fixed are the settings of frontend and signer that local sets.
	fixed = []string{"LISTEN_ADDRESS", "OPS_ADDRESS", "SIGNER_URL"}
	// authorities locate certificates that the signer trusts in addition to the stack's.
	authorities = []string{"SSL_CERT_FILE", "SSL_CERT_DIR"}
	// realAccount are the variables that the signer gets only with a real account, in addition to all AZURE_ variables: settings that the
	// stack sets otherwise, and what az and the connection to Azure need.
	realAccount = []string{
		"STORAGE_CONTAINER", "LINK_BASE_URL", "CREDENTIAL", "DISABLE_INSTANCE_DISCOVERY",
		"HOME", "PATH", "USER", "LANG", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy",
	}
)

// localDirectSize is the default of MAX_DIRECT_UPLOAD_SIZE. Azurite keeps everything in memory.
const localDirectSize = "5GiB"

func parse(environ []string) (settings, error) {
	var c settings
	if err := config.Parse(&c, environ); err != nil {
		return c, err
	}
	return c, checkAuthorities(environ)
}

// checkAuthorities returns an error if SSL_CERT_FILE is set and contains no certificate. The signer would ignore the file.
func checkAuthorities(environ []string) error {
	file := pick(environ, func(name string) bool { return name == "SSL_CERT_FILE" })["SSL_CERT_FILE"]
	if file == "" {
		return nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("SSL_CERT_FILE: %w", err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(b) {
		return fmt.Errorf("SSL_CERT_FILE: %s contains no certificate in PEM format (-----BEGIN CERTIFICATE-----)", file)
	}
	return nil
}

var settingInHelp = regexp.MustCompile(`(?m)^  ([A-Z][A-Z0-9_]+)`)

// settingsOf returns the names of the settings in the --help of a program.
func settingsOf(ctx context.Context, program string) ([]string, error) {
	help, err := exec.CommandContext(ctx, program, "--help").Output()
	if err != nil {
		return nil, fmt.Errorf("running %s --help: %w", program, err)
	}
	var names []string
	for _, m := range settingInHelp.FindAllSubmatch(help, -1) {
		names = append(names, string(m[1]))
	}
	return names, nil
}

// frontendEnv returns the part of environ that the frontend gets, which contains no credential. names are the frontend's settings.
func frontendEnv(environ, names []string) map[string]string {
	return pick(environ, func(name string) bool {
		return slices.Contains(names, name) && !slices.Contains(fixed, name) && !strings.HasPrefix(name, "AZURE_") || strings.HasPrefix(name, "OTEL_")
	})
}

// signerEnv returns the environment of the signer from environ. names are the signer's settings.
func (c settings) signerEnv(environ, names []string) map[string]string {
	env := pick(environ, func(name string) bool {
		switch {
		case slices.Contains(fixed, name):
			return false
		case strings.HasPrefix(name, "AZURE_") || slices.Contains(realAccount, name):
			return c.AccountURL != ""
		}
		return slices.Contains(names, name) || slices.Contains(authorities, name) || strings.HasPrefix(name, "OTEL_")
	})
	for _, name := range authorities { // the signer has another working directory
		paths := filepath.SplitList(env[name])
		for i, path := range paths {
			if abs, err := filepath.Abs(path); err == nil {
				paths[i] = abs
			}
		}
		if len(paths) > 0 {
			env[name] = strings.Join(paths, string(filepath.ListSeparator))
		}
	}
	name, value := "MAX_DIRECT_UPLOAD_SIZE", localDirectSize // the stack's account has the CORS rule that direct uploads need
	if c.AccountURL != "" {
		name, value = "CREDENTIAL", "default"
	}
	if env[name] == "" {
		env[name] = value
	}
	return env
}

// pick returns the variables of environ that are not empty and whose name keep accepts.
func pick(environ []string, keep func(name string) bool) map[string]string {
	picked := map[string]string{}
	for _, variable := range environ {
		if name, value, _ := strings.Cut(variable, "="); value != "" && keep(name) {
			picked[name] = value
		}
	}
	return picked
}
