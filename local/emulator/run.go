package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/common/version"
	"golang.org/x/sync/errgroup"

	"cats.example/local/issuer"
	"cats.example/local/stack"
	"cats.example/shared/config"
	"cats.example/shared/httpserver"
	"cats.example/shared/telemetry"
)

const about = `emulator replaces Azure in a Kubernetes cluster. Beside Azurite, it exchanges the cluster's service account tokens like Entra ID
and serves the storage account in plain HTTP for signed URLs. Do not use it in production.

  emulator             runs the services
  emulator trust FILE  waits for the certificate at TRUST_URL and writes it to FILE`

type settings struct {
	Namespace      string                `env:"NAMESPACE,required" help:"namespace of the service account"`
	ServiceAccount string                `env:"SERVICE_ACCOUNT" envDefault:"cats-api-sa" help:"the only service account whose tokens are exchanged"`
	StateDir       string                `env:"STATE_DIR" envDefault:"/state" help:"folder for the certificate, the account key and a script, which Azurite reads"`
	StorageURL     string                `env:"STORAGE_URL" envDefault:"https://davydscats.blob:10000" help:"URL of the storage account for the signer; the port is Azurite's"`
	Container      string                `env:"STORAGE_CONTAINER" envDefault:"cats" help:"container of the pictures; created if missing"`
	IssuerHost     string                `env:"ISSUER_HOST" envDefault:"login" help:"host name of the token issuer in its certificate"`
	IssuerAddress  string                `env:"ISSUER_ADDRESS" envDefault:":8443" help:"listen address of the token issuer (TLS)"`
	FrontAddress   string                `env:"FRONT_ADDRESS" envDefault:":8080" help:"listen address of the storage account for signed URLs (plain HTTP)"`
	OpsAddress     string                `env:"OPS_ADDRESS" envDefault:":8081" help:"listen address of /ca.pem, /livez and /readyz"`
	AllowedHosts   []httpserver.HostName `env:"ALLOWED_HOSTS" envDefault:"azure-front" help:"host names that requests may have in addition to IP addresses, localhost and the hosts in STORAGE_URL, ISSUER_HOST and TRUST_URL; other requests get 421"`
	TrustURL       string                `env:"TRUST_URL" envDefault:"http://login:8081/ca.pem" help:"URL of the certificate for emulator trust"`
}

// run executes the command line until ctx is done.
func run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) error {
	var cfg settings
	switch {
	case len(args) == 1 && (args[0] == "--help" || args[0] == "-h"):
		return config.Help(stdout, about, &settings{})
	case len(args) == 1 && args[0] == "--version":
		_, err := fmt.Fprintln(stdout, version.Print("cats-api emulator"))
		return err
	case len(args) == 2 && args[0] == "trust":
		if err := config.Parse(&cfg, append(environ, "NAMESPACE=-")); err != nil {
			return err
		}
		log := telemetry.NewLogger(stderr, slog.LevelInfo, "trust")
		telemetry.LogVersion(log)
		return trust(ctx, cfg.TrustURL, args[1], log)
	case len(args) > 0:
		return fmt.Errorf("unknown arguments %q; try --help", args)
	}
	log := telemetry.NewLogger(stderr, slog.LevelInfo, "emulator")
	telemetry.LogVersion(log)
	if err := config.Parse(&cfg, environ); err != nil {
		return err
	}
	return serve(ctx, cfg, log)
}

// serve runs the services until ctx is done.
func serve(ctx context.Context, cfg settings, log *slog.Logger) error {
	hosts, err := cfg.hosts()
	if err != nil {
		return err
	}
	ca, err := cfg.prepare()
	if err != nil {
		return err
	}
	cluster, err := newCluster(ctx, podFiles, log)
	if err != nil {
		return err
	}
	entra, err := issuer.New(issuer.Config{
		Tenant: stack.TenantID, ClientID: stack.ClientID, ObjectID: stack.ObjectID,
		Issuer: cluster.issuer, Subject: "system:serviceaccount:" + cfg.Namespace + ":" + cfg.ServiceAccount,
		Client: cluster.client, Log: log,
	})
	if err != nil {
		return err
	}
	storage, err := stack.NewStorage(cfg.StorageURL, ca, entra.AccessToken)
	if err != nil {
		return err
	}
	front, err := storage.Front()
	if err != nil {
		return err
	}

	var ready atomic.Bool
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range []listener{
		{"issuer", cfg.IssuerAddress, entra, ca.Secure},
		{"front", cfg.FrontAddress, front, nil},
		{"ops", cfg.OpsAddress, ops(ca, &ready), nil},
	} {
		serve, err := l.open(ctx, hosts, log)
		if err != nil {
			return err
		}
		g.Go(serve)
	}
	g.Go(func() error {
		err := retry(ctx, log, "Azurite", func() error {
			return errors.Join(storage.CreateContainer(ctx, cfg.Container), storage.AllowPages(ctx))
		})
		if err == nil {
			log.Info("ready", "container", cfg.Container, "issuer", cluster.issuer)
			ready.Store(true)
		}
		return err
	})
	return g.Wait()
}

// prepare writes the files that Azurite reads and returns the certificate.
func (c settings) prepare() (*stack.CA, error) {
	account, err := url.Parse(c.StorageURL)
	if err != nil {
		return nil, fmt.Errorf("STORAGE_URL: %w", err)
	}
	if err := writeAccounts(filepath.Join(c.StateDir, "accounts")); err != nil {
		return nil, err
	}
	if err := stack.WriteAzuriteScript(filepath.Join(c.StateDir, "azurite.js")); err != nil {
		return nil, err
	}
	return stack.OpenCA(c.StateDir, account.Hostname(), c.IssuerHost)
}

type listener struct {
	name, address string
	handler       http.Handler
	secure        func(net.Listener) net.Listener // adds TLS; may be nil
}

// open opens the listener. serve serves it until ctx is done.
func (l listener) open(ctx context.Context, hosts httpserver.Settings, log *slog.Logger) (serve func() error, err error) {
	socket, err := (&net.ListenConfig{}).Listen(ctx, "tcp", l.address)
	if err != nil {
		return nil, fmt.Errorf("opening the %s listener: %w", l.name, err)
	}
	log.Info("listening", "listener", l.name, "address", socket.Addr().String())
	if l.secure != nil {
		socket = l.secure(socket)
	}
	server := &http.Server{
		Handler:           httpserver.RequireHost(hosts.HostAllowed, l.handler),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	return func() error {
		if err := server.Serve(socket); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serving %s: %w", l.name, err)
		}
		return nil
	}, nil
}

// ops returns the handler of the ops listener. /readyz is 200 once ready is true.
func ops(ca *stack.CA, ready *atomic.Bool) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ca.pem", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, ca.File) })
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !ready.Load() {
			http.Error(w, "waiting for Azurite", http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
	return mux
}

// hosts returns the allowed host names: AllowedHosts and the names that the cluster's pods use.
func (c settings) hosts() (httpserver.Settings, error) {
	s := httpserver.Settings{AllowedHosts: append(slices.Clone(c.AllowedHosts), httpserver.HostName(c.IssuerHost))}
	for name, value := range map[string]string{"STORAGE_URL": c.StorageURL, "TRUST_URL": c.TrustURL} {
		u, err := url.Parse(value)
		if err != nil {
			return s, fmt.Errorf("%s: %w", name, err)
		}
		s.AllowedHosts = append(s.AllowedHosts, httpserver.HostName(u.Hostname()))
	}
	return s, nil
}

// writeAccounts writes a file with Azurite's AZURITE_ACCOUNTS and a new account key, unless the file exists.
func writeAccounts(path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := os.WriteFile(path, []byte(stack.NewAzuriteAccount()), 0o600); err != nil {
		return fmt.Errorf("writing the account key: %w", err)
	}
	return nil
}

// retry calls f every second until it succeeds or ctx is done, and logs its errors. It returns nil in both cases.
func retry(ctx context.Context, log *slog.Logger, dependency string, f func() error) error {
	for {
		err := f()
		if err == nil || ctx.Err() != nil {
			return nil
		}
		log.Warn("dependency is not ready; trying again", "dependency", dependency, "error", err.Error())
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// trust writes the certificate at url to file. It waits until url answers 200.
func trust(ctx context.Context, url, file string, log *slog.Logger) error {
	client := &http.Client{Timeout: 5 * time.Second}
	return retry(ctx, log, url, func() error {
		b, err := get(ctx, client, url)
		if err != nil {
			return err
		}
		return os.WriteFile(file, b, 0o644)
	})
}

// get returns the content at url.
func get(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %s", url, resp.Status)
	}
	return io.ReadAll(io.LimitReader(resp.Body, 1<<20))
}
