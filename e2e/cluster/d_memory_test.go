//go:build cluster

package cluster

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"cats.example/e2e/harness"
)

// The load exceeds the limits. The test checks the memory, not that every upload succeeds.
func TestMemoryStaysWithinLimitsUnderOverload(t *testing.T) {
	before := settled(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, content := &load{t: t, ctx: ctx}, harness.Random(30<<20, 1)
	if a, ok := l.ask(http.DefaultClient, http.MethodPut, "reader", bytes.NewReader(content[:100_000])); !ok {
		t.Fatalf("%s", a.Body)
	}
	var all sync.WaitGroup
	run := func(clients int, method, user string, body func() io.Reader) {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		for i := range clients {
			all.Go(func() {
				for ctx.Err() == nil {
					_, _ = l.ask(client, method, fmt.Sprintf(user, i), body())
				}
			})
		}
	}
	run(64, http.MethodPut, "large-%d", func() io.Reader { return bytes.NewReader(content) })
	run(64, http.MethodPut, "slow-%d", func() io.Reader { return &trickle{content: content, piece: 1 << 10, every: time.Second} })
	run(4, http.MethodGet, "reader%.0d", func() io.Reader { return nil })
	all.Wait()
	if t.Logf("%d requests have succeeded, %d have failed", l.answered, len(l.failures)); l.answered < 100 {
		t.Error("fewer than 100 requests have succeeded")
	}

	after := settled(t)
	for name, p := range before {
		if _, ok := after[name]; !ok {
			t.Fatalf("pod %s was replaced", name)
		}
		total := 0.0
		for _, container := range []string{"frontend", "signer"} {
			if now := status(t, after[name], container); now.RestartCount != status(t, p, container).RestartCount {
				t.Errorf("%s of %s was restarted: %+v", container, name, now.LastState.Terminated)
			}
			kib, err := strconv.ParseFloat(strings.TrimSpace(inside(t, p, container, "awk '/VmHWM/ {print $2}' /proc/1/status")), 64)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: %s at most %.1f MiB", name, container, kib/1024)
			total += kib / 1024
		}
		if total > 100 {
			t.Errorf("%s: both containers used %.1f MiB", name, total)
		}
	}
}
