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
	pictures = 512 // pictures that GETs read in turn
	bodySize = 600 // bytes of the two hops' response, about as many as the system's
)

func get(base, user string) vegeta.Target {
	return vegeta.Target{Method: http.MethodGet, URL: base + "/cat/" + user}
}

// cached compares GETs of pictures in the existence cache with two bare hops.
func (b *bench) cached(ctx context.Context) ([]result, error) {
	bare, at, err := startPair(ctx)
	if err != nil {
		return nil, err
	}
	defer bare.stop()
	sys, err := b.start(ctx, b.stack, onSink, map[string]string{"EXISTENCE_CACHE_TTL": "10m"})
	if err != nil {
		return nil, err
	}
	defer end(ctx, sys)
	ours := users(pictures, func(u string) vegeta.Target { return get(sys.URL, u) })
	pair := users(pictures, func(u string) vegeta.Target { return get(at, u) })
	if _, err := attack(ctx, 8, 2*pictures, 2*time.Second, ours...); err != nil { // fills the cache
		return nil, err
	}
	c, err := b.compare(ctx, time.Second, sys, "cached",
		side{run: attacker(conns, pair), pids: bare.pids()}, side{run: attacker(conns, ours), pids: pids(sys)})
	if err != nil {
		return nil, err
	}
	return []result{
		result{
			What:     "GET, existence cached, 32 connections, against two bare hops",
			Measured: perSecond(c.ours), Against: perSecond(c.yard),
		}.atLeast(c.ratio, 0.6, " ×"),
		result{
			What:     "… CPU of both containers, against the two hops'",
			Measured: millis(c.cpu), Against: millis(c.yardCPU),
		}.atMost(c.cpuRatio, 1.8, " ×"),
	}, nil
}

// uncached compares GETs for which the signer sends a HEAD to storage with azblob's HEADs, on Azurite.
func (b *bench) uncached(ctx context.Context) ([]result, error) {
	sys, stop, err := b.startOnAzurite(ctx, map[string]string{"EXISTENCE_CACHE_TTL": "0s"})
	if err != nil {
		return nil, err
	}
	defer stop()
	picture := pictureOf(100 << 10)
	for _, target := range users(pictures, func(u string) vegeta.Target { return upload(sys.URL, u, "image/png", picture) }) {
		if err := send(ctx, target); err != nil {
			return nil, err
		}
	}
	ours := users(pictures, func(u string) vegeta.Target { return get(sys.URL, u) })
	c, err := b.compare(ctx, time.Second, sys, "uncached",
		side{run: b.azblobLoad(sys, "-head", "-users", fmt.Sprint(pictures), "-conns", fmt.Sprint(conns))}, side{run: attacker(conns, ours), pids: pids(sys)})
	if err != nil {
		return nil, err
	}
	return []result{
		result{
			What:     "GET, existence not cached, 32 connections, against azblob's HEADs",
			Measured: perSecond(c.ours), Against: perSecond(c.yard),
		}.atLeast(c.ratio, 0.95, " ×"),
		{What: "… CPU of both containers, in ms", Measured: millis(c.cpu), Value: c.cpu, Verdict: noBar},
	}, nil
}
