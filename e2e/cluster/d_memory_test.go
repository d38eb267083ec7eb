//go:build cluster

package cluster

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"
)

// The load exceeds the limits. The test checks the memory, not that every upload succeeds.
func TestMemoryStaysWithinLimitsUnderOverload(t *testing.T) {
	const large, slow, readers = 64, 64, 4
	before := settled(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	content := picture(30 << 20)
	if _, failed := (&load{ctx: ctx}).ask(http.DefaultClient, http.MethodPut, "reader", bytes.NewReader(picture(100_000))); failed != nil {
		t.Fatal(failed)
	}
	l := &load{ctx: ctx}
	ask := func(method, user string, body io.Reader) {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		_, _ = l.ask(client, method, user, body)
	}
	var all sync.WaitGroup
	for i := range large {
		all.Go(func() {
			for ctx.Err() == nil {
				ask(http.MethodPut, fmt.Sprintf("large-%d", i), bytes.NewReader(content))
			}
		})
	}
	for i := range slow {
		all.Go(func() {
			for ctx.Err() == nil {
				ask(http.MethodPut, fmt.Sprintf("slow-%d", i), &trickle{content: content, piece: 1 << 10, every: time.Second})
			}
		})
	}
	for range readers {
		all.Go(func() {
			for ctx.Err() == nil {
				ask(http.MethodGet, "reader", nil)
			}
		})
	}
	all.Wait()
	statuses := map[int]int{http.StatusOK: l.answered}
	for _, f := range l.failures {
		statuses[f.status]++ // 0 without a response
	}
	t.Logf("responses by status: %v", statuses)
	if l.answered < 100 {
		t.Error("fewer than 100 requests have succeeded")
	}

	after := settled(t)
	for _, p := range before {
		if _, ok := after[p.Metadata.Name]; !ok {
			t.Fatalf("pod %s was replaced", p.Metadata.Name)
		}
		total := 0.0
		for _, name := range []string{"frontend", "signer"} {
			c, then := containerOf(t, p, name)
			if _, now := containerOf(t, after[p.Metadata.Name], name); now.RestartCount != then.RestartCount {
				t.Errorf("%s of %s was restarted: %+v", name, p.Metadata.Name, now.LastState.Terminated)
			}
			peak := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindStringSubmatch(inside(t, p, name, "cat /proc/1/status"))
			if peak == nil {
				t.Fatal("no peak memory of " + name)
			}
			kib, err := strconv.ParseFloat(peak[1], 64)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: %s at most %.1f MiB, limit %s", p.Metadata.Name, name, kib/1024, c.Resources.Limits.Memory)
			total += kib / 1024
		}
		if total > 100 {
			t.Errorf("%s: both containers used %.1f MiB", p.Metadata.Name, total)
		}
	}
}
