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
	if _, failed := new(load).ask(http.DefaultClient, http.MethodPut, "reader", bytes.NewReader(picture(100_000))); failed != nil {
		t.Fatal(failed)
	}
	var mu sync.Mutex
	answers := map[int]int{}
	ask := func(method, user string, body io.Reader) {
		req, err := http.NewRequestWithContext(ctx, method, api+"/cat/"+user, body)
		if err != nil {
			panic(err)
		}
		code := 0 // no response
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		if resp, err := client.Do(req); err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			code = resp.StatusCode
		}
		mu.Lock()
		defer mu.Unlock()
		answers[code]++
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
	t.Logf("answers by status: %v", answers)
	if answers[http.StatusOK] < 100 {
		t.Error("fewer than 100 requests have succeeded")
	}

	for _, p := range before {
		total := 0.0
		for _, name := range []string{"frontend", "signer"} {
			peak := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindStringSubmatch(inside(t, p, name, "cat /proc/1/status"))
			if peak == nil {
				t.Fatal("no peak memory of " + name)
			}
			kib, err := strconv.ParseFloat(peak[1], 64)
			if err != nil {
				t.Fatal(err)
			}
			c, _ := p.container(t, name)
			t.Logf("%s: %s at most %.1f MiB, limit %s", p.Metadata.Name, name, kib/1024, c.Resources.Limits.Memory)
			total += kib / 1024
		}
		if total > 100 {
			t.Errorf("%s: both containers used %.1f MiB", p.Metadata.Name, total)
		}
	}
	after := settled(t)
	for _, p := range after {
		for _, name := range []string{"frontend", "signer"} {
			_, now := p.container(t, name)
			for _, b := range before {
				if b.Metadata.Name != p.Metadata.Name {
					continue
				}
				if _, then := b.container(t, name); now.RestartCount != then.RestartCount {
					t.Errorf("%s of %s was restarted: %+v", name, p.Metadata.Name, now.LastState.Terminated)
				}
			}
		}
	}
	if before[0].Metadata.Name != after[0].Metadata.Name && before[0].Metadata.Name != after[1].Metadata.Name {
		t.Error("a pod was replaced")
	}
}
