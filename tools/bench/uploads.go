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

// toSink compares uploads of size MiB through both containers, conns at once, with a bare pipe of two processes into the same
// sink.
func toSink(size, conns int) figure {
	return func(b *bench, ctx context.Context) ([]result, error) {
		pipe, at, err := b.startPipe(ctx)
		if err != nil {
			return nil, err
		}
		defer pipe.stop()
		sys, err := b.start(ctx, b.stack, onSink, nil)
		if err != nil {
			return nil, err
		}
		defer end(ctx, sys)
		compare := func(kind string) (comparison, result, error) {
			contentType, body := bodyOf(kind, size*mib)
			to := func(base, contentType string, pids []int) side {
				targets := users(conns, func(u string) vegeta.Target { return upload(base, u, contentType, body) })
				return side{run: attacker(conns, targets), pids: pids}
			}
			c, err := b.compare(ctx, time.Second, sys, fmt.Sprintf("sink-%s-%d", kind, size),
				to(at, "image/png", pipe.pids()), to(sys.URL, contentType, pids(sys))) // the pipe does not parse forms
			return c, result{
				What:     fmt.Sprintf("%s of %d MiB, %d at once, against a bare pipe", kind, size, conns),
				Measured: mibPerSecond(c.ours * float64(size)), Against: mibPerSecond(c.yard * float64(size)),
			}, err
		}
		put, row, err := compare("PUT")
		if err != nil {
			return nil, err
		}
		results := []result{row.atLeast(put.ratio, 0.8, " ×"), result{
			What:     "… CPU of both containers for each MiB, against the pipe's",
			Measured: millis(put.cpu / float64(size)), Against: millis(put.yardCPU / float64(size)),
		}.atMost(put.cpuRatio, 1.6, " ×")}
		form, row, err := compare("form")
		row.Value, row.Bar, row.Verdict = form.ratio, "(target 0.7 ×)", noBar
		return append(results, row), err
	}
}

// toAzurite compares uploads of size MiB through both containers, conns at once, with azblob's Upload of one buffer. It starts
// a new Azurite, because Azurite keeps all content in memory.
func toAzurite(kind string, size, conns int) figure {
	return func(b *bench, ctx context.Context) ([]result, error) {
		sys, stop, err := b.startOnAzurite(ctx, nil)
		if err != nil {
			return nil, err
		}
		defer stop()
		contentType, body := bodyOf(kind, size*mib)
		ours := users(16, func(u string) vegeta.Target { return upload(sys.URL, u, contentType, body) })
		c, err := b.compare(ctx, time.Second, sys, fmt.Sprintf("azurite-%s-%d", kind, size),
			side{run: b.azblobLoad(sys, "-conns", strconv.Itoa(conns), "-users", "16", "-size", strconv.Itoa(size*mib))},
			side{run: attacker(conns, ours)})
		return []result{result{
			What:     fmt.Sprintf("%s of %d MiB, %d at once, on Azurite, against azblob's Upload", kind, size, conns),
			Measured: mibPerSecond(c.ours * float64(size)), Against: mibPerSecond(c.yard * float64(size)),
		}.atLeast(c.ratio, 0.65, " ×")}, err
	}
}

// bodyOf returns the body of an upload of kind PUT or form with a picture of size bytes.
func bodyOf(kind string, size int) (contentType string, body []byte) {
	if kind == "form" {
		return formOf(pictureOf(size))
	}
	return "image/png", pictureOf(size)
}

// requests counts the requests to storage per API request.
func (b *bench) requests(ctx context.Context) (results []result, err error) {
	sys, err := b.start(ctx, b.stack, onSink, map[string]string{"EXISTENCE_CACHE_TTL": "0s"})
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
		calls, err := b.callsDuring(ctx, func() error { return send(ctx, c.target) })
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

// sum returns the number of calls, and a list of the numbers by kind.
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

var httpClient = &http.Client{Transport: &http.Transport{DialContext: dialFromMany()}}

// send sends one request and returns an error unless the response is a 2xx.
func send(ctx context.Context, target vegeta.Target) error {
	req, err := target.Request()
	if err != nil {
		return err
	}
	resp, err := httpClient.Do(req.WithContext(ctx))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s %s", target.Method, target.URL, resp.Status, body)
	}
	return err
}

// upload returns a PUT of a picture, or a POST if contentType is that of a form.
func upload(base, user, contentType string, body []byte) vegeta.Target {
	method := http.MethodPost
	if contentType == "image/png" {
		method = http.MethodPut
	}
	return vegeta.Target{Method: method, URL: base + "/cat/" + user, Body: body, Header: http.Header{"Content-Type": {contentType}}}
}

// users returns f's target for each of n user names.
func users(n int, f func(user string) vegeta.Target) (targets []vegeta.Target) {
	for i := range n {
		targets = append(targets, f(fmt.Sprintf("user-%d", i)))
	}
	return targets
}

// images builds the images and measures their sizes, if docker or buildah is available.
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
	if output, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make images: %w\n%s", err, output)
	}
	for _, name := range []string{"frontend", "signer"} {
		image := "cats-api-" + name + ":bench"
		out, err := exec.CommandContext(ctx, tool, "images", "--format", "{{.Size}}", image).Output()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", tool, err)
		}
		line, _, _ := strings.Cut(string(out), "\n") // buildah prints one line per tag
		size, err := units.FromHumanSize(line)       // for example 12.8 MB
		if err != nil {
			return nil, fmt.Errorf("the size of %s: %w", image, err)
		}
		results = append(results, result{What: "image of the " + name}.atMost(float64(size)/mib, 30, " MiB"))
	}
	return results, nil
}
