package main

import (
	"context"
	"fmt"
	"net/url"
	"sync"
	"time"
)

// step runs do. It prints what it does, the elapsed time every 5 s, and the result.
func (l *local) step(ctx context.Context, what string, do func() error) error {
	began := time.Now()
	l.printf("%s …", what)
	done := make(chan struct{})
	var progress sync.WaitGroup
	progress.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(5 * time.Second):
				l.printf(" %d s …", int(time.Since(began).Seconds()))
			}
		}
	})
	err := do()
	close(done)
	progress.Wait()
	switch {
	case err != nil && ctx.Err() != nil:
		l.printf(" interrupted\n")
	case err != nil:
		l.printf(" failed\n")
	default:
		l.printf(" %.1f s\n", time.Since(began).Seconds())
	}
	return err
}

// line prints a log line, once everything has started.
func (l *local) line(name, line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.following {
		_, _ = fmt.Fprintf(l.out, "%-8s | %s\n", name, line) // output reports a closed reader
	}
}

func (l *local) printf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = fmt.Fprintf(l.out, format, args...) // output reports a closed reader
}

// queries are examples for Prometheus.
var queries = []string{
	"sum by (route, method, code) (rate(cats_frontend_http_requests_total[1m]))",
	"histogram_quantile(0.99, sum by (le, operation) (rate(cats_signer_storage_request_duration_seconds_bucket[1m])))",
}

// ready prints the URLs and some commands to try. From then on, log lines are shown.
func (l *local) ready() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.following = true
	row := func(name, format string, args ...any) {
		fmt.Fprintf(l.out, "  %-16s %s\n", name, fmt.Sprintf(format, args...))
	}
	public := fmt.Sprintf("localhost:%d", l.cfg.FrontendPort)
	fmt.Fprintf(l.out, "\nready after %.1f s\n\n", time.Since(l.began).Seconds())
	row("page", "http://%s/", public)
	row("public API", "http://%s/cat/USER; reference: http://%[1]s/docs", public)
	row("metrics, health", "http://localhost:%d (frontend), http://localhost:%d (signer): /metrics /livez /readyz", l.cfg.FrontendOpsPort, l.cfg.SignerOpsPort)
	row("signer", "%s (for the frontend only)", l.system.SignerAPI)
	if l.stack != nil {
		row("storage", "%s (signed URLs only)", l.stack.FrontURL)
		row("Azurite", "%s (needs a token and --cacert .local/ca.pem; stores everything in memory)", l.stack.Storage.URL)
	} else {
		row("storage", "%s", l.cfg.AccountURL)
	}
	if l.prometheus != nil {
		base := "http://" + l.prometheus.Address("web")
		row("Prometheus", "%s/targets, %[1]s/alerts, example queries:", base)
		for _, query := range queries {
			row("", "%s/graph?g0.tab=0&g0.range_input=15m&g0.expr=%s", base, url.QueryEscape(query))
		}
		row("Grafana", "Dashboards, New, Import: k8s/components/monitoring/dashboard.json, with %s as data source", base)
	}
	row("logs", ".local/logs")
	fmt.Fprintf(l.out, "\nTry in another terminal:\n\n")
	for _, try := range []struct{ command, comment string }{
		{"curl -s -F 'file=@e2e/testdata/cat.png' " + public + "/cat/Davyd", "store a picture"},
		{"curl -s " + public + "/cat/Davyd", "get a signed URL of it"},
		{"curl -s -L " + public + "/cat/Davyd/picture -o copy.png", "download it by a redirect to a signed URL"},
		{"curl -s -X DELETE " + public + "/cat/Davyd", "delete it"},
		{"CATS_SERVER=http://" + public + " bin/cats put Davyd e2e/testdata/cat.png", "do the same with the command cats"},
		{fmt.Sprintf("curl -s localhost:%d/readyz localhost:%d/readyz", l.cfg.FrontendOpsPort, l.cfg.SignerOpsPort), "check that both are ready"},
		{fmt.Sprintf("curl -s localhost:%d/metrics | grep ^cats_", l.cfg.SignerOpsPort), "show metrics of the signer"},
	} {
		fmt.Fprintf(l.out, "  %-68s # %s\n", try.command, try.comment)
	}
	fmt.Fprintf(l.out, "\nThe logs follow. Press Ctrl-C to stop everything.\n\n")
}
