package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"cats.example/shared/config"
)

const about = "local runs the whole system on this machine: a token issuer in place of Entra ID, Azurite in place of\n" +
	"Blob Storage, and the real signer and frontend. Settings of the two are passed on to them:\n" +
	"try bin/frontend --help and bin/signer --help. With AZURE_STORAGE_ACCOUNT_URL they run on a real account."

type settings struct {
	FrontendPort    int    `env:"FRONTEND_PORT" envDefault:"8080" help:"port of the public API"`
	FrontendOpsPort int    `env:"FRONTEND_OPS_PORT" envDefault:"8090" help:"port of the frontend's /metrics, /livez and /readyz"`
	SignerPort      int    `env:"SIGNER_PORT" envDefault:"8081" help:"port of the signer's local API"`
	SignerOpsPort   int    `env:"SIGNER_OPS_PORT" envDefault:"8091" help:"port of the signer's /metrics, /livez and /readyz"`
	StoragePort     int    `env:"STORAGE_PORT" envDefault:"8082" help:"port of the storage account in plain HTTP, for signed URLs only"`
	PrometheusPort  int    `env:"PROMETHEUS_PORT" envDefault:"9090" help:"port of the Prometheus that is started where it is installed; 0 for none"`
	Container       string `env:"STORAGE_CONTAINER" envDefault:"cats" help:"container of the pictures, made when missing but on a real account"`
	AccountURL      string `env:"AZURE_STORAGE_ACCOUNT_URL" help:"a real account, https://ACCOUNT.blob.core.windows.net, for whoever is logged in with az"`
}

// What is passed on to the processes when it is set, besides all of OTEL_*. A test
// compares this with the settings that they have.
var (
	passedToBoth     = []string{"OIDC_ISSUER", "OIDC_DISCOVERY_URL", "READ_ACCESS", "RATE_LIMIT", "RATE_BURST", "CLIENT_SHARE", "MAX_PICTURE_SIZE", "ACCEPTED_TYPES", "MAX_PIXELS", "STALL_TIMEOUT", "MIN_UPLOAD_RATE", "MAX_UPLOADS", "PPROF_ENABLED", "DRAIN_DELAY", "DRAIN_TIMEOUT", "LOG_LEVEL", "ALLOWED_HOSTS"}
	passedToFrontend = []string{"TRUSTED_PROXIES", "CORS_ORIGINS", "OIDC_CLIENT_ID", "OIDC_SCOPE"}
	passedToSigner   = []string{"ANONYMOUS_ACCESS", "OIDC_AUDIENCE", "OIDC_USER_CLAIM", "BLOB_NAME", "LINK_TTL", "LINK_MAX_TTL", "MAX_DIRECT_UPLOAD_SIZE", "EXISTENCE_CACHE_TTL"}
	// By which the signer verifies the certificate of the issuer, besides those of the stack.
	passedAuthorities = []string{"SSL_CERT_FILE", "SSL_CERT_DIR"}
	// On a real account, besides all of AZURE_*: what az needs, and how to get out.
	passedToRealSigner = []string{
		"STORAGE_CONTAINER", "LINK_BASE_URL", "CREDENTIAL", "DISABLE_INSTANCE_DISCOVERY",
		"HOME", "PATH", "USER", "LANG",
		"HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy",
	}
)

// localDirectSize is MAX_DIRECT_UPLOAD_SIZE on the stack. Azurite keeps everything in memory.
const localDirectSize = "5GiB"

func parse(environ []string) (settings, error) {
	var c settings
	if err := config.Parse(&c, environ); err != nil {
		return c, err
	}
	return c, checkAuthorities(environ)
}

// checkAuthorities returns an error when SSL_CERT_FILE is set and holds no certificate. The signer would ignore the file.
func checkAuthorities(environ []string) error {
	file := pick(environ, passedAuthorities)["SSL_CERT_FILE"]
	if file == "" {
		return nil
	}
	b, err := os.ReadFile(file) //nolint:gosec // the caller's own
	if err != nil {
		return fmt.Errorf("SSL_CERT_FILE: %w", err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(b) {
		return fmt.Errorf("SSL_CERT_FILE: %s holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)", file)
	}
	return nil
}

// frontendEnv is what of environ the frontend gets: never a credential.
func frontendEnv(environ []string) map[string]string {
	return pick(environ, passedToBoth, passedToFrontend)
}

// signerEnv is what of environ the signer gets.
func (c settings) signerEnv(environ []string) map[string]string {
	lists := [][]string{passedToBoth, passedToSigner, passedAuthorities}
	if c.AccountURL != "" {
		lists = append(lists, passedToRealSigner)
	}
	env := pick(environ, lists...)
	for _, name := range passedAuthorities { // the signer has another working directory
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
	if c.AccountURL == "" {
		if env["MAX_DIRECT_UPLOAD_SIZE"] == "" {
			env["MAX_DIRECT_UPLOAD_SIZE"] = localDirectSize // the stack's storage has the CORS rule
		}
		return env
	}
	for _, variable := range environ {
		if name, value, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "AZURE_") {
			env[name] = value
		}
	}
	if env["CREDENTIAL"] == "" {
		env["CREDENTIAL"] = "default"
	}
	return env
}

func pick(environ []string, lists ...[]string) map[string]string {
	all := map[string]string{}
	for _, variable := range environ {
		name, value, _ := strings.Cut(variable, "=")
		all[name] = value
	}
	picked := map[string]string{}
	for _, list := range lists {
		for _, name := range list {
			if all[name] != "" {
				picked[name] = all[name]
			}
		}
	}
	for name, value := range all {
		if strings.HasPrefix(name, "OTEL_") && value != "" {
			picked[name] = value
		}
	}
	return picked
}

// checkPorts returns an error for each port that is taken, or asked for twice.
func (c settings) checkPorts(ctx context.Context) error {
	ports := []struct {
		variable string
		port     int
	}{
		{"FRONTEND_PORT", c.FrontendPort},
		{"FRONTEND_OPS_PORT", c.FrontendOpsPort},
		{"SIGNER_PORT", c.SignerPort},
		{"SIGNER_OPS_PORT", c.SignerOpsPort},
		{"STORAGE_PORT", c.StoragePort},
	}
	if c.AccountURL != "" {
		ports = ports[:4]
	}
	used := map[int]bool{c.PrometheusPort: true}
	for _, p := range ports {
		used[p.port] = true
	}
	var faults []error
	by := map[int]string{}
	for _, p := range ports {
		if other, ok := by[p.port]; ok {
			faults = append(faults, fmt.Errorf("%s and %s are both %d: change one", other, p.variable, p.port))
			continue
		}
		by[p.port] = p.variable
		if err := free(ctx, p.port); err != nil {
			faults = append(faults, fmt.Errorf("port %d %w%s", p.port, err, suggest(ctx, p.variable, p.port, used)))
		}
	}
	return errors.Join(faults...)
}

// Suggested ports are below 32768, from where Linux takes the local ports of connections.
const (
	firstSuggested = 10_000
	suggested      = 20_000 // how many there are
)

// suggest returns the end of an error about port: a free port that is not in used, to which it is added.
func suggest(ctx context.Context, variable string, port int, used map[int]bool) string {
	for i := range suggested {
		p := firstSuggested + (max(port, 0)+i)%suggested
		if !used[p] && free(ctx, p) == nil {
			used[p] = true
			return fmt.Sprintf(": set another, such as %s=%d", variable, p)
		}
	}
	return ": set another with " + variable
}

// free returns nil when a listener on 127.0.0.1 can be opened at port, and nobody listens at port on ::1, which localhost can mean
// as well.
func free(ctx context.Context, port int) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err == nil {
		_ = l.Close()
	} else if !errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("cannot be used (%w)", err)
	}
	for _, host := range []string{"127.0.0.1", "::1"} {
		if conn, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port))); err == nil {
			_ = conn.Close()
			return errors.New("is taken")
		}
	}
	if err != nil {
		// TIME-WAIT of a connection whose local port it is, or a socket that does not listen.
		return errors.New("is the local port of a connection, and free a minute after its end")
	}
	return nil
}
