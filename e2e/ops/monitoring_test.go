package ops

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// promAsk asks the API of a Prometheus, and fills in the data of its answer.
func promAsk(ctx context.Context, base, path string, query url.Values, data any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer := struct {
		Status, Error string
		Data          any
	}{Data: data}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return err
	}
	if answer.Status != "success" {
		return errors.New(answer.Error)
	}
	return nil
}

// Every query of the dashboard and every recording rule has something to show, of
// a system that has seen all kinds of requests. Its frontend sends traces, and so is
// scraped in OpenMetrics, the signer in the plain format.
func TestTheDashboardAndTheRulesHaveSomethingToShow(t *testing.T) {
	t.Parallel()
	sys := harness.StartDirect(t, stack.SystemOptions{FrontendEnv: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": newCollector(t).url}})
	prometheus := harness.StartPrometheus(t, sys)
	requests := func() {
		harness.Put(t, sys, "Davyd", harness.Cat)
		harness.Link(t, sys, "Davyd", "")
		harness.Link(t, sys, "Davyd", "?download=cat.png")
		harness.Do(t, http.MethodPut, sys.URL+"/cat/Davyd", "", []byte("text")).Want(t, 415)
		k := harness.NewUploadSession(t, sys, "Davyd", int64(len(harness.Cat)))
		k.Send(t, bytes.NewReader(harness.Cat), int64(len(harness.Cat)))
		k.Commit(t, sys, "Davyd", "").Want(t, 200)
		harness.Do(t, http.MethodGet, sys.URL+"/nothing", "", nil).Want(t, 404)
	}
	fails := func() { // one answer with 5xx, for the queries that are about them
		api := sys.Signer
		api.Kill()
		harness.Do(t, http.MethodGet, sys.URL+"/cat/Davyd", "", nil).Want(t, 503)
		harness.Restart(t, api)
		harness.WantRecovery(t, sys)
	}
	requests()
	queries := map[string]string{}
	text, err := os.ReadFile(harness.Root("k8s", "components", "monitoring", "dashboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	for _, p := range board.Panels {
		for i, target := range p.Targets {
			queries[fmt.Sprintf("%s %d", p.Title, i)] = strings.NewReplacer("$namespace", "cats-api", "$__rate_interval", "1m").Replace(target.Expr)
		}
	}
	var rules struct {
		Groups []struct {
			Rules []struct{ Name, Type, Health, LastError string }
		}
	}
	harness.Eventually(t, func() error {
		if err := promAsk(t.Context(), prometheus, "/api/v1/rules", nil, &rules); err != nil {
			return err
		}
		for _, g := range rules.Groups {
			for _, r := range g.Rules {
				if r.Health != "ok" {
					return fmt.Errorf("rule %s is %s: %s", r.Name, r.Health, r.LastError)
				}
			}
		}
		if len(rules.Groups) != 2 {
			return fmt.Errorf("%d groups of rules", len(rules.Groups))
		}
		return nil
	})
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if r.Type == "recording" {
				queries["rule "+r.Name] = r.Name
			}
		}
	}
	if len(queries) < 30 {
		t.Fatalf("%d queries", len(queries))
	}
	requests() // a rate needs something that changes
	share := queries["Share of 5xx 0"]
	harness.Eventually(t, func() error {
		var data struct{ Result []struct{ Value [2]any } }
		err := promAsk(t.Context(), prometheus, "/api/v1/query", url.Values{"query": {share}}, &data)
		if err == nil && (len(data.Result) != 1 || data.Result[0].Value[1] != "0") {
			err = fmt.Errorf("without a 5xx, %s is %v; want 0", share, data.Result)
		}
		return err
	})
	fails()
	requests()
	for where, q := range queries {
		harness.Eventually(t, func() error {
			var data struct{ Result []struct{ Value [2]any } }
			if err := promAsk(t.Context(), prometheus, "/api/v1/query", url.Values{"query": {q}}, &data); err != nil {
				return fmt.Errorf("%s: %s: %w", where, q, err)
			}
			if len(data.Result) == 0 {
				return fmt.Errorf("%s: %s finds nothing", where, q)
			}
			return nil
		})
	}
	harness.Eventually(t, func() error {
		now := time.Now()
		var data []struct {
			Exemplars []struct{ Labels map[string]string }
		}
		err := promAsk(t.Context(), prometheus, "/api/v1/query_exemplars", url.Values{
			"query": {"cats_frontend_http_request_duration_seconds_bucket"},
			"start": {fmt.Sprint(now.Add(-time.Hour).Unix())}, "end": {fmt.Sprint(now.Add(time.Hour).Unix())},
		}, &data)
		if err == nil && (len(data) == 0 || len(data[0].Exemplars[0].Labels["trace_id"]) != 32) {
			err = fmt.Errorf("the exemplars are %v", data)
		}
		return err
	})
}
