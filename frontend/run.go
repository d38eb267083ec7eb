package main

import (
	"cmp"
	"context"
	"io"

	"cats.example/frontend/internal/web"
	"cats.example/shared/config"
	"cats.example/shared/httpserver"
	"cats.example/shared/ratelimit"
	"cats.example/shared/signerapi"
	"cats.example/shared/telemetry"
)

// run serves the public API until ctx is done. It checks for credentials before it reports invalid settings.
func run(ctx context.Context, environ []string, stderr io.Writer) error {
	cfg, err := parse(environ)
	search := func() []string {
		return findEndpoints(context.WithoutCancel(ctx), endpointAddresses(environ, cfg.ports(), "/proc/net"), endpointTimeout)
	}
	if err := cmp.Or(checkNoCredentials(environ, tokenFiles, search()), err); err != nil {
		return err
	}
	log := telemetry.NewLogger(stderr, cfg.LogLevel, name)
	cfg.LogWarning(log)
	cfg.LogAllowedHosts(log)
	traces, err := telemetry.NewTraces(ctx, name, environ, log)
	if err != nil {
		return err
	}
	signer, err := signerapi.NewClient(cfg.SignerURL, signerapi.ClientOptions{Header: httpserver.Propagate, Transport: traces.Transport})
	if err != nil {
		return err
	}
	reg := telemetry.NewRegistry(name)
	pools := ratelimit.NewPools(name, cfg.ClientShare, reg)
	slots := web.Slots{
		Requests: pools.New("requests", 4*cfg.MaxUploads), Uploads: pools.New("uploads", cfg.MaxUploads), Commits: pools.New("commits", max(1, cfg.MaxUploads/2)),
	}
	requests := httpserver.NewMiddleware(httpserver.MiddlewareOptions{
		Name: name, Settings: cfg.Settings, Log: log, Registry: reg, Uploads: slots.Uploads, Traces: traces, Public: true, WriteError: web.WriteError,
	})
	agreement := &agreement{signer: signer, own: config.Shared(cfg), log: log}
	endpoints := &endpoints{search: search, log: log}
	return httpserver.Server{
		Settings: cfg.Settings, Log: log, Registry: reg, Traces: traces,
		Name: "public", Address: cfg.ListenAddress, OpsAddress: cfg.OpsAddress,
		Handler:     web.New(cfg.Options, web.Dependencies{Signer: signer, Requests: requests, Slots: slots, HostAllowed: cfg.HostAllowed, Log: log, Registry: reg}),
		Connections: pools.New("connections", 8*cfg.MaxUploads), TrustedProxies: cfg.TrustedProxies,
		Ready: func(ctx context.Context) error {
			if err := endpoints.ready(); err != nil {
				return err
			}
			return agreement.ready(ctx)
		},
	}.Run(ctx)
}
