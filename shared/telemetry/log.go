// Package telemetry creates the logger, the metrics registry and the traces of a process.
package telemetry

import (
	"cmp"
	"io"
	"log/slog"

	"github.com/prometheus/common/version"
)

// maxLoggedError is the maximum length of an error in the log, in bytes. Some libraries put input of clients into their errors.
const maxLoggedError = 512

// NewLogger returns the logger of a process. It writes JSON lines to w, without a buffer.
func NewLogger(w io.Writer, level slog.Level, name string) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level})).With("service.name", name)
}

// LogVersion writes the first line of a process's log, with its version and the revision of its source.
func LogVersion(log *slog.Logger) {
	log.Info("starting", "service.version", cmp.Or(version.Version, "dev"), "revision", version.GetRevision())
}

// Truncate returns the first 512 bytes of the text of an error.
func Truncate(s string) string { return s[:min(len(s), maxLoggedError)] }
