package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	vegeta "github.com/tsenart/vegeta/v12/lib"
)

const mib = 1 << 20

// uploadsToSink compares uploads through both containers with a bare pipe of two
// processes into the same sink.
func (b *bench) uploadsToSink(ctx context.Context) ([]result, error) {
	pipe, at, err := b.startPipe(ctx)
	if err != nil {
		return nil, err
	}
	defer pipe.stop()
	sys, err := b.start(ctx, b.stand, onSink, nil)
	if err != nil {
		return nil, err
	}
	defer end(ctx, sys)
	var puts, forms []result
	for _, c := range []struct{ size, conns int }{{10, 8}, {31, 4}} {
		picture := pictureOf(c.size * mib)
		formType, form := formOf(picture)
		for _, contentType := range []string{"image/png", formType} {
			body := picture
			if contentType == formType {
				body = form
			}
			to := func(base, contentType string) side {
				targets := users(c.conns, func(u string) vegeta.Target { return upload(base, u, contentType, body) })
				return side{run: attacker(c.conns, targets)}
			}
			yard, ours := to(at, "image/png"), to(sys.URL, contentType) // the pipe does not parse forms
			yard.pids, ours.pids = pipe.pids(), pids(sys)
			got, err := b.compare(ctx, time.Second, sys, fmt.Sprintf("sink-%d-%.3s", c.size, contentType), yard, ours)
			if err != nil {
				return nil, err
			}
			size := float64(len(body))
			row := result{Measured: mibPerSecond(got.ours * size), Against: mibPerSecond(got.yard * size)}
			if contentType == formType {
				row.What = fmt.Sprintf("form of %d MiB, %d at once, against a bare pipe", c.size, c.conns)
				row.Value, row.Bar, row.Verdict = got.ratio, "(target 0.7 ×)", told
				forms = append(forms, row)
				continue
			}
			row.What = fmt.Sprintf("PUT of %d MiB, %d at once, against a bare pipe", c.size, c.conns)
			puts = append(puts, row.atLeast(got.ratio, 0.8, " ×"), result{
				What:     "… CPU of both containers for each MiB, against the pipe's",
				Measured: millis(got.cpu / size * mib), Against: millis(got.yardCPU / size * mib),
			}.atMost(got.cpuRatio, 1.6, " ×"))
		}
	}
	return append(puts, forms...), nil
}

// uploadsToAzurite compares uploads through both containers with azblob's Upload of
// one buffer. Each row has an Azurite of its own, which keeps all content in memory.
func (b *bench) uploadsToAzurite(ctx context.Context) (results []result, err error) {
	for _, c := range []struct {
		size, conns int
		form        bool
	}{{1, 8, false}, {10, 8, false}, {31, 4, false}, {4, 4, false}, {4, 4, true}} {
		r, err := b.uploadsOf(ctx, c.size*mib, c.conns, c.form)
		if err != nil {
			return results, err
		}
		results = append(results, r)
	}
	return results, nil
}

func (b *bench) uploadsOf(ctx context.Context, size, conns int, asForm bool) (result, error) {
	sys, stop, err := b.startOnAzurite(ctx, nil)
	if err != nil {
		return result{}, err
	}
	defer stop()
	kind, contentType, body := "PUT", "image/png", pictureOf(size)
	if asForm {
		kind = "form"
		contentType, body = formOf(body)
	}
	ours := users(16, func(u string) vegeta.Target { return upload(sys.URL, u, contentType, body) })
	got, err := b.compare(ctx, time.Second, sys, fmt.Sprintf("azurite-%d-%s", size/mib, kind),
		side{run: b.straightly(sys, "-conns", strconv.Itoa(conns), "-users", "16", "-size", strconv.Itoa(size))},
		side{run: attacker(conns, ours)})
	if err != nil {
		return result{}, err
	}
	return result{
		What:     fmt.Sprintf("%s of %d MiB, %d at once, on Azurite, against azblob's Upload", kind, size/mib, conns),
		Measured: mibPerSecond(got.ours * float64(size)), Against: mibPerSecond(got.yard * float64(size)),
	}.atLeast(got.ratio, 0.65, " ×"), nil
}

// requests counts the requests to storage.
func (b *bench) requests(ctx context.Context) (results []result, err error) {
	sys, err := b.start(ctx, b.stand, onSink, map[string]string{"EXISTENCE_TTL": "0s"})
	if err != nil {
		return nil, err
	}
	defer end(ctx, sys)
	put := func(size int, header ...string) vegeta.Target {
		t := upload(sys.URL, "counted", "image/png", pictureOf(size))
		for i := 0; i < len(header); i += 2 {
			t.Header.Set(header[i], header[i+1])
		}
		return t
	}
	form := func(size int) vegeta.Target {
		contentType, body := formOf(pictureOf(size))
		return upload(sys.URL, "counted", contentType, body)
	}
	for _, c := range []struct {
		what   string
		target vegeta.Target
		want   float64
	}{
		{"PUT of 64 KiB", put(64 << 10), 1},
		{"PUT of 10 MiB", put(10 * mib), 1},
		{"PUT of 31 MiB", put(31 * mib), 1},
		{"PUT of 1 MiB with If-Match", put(mib, "If-Match", sinkETag), 2},
		{"PUT of 10 MiB with If-Match", put(10*mib, "If-Match", sinkETag), 2},
		{"form of 64 KiB", form(64 << 10), 1},
		{"form of 4 MiB", form(4 * mib), 1},
		{"form of 10 MiB", form(10 * mib), 3},
	} {
		calls, err := b.callsDuring(ctx, func() error { return ask(ctx, c.target) })
		if err != nil {
			return results, fmt.Errorf("%s: %w", c.what, err)
		}
		all, kinds := sum(calls)
		results = append(results, result{What: c.what + ": requests to storage", Measured: kinds}.exactly(all, c.want))
	}
	var gets load
	calls, err := b.callsDuring(ctx, func() (err error) {
		gets, err = attack(ctx, conns, 0, time.Second, users(pictures, func(u string) vegeta.Target { return get(sys.URL, u) })...)
		return err
	})
	if err != nil {
		return results, err
	}
	all, kinds := sum(calls)
	each := math.Round(100*all/float64(gets.n)) / 100 // the signer also probes a signed URL
	return append(results, result{What: fmt.Sprintf("GET, existence not cached: requests to storage for each of %d", gets.n), Measured: kinds}.atMost(each, 1, "")), nil
}

// sum returns the number of all calls, and how many there are of each kind.
func sum(calls map[string]int64) (all float64, kinds string) {
	var each []string
	for _, kind := range callKinds {
		if n := calls[kind]; n > 0 {
			each = append(each, fmt.Sprintf("%d %s", n, kind))
			all += float64(n)
		}
	}
	return all, strings.Join(each, ", ")
}

// ask sends one request and returns an error unless the response is a 2xx.
func ask(ctx context.Context, target vegeta.Target) error {
	req, err := target.Request()
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req.WithContext(ctx))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s %s", target.Method, target.URL, resp.Status, said)
	}
	return err
}

// upload is a target: by PUT, or by POST when contentType is a form's.
func upload(base, user, contentType string, body []byte) vegeta.Target {
	method := http.MethodPost
	if contentType == "image/png" {
		method = http.MethodPut
	}
	return vegeta.Target{Method: method, URL: base + "/cat/" + user, Body: body, Header: http.Header{"Content-Type": {contentType}}}
}

// users returns a target for each of n users, which f makes of their names.
func users(n int, f func(user string) vegeta.Target) (targets []vegeta.Target) {
	for i := range n {
		targets = append(targets, f(fmt.Sprintf("user-%d", i)))
	}
	return targets
}

// images builds the images and measures their sizes, where docker or buildah runs.
func (b *bench) images(ctx context.Context) (results []result, err error) {
	tool := "docker" // as the Makefile chooses
	if exec.CommandContext(ctx, "docker", "info").Run() != nil {
		tool = "buildah"
	}
	if _, err := exec.LookPath(tool); err != nil {
		return []result{{What: "images", Verdict: "skipped: neither docker nor buildah is available"}}, nil
	}
	progress("building the images")
	cmd := exec.CommandContext(ctx, "make", "images", "IMAGE_TAG=bench")
	cmd.Dir = b.root
	if said, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make images: %w\n%s", err, said)
	}
	for _, name := range []string{"frontend", "signer"} {
		image := "cats-api-" + name + ":bench"
		said, err := exec.CommandContext(ctx, tool, "images", "--format", "{{.Size}}", image).Output() //nolint:gosec // one of two names
		if err != nil {
			return nil, fmt.Errorf("%s: %w", tool, err)
		}
		size, err := units.FromHumanSize(strings.TrimSpace(string(said))) // such as 12.8 MB
		if err != nil {
			return nil, fmt.Errorf("the size of %s: %w", image, err)
		}
		results = append(results, result{What: "image of the " + name}.atMost(float64(size)/mib, 30, " MiB"))
	}
	return results, nil
}
