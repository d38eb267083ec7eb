package k8s

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jmespath/go-jmespath"
)

type rule struct {
	Record, Alert, Expr string
	Annotations         map[string]string
}

// rules returns the rules of the component monitoring.
func rules(t *testing.T) (all []rule) {
	t.Helper()
	found, err := jmespath.Search(`PrometheusRule."cats-api".spec.groups[].rules[]`, variants(t)["aks with monitoring"].document)
	text, jsonErr := json.Marshal(found)
	if err := errors.Join(err, jsonErr, json.Unmarshal(text, &all)); err != nil {
		t.Fatal(err)
	}
	return all
}

// ruleFiles returns each group of rules as a file for Prometheus.
func ruleFiles(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{}
	_, text, _ := strings.Cut(read(t, "components/monitoring/prometheusrule.yaml"), "\n  groups:\n")
	const group = "    - name: "
	for _, rules := range strings.Split(text, group)[1:] {
		name, _, _ := strings.Cut(rules, "\n")
		files[name+".yaml"] = "groups:\n" + group + rules
	}
	return files
}

// promtool runs promtool in a folder with the files.
func promtool(t *testing.T, files map[string]string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath("promtool"); err != nil && os.Getenv("CI") == "" {
		t.Skip("promtool is missing: install Debian's package prometheus")
	}
	cmd := exec.CommandContext(t.Context(), "promtool", args...)
	cmd.Dir = t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(cmd.Dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestPromtoolAcceptsRulesAndScrapeConfig(t *testing.T) {
	files := ruleFiles(t)
	args := slices.Sorted(maps.Keys(files))
	// Debian's Prometheus lacks the Kubernetes service discovery. The cluster tests cover that part.
	files["prometheus.yaml"] = regexp.MustCompile(`(?s)kubernetes_sd_configs:.*?\n    relabel_configs:`).
		ReplaceAllString(read(t, "components/monitoring/scrape_configs.yaml"), "static_configs: [{targets: [localhost:8090]}]\n    relabel_configs:")
	promtool(t, files, append([]string{"check", "rules", "--lint=all", "--lint-fatal"}, args...)...)
	promtool(t, files, "check", "config", "prometheus.yaml")
}

func TestRulesPassTheirPromtoolTests(t *testing.T) {
	files := ruleFiles(t)
	for name, text := range files {
		files[name] = regexp.MustCompile(`(?m)^ *(summary|runbook_url): .*\n`).ReplaceAllString(text, "")
	}
	panel := regexp.MustCompile(`(?s)"title": "Share of 5xx".*?"expr": "(.*?)",?\n`).FindStringSubmatch(read(t, "components/monitoring/dashboard.json"))
	query := strings.NewReplacer("$namespace", "cats", "$__rate_interval", "5m", `\"`, `"`).Replace(panel[1])
	tested := ""
	for _, name := range []string{"alerts.yaml", "burn.yaml", "burn_days.yaml", "errors.yaml"} {
		text := strings.ReplaceAll(read(t, "testdata/monitoring/"+name), "PANEL", "'"+query+"'")
		tested += text
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			files := maps.Clone(files)
			files[name] = text
			promtool(t, files, "test", "rules", name)
		})
	}
	want, got := map[string]int{}, map[string]int{}
	for _, r := range rules(t) {
		if r.Alert != "" {
			want[r.Alert+" fires"], want[r.Alert+" is silent"] = 1, 1
		}
	}
	for _, m := range regexp.MustCompile(`alertname: (\w+),.*? exp_alerts: \[(.)`).FindAllStringSubmatch(tested, -1) {
		got[m[1]+map[bool]string{true: " is silent", false: " fires"}[m[2] == "]"]] = 1
	}
	if diff := cmp.Diff(want, got); diff != "" || len(want) < 20 {
		t.Errorf("tests of alerts: %s", diff)
	}
}

func TestObjectiveWindowsDifferOnlyInLength(t *testing.T) {
	expressions := map[string]int{}
	for _, r := range rules(t) {
		if window := regexp.MustCompile(`_rate(\d+[mhd])$`).FindStringSubmatch(r.Record); window != nil {
			expressions[strings.ReplaceAll(r.Expr, "["+window[1]+"]", "[WINDOW]")]++
		}
	}
	if windows := slices.Collect(maps.Values(expressions)); !slices.Equal(windows, []int{7, 7}) {
		t.Errorf("want one expression for 7 windows of each of two objectives; got %v", expressions)
	}
}

// Tests in e2e compare docs/reference/metrics.md with the metrics of both containers, and send each query of the dashboard and each
// recorded one to a Prometheus.
func TestAlertsUseExistingMetricsAndLinkToTheRunbook(t *testing.T) {
	guide, known := read(t, "../docs/operations.md"), read(t, "../docs/reference/metrics.md")
	for _, r := range rules(t) {
		known += "`" + r.Record + "`"
	}
	suffix := regexp.MustCompile(`_(bucket|count|sum)$`)
	for _, r := range rules(t) {
		for _, name := range regexp.MustCompile(`\bcats_[a-z_]+(?::[a-z_]+:[a-z0-9_]+)?`).FindAllString(r.Expr, -1) {
			if !strings.Contains(known, "`"+name+"`") && !strings.Contains(known, "`"+suffix.ReplaceAllString(name, "")+"`") {
				t.Errorf("%s: there is no metric %s", r.Alert, name)
			}
		}
		for _, job := range regexp.MustCompile(`job="[^"]*"`).FindAllString(r.Expr, -1) {
			if job != `job="cats-api/cats-api"` {
				t.Errorf("%s selects the job %q", r.Alert, job)
			}
		}
		link := "https://github.com/OWNER/cats-api/blob/v1.0.0/docs/operations.md#" + strings.ToLower(r.Alert)
		if r.Alert != "" && (!strings.Contains(guide, "\n### "+r.Alert+"\n") || r.Annotations["runbook_url"] != link) {
			t.Errorf("%s: docs/operations.md has no heading for it, or the link is %q", r.Alert, r.Annotations["runbook_url"])
		}
	}
}

func TestDashboardSelectsTheNamespace(t *testing.T) {
	queries := regexp.MustCompile(`"expr": ".*"`).FindAllString(read(t, "components/monitoring/dashboard.json"), -1)
	for _, q := range queries {
		if !strings.Contains(q, `namespace=\"$namespace\"`) {
			t.Errorf("%s does not select the namespace", q)
		}
	}
	if len(queries) < 20 {
		t.Errorf("%d queries", len(queries))
	}
}

// The operator names a PodMonitor's job NAMESPACE/NAME. The job of scrape_configs.yaml has the same name, which the rules select.
func TestBothScrapeConfigsSelectTheSamePods(t *testing.T) {
	variants(t)["aks with monitoring"].wantRules(t, "", "monitoring")
	config := read(t, "components/monitoring/scrape_configs.yaml")
	for _, line := range []string{
		"job_name: cats-api/cats-api", "label: app.kubernetes.io/name=cats-api,app.kubernetes.io/instance=cats-api", "(frontend|signer)-ops",
	} {
		if !strings.Contains(config, " "+line) {
			t.Errorf("scrape_configs.yaml has no %q", line)
		}
	}
}
