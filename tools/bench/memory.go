package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"cats.example/local/stack"
)

const (
	probeRate  = 200     // GETs per second, beside other load
	slowRate   = 4 << 10 // bytes per second of one slow client
	settleTime = 2 * time.Second

	// answeredBar is the minimum percentage of GETs with a 200 response.
	answeredBar = 99
)

// idle measures the start of a system and its memory when idle.
func (b *bench) idle(ctx context.Context) ([]result, error) {
	var seconds, sizes []float64
	for range 3 {
		began := time.Now()
		sys, err := b.start(ctx, b.stack, onSink, nil)
		if err != nil {
			return nil, err
		}
		seconds = append(seconds, time.Since(began).Seconds())
		time.Sleep(settleTime)
		sum := 0.0
		for _, pid := range pids(sys) {
			m, err := memoryOf(pid)
			if err != nil {
				return nil, err
			}
			sum += m.rss
		}
		sizes = append(sizes, sum)
		if err := sys.Close(ctx); err != nil {
			return nil, err
		}
	}
	return []result{
		result{What: "start of both containers until ready, with token and key"}.atMost(median(seconds), 1, " s"),
		result{What: "idle memory, both containers"}.atMost(median(sizes), 48, " MiB"),
	}, nil
}

// memory measures the peak memory under 64 fast uploads, 64 slow ones and GETs, without a memory limit. Another process sends
// the fast uploads; it fails unless all of them are stored.
func (b *bench) memory(ctx context.Context) ([]result, error) {
	const fast, slow, size = 64, 64, 30 * mib
	sys, err := b.start(ctx, b.stack, onSink, map[string]string{"GOMEMLIMIT": "", "AUTOMEMLIMIT": "off"})
	if err != nil {
		return nil, err
	}
	defer end(ctx, sys)
	if err := b.checkUnlimited(ctx, sys); err != nil {
		return nil, err
	}
	wait := b.profile(ctx, sys, "memory", 5*time.Second)
	slowOnes, err := connect(ctx, sys.URL, repeat(slow, slowPUT(size, 0, slowRate))...)
	if err != nil {
		return nil, err
	}
	defer slowOnes.close()
	time.Sleep(settleTime)
	flooding, stop := context.WithCancel(ctx)
	defer stop()
	flooder, err := startPeer(ctx, "flood", "BENCH_NEXT="+sys.URL, fmt.Sprint("BENCH_COUNT=", fast), fmt.Sprint("BENCH_SIZE=", size))
	if err != nil {
		return nil, err
	}
	defer flooder.stop()
	var gets sync.WaitGroup
	var getsErr error
	gets.Go(func() {
		for flooding.Err() == nil && getsErr == nil {
			_, getsErr = attack(ctx, 4, probeRate, time.Second, get(sys.URL, "probe"))
		}
	})
	took, err := flooder.floodTime()
	stop()
	gets.Wait()
	if err := errors.Join(err, getsErr, wait()); err != nil {
		return nil, err
	}
	_, _, peak, err := peaks(sys)
	if err != nil {
		return nil, err
	}
	peak.What = "64 PUTs of 30 MiB at once, 64 at 4 KiB/s, GETs, no memory limit: peak memory (VmHWM) of both containers"
	return []result{
		peak.atMost(peak.Value, 100, " MiB"),
		result{What: "… fast uploads stored", Measured: mibPerSecond(fast * size / mib / took.Seconds())}.exactly(fast, fast), // else floodTime fails
		result{What: "… slow uploads in progress at the end"}.exactly(float64(slow-slowOnes.ended.Load()), slow),
	}, nil
}

// pools fills all pools with slow clients, under the limits of the manifests: upload slots with each kind of upload, the
// signer's buffers, the slots of commits, and all but 32 of the 512 requests and 24 of the 1,024 connections. Each upload
// first sends a burst that fills the buffers, and is then just fast enough to keep its slot.
func (b *bench) pools(ctx context.Context) ([]result, error) {
	sys, err := b.start(ctx, b.stack, onSink, map[string]string{"MAX_DIRECT_UPLOAD_SIZE": "1GiB"})
	if err != nil {
		return nil, err
	}
	defer end(ctx, sys)
	const rate, buffered = 24 << 10, 7 * mib / 2 // must not fill the buffer of 4 MiB
	all := slices.Concat(
		repeat(472, silentClient),
		repeat(288, slowReader),
		repeat(16, slowForm(4*mib, buffered, rate)),
		repeat(16, slowForm(10*mib, mib, rate)),
		repeat(16, slowChunked(buffered, rate)),
		repeat(80, slowPUT(30*mib, mib, rate)),
		repeat(48, slowPUT(30*mib, mib, rate)), // take the slots of rejected uploads
	)
	for range 64 {
		all = append(all, commit())
	}
	wait := b.profile(ctx, sys, "pools", 5*time.Second)
	crowd, err := connect(ctx, sys.URL, all...)
	if err != nil {
		return nil, err
	}
	defer crowd.close()
	time.Sleep(settleTime)
	gets, err := attempt(ctx, 4, probeRate, 12*time.Second, get(sys.URL, "probe"))
	if err := errors.Join(err, wait()); err != nil {
		return nil, err
	}
	for i, p := range []*stack.Process{sys.Frontend, sys.Signer} {
		select {
		case <-p.Done():
			return nil, fmt.Errorf("the %s exited: %w", []string{"frontend", "signer"}[i], p.Ended())
		default:
		}
	}
	frontend, signer, _, err := peaks(sys)
	if err != nil {
		return nil, err
	}
	return []result{
		result{What: "all pools full: GETs answered with 200", Measured: fmt.Sprintf("%d of %d", gets.ok, gets.n)}.atLeast(gets.share(), answeredBar, " %"),
		result{What: "… peak memory (VmHWM) of the frontend, against its limit in the manifests"}.atMost(frontend, frontendLimit/mib, " MiB"),
		result{What: "… of the signer"}.atMost(signer, signerLimit/mib, " MiB"),
		{What: "… connections in use at the end", Value: float64(len(all)) - float64(crowd.ended.Load()), Verdict: noBar},
	}, nil
}

// headers measures connections with an unfinished header: with the maximum number of lines, and with thousands.
func (b *bench) headers(ctx context.Context) (results []result, err error) {
	for _, lines := range []int{128, 2500} {
		rows, err := b.longHeaders(ctx, lines)
		if results = append(results, rows...); err != nil {
			return results, err
		}
	}
	return results, nil
}

func (b *bench) longHeaders(ctx context.Context, lines int) ([]result, error) {
	const n = 512
	sys, err := b.start(ctx, b.stack, onSink, nil)
	if err != nil {
		return nil, err
	}
	defer end(ctx, sys)
	if err := send(ctx, get(sys.URL, "probe")); err != nil {
		return nil, err
	}
	crowd, err := connect(ctx, sys.URL, repeat(n, longHeader(lines))...)
	if err != nil {
		return nil, err
	}
	defer crowd.close()
	time.Sleep(settleTime)
	gets, err := attempt(ctx, 4, probeRate, 5*time.Second, get(sys.URL, "probe"))
	if err != nil {
		return nil, err
	}
	frontend, _, peak, err := peaks(sys)
	if err != nil {
		return nil, err
	}
	peak.What = fmt.Sprintf("%d connections with unfinished headers of %d lines: peak memory (VmHWM) of both containers", n, lines)
	return []result{
		peak.atMost(peak.Value, 100, " MiB"),
		{What: "… of the frontend, whose limit in the manifests is 60 MiB", Value: frontend, Verdict: noBar},
		result{What: "… p99 of GETs"}.atMost(gets.p99.Seconds()*1000, 20, " ms"),
		result{What: "… GETs answered with 200", Measured: fmt.Sprintf("%d of %d", gets.ok, gets.n)}.atLeast(gets.share(), answeredBar, " %"),
	}, nil
}

// slow measures how many idle connections and slow uploads from many addresses affect other clients.
func (b *bench) slow(ctx context.Context) ([]result, error) {
	const idle, slow = 1000, 120
	sys, err := b.start(ctx, b.stack, onSink, nil)
	if err != nil {
		return nil, err
	}
	defer end(ctx, sys)
	picture := pictureOf(10 * mib)
	if _, err := uploadTime(ctx, sys, picture); err != nil { // warms up
		return nil, err
	}
	alone, err := uploadTime(ctx, sys, picture)
	if err != nil {
		return nil, err
	}
	wait := b.profile(ctx, sys, "slow", 10*time.Second)
	crowd, err := connect(ctx, sys.URL, append(repeat(slow, slowPUT(30*mib, 0, slowRate)), repeat(idle, idleClient)...)...)
	if err != nil {
		return nil, err
	}
	defer crowd.close()
	time.Sleep(settleTime)
	var p99 []float64
	var gets load
	for range 3 {
		l, err := attempt(ctx, 4, probeRate, 5*time.Second, get(sys.URL, "probe"))
		if err != nil {
			return nil, err
		}
		p99 = append(p99, l.p99.Seconds()*1000)
		gets.n, gets.ok = gets.n+l.n, gets.ok+l.ok
	}
	with, err := uploadTime(ctx, sys, picture)
	if err := errors.Join(err, wait()); err != nil {
		return nil, err
	}
	_, _, peak, err := peaks(sys)
	if err != nil {
		return nil, err
	}
	peak.What = "1,000 idle connections and 120 uploads at 4 KiB/s, from many addresses: peak memory (VmHWM) of both containers"
	return []result{
		peak.atMost(peak.Value, 100, " MiB"),
		result{What: "… p99 of GETs"}.atMost(median(p99), 20, " ms"),
		result{What: "… GETs answered with 200", Measured: fmt.Sprintf("%d of %d", gets.ok, gets.n)}.atLeast(gets.share(), answeredBar, " %"),
		result{
			What:     "… a PUT of 10 MiB, against the same without them",
			Measured: mibPerSecond(10 / with), Against: mibPerSecond(10 / alone),
		}.atLeast(alone/with, 0.5, " ×"),
		{What: "… connections open at the end", Value: float64(idle+slow) - float64(crowd.ended.Load()), Verdict: noBar},
	}, nil
}

// uploadTime returns the median time of nine consecutive uploads, in seconds.
func uploadTime(ctx context.Context, sys *stack.System, picture []byte) (seconds float64, err error) {
	var took []float64
	for range 9 {
		began := time.Now()
		if err := send(ctx, upload(sys.URL, "fast", "image/png", picture)); err != nil {
			return 0, err
		}
		took = append(took, time.Since(began).Seconds())
	}
	return median(took), nil
}

// peaks returns the peak memory of both processes in MiB, and a row with the sum.
func peaks(sys *stack.System) (frontend, signer float64, sum result, err error) {
	f, err := memoryOf(sys.Frontend.Pid())
	if err != nil {
		return 0, 0, sum, err
	}
	s, err := memoryOf(sys.Signer.Pid())
	return f.peak, s.peak, result{Measured: fmt.Sprintf("%.0f + %.0f MiB", f.peak, s.peak), Value: f.peak + s.peak}, err
}
