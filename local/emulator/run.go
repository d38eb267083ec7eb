package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
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

const about = `emulator stands for Azure in a cluster that has none: beside Azurite it exchanges the cluster's service-account
tokens as Entra ID does, and serves the storage account in plain HTTP for signed links.

  emulator             serves
  emulator trust FILE  waits for TRUST_URL, and writes the certificate of its authority to FILE`

type settings struct {
	Namespace      string                `env:"NAMESPACE,required" help:"namespace of the workload that may exchange its token"`
	ServiceAccount string                `env:"SERVICE_ACCOUNT" envDefault:"cats-api-sa" help:"its service account"`
	StateDir       string                `env:"STATE_DIR" envDefault:"/state" help:"for the certificates, the account's key and a script, which Azurite reads"`
	StorageURL     string                `env:"STORAGE_URL" envDefault:"https://davydscats.blob:10000" help:"the account, as the signer knows it; Azurite listens on the port"`
	Container      string                `env:"STORAGE_CONTAINER" envDefault:"cats" help:"made when missing"`
	IssuerHost     string                `env:"ISSUER_HOST" envDefault:"login" help:"name of the token issuer in its certificate"`
	IssuerAddress  string                `env:"ISSUER_ADDRESS" envDefault:":8443" help:"where the token issuer is, TLS"`
	FrontAddress   string                `env:"FRONT_ADDRESS" envDefault:":8080" help:"where the account serves signed URLs in plain HTTP"`
	OpsAddress     string                `env:"OPS_ADDRESS" envDefault:":8081" help:"where /ca.pem, /livez and /readyz are"`
	AllowedHosts   []httpserver.HostName `env:"ALLOWED_HOSTS" envDefault:"azure-front" help:"host names that requests may have besides IP addresses, localhost and the names in STORAGE_URL, ISSUER_HOST and TRUST_URL; others are answered 421"`
	TrustURL       string                `env:"TRUST_URL" envDefault:"http://login:8081/ca.pem" help:"where trust gets the certificate"`
}

// run does what args say until ctx is done.
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

// serve runs the emulator until ctx is done.
func serve(ctx context.Context, cfg settings, log *slog.Logger) error {
	account, err := url.Parse(cfg.StorageURL)
	if err != nil {
		return fmt.Errorf("STORAGE_URL: %w", err)
	}
	if err := writeKey(filepath.Join(cfg.StateDir, "accounts")); err != nil {
		return err
	}
	if err := stack.WriteAzuriteScript(filepath.Join(cfg.StateDir, "azurite.js")); err != nil {
		return err
	}
	hosts, err := cfg.hosts()
	if err != nil {
		return err
	}
	ca, err := stack.OpenCA(cfg.StateDir, account.Hostname(), cfg.IssuerHost)
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
	storage := stack.NewStorage(cfg.StorageURL, ca, entra.AccessToken)
	front, err := storage.Front()
	if err != nil {
		return err
	}

	var ready atomic.Bool
	ops := http.NewServeMux()
	ops.HandleFunc("GET /ca.pem", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, ca.File) })
	ops.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	ops.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !ready.Load() {
			http.Error(w, "waiting for Azurite", http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})

	g, ctx := errgroup.WithContext(ctx)
	for _, l := range []struct {
		name, address string
		handler       http.Handler
		tls           *tls.Config
	}{
		{"issuer", cfg.IssuerAddress, entra, &tls.Config{Certificates: []tls.Certificate{ca.Leaf}, MinVersion: tls.VersionTLS12}},
		{"front", cfg.FrontAddress, front, nil},
		{"ops", cfg.OpsAddress, ops, nil},
	} {
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", l.address)
		if err != nil {
			return fmt.Errorf("opening the %s listener: %w", l.name, err)
		}
		log.Info("listening", "listener", l.name, "address", listener.Addr().String())
		if l.tls != nil {
			listener = tls.NewListener(listener, l.tls)
		}
		server := &http.Server{Handler: httpserver.RequireHost(hosts.HostAllowed, l.handler), ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
		context.AfterFunc(ctx, func() { _ = server.Close() })
		g.Go(func() error {
			if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serving %s: %w", l.name, err)
			}
			return nil
		})
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

// hosts returns settings that allow the host names by which pods of the cluster reach the emulator.
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

// writeKey writes what Azurite's AZURITE_ACCOUNTS must be, with a key that is made
// here and that nobody uses, unless it is there.
func writeKey(path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	var key [64]byte
	_, _ = rand.Read(key[:]) // never fails
	content := stack.Account + ":" + base64.StdEncoding.EncodeToString(key[:])
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		return fmt.Errorf("writing the account's key: %w", err)
	}
	return nil
}

// retry calls f until it works or ctx is done, which is no error, and says why
// it has not worked yet.
func retry(ctx context.Context, log *slog.Logger, what string, f func() error) error {
	for {
		err := f()
		if err == nil || ctx.Err() != nil {
			return nil
		}
		log.Warn("not yet", "waiting_for", what, "error", err.Error())
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// trust writes what is at url to file, as soon as it is there.
func trust(ctx context.Context, url, file string, log *slog.Logger) error {
	client := &http.Client{Timeout: 5 * time.Second}
	return retry(ctx, log, url, func() error {
		b, err := get(ctx, client, url)
		if err != nil {
			return err
		}
		return os.WriteFile(file, b, 0o644) //nolint:gosec // a certificate, for another user to read
	})
}

// get returns what is at url.
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
