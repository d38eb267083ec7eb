// Command bench measures the system on this machine and compares it with yardsticks in the same run: minimal Go programs that
// move the same bytes through as many processes, and azblob alone. docs/performance.md describes the figures and has the
// latest results.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"cats.example/local/stack"
)

func main() {
	if role := os.Getenv(roleVariable); role != "" {
		if err := runPeer(role); err != nil {
			fatal(err)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if !run(ctx) {
		stop()
		os.Exit(1)
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "bench:", err)
	os.Exit(1)
}

// bench is one run.
type bench struct {
	rounds   int
	profiles string
	dir      string
	root     string
	azblob   string // binary of the azblob yardstick
	stack    *stack.Stack
	sink     *peer
	systems  int
}

// figure measures some rows of the table.
type figure func(*bench, context.Context) ([]result, error)

// figures in the order in which they are measured.
var figures = []struct {
	name    string
	measure figure
}{
	{"idle", (*bench).idle},
	{"cached", (*bench).cached},
	{"uncached", (*bench).uncached},
	{"requests", (*bench).requests},
	{"sink", toSink(10, 8)},
	{"sink", toSink(31, 4)},
	{"azurite", toAzurite("PUT", 1, 8)},
	{"azurite", toAzurite("PUT", 10, 8)},
	{"azurite", toAzurite("PUT", 31, 4)},
	{"azurite", toAzurite("PUT", 4, 4)},
	{"azurite", toAzurite("form", 4, 4)},
	{"memory", (*bench).memory},
	{"pools", (*bench).pools},
	{"slow", (*bench).slow},
	{"headers", (*bench).headers},
	{"images", (*bench).images},
}

func run(ctx context.Context) (ok bool) {
	var names []string
	for _, f := range figures {
		names = append(names, f.name)
	}
	names = slices.Compact(names)
	only := flag.String("only", "", "comma-separated figures to measure; default all: "+strings.Join(names, ", "))
	rounds := flag.Int("rounds", 7, "rounds of yardstick and system in turns; the results are medians")
	profiles := flag.String("profiles", "", "folder for CPU and heap profiles of frontend and signer")
	flag.Parse()
	wanted := strings.Split(*only, ",")
	for _, name := range wanted {
		if *only != "" && !slices.Contains(names, name) {
			fatal(fmt.Errorf("-only: unknown figure %q; figures: %s", name, strings.Join(names, ", ")))
		}
	}
	if runtime.GOOS != "linux" {
		fatal(errors.New("only Linux is supported: bench reads memory from /proc and CPU time from Linux's process clocks"))
	}
	b := &bench{rounds: max(*rounds, 1), profiles: *profiles}
	defer b.close(ctx)
	if err := b.setUp(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return false
	}
	var all []result
	defer func() { printTable(all) }()
	ok = true
	for _, f := range figures {
		if *only != "" && !slices.Contains(wanted, f.name) {
			continue
		}
		began := time.Now()
		results, err := b.measure(ctx, f.measure)
		all = append(all, results...)
		if err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s: %v\n", f.name, err)
			return false
		}
		progress("%s: %.0f s", f.name, time.Since(began).Seconds())
		ok = ok && !slices.ContainsFunc(results, func(r result) bool { return r.Verdict == missed })
	}
	return ok
}

// measure runs a figure. If a bar is missed by less than 5 %, it runs the figure twice more and returns the median of each row.
func (b *bench) measure(ctx context.Context, figure figure) ([]result, error) {
	results, err := figure(b, ctx)
	if err != nil || !slices.ContainsFunc(results, result.near) {
		return results, err
	}
	progress("a bar is missed by less than 5 %%; measuring twice more")
	runs := [][]result{results}
	for range 2 {
		again, err := figure(b, ctx)
		if err != nil {
			return results, err
		}
		runs = append(runs, again)
	}
	return medians(runs), nil
}

func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...) }

// setUp builds all programs and starts the local stack and the sink.
func (b *bench) setUp(ctx context.Context) (err error) {
	if b.dir, err = os.MkdirTemp("", "cats-bench-"); err != nil {
		return err
	}
	if b.root, err = stack.FindRoot(); err != nil {
		return err
	}
	progress("building the programs, starting storage")
	bin := filepath.Join(b.dir, "bin")
	if err := stack.Build(ctx, b.root, bin, "-trimpath"); err != nil {
		return err
	}
	if b.azblob, err = b.build(ctx, "./tools/bench/azblob"); err != nil {
		return err
	}
	if err := stack.Install(ctx, b.root, filepath.Join(b.dir, "npm.log")); err != nil {
		return err
	}
	if b.stack, err = stack.New(ctx, stack.Options{Root: b.root, Dir: filepath.Join(b.dir, "stack")}); err != nil {
		return err
	}
	b.sink, err = startPeer(ctx, "sink", "BENCH_CERT="+b.stack.CA.File, "BENCH_KEY="+b.stack.CA.KeyFile)
	return err
}

func (b *bench) close(ctx context.Context) {
	if b.sink != nil {
		b.sink.stop()
	}
	if b.stack != nil {
		if err := b.stack.Close(context.WithoutCancel(ctx)); err != nil {
			fmt.Fprintln(os.Stderr, "bench: stopping:", err)
		}
	}
	_ = os.RemoveAll(b.dir)
}

func printTable(results []result) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', tabwriter.Debug)
	fmt.Fprintln(w, "| what\t measured\t yardstick\t value\t bar\t verdict\t")
	fmt.Fprintln(w, "| ---\t ---\t ---\t ---\t ---\t ---\t")
	for _, r := range results {
		fmt.Fprintf(w, "| %s\t %s\t %s\t %.3g\t %s\t %s\t\n", r.What, r.Measured, r.Against, r.Value, r.Bar, r.Verdict)
	}
	_ = w.Flush()
}
