package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"
)

const (
	conns    = 32
	pictures = 512 // that GETs are spread over
	answers  = 600 // bytes of the pair's answer, about those of ours
	turns    = 8   // that a measurement of known pictures is cut into
)

func get(base, user string) vegeta.Target {
	return vegeta.Target{Method: http.MethodGet, URL: base + "/cat/" + user}
}

// known is the GET of a picture that was looked up lately, against the pair.
func (b *bench) known(ctx context.Context) error {
	bare, at, err := startPair(ctx)
	if err != nil {
		return err
	}
	defer bare.stop()
	sys, err := b.start(ctx, onSink, map[string]string{"EXISTENCE_TTL": "10m"})
	if err != nil {
		return err
	}
	defer end(ctx, sys)

	ours := users(pictures, func(u string) vegeta.Target { return get(sys.URL, u) })
	pair := users(pictures, func(u string) vegeta.Target { return get(at, u) })
	if _, err := attack(ctx, 8, 2*pictures, 2*time.Second, ours...); err != nil { // each is known now
		return err
	}
	var rates, yards, ratios, cpus []float64
	var calls int64
	turn := b.duration / turns // the machine's speed drifts less between two short ones
	for i := range turns * b.rounds {
		yard, err := attack(ctx, conns, 0, turn, pair...)
		if err != nil {
			return err
		}
		var got load
		var cpu time.Duration
		called, err := b.callsDuring(ctx, func() (err error) {
			cpu, err = cpuOf(sys, func() error {
				return b.profileOnce(ctx, i, sys, "known", func() (err error) {
					got, err = attack(ctx, conns, 0, turn, ours...)
					return err
				})
			})
			return err
		})
		if err != nil {
			return err
		}
		for _, n := range called {
			calls += n
		}
		rates, yards = append(rates, got.rate()), append(yards, yard.rate())
		ratios, cpus = append(ratios, got.rate()/yard.rate()), append(cpus, cpu.Seconds()*1000/float64(got.n))
	}
	b.add(result{
		What:     "GET, existence known, 32 connections, against two bare hops",
		Measured: perSecond(rates), Against: perSecond(yards),
	}.atLeast(median(ratios), 0.8, " ×"))
	b.add(result{What: "… calls to storage"}.atMost(float64(calls), 0, ""))
	b.add(result{What: "… CPU of both containers for each"}.atMost(median(cpus), 0.2, " ms"))
	return nil
}

// unknown is the GET of a picture that storage must be asked for, on Azurite,
// against HEADs alone. Azurite has a core of its own.
func (b *bench) unknown(ctx context.Context) error {
	back, err := b.apart()
	if err != nil {
		return err
	}
	defer back()
	sys, err := b.start(ctx, onAzurite, map[string]string{"EXISTENCE_TTL": "0s"})
	if err != nil {
		return err
	}
	defer end(ctx, sys)
	ours := users(pictures, func(u string) vegeta.Target { return get(sys.URL, u) })
	picture := pictureOf(100 << 10)
	for i := range pictures {
		if err := put(ctx, sys.URL, fmt.Sprintf("user-%d", i), "image/png", picture); err != nil {
			return err
		}
	}
	var rates, yards, ratios, cpus, calls []float64
	for i := range b.rounds {
		yard, err := b.straightly(ctx, sys, "-head", "-users", fmt.Sprint(pictures), "-conns", fmt.Sprint(conns))
		if err != nil {
			return err
		}
		var got load
		before, err := storageCalls(ctx, sys.SignerOps)
		if err != nil {
			return err
		}
		cpu, err := cpuOf(sys, func() error {
			return b.profileOnce(ctx, i, sys, "unknown", func() (err error) {
				got, err = attack(ctx, conns, 0, b.duration, ours...)
				return err
			})
		})
		if err != nil {
			return err
		}
		after, err := storageCalls(ctx, sys.SignerOps)
		if err != nil {
			return err
		}
		calls = append(calls, (after-before)/float64(got.n))
		rates, yards = append(rates, got.rate()), append(yards, yard.rate())
		ratios, cpus = append(ratios, got.rate()/yard.rate()), append(cpus, cpu.Seconds()*1000/float64(got.n))
	}
	b.add(result{
		What:     "GET, existence unknown, 32 connections, against azblob's HEADs",
		Measured: perSecond(rates), Against: perSecond(yards),
	}.atLeast(median(ratios), 0.9, " ×"))
	b.add(result{What: "… calls to storage for each"}.atMost(median(calls), 1, ""))
	b.add(result{What: "… CPU of both containers for each"}.atMost(median(cpus), 0.5, " ms"))
	return nil
}

func perSecond(rates []float64) string { return fmt.Sprintf("%.0f/s", median(rates)) }
