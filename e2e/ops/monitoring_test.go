package ops

import (
	"encoding/json"
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

// Every query of the dashboard and every recording rule finds series of a system with requests of all kinds. Its frontend exports
// traces, so that Prometheus reads its metrics in OpenMetrics; it reads those of the signer in the plain format.
func TestDashboardAndRulesFindSeries(t *testing.T) {
	t.Parallel()
	sys := harness.StartDirect(t, stack.SystemOptions{FrontendEnv: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": newCollector(t).url}})
	prometheus := harness.StartPrometheus(t, sys)
	// ask asks the API of Prometheus until enough is true for the data of its response.
	ask := func(path string, query url.Values, data any, enough func() bool) {
		t.Helper()
		harness.Eventually(t, func() error {
			response := struct {
				Status, Error string
				Data          any
			}{Data: data}
			a, err := harness.TryWith(t.Context(), http.DefaultClient, "GET", prometheus+"/api/v1/"+path+"?"+query.Encode(), "", nil)
			if err != nil {
				return err
			}
			if err := json.Unmarshal(a.Body, &response); err != nil || response.Status != "success" || !enough() {
				return fmt.Errorf("%s %v: %s: %v", path, query, a.Body, err)
			}
			return nil
		})
	}
	requests := func() {
		harness.Put(t, sys, "Davyd", harness.Cat)
		harness.Link(t, sys, "Davyd", "")
		harness.Link(t, sys, "Davyd", "?download=cat.png")
		harness.Do(t, http.MethodPut, sys.URL+"/cat/Davyd", "", []byte("text")).Want(t, 415)
		harness.Stage(t, sys, "Davyd", harness.Cat).Commit(t, sys, "Davyd", "").Want(t, 200)
		harness.Do(t, http.MethodGet, sys.URL+"/nothing", "", nil).Want(t, 404)
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
			queries[fmt.Sprint(p.Title, i)] = strings.NewReplacer("$namespace", "cats-api", "$__rate_interval", "1m").Replace(target.Expr)
		}
	}
	var rules struct {
		Groups []struct {
			Rules []struct{ Name, Type, Health string }
		}
	}
	ask("rules", nil, &rules, func() bool {
		healthy := len(rules.Groups) == 2
		for _, g := range rules.Groups {
			for _, r := range g.Rules {
				healthy = healthy && r.Health == "ok"
				if r.Type == "recording" {
					queries[r.Name] = r.Name
				}
			}
		}
		return healthy
	})
	if len(queries) < 30 {
		t.Fatalf("%d queries", len(queries))
	}
	requests() // a rate needs changes
	var series struct{ Result []struct{ Value [2]any } }
	ask("query", url.Values{"query": {queries["Share of 5xx0"]}}, &series,
		func() bool { return len(series.Result) == 1 && series.Result[0].Value[1] == "0" })
	sys.Signer.Kill() // for one response with 5xx
	harness.Do(t, http.MethodGet, sys.URL+"/cat/Davyd", "", nil).Want(t, 503)
	harness.Restart(t, sys.Signer)
	harness.WantRecovery(t, sys)
	requests()
	for _, q := range queries {
		ask("query", url.Values{"query": {q}}, &series, func() bool { return len(series.Result) > 0 })
	}
	var exemplars []struct {
		Exemplars []struct{ Labels map[string]string }
	}
	now := time.Now()
	ask("query_exemplars", url.Values{
		"query": {"cats_frontend_http_request_duration_seconds_bucket"},
		"start": {fmt.Sprint(now.Add(-time.Hour).Unix())}, "end": {fmt.Sprint(now.Add(time.Hour).Unix())},
	}, &exemplars, func() bool { return len(exemplars) > 0 && len(exemplars[0].Exemplars[0].Labels["trace_id"]) == 32 })
}
