package httpserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/prometheus/common/version"

	"cats.example/shared/config"
	"cats.example/shared/telemetry"
)

const (
	// memoryRatio is the part of the container's memory limit that the Go runtime may use. It does not count the pages of the
	// binary, and what the kernel needs for connections.
	memoryRatio = 0.6

	// gcPercent is for heaps so small that the garbage collector would run hundreds of times a second. The memory limit bounds
	// the garbage.
	gcPercent = 400
)

// Program is one of the two programs; see [Main].
type Program struct {
	Name     string // also the prefix of its metrics, after "cats_"
	About    string // the beginning of --help
	Settings any    // pointer to a zero settings struct, for --help
	// Run runs the program until ctx is done. It returns nil after a clean stop.
	Run func(ctx context.Context, environ []string, stderr io.Writer) error
	// Command is what the program can do instead. The zero value is no command.
	Command Command
}

// Command is a subcommand of a program.
type Command struct {
	Name string
	Help string // the output of NAME --help
	// Run runs the command and returns the exit code. ctx is done after SIGTERM and Interrupt.
	Run func(ctx context.Context, environ []string, stdout io.Writer) int
}

// Main runs p with the arguments and the environment of the process until SIGTERM or Interrupt, and returns the exit code: 0
// after a clean stop, 1 after an error, 2 for unknown arguments, or that of the command. Each validation error has a log line of
// its own. A second signal ends the process at once.
func Main(p Program) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	context.AfterFunc(ctx, stop)
	if args := strings.Join(os.Args[1:], " "); args != "" {
		return p.runArguments(ctx, args, os.Environ(), os.Stdout, os.Stderr)
	}
	log := telemetry.NewLogger(os.Stderr, slog.LevelInfo, p.Name)
	telemetry.LogVersion(log)
	limitMemory(log)
	err := p.Run(ctx, os.Environ(), os.Stderr)
	if err == nil {
		return 0
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		log.Error("stopped", "error", line)
	}
	return 1
}

// limitMemory sets the memory limit of the Go runtime from that of the container, unless GOMEMLIMIT is set.
func limitMemory(log *slog.Logger) {
	limit, err := memlimit.Set(memlimit.WithRatio(memoryRatio))
	if err != nil && !errors.Is(err, memlimit.ErrNoCgroup) && !errors.Is(err, memlimit.ErrCgroupsNotSupported) {
		log.Warn("reading the container's memory limit failed", "error", err.Error(), "fix", "set GOMEMLIMIT to 60 % of it")
	}
	if limit < math.MaxInt64 {
		log.Info("memory limit", "go_memory_limit_bytes", limit)
		if os.Getenv("GOGC") == "" {
			debug.SetGCPercent(gcPercent)
		}
	}
}

// runArguments handles the arguments of the command line, of which there is at least one, and returns the exit code.
func (p Program) runArguments(ctx context.Context, args string, environ []string, stdout, stderr io.Writer) int {
	switch command := p.Command; args {
	case "--help", "-h":
		_ = config.Help(stdout, p.About, p.Settings)
	case "--version":
		fmt.Fprintln(stdout, version.Print("cats-api "+p.Name))
	case command.Name:
		return command.Run(ctx, environ, stdout)
	case command.Name + " --help", command.Name + " -h":
		fmt.Fprintln(stdout, command.Help)
	default:
		fmt.Fprintf(stderr, "%s: unknown arguments %q; try --help\n", p.Name, args)
		return 2
	}
	return 0
}
