package main

import (
	"errors"
	"net"
	"net/url"
	"strings"

	"cats.example/frontend/internal/web"
	"cats.example/shared/config"
	"cats.example/shared/httpserver"
	"cats.example/shared/telemetry"
)

const (
	name  = "frontend"
	about = "frontend serves the public API and the web page. It forwards requests to the signer.\n" + telemetry.TracesHelp
)

type settings struct {
	ListenAddress string `env:"LISTEN_ADDRESS" envDefault:":8080" help:"address of the public API"`
	OpsAddress    string `env:"OPS_ADDRESS" envDefault:":8090" help:"address of /metrics, /livez and /readyz"`
	SignerURL     string `env:"SIGNER_URL" envDefault:"http://127.0.0.1:8081" help:"URL of the signer's local API"`

	web.Options
	httpserver.Settings
}

// parse reads the settings and returns all validation errors, joined.
func parse(environ []string) (settings, error) {
	var c settings
	if err := config.Parse(&c, environ); err != nil {
		return c, err
	}
	signer, err := url.Parse(c.SignerURL) // the signer rejects other Host headers with 421
	return c, errors.Join(c.Options.Validate(), c.Settings.Validate(), config.Require(err != nil || httpserver.LocalHost(signer.Host),
		"SIGNER_URL is %q: want http://HOST:PORT with an IP address or localhost as HOST", c.SignerURL))
}

// ports returns the ports of the frontend's listeners and of the signer's API, "" for an invalid address.
func (c settings) ports() (ports []string) {
	signer := strings.Trim(strings.TrimPrefix(c.SignerURL, "http:"), "/")
	for _, address := range []string{c.ListenAddress, c.OpsAddress, signer} {
		_, port, _ := net.SplitHostPort(address)
		ports = append(ports, port)
	}
	return ports
}
