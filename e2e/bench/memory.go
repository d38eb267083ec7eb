package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"cats.example/local/stand"
)

const (
	probeRate    = 100      // GETs a second, while something else goes on
	memoryBar    = 100.0    // MiB of both containers
	restBar      = 40.0     // MiB of both containers
	slowBody     = 32 * mib // what a slow client announces
	slowRate     = 1 << 10  // bytes a second of each
	slowHeader   = "PUT /cat/USER HTTP/1.1\r\nHost: cats\r\nContent-Type: image/png\r\nContent-Length: 33554432\r\n\r\n" + pngMagic
	halfHeader   = "PUT /cat/USER HTTP/1.1\r\nHost: cats\r\nContent-Type: image/png\r\n"
	settleTime   = 2 * time.Second
	startTimeBar = 1.0 // seconds
)

// rest starts a system and tells how long that takes and what it holds when it has
// nothing to do.
func (b *bench) rest(ctx context.Context) error {
	var seconds, held []float64
	for range b.rounds {
		began := time.Now()
		sys, err := b.start(ctx, onSink, nil)
		if err != nil {
			return err
		}
		seconds = append(seconds, time.Since(began).Seconds())
		time.Sleep(settleTime)
		now, err := usageOf(pids(sys)...)
		if err != nil {
			return err
		}
		held = append(held, float64(now.rss)/mib)
		if err := sys.Close(ctx); err != nil {
			return err
		}
	}
	b.add(result{What: "start to ready of both, token and key included"}.atMost(median(seconds), startTimeBar, " s"))
	b.add(result{What: "memory at rest, both containers"}.atMost(median(held), restBar, " MiB"))
	return nil
}

// idle is how a system answers when it has little to do: GETs, and one upload.
func (b *bench) idle(ctx context.Context, sys *stand.System) (gets load, one time.Duration, err error) {
	if err := put(ctx, sys.URL, "probe", "image/png", pictureOf(100<<10)); err != nil {
		return gets, 0, err
	}
	if _, err := attack(ctx, 4, probeRate, time.Second, get(sys.URL, "probe")); err != nil { // connections, and the code's pages
		return gets, 0, err
	}
	if gets, err = attack(ctx, 4, probeRate, max(b.duration, 8*time.Second), get(sys.URL, "probe")); err != nil {
		return gets, 0, err
	}
	one, err = timed(ctx, sys, pictureOf(10*mib))
	return gets, one, err
}

// timed is how long one upload takes, the median of five.
func timed(ctx context.Context, sys *stand.System, picture []byte) (time.Duration, error) {
	var took []float64
	for range 5 {
		began := time.Now()
		if err := put(ctx, sys.URL, "fast", "image/png", picture); err != nil {
			return 0, err
		}
		took = append(took, time.Since(began).Seconds())
	}
	return time.Duration(median(took) * float64(time.Second)), nil
}

// memory is 64 uploads of 50 MiB at once, 64 slow ones and GETs. The uploads are
// made by a process of their own, so that they and the GETs do not wait for each
// other within this one.
func (b *bench) memory(ctx context.Context) error {
	const uploads, slow, size = 64, 64, 50 * mib
	sys, err := b.start(ctx, onSink, nil)
	if err != nil {
		return err
	}
	defer end(ctx, sys)
	quiet, _, err := b.idle(ctx, sys)
	if err != nil {
		return err
	}
	bare, err := b.bareUnderFlood(ctx, uploads, size)
	if err != nil {
		return err
	}
	alone, err := b.flood(ctx, sys.URL, uploads, size, nil)
	if err != nil {
		return err
	}
	clients, err := slowClients(ctx, sys.URL, slow, slowHeader, slowRate)
	if err != nil {
		return err
	}
	defer clients.close()
	time.Sleep(settleTime)
	if err := resetPeak(pids(sys)...); err != nil {
		return err
	}
	var busy load
	var mixed time.Duration
	if err := b.profile(ctx, sys, "memory", func() (err error) {
		mixed, err = b.flood(ctx, sys.URL, uploads, size, func(ctx context.Context) (err error) {
			busy, err = attack(ctx, 4, probeRate, alone, get(sys.URL, "probe"))
			return err
		})
		return err
	}); err != nil {
		return err
	}
	if err := b.addPeak(sys, "64 × 50 MiB at once, 64 slow ones and GETs"); err != nil {
		return err
	}
	b.add(result{
		What:     "… p99 of the GETs, against idle",
		Measured: millis(busy.p99), Against: millis(quiet.p99),
	}.atMost(float64(busy.p99)/float64(quiet.p99), 10, " ×"))
	b.add(result{
		What:     "… against those of two bare hops while a pipe that takes the MD5 has the same uploads",
		Measured: millis(busy.p99), Against: millis(bare.p99), Value: float64(busy.p99) / float64(bare.p99), Verdict: told,
	})
	b.add(result{
		What:     "… the fast uploads, against the same without slow ones",
		Measured: fmt.Sprintf("%.0f MiB/s", uploads*size/mib/mixed.Seconds()), Against: fmt.Sprintf("%.0f MiB/s", uploads*size/mib/alone.Seconds()),
	}.atLeast(alone.Seconds()/mixed.Seconds(), 0.5, " ×"))
	b.add(result{What: "… slow ones still under way at the end, of 64", Value: float64(slow - clients.ended.Load()), Verdict: told})
	return nil
}

// bareUnderFlood is how two bare hops answer while a bare pipe has the uploads:
// what of the wait is the machine's, whose cores are all taken.
func (b *bench) bareUnderFlood(ctx context.Context, n, size int) (gets load, err error) {
	pair, at, err := startPair(ctx)
	if err != nil {
		return gets, err
	}
	defer pair.stop()
	pipe, to, err := b.startPipe(ctx, "BENCH_MD5=1")
	if err != nil {
		return gets, err
	}
	defer pipe.stop()
	_, err = b.flood(ctx, to, n, size, func(ctx context.Context) (err error) {
		gets, err = attack(ctx, 4, probeRate, b.duration, get(at, "probe"))
		return err
	})
	return gets, err
}

// flood uploads n pictures of size bytes at once, while during runs too, and
// returns how long the uploads took.
func (b *bench) flood(ctx context.Context, url string, n, size int, during func(context.Context) error) (time.Duration, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	flooder, err := startPeer(ctx, "flood", "BENCH_NEXT="+url, fmt.Sprint("BENCH_COUNT=", n), fmt.Sprint("BENCH_SIZE=", size))
	if err != nil {
		return 0, err
	}
	defer flooder.stop()
	var other sync.WaitGroup
	var duringErr error
	if during != nil {
		other.Go(func() { duringErr = during(ctx) })
	}
	took, err := flooder.flooded()
	other.Wait()
	if err == nil {
		err = duringErr
	}
	return took, err
}

// addPeak adds what sys held at most since resetPeak.
func (b *bench) addPeak(sys *stand.System, during string) error {
	var said [2]float64
	for i, pid := range pids(sys) {
		u, err := usageOf(pid)
		if err != nil {
			return err
		}
		said[i] = float64(u.peak) / mib
	}
	b.add(result{
		What:     during + ": peak memory (VmHWM) of both containers",
		Measured: fmt.Sprintf("%.0f + %.0f MiB", said[0], said[1]),
	}.atMost(said[0]+said[1], memoryBar, " MiB"))
	return nil
}

func millis(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }

// stalled is 1,000 connections that send nothing more, half of them amid a header
// and half amid a picture, and 200 clients at 1 KiB/s.
func (b *bench) stalled(ctx context.Context) error {
	sys, err := b.start(ctx, onSink, nil)
	if err != nil {
		return err
	}
	defer end(ctx, sys)
	quiet, alone, err := b.idle(ctx, sys)
	if err != nil {
		return err
	}
	if err := resetPeak(pids(sys)...); err != nil {
		return err
	}
	for _, c := range []struct {
		n, rate int
		header  string
	}{{500, 0, halfHeader}, {500, 0, slowHeader}, {200, slowRate, slowHeader}} {
		clients, err := slowClients(ctx, sys.URL, c.n, c.header, c.rate)
		if err != nil {
			return err
		}
		defer clients.close()
	}
	time.Sleep(settleTime)
	var busy load
	var with time.Duration
	if err := b.profile(ctx, sys, "stalled", func() (err error) {
		if busy, err = attack(ctx, 4, probeRate, max(b.duration, 8*time.Second), get(sys.URL, "probe")); err != nil {
			return err
		}
		with, err = timed(ctx, sys, pictureOf(10*mib))
		return err
	}); err != nil {
		return err
	}
	if err := b.addPeak(sys, "1,000 stalled and 200 slow clients"); err != nil {
		return err
	}
	b.add(result{What: "… p99 of the GETs, against idle", Measured: millis(busy.p99), Against: millis(quiet.p99)}.atMost(float64(busy.p99)/float64(quiet.p99), 10, " ×"))
	b.add(result{What: "… a PUT of 10 MiB, against idle", Measured: millis(with), Against: millis(alone)}.atMost(float64(with)/float64(alone), 2, " ×"))
	return nil
}
