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
	memoryRatio = 0.6 // of the container's memory limit, for the Go runtime

	// The heaps are so small that the garbage collector would run hundreds of times
	// a second. The memory limit bounds what it may leave.
	gcPercent = 400
)

// Program is one of the two processes, as [Main] runs it.
type Program struct {
	Name     string // also the prefix of its metrics, after "cats_"
	About    string // what --help says first
	Settings any    // pointer to a zero settings struct, for --help
	// Run runs it until ctx is done and returns nil after a clean stop.
	Run func(ctx context.Context, environ []string, stderr io.Writer) error
	// Command is what it can do instead, when the first argument names it.
	Command Command
}

// Command is something else that a program's binary does, and then ends.
type Command struct {
	Name string
	Help string // what the command's own --help says
	// Run does it and returns the exit code. ctx is done on SIGTERM and Interrupt.
	Run func(ctx context.Context, environ []string, stdout io.Writer) int
}

// Main runs p with the process's own arguments and environment until SIGTERM or
// Interrupt, and returns the exit code: 0 after a clean stop, 1 after an error,
// each logged on a line of its own after the line of [LogVersion], 2 on arguments it does not know, and what a
// command returns. A second signal ends the process at once.
func Main(p Program) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	context.AfterFunc(ctx, stop)
	if args := strings.Join(os.Args[1:], " "); args != "" {
		return p.arguments(ctx, args, os.Environ(), os.Stdout, os.Stderr)
	}
	log := telemetry.NewLogger(os.Stderr, slog.LevelInfo, p.Name)
	telemetry.LogVersion(log)
	limitMemory(log)
	err := p.Run(ctx, os.Environ(), os.Stderr)
	if err == nil {
		return 0
	}
	for fault := range strings.SplitSeq(err.Error(), "\n") {
		log.Error("stopped", "error", fault)
	}
	return 1
}

// limitMemory has the Go runtime keep within the container's limit, whose other
// part is for what the runtime does not count: the binary's pages, and what the
// kernel holds for connections. GOMEMLIMIT goes before it.
func limitMemory(log *slog.Logger) {
	limit, err := memlimit.Set(memlimit.WithRatio(memoryRatio))
	if err != nil && !errors.Is(err, memlimit.ErrNoCgroup) && !errors.Is(err, memlimit.ErrCgroupsNotSupported) {
		log.Warn("the container's memory limit cannot be read; set GOMEMLIMIT to 60 % of it", "error", err.Error())
	}
	if limit < math.MaxInt64 {
		log.Info("memory limit", "go_memory_limit_bytes", limit)
		if os.Getenv("GOGC") == "" {
			debug.SetGCPercent(gcPercent)
		}
	}
}

// arguments does what args say, which are not empty, and returns the exit code.
func (p Program) arguments(ctx context.Context, args string, environ []string, stdout, stderr io.Writer) int {
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
