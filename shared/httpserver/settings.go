package httpserver

import (
	"errors"
	"log/slog"
	"time"

	"cats.example/shared/config"
)

// Settings are those that every process of the pod has. Embed them in the
// process's own settings, for [Parse].
type Settings struct {
	StallTimeout  time.Duration `env:"STALL_TIMEOUT" envDefault:"30s" help:"a request body that brings less than MIN_UPLOAD_RATE over this long is rejected"`
	MinUploadRate int64         `env:"MIN_UPLOAD_RATE" envDefault:"2048" help:"the minimum rate of a request body, in bytes per second, averaged over STALL_TIMEOUT; 16384 while more than half of MAX_UPLOADS are in progress"`
	MaxUploads    int           `env:"MAX_UPLOADS" envDefault:"128" help:"uploads in progress at once. Half as many commits of direct uploads, four times as many requests and eight times as many connections are possible"`
	ClientShare   float64       `env:"CLIENT_SHARE" envDefault:"0.0625" help:"the part of MAX_UPLOADS, and of the other limits that follow from it, that one client may take, at least 1: the frontend counts by address (IPv6: /56), the signer by authenticated caller; 0 for no shares"`
	AllowedHosts  []HostName    `env:"ALLOWED_HOSTS" help:"host names, separated by commas, that requests may have in their Host header; others are answered 421. IP addresses and localhost are always accepted; any host unless set"`
	PprofEnabled  bool          `env:"PPROF_ENABLED" envDefault:"false" help:"true serves Go profiles at /debug/pprof/ on the ops listener"`
	DrainDelay    time.Duration `env:"DRAIN_DELAY" envDefault:"0s" help:"after SIGTERM, how long to go on serving while not ready, so that load balancers notice"`
	DrainTimeout  time.Duration `env:"DRAIN_TIMEOUT" envDefault:"60s" help:"how long requests under way may then take before they are cut off"`
	LogLevel      slog.Level    `env:"LOG_LEVEL" envDefault:"info" help:"debug, info, warn or error"`
}

// Validate reports the faults of the settings, joined.
func (s Settings) Validate() error {
	return errors.Join(
		config.Require(s.StallTimeout > 0, "STALL_TIMEOUT is %v: it must be above zero", s.StallTimeout),
		config.Require(s.MinUploadRate > 0 && s.MaxUploads > 0, "MIN_UPLOAD_RATE and MAX_UPLOADS must be above zero"),
		// This comparison rejects NaN, too.
		config.Require(s.ClientShare >= 0 && s.ClientShare <= 1, "CLIENT_SHARE is %v: want a number from 0 to 1, such as 0.0625; 0 for no shares", s.ClientShare),
		config.Require(s.DrainDelay >= 0 && s.DrainTimeout > 0, "DRAIN_DELAY must not be negative, DRAIN_TIMEOUT must be above zero"),
	)
}
