// Package monitoring tests the rules, the scrape configurations and the dashboard.
package monitoring

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

type ruleFile struct {
	Spec struct {
		Groups []struct {
			Name  string  `json:"name"`
			Rules []*rule `json:"rules"`
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

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// unmarshal reads a YAML or JSON file.
func unmarshal[T any](t *testing.T, path string) (v T) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(read(t, path)), &v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return v
}

func rules(t *testing.T) (all []*rule) {
	t.Helper()
	for _, g := range unmarshal[ruleFile](t, "prometheusrule.yaml").Spec.Groups {
		all = append(all, g.Rules...)
	}
	return all
}

// promtool runs promtool in a folder with the files.
func promtool(t *testing.T, files map[string]string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath("promtool"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("promtool is missing: install Debian's package prometheus")
		}
		t.Skip("promtool is missing: install Debian's package prometheus")
	}
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "promtool", args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// groups returns the groups of rules as files that Prometheus reads.
func groups(t *testing.T, file ruleFile) map[string]string {
	t.Helper()
	files := map[string]string{}
	for _, g := range file.Spec.Groups {
		text, err := yaml.Marshal(map[string]any{"groups": []any{g}})
		if err != nil {
			t.Fatal(err)
		}
		files[g.Name+".yaml"] = string(text)
	}
	return files
}

func TestPromtoolAcceptsRulesAndScrapeConfig(t *testing.T) {
	t.Parallel()
	files := groups(t, unmarshal[ruleFile](t, "prometheusrule.yaml"))
	args := slices.Sorted(maps.Keys(files))
	// Debian's Prometheus lacks the Kubernetes service discovery. The cluster tests cover that part.
	files["prometheus.yaml"] = regexp.MustCompile(`(?s)kubernetes_sd_configs:.*?\n    relabel_configs:`).
		ReplaceAllString(read(t, "scrape_configs.yaml"), "static_configs: [{targets: [localhost:8090]}]\n    relabel_configs:")
	promtool(t, files, append([]string{"check", "rules", "--lint=all", "--lint-fatal"}, args...)...)
	promtool(t, files, "check", "config", "prometheus.yaml")
}

func TestRulesPassTheirPromtoolTests(t *testing.T) {
	panel := ""
	for _, p := range unmarshal[dashboard](t, "dashboard.json").Panels {
		if p.Title == "Share of 5xx" {
			panel = "'" + strings.NewReplacer("$namespace", "cats", "$__rate_interval", "5m").Replace(p.Targets[0].Expr) + "'"
		}
	}
	file := unmarshal[ruleFile](t, "prometheusrule.yaml")
	for _, g := range file.Spec.Groups {
		for _, r := range g.Rules {
			delete(r.Annotations, "summary")
			delete(r.Annotations, "runbook_url")
		}
	}
	files := groups(t, file)
	for _, name := range []string{"alerts.yaml", "burn.yaml", "burn_days.yaml", "errors.yaml"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			files := maps.Clone(files)
			files[name] = strings.ReplaceAll(read(t, "testdata/"+name), "PANEL", panel)
			promtool(t, files, "test", "rules", name)
		})
	}
}

func TestEachAlertIsTestedFiringAndSilent(t *testing.T) {
	t.Parallel()
	type tests struct {
		Tests []struct {
			AlertRuleTest []struct {
				Alertname string `json:"alertname"`
				ExpAlerts []any  `json:"exp_alerts"`
			} `json:"alert_rule_test"`
		} `json:"tests"`
	}
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, path := range []string{"testdata/alerts.yaml", "testdata/burn.yaml", "testdata/burn_days.yaml"} {
		for _, each := range unmarshal[tests](t, path).Tests {
			for _, a := range each.AlertRuleTest {
				if len(a.ExpAlerts) > 0 {
					fires[a.Alertname] = true
				} else {
					silent[a.Alertname] = true
				}
			}
		}
	}
	alerts := map[string]bool{}
	for _, r := range rules(t) {
		if r.Alert != "" {
			alerts[r.Alert] = true
		}
	}
	if diff := cmp.Diff(alerts, fires); diff != "" || len(alerts) < 10 {
		t.Errorf("alerts, and those tested firing: %s", diff)
	}
	if diff := cmp.Diff(alerts, silent); diff != "" {
		t.Errorf("alerts, and those tested silent: %s", diff)
	}
}

func TestObjectiveWindowsDifferOnlyInLength(t *testing.T) {
	t.Parallel()
	expressions := map[string]string{}
	windows := 0
	for _, r := range rules(t) {
		name := regexp.MustCompile(`^(.*_rate)(\d+[mhd])$`).FindStringSubmatch(r.Record)
		if name == nil {
			continue
		}
		windows++
		expr := strings.ReplaceAll(r.Expr, "["+name[2]+"]", "[WINDOW]")
		if first, ok := expressions[name[1]]; ok && first != expr {
			t.Errorf("%s is\n%s\nand another window is\n%s", r.Record, expr, first)
		}
		expressions[name[1]] = expr
	}
	if windows != 14 || len(expressions) != 2 {
		t.Errorf("%d windows of %d objectives", windows, len(expressions))
	}
}

func TestAlertsLinkToTheRunbook(t *testing.T) {
	t.Parallel()
	guide := read(t, "../../../docs/operations.md")
	for _, r := range rules(t) {
		if r.Alert == "" {
			continue
		}
		if !strings.Contains(guide, "\n### "+r.Alert+"\n") || r.Annotations["runbook_url"] != "RUNBOOK_URL#"+strings.ToLower(r.Alert) {
			t.Errorf("%s: docs/operations.md has no heading for %q", r.Alert, r.Annotations["runbook_url"])
		}
		if s := r.Labels["severity"]; s != "critical" && s != "warning" || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%s: severity %q, annotations %q", r.Alert, s, r.Annotations)
		}
	}
}

type dashboard struct {
	Templating struct{ List []any }
	Panels     []struct {
		ID      int
		Title   string
		Targets []struct{ Expr, LegendFormat string }
	}
}

// Tests in e2e compare docs/reference/metrics.md with the metrics of both containers, and send each query of the dashboard to a
// Prometheus.
func TestQueriesUseDocumentedMetrics(t *testing.T) {
	t.Parallel()
	documented := read(t, "../../../docs/reference/metrics.md")
	recorded, queries := map[string]bool{}, map[string]string{}
	for _, r := range rules(t) {
		recorded[r.Record] = true
		queries[r.Alert+r.Record] = r.Expr
	}
	for _, p := range unmarshal[dashboard](t, "dashboard.json").Panels {
		for i, target := range p.Targets {
			queries[fmt.Sprintf("panel %s, %d", p.Title, i)] = target.Expr
		}
	}
	suffix := regexp.MustCompile(`_(bucket|count|sum)$`)
	for where, q := range queries {
		names := regexp.MustCompile(`\bcats_[a-z_]+(?::[a-z_]+:[a-z0-9_]+)?`).FindAllString(q, -1)
		if len(names) == 0 && !regexp.MustCompile(`process_|go_|up\{`).MatchString(q) {
			t.Errorf("%s uses no metric: %s", where, q)
		}
		for _, name := range names {
			if !recorded[name] && !strings.Contains(documented, "`"+suffix.ReplaceAllString(name, "")+"`") {
				t.Errorf("%s: docs/reference/metrics.md has no %s", where, name)
			}
		}
	}
}

func TestDashboardPanelsAreComplete(t *testing.T) {
	t.Parallel()
	d := unmarshal[dashboard](t, "dashboard.json")
	ids := map[int]bool{}
	queries := 0
	for _, p := range d.Panels {
		if ids[p.ID] || p.Title == "" {
			t.Errorf("panel %d %q: the ID is taken, or the title is empty", p.ID, p.Title)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			queries++
			if !strings.Contains(target.Expr, `namespace="$namespace"`) || target.LegendFormat == "" {
				t.Errorf("%s: %s does not select the namespace, or has no legend", p.Title, target.Expr)
			}
		}
	}
	if queries < 20 || len(d.Templating.List) != 2 {
		t.Errorf("%d queries, %d variables", queries, len(d.Templating.List))
	}
}

// The operator names a PodMonitor's job NAMESPACE/NAME. The job of scrape_configs.yaml has the same name, which the rules select.
func TestBothScrapeConfigsSelectTheSamePods(t *testing.T) {
	t.Parallel()
	for path, lines := range map[string][]string{
		"podmonitor.yaml":            {"name: cats-api", "app.kubernetes.io/name: cats-api", "app.kubernetes.io/instance: cats-api", "- port: frontend-ops", "- port: signer-ops"},
		"scrape_configs.yaml":        {"job_name: cats-api/cats-api", "label: app.kubernetes.io/name=cats-api,app.kubernetes.io/instance=cats-api", "(frontend|signer)-ops"},
		"../../base/deployment.yaml": {"- name: frontend-ops", "- name: signer-ops"},
	} {
		for _, line := range lines {
			if !strings.Contains(read(t, path), " "+line) {
				t.Errorf("%s has no %q", path, line)
			}
		}
	}
	for _, r := range rules(t) {
		for _, job := range regexp.MustCompile(`job="([^"]*)"`).FindAllStringSubmatch(r.Expr, -1) {
			if job[1] != "cats-api/cats-api" {
				t.Errorf("%s selects the job %q", r.Alert, job[1])
			}
		}
	}
}
