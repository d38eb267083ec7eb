package main

import (
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
