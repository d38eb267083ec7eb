// Package monitoring tests what is shipped for Prometheus and Grafana.
package monitoring

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

type ruleFile struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name   string            `json:"name"`
		Labels map[string]string `json:"labels"`
	} `json:"metadata"`
	Spec struct {
		Groups []struct {
			Name  string `json:"name"`
			Rules []rule `json:"rules"`
		} `json:"groups"`
	} `json:"spec"`
}

type rule struct {
	Record      string            `json:"record,omitempty"`
	Alert       string            `json:"alert,omitempty"`
	Expr        string            `json:"expr"`
	For         string            `json:"for,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// testFiles are the tests of the rules, for promtool.
var testFiles = []string{"rules_test.yaml", "rules_days_test.yaml"}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func rules(t *testing.T) (all []rule, file ruleFile) {
	t.Helper()
	if err := yaml.UnmarshalStrict(read(t, "prometheusrule.yaml"), &file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Spec.Groups {
		all = append(all, g.Rules...)
	}
	return all, file
}

// promtool runs it in a folder with the rules as Prometheus reads them, and the
// tests of the rules.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	promtoolWith(t, nil, args...)
}

// promtoolWith is promtool with further files in the folder, by name.
func promtoolWith(t *testing.T, further map[string][]byte, args ...string) {
	t.Helper()
	if _, err := exec.LookPath("promtool"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("promtool is missing: it is in Debian's package prometheus")
		}
		t.Skip("promtool is missing: it is in Debian's package prometheus")
	}
	dir := t.TempDir()
	_, file := rules(t)
	groups, err := yaml.Marshal(file.Spec)
	if err != nil {
		t.Fatal(err)
	}
	// Debian's Prometheus is built without service discovery in Kubernetes; that part
	// is tried out on a cluster.
	scrape := regexp.MustCompile(`(?s)kubernetes_sd_configs:.*?\n    relabel_configs:`).
		ReplaceAll(read(t, "scrape_configs.yaml"), []byte("static_configs: [{targets: [localhost:8090]}]\n    relabel_configs:"))
	files := map[string][]byte{"rules.yaml": groups, "prometheus.yaml": scrape}
	// Where an alert is evaluated before its recordings, it sees those of the step
	// before, which at steps of more than five minutes are stale.
	order := "group_eval_order:\n"
	for _, g := range file.Spec.Groups {
		order += "- " + g.Name + "\n"
	}
	for _, name := range testFiles {
		files[name] = append([]byte(order), read(t, name)...)
	}
	maps.Copy(files, further)
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "promtool", args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestPromtoolFindsNothingWrong(t *testing.T) {
	promtool(t, "check", "rules", "--lint=all", "--lint-fatal", "rules.yaml")
	promtool(t, "check", "config", "prometheus.yaml")
}

func TestAlertsFireWhenTheyShouldAndNotElse(t *testing.T) {
	promtool(t, "test", "rules", testFiles[0], testFiles[1])

	var tests struct {
		Tests []struct {
			AlertRuleTest []struct {
				Alertname string `json:"alertname"`
				ExpAlerts []any  `json:"exp_alerts"`
			} `json:"alert_rule_test"`
		} `json:"tests"`
	}
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, file := range testFiles {
		if err := yaml.Unmarshal(read(t, file), &tests); err != nil {
			t.Fatal(err)
		}
		for _, each := range tests.Tests {
			for _, a := range each.AlertRuleTest {
				if len(a.ExpAlerts) > 0 {
					fires[a.Alertname] = true
				} else {
					silent[a.Alertname] = true
				}
			}
		}
	}
	all, _ := rules(t)
	alerts := 0
	for _, r := range all {
		if r.Alert == "" {
			continue
		}
		alerts++
		if !fires[r.Alert] || !silent[r.Alert] {
			t.Errorf("%s: tested firing %v, silent %v; want both", r.Alert, fires[r.Alert], silent[r.Alert])
		}
	}
	if alerts < 10 {
		t.Errorf("%d alerts", alerts)
	}
}

// The windows of one objective differ in their length, and in nothing else.
func TestTheWindowsOfAnObjectiveAreOfOneKind(t *testing.T) {
	all, _ := rules(t)
	kinds := map[string]string{}
	windows := 0
	for _, r := range all {
		name := regexp.MustCompile(`^(.*_rate)(\d+[mhd])$`).FindStringSubmatch(r.Record)
		if name == nil {
			continue
		}
		windows++
		kind := strings.ReplaceAll(r.Expr, "["+name[2]+"]", "[WINDOW]")
		if first, ok := kinds[name[1]]; ok && first != kind {
			t.Errorf("%s is\n%s\nand another window\n%s", r.Record, kind, first)
		}
		kinds[name[1]] = kind
	}
	if windows != 14 || len(kinds) != 2 {
		t.Errorf("%d windows of %d objectives", windows, len(kinds))
	}
}

func TestEachAlertLeadsToWhatToDo(t *testing.T) {
	guide := string(read(t, "../../../docs/operations.md"))
	all, _ := rules(t)
	for _, r := range all {
		if r.Alert == "" {
			continue
		}
		if !strings.Contains(guide, "\n### "+r.Alert+"\n") || r.Annotations["runbook_url"] != "docs/operations.md#"+strings.ToLower(r.Alert) {
			t.Errorf("%s: %q leads nowhere", r.Alert, r.Annotations["runbook_url"])
		}
		if s := r.Labels["severity"]; s != "critical" && s != "warning" {
			t.Errorf("%s: severity %q", r.Alert, s)
		}
	}
}

type dashboard struct {
	Title      string
	Templating struct {
		List []struct{ Name, Type string }
	}
	Panels []struct {
		ID      int
		Type    string
		Title   string
		Targets []struct{ Expr, LegendFormat string }
	}
}

func board(t *testing.T) (d dashboard) {
	t.Helper()
	if err := json.Unmarshal(read(t, "dashboard.json"), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// The README's table of metrics is compared with what both containers serve, and
// each query of the dashboard is asked of a real Prometheus, in e2e.
func TestRulesAndDashboardUseMetricsThatExist(t *testing.T) {
	table := string(read(t, "../../../README.md"))
	suffix := regexp.MustCompile(`_(bucket|count|sum)$`)
	recorded := map[string]bool{}
	all, _ := rules(t)
	queries := map[string]string{}
	for _, r := range all {
		recorded[r.Record] = true
		queries[r.Alert+r.Record] = r.Expr
	}
	for _, p := range board(t).Panels {
		for i, target := range p.Targets {
			queries[fmt.Sprintf("panel %s, %d", p.Title, i)] = target.Expr
		}
	}
	for where, q := range queries {
		names := regexp.MustCompile(`\bcats_[a-z_]+(?::[a-z_]+:[a-z0-9_]+)?`).FindAllString(q, -1)
		if len(names) == 0 && !strings.Contains(q, "process_") && !strings.Contains(q, "go_") && !strings.Contains(q, "up{") {
			t.Errorf("%s asks for nothing: %s", where, q)
		}
		for _, name := range names {
			if !recorded[name] && !strings.Contains(table, "`"+suffix.ReplaceAllString(name, "")+"`") {
				t.Errorf("%s: there is no %s", where, name)
			}
		}
	}
}

func TestTheDashboardIsWhole(t *testing.T) {
	d := board(t)
	seen := map[int]bool{}
	queries := 0
	for _, p := range d.Panels {
		if seen[p.ID] || p.Title == "" {
			t.Errorf("panel %d %q: its number is taken, or it has no title", p.ID, p.Title)
		}
		seen[p.ID] = true
		for _, target := range p.Targets {
			queries++
			if !strings.Contains(target.Expr, `namespace="$namespace"`) || target.LegendFormat == "" {
				t.Errorf("%s: %s is not for the namespace chosen, or has no legend", p.Title, target.Expr)
			}
		}
	}
	if queries < 20 || len(d.Templating.List) != 2 {
		t.Errorf("%d queries, %d variables", queries, len(d.Templating.List))
	}
}

// The series of a status exists from the first answer with it on: without a 5xx there is none.
func TestShareOf5xxIsZeroWithoutAny(t *testing.T) {
	share := ""
	for _, p := range board(t).Panels {
		if p.Title == "Share of 5xx" {
			share = strings.NewReplacer("$namespace", "cats", "$__rate_interval", "5m").Replace(p.Targets[0].Expr)
		}
	}
	const series = `cats_frontend_http_requests_total{namespace="cats",pod="a",`
	const up = `cats_frontend_build_info{namespace="cats",pod="a"}`
	ok, failed, other := series+`route="/cat/{user}",code="200"}`, series+`route="/cat/{user}",code="503"}`, series+`route="other",code="500"}`
	type input map[string]string
	var tests []any
	for _, c := range []struct {
		what     string
		series   input
		shown    []float64 // by the panel
		recorded []float64
	}{
		{"requests", input{up: "1x20", ok: "0+60x20"}, []float64{0}, []float64{0}},
		{"rejected requests", input{up: "1x20", series + `route="/cat/{user}",code="404"}`: "0+60x20"}, []float64{0}, []float64{0}},
		{"5xx of unknown paths", input{up: "1x20", ok: "0+60x20", other: "0+60x20"}, []float64{0}, []float64{0}},
		{"one request in an hour", input{up: "1x20", ok: "0x12 1x8"}, []float64{0}, []float64{0}},
		{"5xx long ago", input{up: "1x20", ok: "0+60x20", failed: "5x20"}, []float64{0}, []float64{0}},
		{"5xx", input{up: "1x20", ok: "0+45x20", failed: "0+15x20"}, []float64{0.25}, []float64{0.25}},
		{"only 5xx", input{up: "1x20", failed: "0+60x20"}, []float64{1}, []float64{1}},
		{"no request yet", input{up: "1x20"}, []float64{0}, nil},
		{"no frontend", nil, nil, nil},
		{"a frontend elsewhere", input{strings.Replace(up, `"cats"`, `"dogs"`, 1): "1x20"}, nil, nil},
	} {
		var inputs []any
		for name, values := range c.series {
			inputs = append(inputs, map[string]string{"series": name, "values": values})
		}
		samples := func(labels string, values []float64) (all []any) {
			for _, v := range values {
				all = append(all, map[string]any{"labels": labels, "value": v})
			}
			return all
		}
		tests = append(tests, map[string]any{"name": c.what, "interval": "1m", "input_series": inputs, "promql_expr_test": []any{
			map[string]any{"expr": share, "eval_time": "15m", "exp_samples": samples("{}", c.shown)},
			map[string]any{"expr": "cats_frontend:errors:ratio_rate5m", "eval_time": "15m", "exp_samples": samples("cats_frontend:errors:ratio_rate5m", c.recorded)},
		}})
	}
	// Without requests, the recorded ratio is none: an alert must not take it for a good one.
	tests = append(tests, map[string]any{"name": "idle", "interval": "1m", "input_series": []any{
		map[string]string{"series": up, "values": "1x20"}, map[string]string{"series": ok, "values": "60x20"},
	}, "promql_expr_test": []any{
		map[string]any{"expr": share, "eval_time": "15m", "exp_samples": []any{map[string]any{"labels": "{}", "value": 0}}},
		map[string]any{"expr": "cats_frontend:errors:ratio_rate5m >= 0", "eval_time": "15m"},
	}})
	file, err := yaml.Marshal(map[string]any{"rule_files": []string{"rules.yaml"}, "evaluation_interval": "1m", "tests": tests})
	if err != nil {
		t.Fatal(err)
	}
	promtoolWith(t, map[string][]byte{"shares_test.yaml": file}, "test", "rules", "shares_test.yaml")
}

// A PodMonitor's job is called after it, and so is the one without the operator.
func TestBothWaysOfScrapingFindTheSame(t *testing.T) {
	var monitor struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Metadata   struct {
			Name   string            `json:"name"`
			Labels map[string]string `json:"labels"`
		} `json:"metadata"`
		Spec struct {
			Selector struct {
				MatchLabels map[string]string `json:"matchLabels"`
			} `json:"selector"`
			PodMetricsEndpoints []struct {
				Port     string `json:"port"`
				Interval string `json:"interval"`
			} `json:"podMetricsEndpoints"`
		} `json:"spec"`
	}
	if err := yaml.UnmarshalStrict(read(t, "podmonitor.yaml"), &monitor); err != nil {
		t.Fatal(err)
	}
	deployment := string(read(t, "../../base/deployment.yaml"))
	var ports []string
	for _, e := range monitor.Spec.PodMetricsEndpoints {
		ports = append(ports, e.Port)
		if !strings.Contains(deployment, "- name: "+e.Port+"\n") {
			t.Errorf("the pods have no port %s", e.Port)
		}
	}
	if slices.Sort(ports); !slices.Equal(ports, []string{"frontend-ops", "signer-ops"}) {
		t.Errorf("it scrapes %q", ports)
	}
	scrape := string(read(t, "scrape_configs.yaml"))
	job := "cats-api/" + monitor.Metadata.Name
	if !strings.Contains(scrape, "job_name: "+job+"\n") {
		t.Errorf("the other job is not called %s", job)
	}
	if !strings.Contains(scrape, "label: app.kubernetes.io/name="+monitor.Spec.Selector.MatchLabels["app.kubernetes.io/name"]+"\n") {
		t.Error("they select other pods")
	}
	all, _ := rules(t)
	for _, r := range all {
		for _, used := range regexp.MustCompile(`job="([^"]*)"`).FindAllStringSubmatch(r.Expr, -1) {
			if used[1] != job {
				t.Errorf("%s is about the job %q", r.Alert, used[1])
			}
		}
	}
}
