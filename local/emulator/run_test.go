package main

import (
	"context"
	"strings"
	"testing"

	"cats.example/shared/config"
)

func TestEmulatorAllowsItsConfiguredHosts(t *testing.T) {
	var cfg settings
	environ := strings.Fields("NAMESPACE=cats ALLOWED_HOSTS=front.example STORAGE_URL=https://davydscats.blob.cats.svc:10000")
	if err := config.Parse(&cfg, environ); err != nil {
		t.Fatal(err)
	}
	hosts, err := cfg.hosts()
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]bool{
		"login:8443": true, "davydscats.blob.cats.svc:10000": true, "front.example": true, "10.0.0.1:30100": true, "localhost:30100": true,
		"evil.example": false, "davydscats.blob:10000": false, "azure-front": false,
	} {
		if got := hosts.HostAllowed(host); got != want {
			t.Errorf("%s: allowed is %t; want %t", host, got, want)
		}
	}
}

func TestEmulatorLogsItsVersionFirst(t *testing.T) {
	for _, c := range []struct{ args, environ []string }{
		{nil, nil}, // NAMESPACE is missing
		{nil, []string{"NAMESPACE=cats", "STATE_DIR=/nowhere"}},
		{[]string{"trust", "/nowhere/ca.pem"}, []string{"TRUST_URL=nowhere"}},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		var log strings.Builder
		err := run(ctx, c.args, c.environ, &log, &log)
		first, _, _ := strings.Cut(log.String(), "\n")
		if !strings.Contains(first, `"msg":"starting"`) || !strings.Contains(first, `"service.version":"`) ||
			!strings.Contains(first, `"revision":"`) {
			t.Errorf("%q %q: %v; the first line is %s", c.args, c.environ, err, first)
		}
	}
}
