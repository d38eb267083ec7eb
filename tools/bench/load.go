package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"

	"cats.example/local/stack"
)

// sources is the number of source addresses of all load, so that no client reaches its share of the pools.
const sources = 32

// dialFromMany returns a dial function that uses the source addresses in turn.
func dialFromMany() func(ctx context.Context, network, address string) (net.Conn, error) {
	var n atomic.Uint32
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 2, 0, byte(1+n.Add(1)%sources))}}
		return dialer.DialContext(ctx, network, address)
	}
}

// load is the result of one attack.
type load struct {
	n       int
	ok      int // responses with a 2xx status
	seconds float64
	p99     time.Duration
	codes   map[string]int // number of responses by status code; "0" for no response
}

func (l load) rate() float64 { return float64(l.n) / l.seconds }

// share returns the percentage of 2xx responses.
func (l load) share() float64 { return 100 * float64(l.ok) / float64(l.n) }

// attack sends requests to the targets in turn, over conns connections: rate per second, or as fast as possible if rate is 0.
// It returns an error if a response is not a 2xx.
func attack(ctx context.Context, conns int, rate int, duration time.Duration, targets ...vegeta.Target) (load, error) {
	l, err := attempt(ctx, conns, rate, duration, targets...)
	if err == nil && l.ok < l.n {
		err = fmt.Errorf("%s %s: responses by code %v", targets[0].Method, targets[0].URL, l.codes)
	}
	return l, err
}

// attempt is attack without an error for responses other than 2xx.
func attempt(ctx context.Context, conns int, rate int, duration time.Duration, targets ...vegeta.Target) (load, error) {
	transport := &http.Transport{DialContext: dialFromMany(), MaxIdleConnsPerHost: conns, DisableCompression: true}
	defer transport.CloseIdleConnections() // vegeta leaves them open
	attacker := vegeta.NewAttacker(vegeta.Workers(uint64(conns)), vegeta.MaxWorkers(uint64(conns)),
		vegeta.Client(&http.Client{Transport: transport, Timeout: 2 * time.Minute}), vegeta.MaxBody(0))
	defer attacker.Stop()
	var pacer vegeta.Pacer = vegeta.Rate{}
	if rate > 0 {
		pacer = vegeta.ConstantPacer{Freq: rate, Per: time.Second}
	}
	stop := context.AfterFunc(ctx, func() { attacker.Stop() })
	defer stop()
	began := time.Now()
	var metrics vegeta.Metrics
	ok := 0
	for result := range attacker.Attack(vegeta.NewStaticTargeter(targets...), pacer, duration, "") {
		metrics.Add(result)
		if result.Code/100 == 2 {
			ok++
		}
	}
	metrics.Close()
	took := time.Since(began)
	switch {
	case ctx.Err() != nil:
		return load{}, ctx.Err()
	case metrics.Requests == 0:
		return load{}, fmt.Errorf("%s: no response", targets[0].URL)
	}
	return load{int(metrics.Requests), ok, took.Seconds(), metrics.Latencies.P99, metrics.StatusCodes}, nil
}

// side is the yardstick or the system in a comparison.
type side struct {
	run  func(ctx context.Context, turn time.Duration) (load, error) // applies load for one turn
	pids []int                                                       // processes whose CPU time counts
}

// attacker returns a side's run that attacks targets over conns connections.
func attacker(conns int, targets []vegeta.Target) func(context.Context, time.Duration) (load, error) {
	return func(ctx context.Context, turn time.Duration) (load, error) {
		return attack(ctx, conns, 0, turn, targets...)
	}
}

// comparison holds the medians of all rounds.
type comparison struct {
	ours, yard, ratio      float64 // requests a second
	cpu, yardCPU, cpuRatio float64 // CPU time per request, in ms
}

// compare measures yard and ours in short turns, because the machine's speed drifts.
func (b *bench) compare(ctx context.Context, turn time.Duration, sys *stack.System, name string, yard, ours side) (c comparison, err error) {
	wait := b.profile(ctx, sys, name, time.Duration(2*b.rounds)*turn)
	var rates, cpus [2][]float64
	var ratios, cpuRatios []float64
	for range b.rounds {
		var rate, cpu [2]float64
		for i, s := range []side{yard, ours} {
			before, err := cpuOf(s.pids...)
			if err != nil {
				return c, err
			}
			l, err := s.run(ctx, turn)
			if err != nil {
				return c, err
			}
			after, err := cpuOf(s.pids...)
			if err != nil {
				return c, err
			}
			rate[i], cpu[i] = l.rate(), (after-before).Seconds()*1000/float64(l.n)
			rates[i], cpus[i] = append(rates[i], rate[i]), append(cpus[i], cpu[i])
		}
		ratios, cpuRatios = append(ratios, rate[1]/rate[0]), append(cpuRatios, cpu[1]/cpu[0])
	}
	return comparison{
		ours: median(rates[1]), yard: median(rates[0]), ratio: median(ratios),
		cpu: median(cpus[1]), yardCPU: median(cpus[0]), cpuRatio: median(cpuRatios),
	}, wait()
}
