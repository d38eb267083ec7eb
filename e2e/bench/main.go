// Command bench measures the system on this machine and sets it against
// yardsticks of the same run: bare Go programs that move the same bytes through
// as many processes, and azblob alone. docs/performance.md tells what the figures
// are and keeps the last results.
package main

import (
	"context"
	"encoding/json"
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

	"cats.example/local/stand"
)

func main() {
	if role := os.Getenv(roleVariable); role != "" {
		if err := play(role); err != nil {
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

// result is one line of the table.
type result struct {
	Figure   string  `json:"figure"`
	What     string  `json:"what"`
	Measured string  `json:"measured"`
	Against  string  `json:"yardstick"`
	Value    float64 `json:"value"` // what the bar is about
	Bar      string  `json:"bar"`
	Verdict  string  `json:"verdict"` // met, missed, told (there is no bar), or skipped: why
}

const (
	met    = "met"
	missed = "MISSED"
	told   = "told"
)

// atLeast and atMost make the last three of a result.
func (r result) atLeast(value, bar float64, unit string) result {
	return r.judged(value, value >= bar, fmt.Sprintf("≥ %g%s", bar, unit))
}

func (r result) atMost(value, bar float64, unit string) result {
	return r.judged(value, value <= bar, fmt.Sprintf("≤ %g%s", bar, unit))
}

func (r result) judged(value float64, ok bool, bar string) result {
	r.Value, r.Bar, r.Verdict = value, bar, missed
	if ok {
		r.Verdict = met
	}
	return r
}

// bench is one run.
type bench struct {
	duration time.Duration
	rounds   int
	profiles string
	dir      string
	root     string
	straight string // the binary
	stand    *stand.Stand
	sink     *peer
	results  []result
	systems  int
}

// figures in the order in which they are measured.
var figures = []struct {
	name    string
	measure func(*bench, context.Context) error
}{
	{"rest", (*bench).rest},
	{"known", (*bench).known},
	{"unknown", (*bench).unknown},
	{"sink", (*bench).uploadsToSink},
	{"azurite", (*bench).uploadsToAzurite},
	{"small", (*bench).small},
	{"model", (*bench).model},
	{"memory", (*bench).memory},
	{"stalled", (*bench).stalled},
	{"images", (*bench).images},
}

func run(ctx context.Context) (ok bool) {
	var names []string
	for _, f := range figures {
		names = append(names, f.name)
	}
	only := flag.String("only", "", "figures to measure, such as known,sink; of "+strings.Join(names, ", "))
	duration := flag.Duration("duration", 4*time.Second, "of each measurement")
	rounds := flag.Int("rounds", 3, "of each pair of measurements, the yardstick's and ours in turn; medians are told")
	out := flag.String("json", "", "file for the results as JSON")
	profiles := flag.String("profiles", "", "folder for CPU and heap profiles of both processes, by figure")
	flag.Parse()
	wanted := strings.Split(*only, ",")
	for _, name := range wanted {
		if *only != "" && !slices.Contains(names, name) {
			fatal(fmt.Errorf("-only %s: the figures are %s", name, strings.Join(names, ", ")))
		}
	}
	if runtime.GOOS != "linux" {
		fatal(errors.New("it measures by /proc, which only Linux has"))
	}
	b := &bench{duration: *duration, rounds: *rounds, profiles: *profiles}
	defer b.close(ctx)
	if err := b.setUp(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return false
	}
	ok = true
	for _, f := range figures {
		if *only != "" && !slices.Contains(wanted, f.name) {
			continue
		}
		began, before := time.Now(), len(b.results)
		if err := f.measure(b, ctx); err != nil {
			b.print()
			fmt.Fprintf(os.Stderr, "bench: %s: %v\n", f.name, err)
			return false
		}
		progress("%s: %.0f s", f.name, time.Since(began).Seconds())
		for i := range b.results[before:] {
			r := &b.results[before+i]
			r.Figure = f.name
			ok = ok && r.Verdict != missed
		}
	}
	b.print()
	if *out != "" {
		if err := b.save(*out); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			return false
		}
	}
	return ok
}

func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...) }

// setUp builds all programs, and starts the stand and the sink.
func (b *bench) setUp(ctx context.Context) (err error) {
	if b.dir, err = os.MkdirTemp("", "cats-bench-"); err != nil {
		return err
	}
	if b.root, err = stand.FindRoot(); err != nil {
		return err
	}
	progress("building, and starting storage")
	bin := filepath.Join(b.dir, "bin")
	if err := stand.Build(ctx, b.root, bin, "-trimpath"); err != nil {
		return err
	}
	if b.straight, err = b.build(ctx, "./signer/internal/straight"); err != nil {
		return err
	}
	if err := stand.Install(ctx, b.root, filepath.Join(b.dir, "npm.log")); err != nil {
		return err
	}
	if b.stand, err = stand.New(ctx, stand.Options{Root: b.root, Dir: b.dir}); err != nil {
		return err
	}
	b.sink, err = startPeer(ctx, "sink", "BENCH_CERT="+b.stand.CA.File, "BENCH_KEY="+b.stand.CA.KeyFile)
	return err
}

func (b *bench) close(ctx context.Context) {
	if b.sink != nil {
		b.sink.stop()
	}
	if b.stand != nil {
		if err := b.stand.Close(context.WithoutCancel(ctx)); err != nil {
			fmt.Fprintln(os.Stderr, "bench: stopping:", err)
		}
	}
	_ = os.RemoveAll(b.dir)
}

func (b *bench) add(r result) { b.results = append(b.results, r) }

func (b *bench) print() {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', tabwriter.Debug)
	fmt.Fprintln(w, "| what\t measured\t yardstick\t value\t bar\t verdict\t")
	fmt.Fprintln(w, "| ---\t ---\t ---\t ---\t ---\t ---\t")
	for _, r := range b.results {
		fmt.Fprintf(w, "| %s\t %s\t %s\t %.3g\t %s\t %s\t\n", r.What, r.Measured, r.Against, r.Value, r.Bar, r.Verdict)
	}
	_ = w.Flush()
}

func (b *bench) save(file string) error {
	f, err := os.Create(file) //nolint:gosec // the person's own file
	if err != nil {
		return err
	}
	enc := json.NewEncoder(f)
	enc.SetIndent("", "  ")
	return errors.Join(enc.Encode(map[string]any{
		"time": time.Now().UTC(), "cpus": runtime.NumCPU(), "go": runtime.Version(),
		"duration": b.duration.String(), "rounds": b.rounds, "results": b.results,
	}), f.Close())
}

// median of the middle two, for an even number.
func median(of []float64) float64 {
	s := slices.Sorted(slices.Values(of))
	return (s[len(s)/2] + s[(len(s)-1)/2]) / 2
}
