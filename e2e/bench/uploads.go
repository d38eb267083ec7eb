package main

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	vegeta "github.com/tsenart/vegeta/v12/lib"
)

const mib = 1 << 20

// uploadsToSink sets uploads through both containers against bare pipes of two
// processes into the same sink: one that only copies, and one that also takes the
// MD5 which storage is to keep.
func (b *bench) uploadsToSink(ctx context.Context) error {
	var pipes []string
	for _, env := range [][]string{nil, {"BENCH_MD5=1"}} {
		pipe, at, err := b.startPipe(ctx, env...)
		if err != nil {
			return err
		}
		defer pipe.stop()
		pipes = append(pipes, at)
	}
	sys, err := b.start(ctx, onSink, nil)
	if err != nil {
		return err
	}
	defer end(ctx, sys)
	ten, fifty := pictureOf(10*mib), pictureOf(50*mib)
	formType, form := formOf(ten)
	for _, c := range []struct {
		name        string
		conns       int
		contentType string
		body        []byte
	}{
		{"PUT of 10 MiB, 8 at once", 8, "image/png", ten},
		{"PUT of 50 MiB, 4 at once", 4, "image/png", fifty},
		{"form of 10 MiB, 8 at once", 8, formType, form},
	} {
		to := func(base string) []vegeta.Target {
			return users(c.conns, func(u string) vegeta.Target { return upload(base, u, c.contentType, c.body) })
		}
		raw := func(base string) []vegeta.Target { // the pipes know no forms
			return users(c.conns, func(u string) vegeta.Target { return upload(base, u, "image/png", c.body) })
		}
		var rates, bare, sum, toBare, toSum []float64
		for i := range b.rounds {
			var got [3]float64 // bytes per second: bare, with MD5, ours
			for k, targets := range [][]vegeta.Target{raw(pipes[0]), raw(pipes[1]), to(sys.URL)} {
				f := func() error {
					l, err := attack(ctx, c.conns, 0, b.duration, targets...)
					got[k] = l.rate() * float64(len(c.body))
					return err
				}
				if k == 2 {
					err = b.profileOnce(ctx, i, sys, "sink-"+c.name[:3]+strconv.Itoa(len(c.body)/mib), f)
				} else {
					err = f()
				}
				if err != nil {
					return err
				}
			}
			bare, sum, rates = append(bare, got[0]), append(sum, got[1]), append(rates, got[2])
			toBare, toSum = append(toBare, got[2]/got[0]), append(toSum, got[2]/got[1])
		}
		b.add(result{What: c.name + ", against a bare pipe", Measured: mibPerSecond(rates), Against: mibPerSecond(bare)}.atLeast(median(toBare), 0.8, " ×"))
		b.add(result{What: "… against a pipe that takes the MD5", Measured: mibPerSecond(rates), Against: mibPerSecond(sum), Value: median(toSum), Verdict: told})
	}
	return nil
}

// uploadsToAzurite sets uploads through both containers against azblob alone.
// Azurite has a core of its own.
func (b *bench) uploadsToAzurite(ctx context.Context) error {
	back, err := b.apart()
	if err != nil {
		return err
	}
	defer back()
	sys, err := b.start(ctx, onAzurite, nil)
	if err != nil {
		return err
	}
	defer end(ctx, sys)
	for _, c := range []struct {
		name string
		size int
		args []string
	}{
		{"PUT of 4 MiB, 16 at once, on Azurite, against azblob's UploadBuffer", 4 * mib, nil},
		{"PUT of 10 MiB, 16 at once, on Azurite, against azblob's UploadStream", 10 * mib, []string{"-stream"}},
	} {
		body := pictureOf(c.size)
		ours := users(64, func(u string) vegeta.Target { return upload(sys.URL, u, "image/png", body) })
		args := append([]string{"-conns", "16", "-users", "64", "-size", strconv.Itoa(c.size)}, c.args...)
		var rates, yards, ratios []float64
		for i := range b.rounds {
			yard, err := b.straightly(ctx, sys, args...)
			if err != nil {
				return err
			}
			var got load
			if err := b.profileOnce(ctx, i, sys, fmt.Sprint("azurite", c.size/mib), func() (err error) {
				got, err = attack(ctx, 16, 0, b.duration, ours...)
				return err
			}); err != nil {
				return err
			}
			rates, yards = append(rates, got.rate()*float64(c.size)), append(yards, yard.rate()*float64(c.size))
			ratios = append(ratios, got.rate()/yard.rate())
		}
		b.add(result{What: c.name, Measured: mibPerSecond(rates), Against: mibPerSecond(yards)}.atLeast(median(ratios), 0.95, " ×"))
	}
	return nil
}

func mibPerSecond(rates []float64) string { return fmt.Sprintf("%.0f MiB/s", median(rates)/mib) }

// small counts the round trips of a picture of 4 MiB.
func (b *bench) small(ctx context.Context) error {
	sys, err := b.start(ctx, onSink, nil)
	if err != nil {
		return err
	}
	defer end(ctx, sys)
	formType, form := formOf(pictureOf(4 * mib))
	for _, c := range []struct {
		name, contentType string
		body              []byte
	}{
		{"PUT of 4 MiB", "image/png", pictureOf(4 * mib)},
		{"form of 4 MiB", formType, form},
	} {
		calls, err := b.callsDuring(ctx, func() error { return put(ctx, sys.URL, "small", c.contentType, c.body) })
		if err != nil {
			return err
		}
		all := int64(0)
		for _, n := range calls {
			all += n
		}
		b.add(result{What: c.name + ", round trips to storage", Measured: fmt.Sprint(calls)}.judged(float64(all), all == 1 && calls["put"] == 1, "1 Put Blob"))
	}
	return nil
}

// model measures what uploads of several sizes cost both containers, takes the
// smallest and the largest for a straight line, and sets the others beside it.
func (b *bench) model(ctx context.Context) error {
	sys, err := b.start(ctx, onSink, nil)
	if err != nil {
		return err
	}
	defer end(ctx, sys)
	sizes := []float64{0.1, 50, 1, 4, 10} // MiB
	costs := make([]float64, len(sizes))  // ms
	for i, size := range sizes {
		body := pictureOf(int(size * mib))
		var got load
		cpu, err := cpuOf(sys, func() (err error) {
			got, err = attack(ctx, 4, 0, b.duration, users(8, func(u string) vegeta.Target { return upload(sys.URL, u, "image/png", body) })...)
			return err
		})
		if err != nil {
			return err
		}
		costs[i] = cpu.Seconds() * 1000 / float64(got.n)
	}
	each := (costs[1] - costs[0]) / (sizes[1] - sizes[0])
	fixed := costs[0] - each*sizes[0]
	b.add(result{What: "CPU of both containers for an upload: for each MiB", Value: each, Bar: "(ms)", Verdict: told})
	b.add(result{What: "… and for the upload", Value: fixed, Bar: "(ms)", Verdict: told})
	for i, size := range sizes[2:] {
		b.add(result{
			What: fmt.Sprintf("… of %g MiB, against this model", size), Measured: fmt.Sprintf("%.2f ms", costs[2+i]),
			Against: fmt.Sprintf("%.2f ms", fixed+each*size), Value: costs[2+i] / (fixed + each*size), Verdict: told,
		})
	}
	return nil
}

// images builds the images and tells their sizes, where there is a tool for it.
func (b *bench) images(ctx context.Context) error {
	tool := "docker" // as the Makefile chooses
	if exec.CommandContext(ctx, "docker", "info").Run() != nil {
		tool = "buildah"
	}
	if _, err := exec.LookPath(tool); err != nil {
		b.add(result{What: "images", Verdict: "skipped: no docker that runs, and no buildah"})
		return nil
	}
	progress("building the images")
	cmd := exec.CommandContext(ctx, "make", "images", "IMAGE_TAG=bench")
	cmd.Dir = b.root
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make images: %w\n%s", err, said)
	}
	for _, name := range []string{"frontend", "signer"} {
		image := "cats-api-" + name + ":bench"
		said, err := exec.CommandContext(ctx, tool, "images", "--format", "{{.Size}}", image).Output() //nolint:gosec // one of two names
		if err != nil {
			return fmt.Errorf("%s: %w", tool, err)
		}
		size, err := units.FromHumanSize(strings.TrimSpace(string(said))) // such as 12.8 MB
		if err != nil {
			return fmt.Errorf("the size of %s: %w", image, err)
		}
		b.add(result{What: "image of the " + name}.atMost(float64(size)/mib, 30, " MiB"))
	}
	return nil
}
