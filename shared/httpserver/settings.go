package httpserver

import (
	"errors"
	"log/slog"
	"time"

	"cats.example/shared/config"
)

// Settings are the settings of the HTTP server in both containers. Embed them in the settings of the process.
type Settings struct {
	StallTimeout  time.Duration `env:"STALL_TIMEOUT" envDefault:"30s" help:"time over which the rate of a request body is averaged; a slower body is rejected with 408"`
	MinUploadRate int64         `env:"MIN_UPLOAD_RATE" envDefault:"2048" help:"minimum rate of a request body, in bytes per second, averaged over STALL_TIMEOUT; 16384 while more than half of MAX_UPLOADS are in progress"`
	MaxUploads    int           `env:"MAX_UPLOADS" envDefault:"128" help:"maximum number of uploads in progress; the limits are half of it for commits of direct uploads, 4 times for requests and 8 times for connections"`
	ClientShare   float64       `env:"CLIENT_SHARE" envDefault:"0.0625" help:"share of MAX_UPLOADS and of the limits that follow from it that one client may take, but at least 1: the frontend counts by address (IPv6: /56), the signer by authenticated caller; 0 for no shares"`
	AllowedHosts  []HostName    `env:"ALLOWED_HOSTS" help:"host names, separated by commas, that are accepted in the Host header; other requests are answered 421. IP addresses and localhost are always accepted. Unless set, any host is accepted"`
	PprofEnabled  bool          `env:"PPROF_ENABLED" envDefault:"false" help:"true serves Go profiles at /debug/pprof/ on the ops listener"`
	DrainDelay    time.Duration `env:"DRAIN_DELAY" envDefault:"0s" help:"time after SIGTERM in which the process is not ready but accepts requests, so that load balancers can react"`
	DrainTimeout  time.Duration `env:"DRAIN_TIMEOUT" envDefault:"60s" help:"maximum time after DRAIN_DELAY for requests in progress; after it they are cut off"`
	LogLevel      slog.Level    `env:"LOG_LEVEL" envDefault:"info" help:"debug, info, warn or error"`
}

// Validate returns all validation errors, joined.
func (s Settings) Validate() error {
	return errors.Join(
		config.Require(s.StallTimeout > 0, "STALL_TIMEOUT is %v: it must be above zero", s.StallTimeout),
		config.Require(s.MinUploadRate > 0 && s.MaxUploads > 0, "MIN_UPLOAD_RATE and MAX_UPLOADS must be above zero"),
		// The comparison also rejects NaN.
		config.Require(s.ClientShare >= 0 && s.ClientShare <= 1, "CLIENT_SHARE is %v: want a number from 0 to 1, such as 0.0625; 0 for no shares", s.ClientShare),
		config.Require(s.DrainDelay >= 0 && s.DrainTimeout > 0, "DRAIN_DELAY must not be negative, DRAIN_TIMEOUT must be above zero"),
	)
}
